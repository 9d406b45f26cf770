"""What a source is: the one class that a file of ``sources/`` defines for its dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pal.config import DatasetConfig
from pal.data.comparisons import Chunk, rejects_frame
from pal.data.splits import SplitPairs
from pal.items import ItemText

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Part = Callable[[], Chunk]
"""reads a part of a source"""


class Adapter(ABC):
    """Reads a source in its published form; ``build.py`` makes the dataset of what it returns."""

    name: ClassVar[str] = ""
    """of the dataset; also the ``kind`` of datasets of other names that are read the same way"""
    Settings: ClassVar[type[DatasetConfig]] = DatasetConfig
    """what ``data.<name>`` of pipeline.yaml may say"""
    licence: str
    origin: str
    """where the rows come from, with the revision that was read"""
    item_text: ItemText = "{response}"
    """how a prompt and a response make an item's text in the view ``response``"""
    keeps_unused_items = False
    """whether items that no comparison mentions are still encoded, so that other users need no new
    cache"""

    def __init__(self, config: Any, dataset: str = "") -> None:
        """Take settings of the own class; ``dataset`` is the name that the user knows it by."""
        self.config = config
        self.dataset = dataset or self.name

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Return the digest of every input file by name; equal inputs and settings need no new
        work."""

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Return what reads the source, part by part; each fits into memory, and each is kept when
        it is read."""

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """Give all comparisons their split and population; these have them already."""
        return SplitPairs(pairs, rejects_frame())

    def truth(self) -> dict[str, np.ndarray]:
        """Return what is known of the users beforehand, stored as ``truth.npz``; empty for real
        data."""
        return {}
