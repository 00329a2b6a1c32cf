"""HTML pages in one file each: no network, no library, light and dark, readable on a phone and on paper."""
