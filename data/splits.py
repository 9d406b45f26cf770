"""Who is seen, who is new, and which prompts belong to which split, for sources of real
comparisons.

Everything follows from names and the salt. Rows of one prompt group (the same prompt, or prompts
joined by a shared item) stay together; a user is seen, or unseen and judged on validation or on
test pairs:

- a seen user has pairs of all three splits;
- an unseen user has adaptation pairs (split train) and pairs of the own role's split;
- no prompt that is judged, of any user, was read in the training of seen users.

What fits nowhere becomes a reject with its reason, for the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from pal.chance import bucket
from pal.config import ComparisonsConfig
from pal.data.comparisons import REJECT_COLUMNS
from pal.data.split import split_of
from pal.dataset import ids_of

FEWEST_USERS = 10
"""with fewer users than this all are seen: a share of them would be nobody or everybody"""
REASONS = {
    "prompt-in-another-split": "its prompt, or one with a shared item, belongs to another split of the source",
    "not-its-role": "its user is new and judged on another split",
    "user-not-in-train": "its user has no training pair, so no head could know them",
    "too-few-pairs": "its user is new and has too few pairs to adapt from or to be judged on",
}


@dataclass
class Arranged:
    """Comparisons with split and population, what had to be left out, and facts for the card."""

    pairs: pl.DataFrame
    rejects: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def arrange(pairs: pl.DataFrame, config: ComparisonsConfig) -> Arranged:
    """Give every comparison its split and population; ``pairs`` are those of a ``Recorder``."""
    if pairs.is_empty():
        return Arranged(
            pairs.with_columns(population=pl.lit(None, pl.String)),
            pl.DataFrame(schema=REJECT_COLUMNS),
        )
    pairs = pairs.with_columns(prompt_group=pl.Series(prompt_groups(pairs, config.grouping)))
    pairs = _with_roles(pairs, config)
    sizes = pairs["prompt_group"].value_counts()["count"]
    facts = {"prompt_groups": len(sizes), "largest_prompt_group": int(sizes.max() or 0)}  # type: ignore[arg-type]
    present = set(pairs["split"].drop_nulls().unique())
    pairs = _with_group_splits(pairs, config, present)
    is_seen, is_own = pl.col("role") == "seen", pl.col("group_split").is_in(list(present))
    fate = (
        pl.when(is_own & (pl.col("split") != pl.col("group_split")))
        .then(pl.lit("prompt-in-another-split"))
        .when(
            ~is_seen
            & (pl.col("group_split") != "train")
            & (pl.col("group_split") != pl.col("role"))
        )
        .then(pl.lit("not-its-role"))
    )
    pairs = pairs.with_columns(fate=fate).with_columns(
        split="group_split",
        population=pl.when(is_seen).then(pl.lit("seen")).otherwise(pl.lit("unseen")),
    )
    kept = pl.col("fate").is_null()
    trained = (kept & (pl.col("split") == "train")).sum().over("user_id")
    judged = (kept & (pl.col("split") == pl.col("role"))).sum().over("user_id")
    enough = (trained > 0) & (judged >= config.min_pairs)
    pairs = pairs.with_columns(
        fate=pl.when(kept & is_seen & (trained == 0))
        .then(pl.lit("user-not-in-train"))
        .when(kept & ~is_seen & ~enough)
        .then(pl.lit("too-few-pairs"))
        .otherwise("fate")
    )
    left_out = pairs.filter(pl.col("fate").is_not_null())
    rejects = left_out.select(
        "source_row", reason="fate", message=pl.col("fate").replace_strict(REASONS, default="")
    )
    facts["users_left_out"] = _users_left_out(pairs)
    return Arranged(
        pairs.filter(kept).drop("fate", "prompt_group", "role", "group_split"), rejects, facts
    )


def _users_left_out(pairs: pl.DataFrame) -> int:
    kept = pairs.filter(pl.col("fate").is_null())["user_id"].n_unique()
    return int(pairs["user_id"].n_unique() - kept)


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
        *((pl.col("split") == name).any().alias(name) for name in ("train", "val", "test")),
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
        return (
            "val"
            if bucket("role", config.salt, name) * both < config.validation_user_share
            else "test"
        )
    return "val" if row["val_role"] else "test"


def prompt_groups(pairs: pl.DataFrame, grouping: str) -> list[bytes]:
    """Return the prompt group of each row, named by the least of its members' names.

    Rows with one prompt are one group; with ``grouping`` prompt+items, so are rows that share an
    item. Rows without a prompt always go by their items.
    """
    first, second, keys = (ids_of(pairs[name]) for name in ("first_id", "second_id", "prompt_key"))
    keys = np.where(keys == b"", np.where(first < second, first, second), keys)
    names, own = np.unique(keys, return_inverse=True)
    by_items = (
        np.full(len(pairs), True)
        if grouping == "prompt+items"
        else pairs["prompt_key"].is_null().to_numpy()
    )
    items = np.unique(np.concatenate([first[by_items], second[by_items]]), return_inverse=True)[1]
    label = components(len(names), np.tile(own[by_items], 2), items)
    return [bytes(name).ljust(16, b"\0") for name in names[label[own]]]


def components(count: int, node: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return for each of ``count`` nodes the least node that it is joined to; edge e joins node[e]
    and item[e]."""
    label = np.arange(count)
    items = int(item.max(initial=-1)) + 1
    while True:
        least = np.full(items, count)
        np.minimum.at(least, item, label[node])
        joined = label.copy()
        np.minimum.at(joined, node, least[item])
        joined = joined[joined]
        if (joined == label).all():
            return label
        label = joined
