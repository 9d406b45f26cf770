"""What a sweep found so far: one row per finished head, shared by all who work on the sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, JsonValue

from pal.errors import TrainError
from pal.evaluate.records import Cell
from pal.files import atomic_file, locked
from pal.names import FolderName
from pal.records import Damaged, Entry, Record, read_table, write_table
from pal.sweep.plan import Candidate

RESULTS, KIND = "results.parquet", "sweep-rows"
OWN_COLUMNS = ("head", "k", "seed", "lr", "encoder")
"""axes and settings that every row tells, swept or not"""
SPLITS = ("val", "test")
INTERVALS = {
    "macro_ci95": ("ci95_low", "ci95_high"),
    "nll_ci95": ("nll_ci95_low", "nll_ci95_high"),
}
"""the two columns that hold an interval"""


class SweepRow(Entry):
    """One head of a sweep: what it was made with, and what came of it."""

    head_id: str
    head: str
    k: int
    seed: int
    lr: float
    encoder: FolderName
    axes: dict[str, JsonValue] = Field(default_factory=dict)
    """further axes of the sweep and their values"""
    status: Literal["ok", "failed", "dropped"]
    """dropped: by halving, on the way"""
    error: str | None = None
    """why it failed"""
    together: int
    """heads of its stack; 1 if it was trained alone"""
    best_epoch: int | None = None
    params: int | None = None
    seconds: float | None = None
    """of training: its share of the stack's time"""
    val: Cell | None = None
    test: Cell | None = None
    folds: int | None = None
    """cross-fitted: ``val`` and ``test`` are those of all folds together"""
    inner_accuracies: list[float] | None = None
    """validation accuracy of each fold, mean over users: what its own choice goes by"""
    inner_nlls: list[float] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there is no reason to train it again."""
        return self.status != "failed"

    @property
    def rank(self) -> tuple[float, float]:
        """How good it is by validation alone: accuracy, then likelihood."""
        assert self.val is not None, "only heads with status ok have a rank"
        return self.val.macro_accuracy, -self.val.nll

    def rank_in(self, fold: int) -> tuple[float, float]:
        """How good it is by the validation of one fold alone."""
        assert self.inner_accuracies is not None, "only cross-fitted heads have ranks in folds"
        assert self.inner_nlls is not None
        return self.inner_accuracies[fold], -self.inner_nlls[fold]


class BestHead(Entry):
    """The best head of a sweep by validation; of folds, by that of all of them."""

    run: FolderName
    head: str
    k: int
    val_macro_accuracy: float
    head_id: str


class CrossFitted(Entry):
    """What a sweep reaches on prompts that had no part in its choices: in each fold the best head
    by that fold's own validation, tested on the fold."""

    folds: int
    chosen: list[BestHead]
    """in each fold, by its own validation"""
    test: Cell
    """of all folds"""
    n_crossing_folds: int
    """comparisons of items in different folds, which are not tested"""


class SweepSummary(
    Record,
    kind="sweep-summary",
    version=2,
    file="summary.json",
    beside=RESULTS,
    error=TrainError,
    remedy="run the sweep again: pal sweep --name {name}",
):
    """``summary.json``: what the last ``pal sweep`` did, and what there is now."""

    name: FolderName
    dataset: FolderName
    asked: list[str]
    """ids of the heads that were asked for; those that cannot differ are one. The folder may have
    more: of earlier settings, labels or features"""
    heads: int
    """how many those are"""
    trained: int
    """this time, apart from those that failed"""
    reused: int
    failed: int
    why_failed: dict[str, int] = Field(default_factory=dict)
    """reasons, and how many heads failed for each; the most frequent first"""
    dropped: int
    seconds: float
    mode: Literal["stacked", "loop"]
    together: int
    """heads of the largest stack"""
    best: BestHead | None
    cross_fitted: CrossFitted | None = None
    """null without folds"""


def row_of(
    one: Candidate, status: Literal["ok", "failed", "dropped"], together: int, **found: Any
) -> SweepRow:
    """Return the row of a candidate; ``found`` are the fields that came of it."""
    return SweepRow(
        head_id=one.id,
        status=status,
        together=together,
        folds=one.config.sweep.folds,
        **labels_of(one),
        **found,
    )


