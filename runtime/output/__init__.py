"""Results as images, JSON and videos."""
