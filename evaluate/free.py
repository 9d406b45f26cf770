"""Baselines that cost nothing: what any head must beat before its number means something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from pal.cache.reader import FeatureStore
from pal.config import EvaluateConfig
from pal.dataset import Population, PreparedDataset, ids_of, oriented
from pal.evaluate.crossed import Array, with_prompt_group
from pal.evaluate.metrics import negative_log_likelihoods, sigmoid
from pal.evaluate.predict import EVALUATED, cell_of, in_test
from pal.evaluate.records import Cell, MaybeCell
from pal.evaluate.ties import TieRule, of_folds
from pal.items import View
from pal.records import Entry
from pal.train.pairs import drop_without_feature

REFERENCE = "reference "
FREE = ("first", "length", "majority", "user-mean")
STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""answers of everybody that stand for one user's, of which validation pairs choose"""
POPULATIONS: tuple[Population, ...] = ("seen", "unseen")


class FreeBaseline(Entry):
    """What a baseline without any training reaches on test pairs."""

    baseline: str
    test_seen: MaybeCell
    test_unseen: MaybeCell


def free_margins(dataset: PreparedDataset, frame: pl.DataFrame, which: str) -> Array:
    """Return a margin per pair: 1 for the first item, -1 for the second, 0 for neither.

    ``first``: the first item, always; ``length``: the longer text; ``majority``: the item that the
    seen users' training answers to the very same comparison prefer; ``user-mean``: how often the
    user chose the one of these very items over the other, whatever the prompt (Agree, say), in
    logits.
    """
    if which == "first":
        return np.ones(len(frame))
    if which == "length":
        table = _texts(dataset).with_columns(pl.col("text").str.len_chars().cast(pl.Int64))
        lengths = [
            frame.select(pl.col(side).alias("item_id")).join(
                table, on="item_id", how="left", maintain_order="left"
            )
            for side in ("first_id", "second_id")
        ]
        difference = lengths[0]["text"] - lengths[1]["text"]
        return np.sign(difference.fill_null(0).to_numpy()).astype(np.float64)
    if which == "user-mean":
        return user_means(dataset, frame)
    train = dataset.pairs("train", "seen")
    answers = pl.concat(
        [
            train.select("prompt_id", "first_id", "second_id", vote=pl.col("label") - 0.5),
            train.select(
                "prompt_id",
                first_id=pl.col("second_id"),
                second_id=pl.col("first_id"),
                vote=0.5 - pl.col("label"),
            ),
        ]
    )
    keys = ["prompt_id", "first_id", "second_id"]
    votes = answers.group_by(keys).agg(pl.col("vote").sum())
    joined = frame.join(votes, on=keys, how="left", nulls_equal=True, maintain_order="left")
    return np.sign(joined["vote"].fill_null(0.0).to_numpy())


def user_means(dataset: PreparedDataset, frame: pl.DataFrame) -> Array:
    """Return the logit of each user's own rate of choosing the first item over the second.

    A beta prior round everybody's rate, whose strength the validation pairs choose, stands for what
    is not known of a user, so new users have everybody's rate. Items that were never compared with
    one another have a margin of 0.
    """
    train = oriented(dataset.pairs("train", "seen"))
    same = ["low", "high"]
    everybody = train.group_by(same).agg(rate=(pl.col("p_low").sum() + 1.0) / (pl.len() + 2.0))
    own = train.group_by("user_id", *same).agg(chosen=pl.col("p_low").sum(), asked=pl.len())

    def margins(rows: pl.DataFrame, strength: float) -> Array:
        sides = oriented(rows)
        known = sides.join(everybody, on=same, how="left", maintain_order="left").join(
            own, on=["user_id", *same], how="left", maintain_order="left"
        )
        chosen = pl.col("chosen").fill_null(0.0) + strength * pl.col("rate").fill_null(0.5)
        p = chosen / (pl.col("asked").fill_null(0) + strength)
        logit = (p / (1.0 - p)).log()
        margin: Array = (
            known.select(pl.when("swapped").then(-logit).otherwise(logit)).to_series().to_numpy()
        )
        return margin

    validation = dataset.pairs("val", "seen")
    label = validation["label"].to_numpy()

    def loss(strength: float) -> float:
        return float(negative_log_likelihoods(margins(validation, strength), label).mean())

    return margins(frame, STRENGTHS[0] if validation.is_empty() else min(STRENGTHS, key=loss))


def _texts(dataset: PreparedDataset) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"])))


def reference_margins(store: FeatureStore, frame: pl.DataFrame) -> Array:
    """Return margins under the score head of an encoder that is a reward model.

    Raises CacheError for items without a feature.
    """
    weight = store.score_weight()
    assert weight is not None

    def scores(side: str) -> Array:
        features = store.gather(store.index(ids_of(frame[side]))).float()
        return (features @ weight[0]).double().numpy()

    return scores("first_id") - scores("second_id")


def free_baselines(
    settings: EvaluateConfig,
    datasets: Sequence[PreparedDataset],
    stores: Mapping[str, FeatureStore] | None = None,
) -> list[FreeBaseline]:
    """Return the free baselines with their cells on test pairs of seen and of unseen users.

    ``datasets``: a single one, or the folds of one, whose tests are put together. ``stores``:
    caches by encoder; reward models are evaluated by their own score, ``reference <encoder>``.
    Users and ties count as for heads: seen users are those with training pairs, and a threshold
    for ties is chosen by each baseline's own validation pairs.
    """
    stores = stores or {}
    has_text = _texts(datasets[0])["text"].null_count() == 0
    kinds = [which for which in FREE if which != "length" or has_text]
    scored = {f"{REFERENCE}{e}": s for e, s in stores.items() if s.score_weight() is not None}
    rows = []
    for which in [*kinds, *scored]:
        found = of_folds(_predicted(which, dataset, stores, scored) for dataset in datasets)
        ties = TieRule.choose(settings.ties, found.filter(pl.col("split") == "val"))
        cells: list[Cell | None] = []
        for population in POPULATIONS:
            tested = in_test(found, population)
            cells.append(None if tested.is_empty() else cell_of(settings, tested, ties))
        rows.append(FreeBaseline(baseline=which, test_seen=cells[0], test_unseen=cells[1]))
    return rows


def _predicted(
    which: str,
    dataset: PreparedDataset,
    stores: Mapping[str, FeatureStore],
    scored: Mapping[str, FeatureStore],
) -> pl.DataFrame:
    """Return the pairs that heads are evaluated by, with a baseline's ``margin`` and ``p``."""
    trained_on = dataset.pairs("train", "seen", ["user_id"])["user_id"].unique()
    # a reward model reads a response behind its prompt, whatever the heads read
    view: View = "prompt+response" if which in scored else dataset.view
    frames = []
    for split, population in EVALUATED:
        frame = dataset.viewed(view).pairs(split, population)
        if population == "seen":
            frame = frame.filter(pl.col("user_id").is_in(trained_on.implode()))
        for store in stores.values():
            frame = drop_without_feature(frame, store)
        frames.append(frame)
    frame = with_prompt_group(pl.concat(frames))
    if which in scored:
        margin = reference_margins(scored[which], frame)
    else:
        margin = free_margins(dataset, frame, which)
    return frame.with_columns(pl.Series("margin", margin), pl.Series("p", sigmoid(margin)))
