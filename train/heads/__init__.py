"""The heads: plain modules that know nothing of Lightning, files or configuration."""
