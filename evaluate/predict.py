"""Predictions of a run on the splits it may be evaluated by, and their metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from pal.cache.mapped import Features, features_of
from pal.cache.reader import FeatureStore
from pal.cache.shard import ITEM_BYTES
from pal.config import EvaluateConfig
from pal.dataset import Population, PreparedDataset, Split
from pal.errors import EvaluationError, PalWarning
from pal.evaluate.crossed import OTHER_GROUP, PROMPT_GROUP, Crossing, with_prompt_group
from pal.evaluate.metrics import sigmoid, summarize
from pal.evaluate.records import METRICS, PREDICTIONS, ZERO_SHOT, Cell, Metrics, why_apart
from pal.evaluate.ties import TieRule, folds_of
from pal.evaluate.votes import by_division, with_votes
from pal.files import atomic_file, locked
from pal.names import require_name
from pal.records import Damaged, read_table, write_table
from pal.train.adapt.answers import distinct_rows
from pal.train.adapt.average import zero_shot
from pal.train.heads.head import Head
from pal.train.pairs import NO_USER, Pairs, drop_without_feature, with_prompts
from pal.train.prepared import prepared_blocks
from pal.train.run_record import RunRecord, TrainedHead

TOLD = ("pair_id", "user_id", PROMPT_GROUP, OTHER_GROUP, "split", "population")
"""what predictions repeat of their pairs"""
EVALUATED: tuple[tuple[Split, Population], ...] = (
    ("val", "seen"),
    ("test", "seen"),
    ("test", "unseen"),
)
"""what is predicted of a run"""


def load_run(runs: Path, name: str) -> TrainedHead:
    """Read a run by its name; raises EvaluationError."""
    return TrainedHead.load(runs / require_name("run", name, EvaluationError))


def require_same_data(trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore) -> None:
    """Raise EvaluationError unless split, answers and features are those of the training."""
    run = trained.metadata
    for what, trained_on, present in (
        ("split digest", run.split_digest, dataset.split_digest),
        ("pairs digest", run.pairs_digest, dataset.pairs_digest),
        ("cache fingerprint", run.cache_fingerprint, store.fingerprint),
    ):
        if trained_on != present:
            raise EvaluationError(
                f"run {run.run} was trained on {dataset.name} with {what} {trained_on[:12]}, but "
                f"the present one is {present[:12]}; train it again or prepare the dataset as it "
                f"was (runs/{run.run}/config.yaml says how)"
            )


def evaluate_run(
    settings: EvaluateConfig,
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
    folder: Path,
) -> Metrics:
    """Predict validation and test pairs; write the predictions and metrics of a run's folder.

    Unseen users are evaluated zero-shot, by the mean probability over the seen users;
    ``test_unseen`` is empty where a dataset has none. Cells of adaptation stay, if they are of the
    same head and were judged by the same settings. Raises EvaluationError unless dataset and
    features are those that the run was trained on.
    """
    require_same_data(trained, dataset, store)
    run = trained.metadata
    predictions = predict_cells(trained, dataset, store)
    metrics = metrics_of(settings, run, predictions, dataset.pairs("test"), store)
    with evaluating(trained, folder):
        before = _adapted_before(settings, run.seal, folder)
        if before is not None and before.adapted_by is not None:
            left_out = before.n_users_left_out
            metrics = metrics.adapted(before.test_unseen, before.adapted_by, left_out)
        write_evaluation(folder, metrics, predictions)
    return metrics


@contextmanager
def evaluating(trained: TrainedHead, folder: Path) -> Iterator[None]:
    """Keep others from writing a run while its evaluation is; raises EvaluationError where the
    folder has another head by now."""
    with locked(folder):
        if RunRecord.of(folder).seal != trained.metadata.seal:
            raise EvaluationError(
                f"{folder} was trained anew while an earlier head was evaluated; "
                f"run: pal evaluate {folder.name}"
            )
        yield


def predict_cells(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore
) -> pl.DataFrame:
    """Return the predictions of all cells that a run is evaluated by."""
    features = features_of(store)
    frames = []
    for split, population in EVALUATED:
        frame = pairs_of(dataset, store, trained.users, split, population)
        if not frame.is_empty():
            frames.append(predict(trained, frame, store, features))
    return pl.concat(frames)


def metrics_of(
    settings: EvaluateConfig,
    run: RunRecord,
    predictions: pl.DataFrame,
    tested: pl.DataFrame,
    store: FeatureStore,
) -> Metrics:
    """Return the metrics of predictions; ``tested`` are the pairs whose answers of other users say
    how divided people are."""
    ties = TieRule.choose(settings.ties, predictions.filter(pl.col("split") == "val"))
    votes = with_votes(tested).select("pair_id", "votes", "vote_share")

    def cell(population: Population) -> Cell | None:
        rows = in_test(predictions, population)
        if rows.is_empty():
            return None
        division = by_division(rows, votes, settings.votes, ties)
        return cell_of(settings, rows, ties).model_copy(update=division.model_dump())

    unseen = cell("unseen")
    return Metrics(
        **run.model_dump(include=COMMON),
        head=run.train.head,
        k=run.train.k,
        cache_bytes=store.rows * store.dim * ITEM_BYTES[store.dtype],
        test_seen=cell("seen"),
        test_unseen={ZERO_SHOT: unseen} if unseen else {},
        judged_by=settings,
        head_seal=run.seal,
    )


def write_evaluation(folder: Path, metrics: Metrics, predictions: pl.DataFrame) -> None:
    """Write predictions, then the metrics of them, into a folder."""
    with atomic_file(folder / PREDICTIONS) as temporary:
        write_table(temporary, predictions.to_arrow(), "predictions", of=metrics.head_seal)
    metrics.write(folder)


def _adapted_before(settings: EvaluateConfig, seal: str, folder: Path) -> Metrics | None:
    """Return the earlier metrics of this head if their cells of adaptation may stay; with a warning
    where some may be lost."""
    before = Metrics.find(folder)
    if before is None and not any((folder / name).exists() for name in (METRICS, PREDICTIONS)):
        return None  # this is the first time
    why = why_apart(before, seal, settings)
    if why is None:
        return before
    if before is None or before.head_seal != seal or before.adapted_by is not None:
        warnings.warn(
            f"{folder / METRICS} {why}, so cells of adaptation that it may have held are lost; "
            f"run: pal adapt --run {folder.name}",
            PalWarning,
            stacklevel=3,
        )
    return None


COMMON = {
    "run", "dataset", "encoder", "untrained", "seed", "params", "params_per_user", "seconds",
    "best_epoch", "split_digest", "cache_fingerprint",
}  # fmt: skip
"""what metrics repeat of the run's record"""


