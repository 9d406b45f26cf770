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

Compute = Callable[[Sequence[int]], Iterator[Array]]
"""from numbers of draws to their values, (draws, width) at a time, in order"""


class Ledger:
    """Values of draws by kind and number. Each draw depends on its number alone, so it does not
    matter which of them a killed audit had done."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path, self.identity = folder / DRAWS, identity
        self.values: dict[str, dict[int, list[float]]] = {}
        self._written = time.monotonic()
        try:
            table = read_table(self.path, KIND, of=identity)
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
        done = 0
        for values in compute(missing) if missing else ():
            for row in values:
                known[missing[done]] = [float(value) for value in row]
                done += 1
            progress(len(values))
            if time.monotonic() - self._written > SECONDS:
                self.write()
        if missing:
            self.write()
        return np.array([known[number] for number in range(count)])

    def write(self) -> None:
        """Write all draws, whole or not at all."""
        rows = [
            {"kind": kind, "number": number, "values": values}
            for kind, drawn in sorted(self.values.items())
            for number, values in sorted(drawn.items())
        ]
        schema = pa.schema(
            [("kind", pa.string()), ("number", pa.int64()), ("values", pa.list_(pa.float64()))]
        )
        with atomic_file(self.path) as temporary:
            table = pa.Table.from_pylist(rows, schema)
            write_table(temporary, table, KIND, self.identity)
        self._written = time.monotonic()
