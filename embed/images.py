"""Images by the items' pointers: bytes from a file or a Parquet column, decoded or refused with a
reason."""

from __future__ import annotations

import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal.data.filters import render

LARGEST_PIXELS = 100_000_000
GROUPS_KEPT = 4
COLUMNS = ("image_file", "image_column", "image_group", "image_row", "image_filter")


@dataclass(frozen=True)
class Pointer:
    """Where an image's bytes are: a file, or a row of a row group of a Parquet file."""

    file: str
    column: str | None = None
    group: int | None = None
    row: int | None = None
    filter: str | None = None
    """what is done to the decoded image before the model's own preprocessing"""

    @classmethod
    def of(cls, items: Any) -> list[Pointer | None]:
        """Return the pointer of each row of a pyarrow Table; None where the item is no image."""
        rows = zip(*(items.column(name).to_pylist() for name in COLUMNS), strict=True)
        return [None if place[0] is None else cls(*place) for place in rows]


class ImageReader:
    """Reads bytes; the row groups read last stay in memory, since neighbours are asked for
    together."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def bytes_of(self, pointer: Pointer) -> bytes:
        """Return an image's bytes; raises OSError, ValueError or an Arrow error where there are
        none."""
        if pointer.column is None:
            return Path(pointer.file).read_bytes()
        assert pointer.group is not None
        assert pointer.row is not None
        with self._lock:
            key = (pointer.file, pointer.column, pointer.group)
            if key not in self._groups:
                self._groups[key] = read_group(*key)
                while len(self._groups) > GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            value = self._groups[key][pointer.row].as_py()
        if isinstance(value, dict):  # the image feature of Hugging Face datasets
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ValueError(
                f"{pointer.column} holds no bytes at row {pointer.row} of row group {pointer.group}"
            )
        return value


def read_group(file: str, column: str, group: int) -> Any:
    """Return one column of one row group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(0)


def decode_filtered(raw: bytes, pointer: Pointer) -> Any:
    """Return the decoded image as its pointer wants it."""
    image = decode(raw)
    return image if pointer.filter is None else render(image, pointer.filter)


def decode(raw: bytes) -> Any:
    """Return a PIL image, its pixels decoded; raises ValueError, OSError or a PIL error with the
    reason."""
    from PIL import Image

    if not raw:
        raise ValueError("the image has zero bytes")
    image = Image.open(io.BytesIO(raw))
    if image.width * image.height > LARGEST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {LARGEST_PIXELS:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata beside sound pixels
        image.load()
    return image


def in_source_order(items: Any) -> Any:
    """Sort a pyarrow Table of items by pointer and id: neighbours in the source are encoded
    together.

    In the order of ids, which are hashes, each image would cost the reading of a whole row group.
    """
    if items.column("image_file").null_count == len(items):
        return items
    keys: Sequence[tuple[str, Any]] = [
        (name, "ascending") for name in ("image_file", "image_group", "image_row")
    ]
    return items.sort_by([*keys, ("item_id", "ascending")])
