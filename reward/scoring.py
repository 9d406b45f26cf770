"""Outcomes of a file's rows, block by block: a killed run goes on where it was.

Finished outcomes are lines of JSON in ``.<output>.part``, a reward (of a comparison P(first
preferred)) or the reason why there is none, and ``.<output>.json`` says for which input and model.
Nothing of the input is copied: the output is made of the input and the outcomes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pal.errors import PalError, RewardError
from pal.files import atomic_file, digest, file_sha256
from pal.items import storable
from pal.records import Record
from pal.reward.cells import number_in_file
from pal.reward.comparisons import compare_each
from pal.reward.model import RewardModel
from pal.reward.output import PROBABILITY, REWARD, Outcome
from pal.reward.rows import SIDES, blocks, item_in, read_rows, sides_of
from pal.rows import BadRow, Row
from pal.users import user_name

Progress = Callable[[int], None]
LONGEST_REASON = 500


class ScoringState(
    Record, kind="scoring", file=".scoring.json", error=RewardError, remedy="remove it"
):
    """How far the scoring of a file has come. A damaged state is none: scoring begins anew."""

    input: str
    input_sha256: str
    model: str
    """digest of the export's record, and of what it was taught of people"""
    outcome: str
    """what is said of a row: reward or p"""
    rows: int = 0
    size: int = 0
    """bytes of the outcomes of those rows"""
    outcomes_sha256: str = hashlib.sha256().hexdigest()


