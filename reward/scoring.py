"""Rewards of a file's rows, block by block: a killed run goes on where it was.

Finished rewards are numbers in ``.<output>.part``, and ``.<output>.json`` says for which input and
model. Nothing of the input is copied: the output is made of the input and the rewards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pal.errors import PalError, RewardError
from pal.files import atomic_file, digest, file_sha256
from pal.records import Record
from pal.reward.model import RewardModel
from pal.reward.rows import Row, blocks, read_rows
from pal.users import user_name

Progress = Callable[[int], None]


class ScoringState(
    Record, kind="scoring", file=".scoring.json", error=RewardError, remedy="remove it"
):
    """How far the scoring of a file has come. A damaged state is none: scoring begins anew."""

    input: str
    input_sha256: str
    model: str
    """digest of the export's record"""
    rows: int = 0
    rewards_sha256: str = hashlib.sha256().hexdigest()
    """of the rewards of those rows"""


class Scoring:
    """The rewards of a file's rows, in a file of their own that grows block by block."""

    def __init__(self, model: RewardModel, source: Path, target: Path, progress: Progress) -> None:
        self.model, self.source, self.progress = model, source, progress
        self.part = target.parent / f".{target.name}.part"
        self.state_file = target.parent / f".{target.name}.json"
        self.known: set[str] = set()
        self.unknown: set[str] = set()
        self.stamp = _stamp(source)
        self.state = ScoringState(
            input=str(source.resolve()),
            input_sha256=file_sha256(source),
            model=digest(model.metadata.model_dump(mode="json")),
        )

    def run(self) -> None:
        """Score every row that has no reward yet."""
        hashed = self._resume()
        columns = ("prompt", self.item_column, "user_id")
        rows = 0
        try:
            with open(self.part, "ab") as out:
                for block in blocks(read_rows(self.source, columns)):
                    names = self._names(block, rows)
                    if rows >= self.state.rows:  # blocks always begin at the same rows
                        raw = self._score(block, names, rows).astype("<f8").tobytes()
                        out.write(raw)
                        out.flush()
                        os.fsync(out.fileno())
                        hashed.update(raw)
                        self._save(rows + len(block), hashed.hexdigest())
                    rows += len(block)
                    self.progress(len(block))
        finally:
            if not self.state.rows:  # nothing was done that could go on
                self.part.unlink(missing_ok=True)

    @property
    def item_column(self) -> str:
        return "image" if self.model.is_image else "response"

    def rewards(self) -> np.ndarray:
        """Return the rewards of all rows, (n,) float64, which stay on disk."""
        if not self.state.rows:
            return np.empty(0)
        return np.memmap(self.part, dtype="<f8", mode="r", shape=(self.state.rows,))

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

        Returns the hash of the rewards that are kept.
        """
        new = self.state
        try:
            found = ScoringState.read_file(self.state_file)
            hashed = _sha256_of_start(self.part, 8 * found.rows)
        except (PalError, OSError):
            found, hashed = new, hashlib.sha256()
        same = {"rows": new.rows, "rewards_sha256": new.rewards_sha256}
        is_whole = hashed.hexdigest() == found.rewards_sha256
        if found.rows and is_whole and found.model_copy(update=same) == new:
            os.truncate(self.part, 8 * found.rows)  # what was half written
            self.state = found
            return hashed
        self.part.unlink(missing_ok=True)
        return hashlib.sha256()

    def _save(self, rows: int, rewards_sha256: str) -> None:
        state = self.state.model_copy(update={"rows": rows, "rewards_sha256": rewards_sha256})
        with atomic_file(self.state_file) as temporary:
            state.write_to(temporary)
        self.state = state

    def _names(self, block: list[Row], start: int) -> list[Any]:
        """Return whose reward each row wants: a user's name, a mixture or nobody."""
        users: list[Any] = []
        for number, row in enumerate(block, start=start + 1):
            user = row.get("user_id")
            if not isinstance(user, dict):
                try:
                    user = user_name(user)
                except PalError as error:
                    raise RewardError(f"{self.source} row {number}: {error}") from error
                if user is not None:
                    (self.known if user in self.model.users else self.unknown).add(user)
            users.append(user)
        return users

    def _score(self, block: list[Row], users: list[Any], start: int) -> np.ndarray:
        """Return the rewards of a block of rows that begins after ``start`` others."""
        rendered = []
        for number, row in enumerate(block, start=start + 1):
            if row.get(self.item_column) is None:
                raise RewardError(
                    f"{self.source} row {number} has no {self.item_column!r}; give one to every row"
                )
            item = row[self.item_column]
            if self.model.is_image and isinstance(item, dict):  # as Hugging Face datasets keep it
                item = item.get("bytes") or item.get("path")
            try:
                rendered.append(self.model.row(row.get("prompt"), item))
            except PalError as error:
                raise RewardError(f"{self.source} row {number}: {error}") from error
        try:
            vectors = self.model.users.vectors(users)
        except RewardError as error:
            last = start + len(block)
            raise RewardError(f"{self.source}, in rows {start + 1} to {last}: {error}") from error
        rewards, failures = self.model.score_rows(rendered, vectors)
        if failures:
            bad = min(failures)
            raise RewardError(
                f"{self.source} row {start + bad + 1} cannot be scored: {failures[bad]}"
            )
        found: np.ndarray = rewards.double().numpy()
        return found


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
