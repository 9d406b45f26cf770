"""Who computes the draws of an audit: this process, or the tasks of a Ray cluster.

A draw depends on its number alone, so it does not matter who computes it; those that are computed
at once round together, so they stay together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pal.cluster import RETRIES, Cluster, Lost, Share, joined
from pal.config import AuditConfig
from pal.errors import EvaluationError
from pal.train.sharing import Array

Draw = Callable[[Sequence[int]], Array]
"""from numbers of draws to their values, (draws, width); it travels to a cluster, so it holds
nothing but what it computes with"""
Part = tuple[Sequence[int], Array]
"""numbers and their values"""


class Drawing(Protocol):
    """Computes draws."""

    def parts(
        self, draw: Draw, wanted: Sequence[int], at_once: int, is_serial: bool = False
    ) -> Iterator[Part]:
        """Yield the values of draws, so many at once, in any order; ``is_serial``: a draw uses one
        core, so several threads pay."""


@dataclass(frozen=True)
class Here:
    """This process; serial draws in ``workers`` threads, None: one for each core."""

    workers: int | None = None

    def parts(
        self, draw: Draw, wanted: Sequence[int], at_once: int, is_serial: bool = False
    ) -> Iterator[Part]:
        every = cut(wanted, at_once)
        if not is_serial:
            yield from ((part, draw(part)) for part in every)
            return
        # NumPy releases the interpreter lock
        with ThreadPoolExecutor(self.workers or os.cpu_count() or 1) as pool:
            waiting = {pool.submit(draw, part): part for part in every}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


HERE = Here()


@dataclass(frozen=True)
class OnRay:
    """Tasks of a Ray cluster. What a draw computes with goes to each node once; no file is read
    there."""

    cluster: Cluster
    share: Share

    def parts(
        self, draw: Draw, wanted: Sequence[int], at_once: int, is_serial: bool = False
    ) -> Iterator[Part]:
        """Raises EvaluationError, after all others, for draws that lost worker after worker."""
        every, sent, lost = cut(wanted, at_once), self.cluster.put(draw), None
        calls = ((sent, part) for part in every)
        for number, found in self.cluster.run(self.share, _values, calls):
            if isinstance(found, Lost):
                lost = found
            else:
                yield every[number], found
        if lost is not None:
            raise EvaluationError(
                f"some draws lost their worker {1 + RETRIES} times ({lost.reason}), perhaps as "
                "memory ran out; run the audit again with a smaller --workers: what was drawn is "
                "kept"
            )


def _values(draw: Draw, numbers: Sequence[int]) -> Array:
    return draw(numbers)


def cut(wanted: Sequence[int], at_once: int) -> list[Sequence[int]]:
    return [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]


@contextmanager
def drawing_of(settings: AuditConfig) -> Iterator[Drawing]:
    """Yield who computes draws by the settings; a cluster is joined, or started, for the block."""
    if settings.executor == "local":
        yield Here(settings.workers)
        return
    with joined(settings.ray_address, settings.workers or os.cpu_count() or 1) as cluster:
        yield OnRay(cluster, cluster.share(settings.workers, for_gpus=False, for_nodes=False))
