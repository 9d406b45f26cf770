"""Baselines that cost nothing: what any head must beat before its number means something."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from pal.config import Config
from pal.evaluate.metrics import Array, summarize
from pal.tables import PreparedDataset

FREE = ("first", "length", "majority")


def free_margins(dataset: PreparedDataset, frame: pl.DataFrame, which: str) -> Array:
    """Return a margin per pair: 1 for the first item, -1 for the second, 0 for neither.

    ``first``: the first item, always; ``length``: the longer text; ``majority``: the item that the seen users'
    training answers to the very same comparison prefer.
    """
    if which == "first":
        return np.ones(len(frame))
    if which == "length":
        table = _texts(dataset).with_columns(pl.col("text").str.len_chars().cast(pl.Int64))
        lengths = [
            frame.select(pl.col(side).alias("item_id")).join(table, on="item_id", how="left", maintain_order="left")
            for side in ("first_id", "second_id")
        ]
        difference = lengths[0]["text"] - lengths[1]["text"]
        return np.sign(difference.fill_null(0).to_numpy()).astype(np.float64)
    train = dataset.pairs("train", "seen")
    answers = pl.concat(
        [
            train.select("prompt_id", "first_id", "second_id", vote=pl.col("label") - 0.5),
            train.select(
                "prompt_id", first_id=pl.col("second_id"), second_id=pl.col("first_id"), vote=0.5 - pl.col("label")
            ),
        ]
    )
    keys = ["prompt_id", "first_id", "second_id"]
    votes = answers.group_by(keys).agg(pl.col("vote").sum())
    joined = frame.join(votes, on=keys, how="left", nulls_equal=True, maintain_order="left")
    return np.sign(joined["vote"].fill_null(0.0).to_numpy())


def _texts(dataset: PreparedDataset) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"])))


def free_baselines(config: Config, dataset: PreparedDataset) -> list[dict[str, Any]]:
    """Return a row per free baseline with its cells on test pairs of seen and of unseen users."""
    has_text = _texts(dataset)["text"].null_count() == 0
    rows = []
    for which in FREE:
        if which == "length" and not has_text:
            continue
        cells: dict[str, dict[str, Any]] = {}
        for population in ("seen", "unseen"):
            frame = dataset.pairs("test", population)
            if frame.is_empty():
                cells[population] = {}
                continue
            users = np.unique(frame["user_id"].to_numpy(), return_inverse=True)[1]
            margin = free_margins(dataset, frame, which)
            label = frame["label"].to_numpy().astype(np.float64)
            cells[population] = summarize(margin, label, users, config.evaluate.bootstrap, config.evaluate.ece_bins)
        rows.append({"baseline": which, "test_seen": cells["seen"], "test_unseen": cells["unseen"]})
    return rows
