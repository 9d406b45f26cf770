"""The prepared dataset: the tables that stages exchange, and how they are read back.

    data/<dataset>/dataset.json      the card: what it is, where it came from, counts, seals
    data/<dataset>/items.parquet     one row per unique model input (pal.items)
    data/<dataset>/pairs.parquet     one row per comparison
    data/<dataset>/rejects.parquet   one row per source row that became neither
    data/<dataset>/truth.npz         what is known of made-up users beforehand

Ids are 16 bytes; messages print them as 32 hex digits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pal.errors import DataError
from pal.files import recover
from pal.items import ID_BYTES, ItemText, View
from pal.names import FolderName, InnerPath, did_you_mean_folder
from pal.records import Damaged, Entry, JsonObject, Record, read_table

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

SPLITS = ("train", "val", "test")
POPULATIONS = ("seen", "unseen")
Split = Literal["train", "val", "test"]
Population = Literal["seen", "unseen"]
Divided = Literal["prompt", "prompt+items", "items"]
"""what splits divide: prompts, prompts joined by their items, or the items of all prompts"""
FEWEST = 5
"""users, or prompt groups, of which a number can mean something: by Student's t an interval over 5
is 1.4 times as wide as over many, over 3 it is 2.2 times as wide, over 2 it is 6.5 times"""
CONCATENATED: ItemText = "{prompt}{response}"
WITH_PROMPT = {"first_id": "first_with_prompt_id", "second_id": "second_with_prompt_id"}
ITEMS, PAIRS, REJECTS, TRUTH = "items.parquet", "pairs.parquet", "rejects.parquet", "truth.npz"


class PairsPerUser(Entry):
    least: int
    median: float
    most: int


class Counts(Entry):
    """What is in a dataset, in numbers."""

    items: int
    items_by_modality: dict[str, int]
    pairs: int
    ties: int
    tie_rate: float
    prompts: int
    item_mentions: int
    """how often items are named by comparisons: what encoding without unique items would cost"""
    encodings_saved_by_unique_items: float
    seen_users: int
    unseen_users: int
    pairs_per_user: PairsPerUser
    repeated: int
    """comparisons that a user was given before, on whichever side"""
    contradictory: int
    """those of them that the user answered in different ways"""
    cells: dict[str, int]
    """pairs by ``<split>_<population>``"""
    cell_users: dict[str, int]
    """users in each cell"""
    cell_groups: dict[str, int]
    """prompt groups in each cell"""


class SplitDetails(Entry):
    """What dividing the comparisons over splits found."""

    read: int | None = None
    """comparisons before any was left out"""
    divided: Divided | None = None
    """what splits divide"""
    why: str | None = None
    """why that"""
    shared_answers: int | None = None
    """items that answer so many prompts that they join none"""
    prompt_groups: int | None = None
    """groups of prompts that no split divides, or items where those are divided"""
    largest_prompt_group: int | None = None
    """pairs of the largest of them"""
    min_pairs: int | None = None
    """evaluated pairs that a new user must have"""
    evaluated_share: float | None = None
    """share of a new user's comparisons that can be evaluated on"""
    users_left_out: dict[str, int] = Field(default_factory=dict)
    """users of whom no comparison is left, by the most frequent reason"""
    seen_workers: list[str] | None = None
    sizes_before_rejects: dict[str, int] | None = None
    published_sizes: str | None = None
    """whether the source gives the sizes that were published"""


class Digests(Entry):
    items: str
    """of the item ids: the part of a dataset that a cache depends on"""
    pairs: str
    """of pair ids, labels, splits and populations: what heads are trained and judged on"""


class DatasetCard(
    Record,
    kind="dataset",
    version=5,
    file="dataset.json",
    beside=PAIRS,
    error=DataError,
    remedy="run: pal prepare --dataset {name}",
):
    """``dataset.json``."""

    name: FolderName
    source: str | None
    """as it was given; null where none was needed"""
    revision: str
    """where the rows came from, with the revision that was read"""
    licence: str
    settings: JsonObject
    """of ``data.<name>``, without the source"""
    inputs: dict[str, str]
    """digest of each file of the source"""
    item_text: ItemText = "{response}"
    """how a prompt and a response make an item's text in the view ``response``"""
    views: tuple[View, ...] = ("response",)
    counts: Counts
    splitting: SplitDetails = SplitDetails()
    rejects: dict[str, int]
    """rows by the reason why they are no comparison"""
    digests: Digests
    split_digest: str
    files: dict[InnerPath, str]
    """seal of each table beside the card"""


