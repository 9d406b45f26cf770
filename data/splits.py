"""Who is seen, who is new, and which prompts belong to which split, for sources of real
comparisons.

Everything follows from names and the salt. Rows of one prompt group (the same prompt, or prompts
joined by a shared item) stay together; a user is seen, or unseen and evaluated on validation or on
test pairs:

- a seen user has pairs of all three splits;
- an unseen user has adaptation pairs (split train) and pairs of the own role's split;
- no prompt that is evaluated on, of any user, was read in the training of seen users.

What fits nowhere becomes a reject with its reason, for the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pal.chance import bucket
from pal.config import ComparisonsConfig
from pal.data.comparisons import rejects_frame
from pal.data.groups import prompt_groups
from pal.dataset import SPLITS, Split, SplitDetails
from pal.errors import DataError

TRAIN_BELOW, VAL_BELOW = 0.8, 0.9
FEWEST_USERS = 10
"""with fewer users than this all are seen: a share of them would be nobody or everybody"""
REASONS = {
    "prompt-in-another-split": "its prompt, or one with a shared item, belongs to another split of "
    "the source",
    "not-its-role": "its user is new and evaluated on another split",
    "user-not-in-train": "its user has no training pair, so no head could know them",
    "too-few-pairs": "its user is new and has too few pairs to adapt from or to be evaluated on",
}


@dataclass
class SplitPairs:
    """Comparisons with split and population, and those that had to be left out, with reasons."""

    pairs: pl.DataFrame
    rejects: pl.DataFrame
    details: SplitDetails = field(default_factory=SplitDetails)


def split_of(salt: str, group: str) -> Split:
    """Return the split of a prompt group: 80 % train, 10 % val, 10 % test."""
    place = bucket("prompt", salt, group)
    return "train" if place < TRAIN_BELOW else "val" if place < VAL_BELOW else "test"


def assign_splits(pairs: pl.DataFrame, config: ComparisonsConfig) -> SplitPairs:
    """Give every comparison its split and population; ``pairs`` are those of a ``Recorder``."""
    users = pairs["user_id"].n_unique()
    pairs, few = without_few(pairs, config.min_answers)
    if pairs.is_empty():
        split = without_pairs(pairs)
        return SplitPairs(split.pairs, few)
    pairs = pairs.with_columns(prompt_group=pl.Series(prompt_groups(pairs, config.grouping)))
    pairs = _with_roles(pairs, config)
    sizes = pairs["prompt_group"].value_counts()["count"]
    present = set(pairs["split"].drop_nulls().unique())
    pairs = _with_group_splits(pairs, config, present)
    is_seen, is_own = pl.col("role") == "seen", pl.col("group_split").is_in(list(present))
    reason = (
        pl.when(is_own & (pl.col("split") != pl.col("group_split")))
        .then(pl.lit("prompt-in-another-split"))
        .when(
            ~is_seen
            & (pl.col("group_split") != "train")
            & (pl.col("group_split") != pl.col("role"))
        )
        .then(pl.lit("not-its-role"))
    )
    pairs = pairs.with_columns(reject_reason=reason).with_columns(
        split="group_split",
        population=pl.when(is_seen).then(pl.lit("seen")).otherwise(pl.lit("unseen")),
    )
    pairs = reject_small_users(pairs, is_seen, ~is_seen, config.min_pairs)
    split = separate_rejects(pairs, REASONS)
    split.rejects = pl.concat([split.rejects, few])
    split.details = SplitDetails(
        prompt_groups=len(sizes),
        largest_prompt_group=int(sizes.max() or 0),  # type: ignore[arg-type]
        users_left_out=users - split.pairs["user_id"].n_unique(),
    )
    return split


def without_few(pairs: pl.DataFrame, least: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Separate the comparisons of people who gave fewer than ``least``: those kept, and rejects."""
    few = pl.len().over("user_id") < least
    left_out = pairs.filter(few).select(
        "source_row",
        reason=pl.lit("too-few-answers"),
        message=pl.lit(f"its user gave fewer than min_answers = {least} answers"),
    )
    return pairs.filter(~few), left_out


def without_pairs(pairs: pl.DataFrame) -> SplitPairs:
    """Return the division of a table without rows."""
    return SplitPairs(pairs.with_columns(population=pl.lit(None, pl.String)), rejects_frame())


