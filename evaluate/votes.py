"""Pairs that several users answered: how divided they are, and how a head does there.

The definitions are those of evaluation.md 2.2.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from pal.dataset import oriented
from pal.evaluate.ties import TieRule, folds_of
from pal.records import Entry

DIVIDED, AGREED = 0.60, 0.80


class Division(Entry):
    """How a head does where the other users are divided, and where they agree."""

    n_controversial: int
    controversial_accuracy: float | None
    """null where there are no such pairs"""
    n_consensus: int
    consensus_accuracy: float | None


def with_votes(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add ``votes``, the answers of *other* users to the same comparison, and their mean label
    ``vote_share``.

    ``pairs`` has prompt_id, first_id, second_id, user_id, label; sides are brought into one order
    first, and a user's own repeats are left out of the share.
    """
    same = ["prompt_id", "low", "high"]
    own = [*same, "user_id"]
    p_low = pl.col("p_low")
    counted = oriented(pairs).with_columns(
        votes=pl.len().over(same) - pl.len().over(own),
        of_others=p_low.sum().over(same) - p_low.sum().over(own),
    )
    mean = pl.when(pl.col("votes") > 0).then(pl.col("of_others") / pl.col("votes"))
    share = pl.when("swapped").then(1.0 - mean).otherwise(mean)
    return counted.with_columns(vote_share=share).select(*pairs.columns, "votes", "vote_share")


def by_division(
    predictions: pl.DataFrame, votes: pl.DataFrame, least: int, ties: TieRule
) -> Division:
    """Return accuracy and number of the controversial and of the consensus pairs.

    ``votes``: pair_id, votes, vote_share. Controversial: the others' majority is at most 0.6;
    consensus: at least 0.8; both with at least ``least`` votes.
    """
    counted = predictions.filter(pl.Series(ties.keeps(predictions["label"].to_numpy())))
    both = counted.join(votes, on="pair_id").filter(pl.col("votes") >= least)
    majority = pl.max_horizontal("vote_share", 1.0 - pl.col("vote_share"))
    divided, agreed = both.filter(majority <= DIVIDED), both.filter(majority >= AGREED)
    return Division(
        n_controversial=len(divided),
        controversial_accuracy=_accuracy(divided, ties),
        n_consensus=len(agreed),
        consensus_accuracy=_accuracy(agreed, ties),
    )


def _accuracy(rows: pl.DataFrame, ties: TieRule) -> float | None:
    right = ties.credit(rows["margin"].to_numpy(), rows["label"].to_numpy(), folds_of(rows))
    return float(np.mean(right)) if len(right) else None
