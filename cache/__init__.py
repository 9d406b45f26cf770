"""The contract between the stages: features as Parquet shards.

Files here are code; subfolders hold caches.
"""
