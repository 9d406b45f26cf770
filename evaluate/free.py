"""Baselines that cost nothing: what any head must beat before its number means something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import polars as pl

from pal.cache.reader import FeatureStore
from pal.config import EvaluateConfig
from pal.dataset import Population, PreparedDataset, ids_of
from pal.evaluate.crossed import Array, Crossing, with_prompt_group
from pal.evaluate.metrics import summarize
from pal.evaluate.records import Cell, MaybeCell
from pal.items import View
from pal.records import Entry
from pal.train.pairs import drop_without_feature

REFERENCE = "reference "
FREE = ("first", "length", "majority")
POPULATIONS: tuple[Population, ...] = ("seen", "unseen")


class FreeBaseline(Entry):
    """What a baseline without any training reaches on test pairs."""

    baseline: str
    test_seen: MaybeCell
    test_unseen: MaybeCell


def free_margins(dataset: PreparedDataset, frame: pl.DataFrame, which: str) -> Array:
    """Return a margin per pair: 1 for the first item, -1 for the second, 0 for neither.

    ``first``: the first item, always; ``length``: the longer text; ``majority``: the item that the
    seen users' training answers to the very same comparison prefer.
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
    dataset: PreparedDataset,
    stores: Mapping[str, FeatureStore] | None = None,
) -> list[FreeBaseline]:
    """Return the free baselines with their cells on test pairs of seen and of unseen users.

    ``stores``: caches by encoder; reward models are evaluated by their own score, ``reference
    <encoder>``.
    """
    has_text = _texts(dataset)["text"].null_count() == 0
    kinds: dict[str, Callable[[pl.DataFrame], Array]] = {
        which: partial(free_margins, dataset, which=which)
        for which in FREE
        if which != "length" or has_text
    }
    for encoder, store in (stores or {}).items():
        if store.score_weight() is not None:
            kinds[f"{REFERENCE}{encoder}"] = partial(reference_margins, store)
    rows = []
    for which, margins in kinds.items():
        cells: list[Cell | None] = []
        for population in POPULATIONS:
            # a reward model reads a response behind its prompt, whatever the heads read
            view: View = "prompt+response" if which.startswith(REFERENCE) else dataset.view
            frame = dataset.viewed(view).pairs("test", population)
            for store in (stores or {}).values():
                frame = drop_without_feature(frame, store)
            cells.append(_cell(settings, frame, margins(frame)) if len(frame) else None)
        rows.append(FreeBaseline(baseline=which, test_seen=cells[0], test_unseen=cells[1]))
    return rows


def _cell(settings: EvaluateConfig, frame: pl.DataFrame, margin: Array) -> Cell:
    label = frame["label"].to_numpy().astype(np.float64)
    crossing = Crossing.of(with_prompt_group(frame))
    return summarize(margin, label, crossing, settings.ece_bins)