def ids_of(column: pl.Series) -> np.ndarray:
    """Return a column of 16-byte ids as (n,) S16, null as the empty id, without Python objects."""
    import numpy as np
    import pyarrow as pa

    fixed = column.fill_null(bytes(ID_BYTES)).to_arrow().cast(pa.binary(ID_BYTES))
    return np.frombuffer(fixed.buffers()[1], f"S{ID_BYTES}", len(fixed), fixed.offset * ID_BYTES)


def pairs_schema() -> pa.Schema:
    """``label`` is P(first preferred); ``prompt_id`` is null where a dataset has no prompts.

    ``first_id`` and ``second_id`` are the view ``response``; datasets that also have the view
    ``prompt+response`` name the same two responses with their prompt as context in
    ``first_with_prompt_id`` and ``second_with_prompt_id``. ``group_id`` is the prompt group, which
    no split divides. Where items are divided instead, it is the one of the two items that is
    compared more often, and ``other_group_id`` is the other one: a split, or a fold, holds a pair
    if it holds both.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("pair_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("prompt_id", pa.binary(ID_BYTES)),
            pa.field("first_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("second_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("label", pa.float64(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("population", pa.string(), nullable=False),
            pa.field("group_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("other_group_id", pa.binary(ID_BYTES)),
        ]
    )


def rejects_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("source_row", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
        ]
    )


def oriented(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add what a comparison is whichever side its items stand on: ``low`` and ``high``, the two
    items in one order, ``p_low`` = P(low preferred), and whether that ``swapped`` the sides."""
    import polars as pl

    swapped = pl.col("first_id") > pl.col("second_id")
    return pairs.with_columns(
        low=pl.when(swapped).then("second_id").otherwise("first_id"),
        high=pl.when(swapped).then("first_id").otherwise("second_id"),
        p_low=pl.when(swapped).then(1.0 - pl.col("label")).otherwise("label"),
        swapped=swapped,
    )


@dataclass(frozen=True)
class PreparedDataset:
    """A folder made by ``pal prepare``, seen in one view."""

    folder: Path
    card: DatasetCard
    view: View = "response"

    @classmethod
    def open(cls, folder: Path) -> PreparedDataset:
        """Read the card of a prepared dataset; raises DataError where there is none."""
        recover(folder)
        if not (folder / DatasetCard.file).is_file():
            hint = did_you_mean_folder(folder, DatasetCard.file)
            raise DataError(
                f"{folder} holds no prepared dataset{hint} run: pal embed --dataset "
                f"{folder.name}, which prepares it first"
            )
        return cls(folder, DatasetCard.read(folder))

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def item_text(self) -> ItemText:
        return self.card.item_text

    @property
    def split_digest(self) -> str:
        return self.card.split_digest

    @property
    def items_digest(self) -> str:
        return self.card.digests.items

    @property
    def pairs_digest(self) -> str:
        return self.card.digests.pairs

    @property
    def salt(self) -> str:
        """What every random choice of the construction depended on."""
        return str(self.card.settings.get("salt", "v1"))

    def viewed(self, view: View) -> PreparedDataset:
        """Return the same dataset with the items of a view, or as it is without such a view."""
        return replace(self, view=view if view in self.card.views else "response")

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """Read the items, sorted by id."""
        return self._read(ITEMS, columns)

    def rejects(self) -> pa.Table:
        """Read the source rows that became no comparison, with the reason."""
        return self._read(REJECTS, None)

    def pairs(
        self,
        split: Split | None = None,
        population: Population | None = None,
        columns: list[str] | None = None,
    ) -> pl.DataFrame:
        """Read the comparisons of one split and one population (None: of all), in file order.

        Rows of other splits never leave the reader: training code cannot see a test label by
        accident. ``first_id`` and ``second_id`` are those of the dataset's view.
        """
        import polars as pl
        import pyarrow.compute as pc

        wanted = {"split": split, "population": population}
        conditions = [
            pc.field(name) == value for name, value in wanted.items() if value is not None
        ]
        if columns is not None and self.view == "prompt+response":
            columns = columns + [WITH_PROMPT[name] for name in WITH_PROMPT if name in columns]
        rows = reduce(and_, conditions) if conditions else None
        frame = pl.DataFrame(pl.from_arrow(self._read(PAIRS, columns, rows)))
        if self.view == "prompt+response":
            for plain, behind in WITH_PROMPT.items():
                if behind in frame.columns:
                    frame = frame.with_columns(pl.col(behind).alias(plain))
        return frame.drop(WITH_PROMPT.values(), strict=False)

    def _read(self, name: str, columns: list[str] | None, rows: Any = None) -> pa.Table:
        path = self.folder / name
        kind = name.removesuffix(".parquet")
        try:
            return read_table(
                path, kind, expected=self.card.files.get(name, ""), columns=columns, rows=rows
            )
        except Damaged as problem:
            raise DataError(f"{path} {problem}; {DatasetCard.remedy_for(self.folder)}") from None
