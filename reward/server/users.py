"""Users who were adapted at runtime, in SQLite: they survive a restart, and belong to one head."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pal.errors import PalWarning, RewardError
from pal.reward.audience import Newcomer

COLUMNS = ["head", "user", "answers", "vector"]
TABLE = (
    "CREATE TABLE IF NOT EXISTS user_vectors "
    "(head TEXT, user TEXT, answers INTEGER, vector BLOB, PRIMARY KEY (head, user))"
)
NEWCOMERS = (
    "CREATE TABLE IF NOT EXISTS newcomers "
    "(head TEXT, user TEXT, numbers BLOB, PRIMARY KEY (head, user))"
)
"""who users may be"""
FORGET_NEWCOMER = "DELETE FROM newcomers WHERE head = ? AND user = ?"
SEAL_BYTES = 16
"""of the hash behind each vector"""


class UserStore:
    """The vectors of one head's users; those of other heads in the same file are left alone.

    One server at a time keeps the users of a head in a file: another one would not know what this
    one forgets.
    """

    def __init__(self, path: Path, head: str) -> None:
        """Open or make a file; raises RewardError where there can be none."""
        self.path, self.head = path, head
        self._lock = threading.Lock()
        with self._told():
            self.connection = sqlite3.connect(path, check_same_thread=False)
        self.connection.text_factory = bytes  # what is no text must not stop the others
        self._own = FileLock(f"{path}.{head[:12]}.lock", thread_local=False)
        try:
            with self._told():
                self._own.acquire(timeout=0)
            self._require_sound()
        except BaseException:
            self.close()
            raise

    def put(
        self, user: str, answers: int, vector: Tensor, newcomer: Newcomer | None = None
    ) -> None:
        """Keep the vector of a user, (R,), and who the user may be."""
        with self._transaction() as connection:
            connection.execute(
                "REPLACE INTO user_vectors VALUES (?, ?, ?, ?)",
                (self.head, user, answers, self._sealed(user, vector)),
            )
            connection.execute(FORGET_NEWCOMER, (self.head, user))
            if newcomer is not None:
                connection.execute(
                    "INSERT INTO newcomers VALUES (?, ?, ?)",
                    (self.head, user, self._sealed(user, newcomer.numbers())),
                )

    def remove(self, user: str) -> bool:
        """Forget a user, and say whether there was one."""
        with self._transaction() as connection:
            connection.execute(FORGET_NEWCOMER, (self.head, user))
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
        found = (self._read(user, sealed, size) for user, sealed in rows)
        sound = dict(pair for pair in found if pair is not None)
        if len(sound) < len(rows):
            warnings.warn(
                f"{len(rows) - len(sound)} of {len(rows)} users in {self.path} have no vector of "
                f"{size} numbers and are left out; adapt them again",
                PalWarning,
                stacklevel=2,
            )
        return sound

    def newcomers(self, size: int) -> dict[str, Newcomer]:
        """Return who users may be whose vectors have ``size`` numbers; a row that is damaged is
        left out, since the vector says enough."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT user, numbers FROM newcomers WHERE head = ?", (self.head,)
            ).fetchall()
        found: dict[str, Newcomer] = {}
        for user, sealed in rows:
            read = self._unsealed(user, sealed)
            if read is not None:
                with suppress(ValueError):
                    found[read[0]] = Newcomer.of_numbers(read[1], size)
        return found

    def close(self) -> None:
        self.connection.close()
        self._own.release()

    def _read(self, user: object, sealed: object, size: int) -> tuple[str, Tensor] | None:
        """Return a row as it was put, None if it is damaged."""
        read = self._unsealed(user, sealed)
        return read if read is not None and len(read[1]) == size else None

    def _unsealed(self, user: object, sealed: object) -> tuple[str, Tensor] | None:
        """Return a user's name and numbers, None if they are damaged."""
        if not isinstance(user, bytes) or not isinstance(sealed, bytes):
            return None
        name, raw = user.decode("utf-8", "replace"), sealed[:-SEAL_BYTES]
        if len(raw) % 4 or sealed[len(raw) :] != self._seal(name, raw):
            return None
        numbers = torch.frombuffer(bytearray(raw), dtype=torch.float32) if raw else torch.empty(0)
        return (name, numbers) if bool(torch.isfinite(numbers).all()) else None

    def _sealed(self, user: str, numbers: Tensor) -> bytes:
        raw = numbers.float().cpu().contiguous().numpy().tobytes()
        return raw + self._seal(user, raw)

    def _seal(self, user: str, raw: bytes) -> bytes:
        whole = b"\0".join([self.head.encode(), user.encode(), raw])
        return hashlib.sha256(whole).digest()[:SEAL_BYTES]

    def _require_sound(self) -> None:
        """Raise RewardError for a file that is damaged, of another kind or cannot be written."""
        with self._told():
            self.connection.execute("PRAGMA journal_mode=WAL")
        with self._transaction() as connection:
            connection.execute(TABLE)
            connection.execute(NEWCOMERS)
            columns = [
                row[1].decode() for row in connection.execute("PRAGMA table_info(user_vectors)")
            ]
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if columns != COLUMNS or damage != b"ok":
            raise RewardError(
                f"{self.path} is damaged, or no file of users; give another file as serve.store"
            )
        with self._transaction() as connection:
            connection.execute("PRAGMA user_version=1")  # fails where nothing can be written

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._told(), self._lock, self.connection:
            yield self.connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise RewardError(
                f"another server keeps the users of this model in {self.path}; stop it, or give "
                "another file as serve.store"
            ) from error
        except (sqlite3.Error, OSError) as error:
            raise RewardError(
                f"cannot keep users in {self.path} ({error}); give another file as serve.store"
            ) from error