def labels_of(one: Candidate) -> dict[str, Any]:
    """Return the fields of a row that say by what settings a sweep asked for a head."""
    train = one.config.train
    return {
        "head": train.head,
        "k": train.k,
        "seed": one.config.seed,
        "lr": train.lr,
        "encoder": one.config.encoder,
        "axes": {axis: value for axis, value in one.values.items() if axis not in OWN_COLUMNS},
    }


def best_of(rows: Mapping[str, SweepRow]) -> SweepRow | None:
    """Return the best row by validation, the first of equals; None where no head succeeded."""
    return max((r for r in rows.values() if r.status == "ok"), key=lambda r: r.rank, default=None)


def best_in_fold(rows: Mapping[str, SweepRow], fold: int, folds: int) -> SweepRow | None:
    """Return the best row by the validation of one of so many folds alone, the first of equals."""
    fitted = (r for r in rows.values() if r.status == "ok" and r.folds == folds)
    return max(fitted, key=lambda r: r.rank_in(fold), default=None)


@contextmanager
def open_results(folder: Path) -> Iterator[dict[str, SweepRow]]:
    """Yield the rows of a sweep by id, nobody else changing them, and write what is there then."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / RESULTS):
        rows = read_results(folder)
        yield rows
        ordered = [rows[head] for head in sorted(rows)]
        with atomic_file(folder / RESULTS) as temporary:
            write_table(temporary, table_of(ordered).to_arrow(), KIND)


def labelled(folder: Path, asked: Mapping[str, Candidate]) -> dict[str, SweepRow]:
    """Return the rows of the heads that a sweep asks for, and record them under the settings that
    it asks by: a head that was there before may have been asked for by other axes, and two seeds
    with different labels would not meet in a table."""
    with open_results(folder) as recorded:
        for head, one in asked.items():
            recorded[head] = recorded[head].model_copy(update=labels_of(one))
        return {head: recorded[head] for head in asked}


def read_results(folder: Path) -> dict[str, SweepRow]:
    """Return the finished heads of a sweep by id; raises TrainError for a damaged table."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        table = read_table(path, KIND)
    except Damaged as problem:
        raise TrainError(
            f"{path} {problem}; remove it, and pal sweep --name {folder.name} trains its heads "
            "again"
        ) from None
    rows = pl.DataFrame(pl.from_arrow(table)).iter_rows(named=True)
    return {row.head_id: row for row in map(_row_from, rows)}


def table_of(rows: Sequence[SweepRow]) -> pl.DataFrame:
    """Lay rows out as a table: axes are columns of their own, cells are ``val_*`` and
    ``test_*``."""
    return pl.DataFrame([_flat(row) for row in rows], infer_schema_length=None)


def axes_of(table: pl.DataFrame) -> list[str]:
    """Return the columns of a table that are axes of the sweep, head, K and rate included."""
    fixed = set(SweepRow.model_fields) - {"head", "k", "lr", "encoder"}
    found = [name for name in table.columns if name not in fixed]
    return [name for name in found if not name.startswith(tuple(f"{s}_" for s in SPLITS))]


def _flat(row: SweepRow) -> dict[str, Any]:
    flat = row.model_dump(exclude={"axes", *SPLITS})
    names = list(flat)
    at = names.index("status")
    flat = {**{n: flat[n] for n in names[:at]}, **row.axes, **{n: flat[n] for n in names[at:]}}
    for split in SPLITS:
        cell = getattr(row, split)
        values = {} if cell is None else cell.model_dump()
        for interval, columns in INTERVALS.items():
            ends = values.pop(interval, None) or (None, None)
            values |= dict(zip(columns, ends, strict=True))
        flat |= {f"{split}_{name}": value for name, value in values.items()}
    return flat


def _row_from(flat: dict[str, Any]) -> SweepRow:
    fields = {name: flat.pop(name) for name in list(flat) if name in SweepRow.model_fields}
    for split in SPLITS:
        prefix = f"{split}_"
        names = [name for name in flat if name.startswith(prefix)]
        values = {name.removeprefix(prefix): flat.pop(name) for name in names}
        intervals: dict[str, Any] = {}
        for interval, columns in INTERVALS.items():
            ends = tuple(values.pop(name, None) for name in columns)
            intervals[interval] = None if None in ends else ends
        told = {name: value for name, value in values.items() if value is not None}
        if told:
            fields[split] = Cell(**{"auc": None, **intervals, **told})
    return SweepRow(axes=flat, **fields)
