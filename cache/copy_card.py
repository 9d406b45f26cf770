"""The card of a copy of a cache: what it is, and how other tools read it.

Its head tells ``datasets.load_dataset`` and the Hub which file holds the rows.
"""

from __future__ import annotations

from pal.cache.records import Manifest

READ = {
    "fsl": """```python
datasets.load_dataset("{folder}")["train"]  # or the name of the repository
pandas.read_parquet("{folder}/features.parquet")
duckdb.sql("SELECT item_id, feature FROM '{folder}/features.parquet'")
```""",
    "npy": """```python
numpy.load("{folder}/features.npy", mmap_mode="r")  # row i is the item item_ids.npy[i]
```""",
    "safetensors": """```python
safetensors.torch.load_file("{folder}/features.safetensors")  # feature, and item_id as bytes
```""",
}
HEAD = """---
pretty_name: {dataset} under {encoder}
tags: [embeddings, pal]
configs:
- config_name: default
  data_files: features.parquet
---
"""


def card(manifest: Manifest, kind: str, folder: str) -> str:
    """Return README.md in Markdown for a copy in ``folder``."""
    untrained = (
        "\n**The encoder has random weights: these features are for tests.**\n"
        if manifest.untrained
        else ""
    )
    dataset, encoder = manifest.dataset, manifest.encoder
    head = HEAD.format(dataset=dataset, encoder=encoder) if kind == "fsl" else ""
    return f"""{head}# {dataset} under {encoder}
{untrained}
{manifest.rows:,} features of {manifest.dim} numbers, one for each unique item of dataset
{dataset}. `item_id` is the BLAKE2b-128 of an item's content, and `cache.json` says which encoder
read it and how (fingerprint `{manifest.fingerprint[:12]}`).

{READ[kind].format(folder=folder)}
"""