def predictions_of(folder: Path, seal: str) -> pl.DataFrame:
    """Read what was predicted by the head of a run; raises EvaluationError where it is of another
    one."""
    try:
        return read_predictions(folder, seal)
    except Damaged as problem:
        told = f"{folder / PREDICTIONS} {problem}"
        raise EvaluationError(f"{told}; {Metrics.remedy_for(folder)}") from None


def read_predictions(folder: Path, seal: str) -> pl.DataFrame:
    """Read what was predicted under a seal, of a run or of its folds; raises Damaged."""
    table = read_table(folder / PREDICTIONS, "predictions", of=seal)
    return pl.DataFrame(pl.from_arrow(table))


def pairs_of(
    dataset: PreparedDataset,
    store: FeatureStore,
    users: list[str],
    split: Split,
    population: Population,
) -> pl.DataFrame:
    """Return the pairs that a head is evaluated by in one cell, with ``prompt_group``; those
    without features are left out.

    Seen users are the head's own ``users``: with ``train.users`` they are fewer than the dataset's,
    and the others, whom it knows no better than strangers, are in no cell.
    """
    frame = with_prompt_group(drop_without_feature(dataset.pairs(split, population), store))
    return frame.filter(pl.col("user_id").is_in(users)) if population == "seen" else frame


