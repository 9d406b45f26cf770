"""What the numbers mean: predictions, metrics with error bars, tables."""
