"""Who is seen, who is new, and which prompts belong to which split, for sources of real
comparisons.

Everything follows from names and the salt. Rows of one prompt group (the same prompt, or prompts
joined by a shared item, see groups.py) stay together; a user is seen, or unseen and evaluated on
validation or on test pairs:

- a seen user has pairs of all three splits;
- an unseen user has adaptation pairs (split train) and pairs of the own role's split;
- no prompt that is evaluated on, of any user, was read in the training of seen users; where items
  are divided instead of prompts, no item.

What fits nowhere becomes a reject with its reason, for the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from pal.chance import bucket
from pal.config import ComparisonsConfig
from pal.data.comparisons import rejects_frame
from pal.data.groups import Units, units_of
from pal.data.roles import CUTS, roles_of_users, splits_of_units
from pal.dataset import SPLITS, Divided, Split, SplitDetails
from pal.errors import DataError

ENOUGH_PAIRS = (10, 5, 2, 1)
"""evaluated pairs that a new user may be asked to have"""
MOST_NEW_USERS = 0.9
"""share of the new users who must have so many"""
REASONS = {
    "prompt-in-another-split": "its prompt, or one with a shared item, belongs to another split of "
    "the source",
    "items-in-two-splits": "its two items belong to different splits",
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
    """Return the split of a prompt group by its hash alone: 80 % train, 10 % val, 10 % test."""
    place, (val_from, test_from) = bucket("prompt", salt, group), CUTS["prompt"]
    return "train" if place < val_from else "val" if place < test_from else "test"


def assign_splits(pairs: pl.DataFrame, config: ComparisonsConfig) -> SplitPairs:
    """Give every comparison its split and population; ``pairs`` are those of a ``Recorder``."""
    read = pairs.select("user_id")
    pairs, few = without_few(pairs, config.min_answers)
    if pairs.is_empty():
        split = SplitPairs(without_pairs(pairs).pairs, few)
        left_out = {"too-few-answers": read["user_id"].n_unique()} if len(read) else {}
        split.details = SplitDetails(read=len(read), users_left_out=left_out)
        return split
    units = units_of(pairs, config.grouping)
    pairs = pairs.with_columns(prompt_group=units.first)
    if units.divided == "items":
        pairs = pairs.with_columns(other_group_id=units.second)
    pairs = _with_roles(pairs, config)
    present = set(pairs["split"].drop_nulls().unique())
    pairs = _with_unit_splits(pairs, units.divided, config, present)
    is_seen = pl.col("role") == "seen"
    reason = (
        pl.when(pl.col("group_split").is_null())
        .then(pl.lit("items-in-two-splits"))
        .when(pl.col("group_split").is_in(list(present)) & _differ("split", "group_split"))
        .then(pl.lit("prompt-in-another-split"))
        .when(~is_seen & (pl.col("group_split") != "train") & _differ("group_split", "role"))
        .then(pl.lit("not-its-role"))
    )
    pairs = pairs.with_columns(reject_reason=reason).with_columns(
        split=pl.coalesce("group_split", pl.lit("train")),
        population=pl.when(is_seen).then(pl.lit("seen")).otherwise(pl.lit("unseen")),
    )
    least = enough_pairs(pairs, ~is_seen) if config.min_pairs is None else config.min_pairs
    pairs = reject_small_users(pairs, is_seen, ~is_seen, least)
    split = separate_rejects(pairs, REASONS)
    split.rejects = pl.concat([split.rejects, few])
    split.details = _details(read, pairs, units, least)
    return split


def _differ(one: str, other: str) -> pl.Expr:
    return pl.col(one) != pl.col(other)


def _details(read: pl.DataFrame, pairs: pl.DataFrame, units: Units, least: int) -> SplitDetails:
    """Return what is told of a division; ``pairs`` still have their ``reject_reason``."""
    sizes = pl.concat([units.first, units.second]).value_counts()["count"]
    names = 2 if units.divided != "items" else 1  # of a pair in a group, both are the group's
    lost = (
        pairs.group_by("user_id")
        .agg(
            is_kept=pl.col("reject_reason").is_null().any(),
            reason=pl.col("reject_reason").drop_nulls().mode().sort().first(),
        )
        .filter(~pl.col("is_kept"))
    )
    left_out = dict(lost.group_by("reason").len().sort("reason").iter_rows())
    few = read["user_id"].n_unique() - pairs["user_id"].n_unique()
    new = pairs.filter(pl.col("role") != "seen")
    evaluated = new.select((pl.col("group_split") == pl.col("role")).fill_null(False).mean()).item()
    return SplitDetails(
        read=len(read),
        divided=units.divided,
        why=units.why,
        shared_answers=units.shared,
        prompt_groups=len(sizes),
        largest_prompt_group=int(sizes.max() or 0) // names,  # type: ignore[arg-type]
        min_pairs=least,
        evaluated_share=evaluated,
        users_left_out=({"too-few-answers": few} if few else {}) | left_out,
    )


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


def enough_pairs(pairs: pl.DataFrame, is_unseen: pl.Expr) -> int:
    """Return how many evaluated pairs a new user can be asked to have: as many as nine of ten do.

    One pair says little of a user, but an interval over users says how little; a user who is left
    out for want of pairs says nothing, and in a small survey that would be all of them.
    """
    evaluated = pl.col("reject_reason").is_null() & (pl.col("split") == pl.col("role"))
    counts = pairs.filter(is_unseen).group_by("user_id").agg(n=evaluated.sum())["n"]
    wanted = MOST_NEW_USERS * len(counts)
    enough = (least for least in ENOUGH_PAIRS if int((counts >= least).sum()) >= wanted)
    return next(enough, ENOUGH_PAIRS[-1]) if len(counts) else ENOUGH_PAIRS[0]


def reject_small_users(
    pairs: pl.DataFrame, is_seen: pl.Expr, is_unseen: pl.Expr, min_pairs: int | None
) -> pl.DataFrame:
    """Add the reasons that depend on what a user keeps: no training pair, too few to evaluate."""
    least = enough_pairs(pairs, is_unseen) if min_pairs is None else min_pairs
    kept = pl.col("reject_reason").is_null()
    trained = (kept & (pl.col("split") == "train")).sum().over("user_id")
    evaluated = (kept & (pl.col("split") == pl.col("role"))).sum().over("user_id")
    few = is_unseen & ((trained == 0) | (evaluated < least))
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
    kept = pairs.filter(reason.is_null()).rename({"prompt_group": "group_id"})
    return SplitPairs(kept.drop("reject_reason", "role", "group_split", strict=False), rejects)


def _with_roles(pairs: pl.DataFrame, config: ComparisonsConfig) -> pl.DataFrame:
    """Add each user's role by hash, unless the source has said it: seen, val or test."""
    if "role" in pairs.columns:
        return pairs
    users = pairs["user_id"].unique().sort().to_list()
    table = pl.DataFrame({"user_id": users, "role": roles_of_users(users, config)})
    return pairs.join(table, on="user_id", how="left", maintain_order="left")


