"""Heads whose parameters are solved for, not stepped to."""
