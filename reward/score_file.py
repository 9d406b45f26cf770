"""A file of prompts and responses in, the same rows with rewards out; a file of comparisons in, the
same rows with probabilities out.

A row that cannot be scored has a null reward and the reason in ``reward_error``. Candidates of
``--best-of`` and ``--pairs`` stand together: rows that follow one another with the same prompt and
user are one group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from pal.errors import RewardError
from pal.files import atomic_file, locked
from pal.records import Entry
from pal.reward.model import RewardModel
from pal.reward.newcomers import learn_file
from pal.reward.output import Output, schema_to_write
from pal.reward.rows import is_parquet, read_batches, read_schema, require_file
from pal.reward.scoring import Progress, Scoring

WRITTEN = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""endings of the files that we write"""


class ScoreSummary(Entry):
    """What ``pal score --json`` prints."""

    rows: int
    rows_failed: int
    """rows without a reward, or a probability"""
    first_failure: str | None
    """which row is the first of them, and why"""
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
    compare: bool = False,
    answers: Path | None = None,
    progress: Progress = lambda rows: None,
) -> ScoreSummary:
    """Write ``source`` with columns ``reward`` and ``reward_error`` to ``target``, or what
    ``best_of`` or ``pairs`` make of it.

    ``pairs``: prompt, chosen, rejected (and rewards), the best and the worst of each group that has
    two distinct rewards. Rows without a reward are in no group. ``compare``: rows have first and
    second, or chosen and rejected, in the place of a response, and get columns ``p``, the
    probability that the user prefers the first one, and ``p_error``. ``answers``: a file of answers
    of people whom the model does not know, who are learned first (newcomers.py). Raises RewardError
    for files that cannot be read or written as a whole, before any row is scored.
    """
    began = time.perf_counter()
    require_files(source, target)
    wanted = {"--best-of": best_of is not None, "--pairs": pairs, "--compare": compare}
    asked = [name for name, is_asked in wanted.items() if is_asked]
    if len(asked) > 1:
        raise RewardError(f"{' and '.join(asked)} exclude each other; score the file twice")
    if answers is not None:
        learn_file(model, answers)
    target = Path(os.path.realpath(target))  # what a link points at is written, the link stays
    with _only_one_at(target):
        scoring = Scoring(model, source, target, progress, compare, answers)
        _require_columns(source, scoring.item_columns)
        schema = schema_to_write(source) if is_parquet(target) else None
        column = scoring.item_column if pairs else None
        output = Output(source, schema, best_of, column, scoring.outcome)
        scoring.run()
        scoring.require_unchanged()
        failed, first = scoring.failures()
        with atomic_file(target) as temporary:
            written = output.write(temporary, scoring.outcomes)
        scoring.remove()
    return ScoreSummary(
        rows=scoring.state.rows,
        rows_failed=failed,
        first_failure=first,
        rows_written=written,
        users_known=len(scoring.known),
        users_unknown=len(scoring.unknown),
        seconds=round(time.perf_counter() - began, 3),
    )


def require_files(source: Path, target: Path) -> None:
    """Raise RewardError unless ``source`` can be read and ``target`` is the name of a file."""
    require_file(source)
    try:
        if source.resolve() == target.resolve():
            raise RewardError(
                f"--output {target} is the input itself, which would be lost; give another file"
            )
        if target.is_dir():
            raise RewardError(f"--output {target} is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            raise RewardError(
                f"--output {target} is no regular file, and the output replaces it as a whole; "
                "give the name of a file"
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        reason = getattr(error, "strerror", None) or error
        raise RewardError(f"cannot write --output {target} ({reason}); give another") from error
    if target.suffix not in WRITTEN:
        raise RewardError(
            f"--output {target} would be JSON lines under the name of something else; let it end "
            "in .jsonl, .csv or .parquet"
        )


def _require_columns(source: Path, wanted: Sequence[tuple[str, ...]]) -> None:
    """Raise RewardError where no row of a Parquet file can have an item: all columns of one of
    ``wanted``."""
    if is_parquet(source):
        names = read_schema(source).names
        has_items = any(set(columns) <= set(names) for columns in wanted)
        if not has_items and any(batch.num_rows for batch in read_batches(source, ())):
            missing = " and ".join(repr(name) for name in wanted[0] if name not in names)
            raise RewardError(
                f"{source} has no column {missing}, only {', '.join(names)}; rename the one that "
                "holds what is scored"
            )


@contextmanager
def _only_one_at(target: Path) -> Iterator[None]:
    """Keep everybody else from writing the same output; raises RewardError where it cannot be
    written."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(target, wait=False))
        except Timeout:
            raise RewardError(
                f"{target} is being written by another pal score; wait for it, or give another "
                "--output"
            ) from None
        except OSError as error:
            raise RewardError(
                f"cannot make folder {target.parent} or write there ({error.strerror}); give "
                "another --output"
            ) from error
        yield