class Scoring:
    """The outcomes of a file's rows, in a file of their own that grows block by block."""

    def __init__(
        self,
        model: RewardModel,
        source: Path,
        target: Path,
        progress: Progress,
        compares: bool = False,
        answers: Path | None = None,
    ) -> None:
        """``compares``: rows are comparisons. ``answers``: what the model was taught of people."""
        self.model, self.source, self.progress = model, source, progress
        self.compares = compares
        self.outcome = PROBABILITY if compares else REWARD
        """the column of what is said of a row"""
        self.part = target.parent / f".{target.name}.part"
        self.state_file = target.parent / f".{target.name}.json"
        self.known: set[str] = set()
        self.unknown: set[str] = set()
        self.stamp = _stamp(source)
        taught = model.metadata.model_dump(mode="json")
        if answers is not None:
            taught["answers"] = file_sha256(answers)
        self.state = ScoringState(
            input=str(source.resolve()),
            input_sha256=file_sha256(source),
            model=digest(taught),
            outcome=self.outcome,
        )

    def run(self) -> None:
        """Score every row that has no outcome yet."""
        hashed = self._resume()
        columns = ("prompt", "user_id", *(name for items in self.item_columns for name in items))
        rows = 0
        try:
            with open(self.part, "ab") as out:
                for block in blocks(read_rows(self.source, columns)):
                    self._count_users(block)
                    if rows >= self.state.rows:  # blocks always begin at the same rows
                        lines = (_line(found) for found in self._score(block))
                        raw = "".join(lines).encode()
                        out.write(raw)
                        out.flush()
                        os.fsync(out.fileno())
                        hashed.update(raw)
                        self._save(rows + len(block), len(raw), hashed.hexdigest())
                    rows += len(block)
                    self.progress(len(block))
        finally:
            if not self.state.rows:  # nothing was done that could go on
                self.part.unlink(missing_ok=True)

    @property
    def item_column(self) -> str:
        return "image" if self.model.is_image else "response"

    @property
    def item_columns(self) -> tuple[tuple[str, ...], ...]:
        """The columns that a row's items may stand in: all of one of these."""
        return SIDES if self.compares else ((self.item_column,),)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcomes of all rows, from the disk."""
        if self.state.rows:
            with open(self.part, encoding="utf-8") as lines:
                yield from map(json.loads, islice(lines, self.state.rows))

    def failures(self) -> tuple[int, str | None]:
        """Return how many rows have no reward, and which is the first of them and why."""
        count, first = 0, None
        for number, outcome in enumerate(self.outcomes(), start=1):
            if isinstance(outcome, str):
                count += 1
                first = first or f"row {number_in_file(self.source, number)}: {outcome}"
        return count, first

    def require_unchanged(self) -> None:
        """Raise RewardError if the input is no longer the one that was scored."""
        if _stamp(self.source) != self.stamp:
            raise RewardError(f"{self.source} has changed while it was scored; score it again")

    def remove(self) -> None:
        """Remove what only a killed run would need."""
        self.state_file.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def _resume(self) -> Any:
        """Take over what an earlier call has done for the same input and model.

        Returns the hash of the outcomes that are kept.
        """
        new = self.state
        try:
            found = ScoringState.read_file(self.state_file)
            hashed = _sha256_of_start(self.part, found.size)
        except (PalError, OSError):
            found, hashed = new, hashlib.sha256()
        same = {"rows": new.rows, "size": new.size, "outcomes_sha256": new.outcomes_sha256}
        is_whole = hashed.hexdigest() == found.outcomes_sha256
        if found.rows and is_whole and found.model_copy(update=same) == new:
            os.truncate(self.part, found.size)  # what was half written
            self.state = found
            return hashed
        self.part.unlink(missing_ok=True)
        return hashlib.sha256()

    def _save(self, rows: int, more: int, outcomes_sha256: str) -> None:
        done = {"rows": rows, "size": self.state.size + more, "outcomes_sha256": outcomes_sha256}
        state = self.state.model_copy(update=done)
        with atomic_file(self.state_file) as temporary:
            state.write_to(temporary)
        self.state = state

    def _count_users(self, block: Sequence[Row | BadRow]) -> None:
        for row in block:
            user = row.get("user_id") if isinstance(row, dict) else None
            if isinstance(user, dict):  # a mixture
                continue
            try:
                name = user_name(user)
            except PalError:
                continue
            if name is not None:
                (self.known if name in self.model.users else self.unknown).add(name)

    def _score(self, block: Sequence[Row | BadRow]) -> list[Outcome]:
        """Return the outcomes of a block of rows."""
        outcomes: list[Outcome] = ["" for _ in block]
        places: list[int] = []
        rows: list[tuple[Any, ...]] = []
        for place, row in enumerate(block):
            if isinstance(row, BadRow):
                outcomes[place] = row.reason
                continue
            columns = self._columns_of(row)
            items = [item_in(row, name, self.model.is_image) for name in columns]
            missing = [name for name, item in zip(columns, items, strict=True) if item is None]
            if missing:
                outcomes[place] = f"no {' and no '.join(map(repr, missing))} is given"
            else:
                places.append(place)
                rows.append((row.get("prompt"), *items, row.get("user_id")))
        values, failures = self._values_of(rows) if rows else ([], {})
        for number, (place, value) in enumerate(zip(places, values, strict=True)):
            outcomes[place] = failures[number] if value is None else value
        return [storable(o)[:LONGEST_REASON] if isinstance(o, str) else o for o in outcomes]

    def _columns_of(self, row: Row) -> tuple[str, ...]:
        """Return the columns in which the items of a row stand, or should."""
        if not self.compares:
            return (self.item_column,)
        return sides_of(row) or SIDES[0]

    def _values_of(
        self, rows: Sequence[tuple[Any, ...]]
    ) -> tuple[list[float | None], dict[int, str]]:
        """Return what is said of each row, None where nothing can be, and the reason by row."""
        columns = zip(*rows, strict=True)
        return (
            compare_each(self.model, *columns) if self.compares else self.model.score_each(*columns)
        )


def _line(outcome: Outcome) -> str:
    return json.dumps(outcome, allow_nan=False) + "\n"


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sha256_of_start(path: Path, size: int) -> Any:
    """Return the hash of the first bytes of a file, of all if it is shorter."""
    hashed = hashlib.sha256()
    with open(path, "rb") as stream:
        while size > 0 and (raw := stream.read(min(size, 1 << 20))):
            hashed.update(raw)
            size -= len(raw)
    return hashed
