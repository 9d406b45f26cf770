"""The prepared dataset: the tables that stages exchange, and how they are read back.

    data/<dataset>/items.parquet     one row per unique model input
    data/<dataset>/pairs.parquet     one row per comparison
    data/<dataset>/rejects.parquet   one row per source row that became neither
    data/<dataset>/dataset.json      what it is, where it came from, counts and digests

Ids are 16 bytes; messages print them as 32 hex digits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pal.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

ID_BYTES = 16
SPLITS = ("train", "val", "test")
POPULATIONS = ("seen", "unseen")
Split = Literal["train", "val", "test"]
Population = Literal["seen", "unseen"]
View = Literal["response", "prompt+response"]
"""what a head compares: the responses by themselves, or each behind its prompt"""
CONCATENATED = "{prompt}{response}"
WITH_PROMPT = {"first_id": "first_with_prompt_id", "second_id": "second_with_prompt_id"}


def item_id(kind: str, *parts: str | bytes) -> bytes:
    """Return the 16-byte name of an item: BLAKE2b-128 over its kind and its length-prefixed parts."""
    state = hashlib.blake2b(kind.encode() + b"\0", digest_size=ID_BYTES)
    for part in parts:
        raw = part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.digest()


def ids_of(column: pl.Series) -> np.ndarray:
    """Return a column of 16-byte ids as (n,) S16, null as the empty id; no row becomes a Python object."""
    import numpy as np
    import pyarrow as pa

    fixed = column.fill_null(bytes(ID_BYTES)).to_arrow().cast(pa.binary(ID_BYTES))
    return np.frombuffer(fixed.buffers()[1], f"S{ID_BYTES}", len(fixed), fixed.offset * ID_BYTES)


def items_schema() -> pa.Schema:
    """What an item is. ``modality`` says which columns count.

    text: ``text``, and where it answers something ``context``, the turns before it as JSON [{"role", "content"}, ..];
    image: its bytes stay in the source, ``image_file`` being the image itself, or a Parquet file that holds it in
    column ``image_column`` at row ``image_row`` of row group ``image_group``; ``image_filter`` is what encoding does to
    it first; feature: a float32 vector in ``feature``.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("item_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("text", pa.large_string()),
            pa.field("context", pa.large_string()),
            pa.field("image_file", pa.string()),
            pa.field("image_column", pa.string()),
            pa.field("image_group", pa.int32()),
            pa.field("image_row", pa.int64()),
            pa.field("image_filter", pa.string()),
            pa.field("feature", pa.large_binary()),
        ]
    )


def pairs_schema() -> pa.Schema:
    """``label`` is P(first preferred); ``prompt_id`` is null where a dataset has no prompts.

    ``first_id`` and ``second_id`` are the view ``response``; datasets that also have the view ``prompt+response`` name
    the same two responses with their prompt as context in ``first_with_prompt_id`` and ``second_with_prompt_id``.
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


@dataclass(frozen=True)
class PreparedDataset:
    """A folder made by ``pal prepare``, seen in one view."""

    folder: Path
    card: dict[str, Any]
    view: View = "response"

    @classmethod
    def open(cls, folder: Path) -> PreparedDataset:
        """Read the card of a prepared dataset; raises DataError where there is none."""
        card = folder / "dataset.json"
        if not card.is_file():
            raise DataError(f"{folder} holds no prepared dataset; run: pal prepare --dataset {folder.name}")
        try:
            content = json.loads(card.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{card} is damaged; remove {folder} and run: pal prepare --dataset {folder.name}"
            ) from error
        return cls(folder, content)

    @property
    def name(self) -> str:
        return str(self.card["name"])

    @property
    def item_text(self) -> str:
        """How a prompt and a response make an item's text in the view ``response``."""
        return str(self.card.get("item_text", "{response}"))

    def viewed(self, view: View) -> PreparedDataset:
        """Return the same dataset with the items of a view, or as it is where it has no such view."""
        return replace(self, view=view if view in self.card.get("views", ["response"]) else "response")

    @property
    def split_digest(self) -> str:
        return str(self.card["split_digest"])

    @property
    def items_digest(self) -> str:
        return str(self.card["digests"]["items"])

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """Read the items, sorted by id."""
        return self._read("items.parquet", columns)

    def pairs(
        self,
        split: Split | None = None,
        population: Population | None = None,
        columns: list[str] | None = None,
    ) -> pl.DataFrame:
        """Read the comparisons of one split and one population (None: of all), in the order of the file.

        Rows of other splits never leave the reader: training code cannot see a test label by accident.
        ``first_id`` and ``second_id`` are those of the dataset's view.
        """
        import polars as pl
        import pyarrow.compute as pc

        chosen = None
        for column, value in (("split", split), ("population", population)):
            if value is not None:
                condition = pc.field(column) == value
                chosen = condition if chosen is None else chosen & condition
        if columns is not None and self.view == "prompt+response":
            columns = columns + [WITH_PROMPT[name] for name in WITH_PROMPT if name in columns]
        frame = pl.from_arrow(self._read("pairs.parquet", columns, chosen))
        assert isinstance(frame, pl.DataFrame)
        if self.view == "prompt+response":
            for plain, behind in WITH_PROMPT.items():
                if behind in frame.columns:
                    frame = frame.with_columns(pl.col(behind).alias(plain))
        return frame.drop(WITH_PROMPT.values(), strict=False)

    def _read(self, name: str, columns: list[str] | None, chosen: Any = None) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.folder / name, columns=columns, filters=chosen)
        except (OSError, pa.ArrowInvalid) as error:
            remedy = f"remove {self.folder} and run: pal prepare --dataset {self.folder.name}"
            raise DataError(f"cannot read {self.folder / name} ({type(error).__name__}); {remedy}") from error
