"""What is in a dataset, in numbers: counts and digests; pal/outline.py says them in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import polars as pl

from pal.dataset import WITH_PROMPT, Counts, PairsPerUser, oriented
from pal.files import canonical_json
from pal.records import JsonObject

COMPARED = ["user_id", "prompt_id", "first_id", "second_id"]


def counts_of(items: pl.DataFrame, pairs: pl.DataFrame) -> Counts:
    """Return the counts: pairs by cell, users, pairs per user, ties, repeats, and what unique items
    save."""
    cells = _cells(pairs)
    users = dict(pairs.group_by("population").agg(pl.col("user_id").n_unique()).iter_rows())
    per_user = pairs.group_by("user_id").len()["len"]
    mentioned = ["prompt_id", "first_id", "second_id", *WITH_PROMPT.values()]
    mentions = sum(len(pairs) - pairs[name].null_count() for name in mentioned if name in pairs)
    repeated, contradictory = _repeats(pairs)
    return Counts(
        items=len(items),
        items_by_modality=dict(items.group_by("modality").len().sort("modality").iter_rows()),
        pairs=len(pairs),
        ties=int((pairs["label"] == 0.5).sum()),
        tie_rate=round(float((pairs["label"] == 0.5).mean() or 0.0), 6),  # type: ignore[arg-type]
        prompts=pairs["prompt_id"].n_unique() - int(pairs["prompt_id"].null_count() > 0),
        item_mentions=mentions,
        encodings_saved_by_unique_items=round(mentions / max(1, len(items)), 3),
        seen_users=users.get("seen", 0),
        unseen_users=users.get("unseen", 0),
        pairs_per_user=PairsPerUser(
            least=int(per_user.min() or 0),  # type: ignore[arg-type]
            median=float(per_user.median() or 0.0),  # type: ignore[arg-type]
            most=int(per_user.max() or 0),  # type: ignore[arg-type]
        ),
        repeated=repeated,
        contradictory=contradictory,
        cells=dict(cells.select("cell", "pairs").iter_rows()),
        cell_users=dict(cells.select("cell", "users").iter_rows()),
        cell_groups=dict(cells.select("cell", "groups").iter_rows()),
    )


def _cells(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return pairs, users and prompt groups of each ``<split>_<population>``."""
    cell = pl.concat_str("split", pl.lit("_"), "population").alias("cell")
    sizes = {
        "pairs": pl.len(),
        "users": pl.col("user_id").n_unique(),
        "groups": pl.col("group_id").n_unique(),
    }
    return pairs.group_by(cell).agg(**sizes).sort("cell")


def _repeats(pairs: pl.DataFrame) -> tuple[int, int]:
    """Count comparisons that a user was given before, on whichever side, and users' contradictions
    among those."""
    groups = (
        oriented(pairs)
        .group_by("user_id", "prompt_id", "low", "high")
        .agg(pl.len(), pl.col("p_low").n_unique().alias("n"))
    )
    return int((groups["len"] - 1).sum()), int((groups["n"] > 1).sum())


def digest_of(rows: pl.DataFrame) -> str:
    """Return BLAKE2b-256 over the rows in their order, every value length-prefixed."""
    state = hashlib.blake2b(digest_size=32)
    for row in rows.iter_rows():
        for value in row:
            raw = value if isinstance(value, bytes) else repr(value).encode()
            state.update(len(raw).to_bytes(4, "little") + raw)
    return state.hexdigest()


def split_digest(rules: JsonObject, rows: Iterable[tuple[str, ...]]) -> str:
    """Return BLAKE2b-256 over the rules of a split and its rows (pair, user, split, population),
    sorted by pair."""
    state = hashlib.blake2b(canonical_json(rules).encode(), digest_size=32)
    for row in rows:
        state.update("\x1f".join(row).encode() + b"\n")
    return state.hexdigest()
