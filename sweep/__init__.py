"""Many heads from one cache."""
