"""Stage two: light heads trained from cached features."""
