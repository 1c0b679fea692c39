"""Many callers of one model."""
