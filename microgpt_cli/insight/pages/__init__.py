"""Self-contained HTML pages: one file each, no network access, light and dark themes, for phones and print."""