def readable(frame: pl.DataFrame, head: Head) -> pl.DataFrame:
    """Leave out pairs without a prompt for heads that read it, as training does."""
    return with_prompts(frame) if head.uses_prompt else frame


def in_test(predictions: pl.DataFrame, population: Population) -> pl.DataFrame:
    """Return the predictions of test pairs of one population."""
    return predictions.filter((pl.col("split") == "test") & (pl.col("population") == population))


def cell_of(settings: EvaluateConfig, predictions: pl.DataFrame, ties: TieRule) -> Cell:
    """Return one cell of the protocol; raises EvaluationError if no pair counts in it."""
    every_label = predictions["label"].to_numpy()
    counted = predictions.filter(pl.Series(counted_of(ties, every_label), dtype=pl.Boolean))
    margin, label = counted["margin"].to_numpy(), counted["label"].to_numpy()
    right = ties.credit(margin, label, folds_of(counted))
    cell = summarize(margin, label, Crossing.of(counted), settings.ece_bins, right)
    return ties.told_in(cell, every_label)


def counted_of(ties: TieRule, label: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pairs of a cell count, (n,) bool; raises EvaluationError where none does."""
    if not len(label):
        raise EvaluationError(
            "there is no pair to be evaluated: the dataset has none of this split whose items have "
            "features, and a prompt where the head reads it; prepare it with more answers"
        )
    counted = ties.keeps(label)
    if not counted.any():
        raise EvaluationError(
            "all pairs to be evaluated are ties, and evaluate.ties = 'drop' leaves none; use half"
        )
    return counted


def predict(
    trained: TrainedHead, frame: pl.DataFrame, store: FeatureStore, features: Features
) -> pl.DataFrame:
    """Return ``pair_id, user_id, prompt_group, other_group, split, population, margin, p, label``
    for rows that ``pairs_of`` gives."""
    frame = readable(frame, trained.head)
    pairs = Pairs.join(frame, store, trained.users, trained.head.uses_prompt, "cpu")
    return predict_joined(trained, frame, pairs, features)


@torch.inference_mode()
def predict_joined(
    trained: TrainedHead, frame: pl.DataFrame, pairs: Pairs, features: Features
) -> pl.DataFrame:
    """Return what ``predict`` does for rows whose features are known already.

    Of users who are not in the head's table the mean probability over those who are is predicted.
    """
    head = trained.head
    # filled in place: results kept between blocks would fragment the heap
    margin_B = torch.empty(len(pairs), dtype=torch.float32)
    is_known = pairs.user != NO_USER
    known, stranger = is_known.nonzero().squeeze(1), (~is_known).nonzero().squeeze(1)
    if len(known):
        for rows, prepared in prepared_blocks(head, pairs.take(known), features.__getitem__):
            user, place = pairs.user[known[rows]].unique(return_inverse=True)
            margin_B[known[rows]] = head.prepared_margin(prepared, head.users(user), place).float()
    if len(stranger):
        margin_B[stranger] = margins_of_strangers(head, pairs.take(stranger), features)
    margin = margin_B.double().numpy()
    if not np.isfinite(margin).all():
        raise EvaluationError(
            f"run {trained.metadata.run} gives NaN or infinite margins; train it with a lower "
            "--set train.lr"
        )
    return frame.select(*TOLD).with_columns(
        pl.Series("margin", margin), pl.Series("p", sigmoid(margin)), frame["label"]
    )


def margins_of_strangers(head: Head, pairs: Pairs, features: Features) -> Tensor:
    """Return the margins of users who are not in the head's table, (B,). A comparison is the same
    to all of them: each distinct one is judged once where they are fewer than the pairs."""
    once = distinct_rows(pairs.content(len(features)))
    if once is not None:
        first, place = once
        return margins_of_strangers(head, pairs.take(first), features)[place]
    margin_B = torch.empty(len(pairs), dtype=torch.float32)
    for rows, prepared in prepared_blocks(head, pairs, features.__getitem__):
        margin_B[rows] = zero_shot(head, prepared).float()
    return margin_B
