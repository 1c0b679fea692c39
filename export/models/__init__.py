"""The torch modules that are exported."""
