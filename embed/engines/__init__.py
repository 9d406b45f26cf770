"""Who does the shards."""
