"""What evaluation finds, as typed entries: their JSON is that of ``metrics.json``.

Fields that were never set are left out of the JSON, so that a cell says only what it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, SerializerFunctionWrapHandler
from pydantic import model_serializer as serializer

from pal.config import EvaluateConfig
from pal.errors import EvaluationError
from pal.names import FolderName
from pal.records import Entry, Record

Interval = tuple[float, float]
"""from low to high"""
METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
ZERO_SHOT = "0"
"""key of the cell of users without an answer"""


class Sparse(Entry):
    """An entry whose fields that were never set are left out of its JSON."""

    @serializer(mode="wrap")
    def _only_what_was_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class Cell(Sparse):
    """How a head does on one kind of pairs: a cell of the protocol."""

    n_pairs: int
    n_users: int
    n_prompts: int
    accuracy: float
    macro_accuracy: float
    """mean over users"""
    macro_ci95: Interval | None
    """over users and prompts (pal.evaluate.crossed); null with a single one of either"""
    ci95_from: Literal["users", "prompts"]
    """where most of the uncertainty comes from"""
    worst_decile: float
    """mean accuracy of the lowest tenth of users"""
    nll: float
    """mean cross-entropy in nats; ln 2 = 0.6931 is a coin"""
    nll_ci95: Interval | None
    """over users and prompts"""
    brier: float
    ece: float
    """expected calibration error"""
    auc: float | None
    """null where all pairs are ties"""
    repeats: int | None = None
    """draws of the shots that the cell averages over"""
    harmed_vs_0: float | None = None
    """share of users who do worse than with no answer at all, by the same method"""
    ties: str | None = None
    """the rule for pairs labelled as ties, where there are any"""
    n_ties: int | None = None
    tie_threshold: float | None = None
    """the mean over folds where each has its own"""
    tie_random_baseline: float | None = None
    """expected credit of uniformly random probabilities under the threshold"""
    n_controversial: int | None = None
    """pairs on which the other users are divided"""
    controversial_accuracy: float | None = None
    n_consensus: int | None = None
    """pairs on which the other users agree"""
    consensus_accuracy: float | None = None


def _cell_json(cell: Cell | None) -> dict[str, Any]:
    return {} if cell is None else cell.model_dump(mode="json")


MaybeCell = Annotated[
    Cell | None, BeforeValidator(lambda value: value or None), PlainSerializer(_cell_json)
]
"""a cell, in JSON an empty object where a dataset has no such pairs"""


class Metrics(
    Sparse,
    Record,
    kind="metrics",
    file=METRICS,
    error=EvaluationError,
    remedy="run: pal evaluate --run {name}",
):
    """``metrics.json``: what a run reaches."""

    run: FolderName
    dataset: FolderName
    encoder: FolderName
    untrained: bool
    """whether the encoder has random weights"""
    head: str
    k: int
    seed: int
    params: int
    params_per_user: int
    seconds: float
    """of training"""
    best_epoch: int
    split_digest: str
    cache_fingerprint: str
    cache_bytes: int
    test_seen: MaybeCell
    """new pairs of the users that the head was trained on"""
    test_unseen: dict[str, Cell]
    """other users, by the number of their answers"""
    adapted_by: str | None = None
    """how the cells of one answer and more were adapted"""
    n_users_left_out: int | None = None
    """unseen users with too few answers for those cells"""
    folds: int | None = None
    """cross-fitted: every prompt was tested once, by one of so many heads that never saw it"""
    folds_over: Literal["prompts", "answers"] | None = None
    """what is in one fold alone; of answers the prompts are known from other people"""
    test_items_seen: MaybeCell = None
    """answers that were left out, to prompts of the training; with folds over answers"""
    n_crossing_folds: int | None = None
    """comparisons of items in different folds, which are not tested"""
    judged_by: EvaluateConfig | None = None
    """the settings of all cells; null in files of earlier versions, which do not say"""
    head_seal: str
    """seal of the head that the numbers are of; of all of them where there are folds"""

    def adapted(self, cells: Mapping[str, Cell], by: str, left_out: int | None) -> Metrics:
        """Return these metrics with the cells of one adaptation: those of two never stand in one
        row. Users without an answer keep the cell of the evaluation, which is of all of them and of
        the mean probability over the seen users, whatever the adaptation did."""
        start = {"repeats": 1, "harmed_vs_0": 0.0}
        unseen = {
            shots: cell.model_copy(update=start)
            for shots, cell in self.test_unseen.items()
            if shots == ZERO_SHOT
        }
        unseen |= {shots: cell for shots, cell in cells.items() if shots != ZERO_SHOT}
        told = {"adapted_by": by, "n_users_left_out": left_out}
        return self.model_copy(update={"test_unseen": unseen, **told})


def why_apart(metrics: Metrics | None, seal: str, settings: EvaluateConfig) -> str | None:
    """Say why cells of adaptation of the head with a seal, judged by some settings, cannot stand
    beside those of a metrics file; None where they can."""
    if metrics is None or metrics.head_seal != seal:
        return "is missing, damaged or of another head"
    wanted, before = settings.model_dump(include=settings.OF_CELLS), metrics.judged_by
    if before is None:
        return "is of an earlier version, which did not say how it was judged"
    if before.model_dump(include=settings.OF_CELLS) != wanted:
        told = " and ".join(f"evaluate.{name} = {value!r}" for name, value in wanted.items())
        return f"was not judged by {told}"
    return None
