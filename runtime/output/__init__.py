"""Results as pictures, JSON and videos."""
