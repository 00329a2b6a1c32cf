"""A run is a folder that needs nothing else. No torch here."""
