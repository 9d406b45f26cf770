"""A file of prompts and responses in, the same rows with rewards out.

Candidates of ``--best-of`` and ``--pairs`` stand together: rows that follow one another with the
same prompt and user are one group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pal.errors import RewardError
from pal.files import atomic_file
from pal.records import Entry
from pal.reward.model import RewardModel
from pal.reward.output import Output
from pal.reward.rows import is_parquet, require_file
from pal.reward.scoring import Progress, Scoring


class ScoreSummary(Entry):
    """What ``pal score --json`` prints."""

    rows: int
    rows_written: int
    users_known: int
    users_unknown: int
    seconds: float
    """of this call"""


def score_file(
    model: RewardModel,
    source: Path,
    target: Path,
    *,
    best_of: int | None = None,
    pairs: bool = False,
    progress: Progress = lambda rows: None,
) -> ScoreSummary:
    """Write ``source`` with a column ``reward`` to ``target``, or what ``best_of`` or ``pairs``
    make of it.

    ``pairs``: prompt, chosen, rejected (and rewards), the best and the worst of each group that has
    two distinct rewards. Raises RewardError naming the first row that cannot be scored.
    """
    if best_of is not None and pairs:
        raise RewardError("--best-of and --pairs exclude each other; score the file twice")
    began = time.perf_counter()
    require_file(source)
    with _only_one_at(target, source):
        scoring = Scoring(model, source, target, progress)
        scoring.run()
        scoring.require_unchanged()
        output = Output(source, scoring.rewards(), best_of, scoring.item_column if pairs else None)
        with atomic_file(target) as temporary:
            written = output.write(temporary, is_parquet(target))
        scoring.remove()
    return ScoreSummary(
        rows=scoring.state.rows,
        rows_written=written,
        users_known=len(scoring.known),
        users_unknown=len(scoring.unknown),
        seconds=round(time.perf_counter() - began, 3),
    )


@contextmanager
def _only_one_at(target: Path, source: Path) -> Iterator[None]:
    """Keep everybody else from writing the same output; raises RewardError where it cannot be."""
    if source.resolve() == target.resolve():
        raise RewardError(
            f"--output {target} is the input itself, which would be lost; give another file"
        )
    if target.is_dir():
        raise RewardError(f"--output {target} is a folder; give the name of a file")
    path = target.parent / f".{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout:
        raise RewardError(
            f"{target} is being written by another pal score; wait for it, or give another --output"
        ) from None
    except OSError as error:
        raise RewardError(
            f"cannot make folder {target.parent} or write there ({error.strerror}); give another "
            "--output"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while we hold it: who opened it meanwhile finds no file
        lock.release()
