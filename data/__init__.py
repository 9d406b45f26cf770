"""Raw sources to items and pairs. Files here are code; subfolders hold prepared datasets, not in
git."""
