"""The statistics of all draws of an audit so far, kept on disk while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pal.files import atomic_file
from pal.records import Damaged, read_table, write_table
from pal.train.sharing import Array

DRAWS, KIND = "draws.parquet", "audit-draws"
SECONDS = 10.0
"""between two writings"""

Compute = Callable[[Sequence[int]], Iterator[tuple[Sequence[int], Array]]]
"""from numbers of draws to some of them and their values, (draws, width), at a time, in any
order"""


class Ledger:
    """Values of draws by kind and number. Each draw depends on its number alone, so it does not
    matter which of them a killed audit had done.

    They are kept in the file ``path``; those in ``earlier``, of an audit that came to its end, are
    taken over.
    """

    def __init__(self, path: Path, identity: str, earlier: Path | None = None) -> None:
        self.path, self.identity = path, identity
        self.values: dict[str, dict[int, list[float]]] = {}
        self._written = time.monotonic()
        for place in (earlier, path):
            if place is not None:
                self._read(place)

    def _read(self, place: Path) -> None:
        try:
            table = read_table(place, KIND, of=self.identity)
        except Damaged:
            return  # none yet, or of another audit: drawn again
        for row in table.to_pylist():
            self.values.setdefault(row["kind"], {})[row["number"]] = row["values"]

    def take(
        self, kind: str, count: int, compute: Compute, progress: Callable[[int], None]
    ) -> Array:
        """Return the values of draws 0 to ``count`` of a kind, (count, width); computes those that
        are missing."""
        known = self.values.setdefault(kind, {})
        missing = [number for number in range(count) if number not in known]
        progress(count - len(missing))
        if missing:
            try:
                for numbers, values in compute(missing):
                    for number, row in zip(numbers, values, strict=True):
                        known[number] = [float(value) for value in row]
                    progress(len(values))
                    if time.monotonic() - self._written > SECONDS:
                        self._keep()
            finally:
                self._keep()
        return np.array([known[number] for number in range(count)])

    def _keep(self) -> None:
        self.write(self.path)
        self._written = time.monotonic()

    def write(self, path: Path) -> None:
        """Write all draws to a file, whole or not at all."""
        rows = [
            {"kind": kind, "number": number, "values": values}
            for kind, drawn in sorted(self.values.items())
            for number, values in sorted(drawn.items())
        ]
        schema = pa.schema(
            [("kind", pa.string()), ("number", pa.int64()), ("values", pa.list_(pa.float64()))]
        )
        with atomic_file(path) as temporary:
            table = pa.Table.from_pylist(rows, schema)
            write_table(temporary, table, KIND, self.identity)
