"""New users from a few answers, everything else frozen."""
