"""The cache key: what a cache's values depend on, and nothing else.

A specification is a JSON object with a ``data`` block (which items) and an ``encoder`` block (which
model, tokenizer, layer, pooling, dtypes). Batch size, device, shard size and paths change no value,
so they are not in it. Another specification is another folder: caches are never reused by accident.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pydantic import JsonValue

from pal.files import canonical_json
from pal.records import JsonObject

LAYOUT_VERSION = 1
NAME = re.compile(r"(?P<encoder>.+)-[0-9a-f]{12}")
"""of a cache's folder"""
Spec = JsonObject


def make_spec(dataset: str, items_digest: str, encoder: JsonObject) -> Spec:
    """Assemble a specification from the digest of the item ids and the encoder's own block."""
    data: JsonObject = {"dataset": dataset, "items": items_digest}
    return {"layout_version": LAYOUT_VERSION, "data": data, "encoder": encoder}


def encoder_of(spec: Spec) -> JsonObject:
    """Return the block of a specification that says which model and which of its values."""
    block = spec["encoder"]
    assert isinstance(block, dict), "make_spec puts an object there"
    return block


def store_dtype(spec: Spec) -> str:
    """Return the dtype in which features are stored."""
    return str(encoder_of(spec)["store_dtype"])


def fingerprint(spec: Spec) -> str:
    """Return the SHA-256 of the canonical JSON of a specification, as 64 hex digits."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def folder_of(root: Path, dataset: str, encoder: str, spec: Spec) -> Path:
    """Return the folder of the cache with this specification: ``root/dataset/encoder-<fp12>``."""
    return root / dataset / f"{encoder}-{fingerprint(spec)[:12]}"


def place_of(folder: Path) -> tuple[str, str] | None:
    """Return dataset and encoder of a cache's folder, or of one within it; None where it does not
    lie as ``folder_of`` says."""
    folder = folder.resolve()
    for one in (folder, folder.parent):
        found = NAME.fullmatch(one.name)
        if found:
            return one.parent.name, found["encoder"]
    return None


def embed_command(folder: Path) -> str:
    """Return the command that fills a cache, as far as its folder says it."""
    place = place_of(folder)
    if place is None:
        return "pal embed"
    return f"pal embed --dataset {place[0]} --encoder {place[1]}"


def differences(found: Spec, wanted: Spec, prefix: str = "") -> list[str]:
    """Name every key in which two specifications differ, with both values."""
    lines: list[str] = []
    for key in sorted(found.keys() | wanted.keys()):
        old: JsonValue = found.get(key, "absent")
        new: JsonValue = wanted.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} in the cache, {new!r} wanted")
    return lines