def _with_unit_splits(
    pairs: pl.DataFrame, divided: Divided, config: ComparisonsConfig, present: set[str]
) -> pl.DataFrame:
    """Add the split of each row's prompt group, or of its two items where both have the same."""
    names = ["prompt_group", *(["other_group_id"] if divided == "items" else [])]
    members = pl.concat([pairs.select("split", "role", unit=name) for name in names])
    units = (
        members.group_by("unit")
        .agg(
            pl.len().alias("pairs"),
            *((pl.col("split") == name).any().alias(name) for name in SPLITS),
            *((pl.col("role") == r).any().alias(f"{r}_role") for r in ("seen", "val", "test")),
        )
        .sort("unit")
    )
    splits = splits_of_units(units, present, config, divided)
    table = units.select("unit", group_split=splits)
    found = pairs.join(
        table, left_on="prompt_group", right_on="unit", how="left", maintain_order="left"
    )
    if divided != "items":
        return found
    other = pairs.join(
        table, left_on="other_group_id", right_on="unit", how="left", maintain_order="left"
    )["group_split"]
    return found.with_columns(
        group_split=pl.when(pl.col("group_split") == other).then("group_split")
    )


def require_splits(dataset: str, pairs: pl.DataFrame, origin: str, rejects: dict[str, int]) -> None:
    """Raise DataError unless the seen users have pairs of all three splits."""
    listed = ", ".join(f"{count:,} {reason}" for reason, count in rejects.items())
    left_out = f" ({listed})" if listed else ""
    if not pairs.is_empty():
        present = set(pairs.filter(pl.col("population") == "seen")["split"].unique())
        absent = [split for split in SPLITS if split not in present]
        if absent:
            raise DataError(
                f"dataset {dataset}: the {absent[0]} split of the seen users is empty{left_out}; "
                "it takes at least three prompts, or fifteen items of one prompt, that seen users "
                "compared"
            )
        return
    if set(rejects) & set(REASONS):
        raise DataError(
            f"dataset {dataset}: the comparisons in {origin} cannot be divided into splits"
            f"{left_out}; it takes at least three prompts, or fifteen items of one prompt, and "
            "users who compared several of them"
        )
    raise DataError(
        f"dataset {dataset}: no comparison was found in {origin}{left_out}; correct those rows, or "
        f"data.{dataset}.source"
    )
