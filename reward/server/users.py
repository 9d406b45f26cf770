"""Users who were adapted at runtime, in SQLite: they survive a restart, and belong to one head."""

from __future__ import annotations

import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pal.errors import PalWarning, RewardError

TABLE = (
    "CREATE TABLE IF NOT EXISTS user_vectors "
    "(head TEXT, user TEXT, answers INTEGER, vector BLOB, PRIMARY KEY (head, user))"
)


class UserStore:
    """The vectors of one head's users; those of other heads in the same file are left alone."""

    def __init__(self, path: Path, head: str) -> None:
        """Open or make a file; raises RewardError where there can be none."""
        self.path, self.head = path, head
        self._lock = threading.Lock()
        with self._told():
            self.connection = sqlite3.connect(path, check_same_thread=False)
        with self._transaction() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)

    def put(self, user: str, answers: int, vector: Tensor) -> None:
        """Keep the vector of a user, (R,)."""
        raw = vector.float().cpu().numpy().tobytes()
        with self._transaction() as connection:
            connection.execute(
                "REPLACE INTO user_vectors VALUES (?, ?, ?, ?)", (self.head, user, answers, raw)
            )

    def remove(self, user: str) -> bool:
        """Forget a user, and say whether there was one."""
        with self._transaction() as connection:
            done = connection.execute(
                "DELETE FROM user_vectors WHERE head = ? AND user = ?", (self.head, user)
            )
            return done.rowcount > 0

    def load(self, size: int) -> dict[str, Tensor]:
        """Return every user's vector, (size,); a row that is none is left out with a warning."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT user, vector FROM user_vectors WHERE head = ?", (self.head,)
            ).fetchall()
        found = {user: _vector(raw, size) for user, raw in rows if isinstance(user, str)}
        sound = {user: vector for user, vector in found.items() if vector is not None}
        if len(sound) < len(rows):
            warnings.warn(
                f"{len(rows) - len(sound)} of {len(rows)} users in {self.path} have no vector of "
                f"{size} numbers and are left out; adapt them again",
                PalWarning,
                stacklevel=2,
            )
        return sound

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._told(), self._lock, self.connection:
            yield self.connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RewardError(
                f"cannot keep users in {self.path} ({error}); give another file as serve.store"
            ) from error


def _vector(raw: object, size: int) -> Tensor | None:
    if not isinstance(raw, bytes) or len(raw) != 4 * size:
        return None
    vector = torch.frombuffer(bytearray(raw), dtype=torch.float32) if size else torch.empty(0)
    return vector if bool(torch.isfinite(vector).all()) else None
