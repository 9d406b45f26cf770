"""The card of a prepared dataset: what is in it, said in numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from pal.dataset import WITH_PROMPT
from pal.errors import DataError

COMPARED = ["user_id", "prompt_id", "first_id", "second_id"]


def counts_of(items: pl.DataFrame, pairs: pl.DataFrame) -> dict[str, Any]:
    """Return the counts: pairs by cell, users, pairs per user, ties, repeats, and what unique items
    save."""
    cells = pairs.group_by("split", "population").len().sort("split", "population")
    users = dict(pairs.group_by("population").agg(pl.col("user_id").n_unique()).iter_rows())
    per_user = pairs.group_by("user_id").len()["len"]
    mentioned = [
        "prompt_id",
        "first_id",
        "second_id",
        *(name for name in WITH_PROMPT.values() if name in pairs),
    ]
    mentions = sum(len(pairs) - pairs[name].null_count() for name in mentioned)
    modalities = dict(items.group_by("modality").len().sort("modality").iter_rows())
    return {
        "items": len(items),
        "items_by_modality": modalities,
        "pairs": len(pairs),
        "ties": int((pairs["label"] == 0.5).sum()),
        "tie_rate": round(float((pairs["label"] == 0.5).mean() or 0.0), 6),  # type: ignore[arg-type]
        "prompts": pairs["prompt_id"].n_unique() - int(pairs["prompt_id"].null_count() > 0),
        "item_mentions": mentions,
        "encodings_saved_by_unique_items": round(mentions / max(1, len(items)), 3),
        "seen_users": users.get("seen", 0),
        "unseen_users": users.get("unseen", 0),
        "pairs_per_user": {
            "least": int(per_user.min() or 0),  # type: ignore[arg-type]
            "median": float(per_user.median() or 0.0),  # type: ignore[arg-type]
            "most": int(per_user.max() or 0),  # type: ignore[arg-type]
        },
        **_repeats(pairs),
        "cells": {f"{split}_{population}": count for split, population, count in cells.iter_rows()},
    }


def _repeats(pairs: pl.DataFrame) -> dict[str, int]:
    """Count comparisons that a user was given before, on whichever side, and users' contradictions
    among those."""
    swapped = pl.col("first_id") > pl.col("second_id")
    same = pairs.select(
        "user_id",
        "prompt_id",
        low=pl.when(swapped).then("second_id").otherwise("first_id"),
        high=pl.when(swapped).then("first_id").otherwise("second_id"),
        label=pl.when(swapped).then(1.0 - pl.col("label")).otherwise("label"),
    )
    groups = same.group_by("user_id", "prompt_id", "low", "high").agg(
        pl.len(), pl.col("label").n_unique().alias("n")
    )
    return {
        "repeated": int((groups["len"] - 1).sum()),
        "contradictory": int((groups["n"] > 1).sum()),
    }


def digest_of(rows: pl.DataFrame) -> str:
    """Return BLAKE2b-256 over the rows in their order, every value length-prefixed."""
    state = hashlib.blake2b(digest_size=32)
    for row in rows.iter_rows():
        for value in row:
            raw = value if isinstance(value, bytes) else repr(value).encode()
            state.update(len(raw).to_bytes(4, "little") + raw)
    return state.hexdigest()


def require_splits(name: str, pairs: pl.DataFrame, origin: str, rejects: dict[str, int]) -> None:
    """Raise DataError unless the seen users have pairs of all three splits."""
    listed = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
    left_out = f" ({listed})" if listed else ""
    if pairs.is_empty():
        raise DataError(
            f"dataset {name}: no comparison was found in {origin}{left_out}; "
            f"check data.{name}.source, or run: pal doctor --dataset {name}"
        )
    present = set(pairs.filter(pl.col("population") == "seen")["split"].unique())
    for split in ("train", "val", "test"):
        if split not in present:
            raise DataError(
                f"dataset {name}: the {split} split of the seen users is empty{left_out}; "
                f"use more source rows or another data.{name}.salt"
            )


def card_text(card: dict[str, Any], folder: str) -> str:
    """Return the card for people: a few lines."""
    c, rejects = card["counts"], card["rejects"]
    per_user = c["pairs_per_user"]
    lines = [
        f"{folder}: {c['pairs']:,} pairs of {c['seen_users']:,} seen and {c['unseen_users']:,} "
        "unseen users, "
        f"{card['revision']}, {card['licence']}",
        f"  items     {c['items']:,} unique of {c['item_mentions']:,} mentioned, so each encoding "
        "serves "
        f"{c['encodings_saved_by_unique_items']:.1f} times; "
        + ", ".join(f"{count:,} {modality}" for modality, count in c["items_by_modality"].items()),
        f"  per user  {per_user['least']:,} to {per_user['most']:,} pairs, median "
        f"{per_user['median']:g}",
        f"  ties      {c['ties']:,} ({c['tie_rate']:.1%}); {c['repeated']:,} repeated comparisons, "
        f"{c['contradictory']:,} of them answered in contradiction",
        "  cells     " + ", ".join(f"{cell} {count:,}" for cell, count in c["cells"].items()),
    ]
    if "prompt_groups" in card["facts"]:
        groups = card["facts"]["prompt_groups"], card["facts"]["largest_prompt_group"]
        lines.append(
            f"  prompts   {groups[0]:,} groups that no split divides, the largest of "
            f"{groups[1]:,} pairs"
        )
    if rejects:
        lines.append(
            "  rejects   " + ", ".join(f"{count:,} {reason}" for reason, count in rejects.items())
        )
    return "\n".join(lines)
