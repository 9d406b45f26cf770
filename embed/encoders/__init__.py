"""The encoders, a file for each family."""
