"""Rewards inside other tools."""
