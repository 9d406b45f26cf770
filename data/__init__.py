"""Raw sources to items and pairs. Files here and in sources/ are code; the other subfolders hold
prepared datasets, not in git."""
