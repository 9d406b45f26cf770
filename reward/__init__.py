"""A trained head as somebody else's reward."""