def reject_small_users(
    pairs: pl.DataFrame, is_seen: pl.Expr, is_unseen: pl.Expr, min_pairs: int
) -> pl.DataFrame:
    """Add the reasons that depend on what a user keeps: no training pair, too few to evaluate."""
    kept = pl.col("reject_reason").is_null()
    trained = (kept & (pl.col("split") == "train")).sum().over("user_id")
    evaluated = (kept & (pl.col("split") == pl.col("role"))).sum().over("user_id")
    few = is_unseen & ((trained == 0) | (evaluated < min_pairs))
    return pairs.with_columns(
        reject_reason=pl.when(kept & is_seen & (trained == 0))
        .then(pl.lit("user-not-in-train"))
        .when(kept & few)
        .then(pl.lit("too-few-pairs"))
        .otherwise("reject_reason")
    )


def separate_rejects(pairs: pl.DataFrame, messages: dict[str, str]) -> SplitPairs:
    """Separate rows with a ``reject_reason`` from those without one."""
    reason = pl.col("reject_reason")
    rejects = pairs.filter(reason.is_not_null()).select(
        "source_row", reason=reason, message=reason.replace_strict(messages, default="")
    )
    kept = pairs.filter(reason.is_null())
    return SplitPairs(
        kept.drop("reject_reason", "prompt_group", "role", "group_split", strict=False), rejects
    )


def _with_roles(pairs: pl.DataFrame, config: ComparisonsConfig) -> pl.DataFrame:
    """Add each user's role by hash, unless the source has said it: seen, val or test."""
    if "role" in pairs.columns:
        return pairs
    users = pairs["user_id"].unique().sort().to_list()
    test_from = 1.0 - config.test_user_share
    val_from = test_from - config.validation_user_share

    def role(user: str) -> str:
        place = 0.0 if len(users) < FEWEST_USERS else bucket("user", config.salt, user)
        return "seen" if place < val_from else "val" if place < test_from else "test"

    table = pl.DataFrame({"user_id": users, "role": [role(user) for user in users]})
    return pairs.join(table, on="user_id", how="left", maintain_order="left")


def _with_group_splits(
    pairs: pl.DataFrame, config: ComparisonsConfig, present: set[str]
) -> pl.DataFrame:
    """Add the split of each row's prompt group."""
    groups = pairs.group_by("prompt_group").agg(
        *((pl.col("split") == name).any().alias(name) for name in SPLITS),
        *((pl.col("role") == name).any().alias(f"{name}_role") for name in ("seen", "val", "test")),
    )
    rows = groups.iter_rows(named=True)
    splits = [
        _own_split(row, present, config.salt) if present else _hash_split(row, config)
        for row in rows
    ]
    table = groups.select("prompt_group").with_columns(
        group_split=pl.Series(splits, dtype=pl.String)
    )
    return pairs.join(table, on="prompt_group", how="left", maintain_order="left")


def _own_split(row: dict[str, Any], present: set[str], salt: str) -> str:
    """Return a group's split where the source has splits: the most guarded one; missing ones are
    cut out of train."""
    for name in ("test", "val"):
        if row[name]:
            return name
    by_hash = split_of(salt, row["prompt_group"].hex())
    return "train" if by_hash in present else by_hash


def _hash_split(row: dict[str, Any], config: ComparisonsConfig) -> str:
    """Return a group's split by hash; half of the groups that only new users answered are for their
    shots."""
    name = row["prompt_group"].hex()
    if row["seen_role"]:
        return split_of(config.salt, name)
    if bucket("pool", config.salt, name) < 0.5:
        return "train"
    if row["val_role"] and row["test_role"]:
        both = config.validation_user_share + config.test_user_share
        is_val = bucket("role", config.salt, name) * both < config.validation_user_share
        return "val" if is_val else "test"
    return "val" if row["val_role"] else "test"


def require_splits(dataset: str, pairs: pl.DataFrame, origin: str, rejects: dict[str, int]) -> None:
    """Raise DataError unless the seen users have pairs of all three splits."""
    listed = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
    left_out = f" ({listed})" if listed else ""
    if pairs.is_empty():
        raise DataError(
            f"dataset {dataset}: no comparison was found in {origin}{left_out}; "
            f"check data.{dataset}.source, or run: pal doctor --dataset {dataset}"
        )
    present = set(pairs.filter(pl.col("population") == "seen")["split"].unique())
    for split in SPLITS:
        if split not in present:
            raise DataError(
                f"dataset {dataset}: the {split} split of the seen users is empty{left_out}; "
                f"use more source rows or another data.{dataset}.salt"
            )
