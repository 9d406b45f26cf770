"""What is in a dataset, in numbers: counts, digests, and the card in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from pal.dataset import WITH_PROMPT, Counts, DatasetCard, PairsPerUser, oriented
from pal.files import canonical_json
from pal.records import JsonObject

COMPARED = ["user_id", "prompt_id", "first_id", "second_id"]


def counts_of(items: pl.DataFrame, pairs: pl.DataFrame) -> Counts:
    """Return the counts: pairs by cell, users, pairs per user, ties, repeats, and what unique items
    save."""
    cells = pairs.group_by("split", "population").len().sort("split", "population")
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
        cells={f"{split}_{population}": count for split, population, count in cells.iter_rows()},
    )


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


def card_text(card: DatasetCard, folder: Path) -> str:
    """Return the card for people: a few lines."""
    counts, per_user = card.counts, card.counts.pairs_per_user
    modalities = [f"{count:,} {name}" for name, count in counts.items_by_modality.items()]
    cells = [f"{cell} {count:,}" for cell, count in counts.cells.items()]
    lines = [
        f"{folder}: {counts.pairs:,} pairs of {counts.seen_users:,} seen and "
        f"{counts.unseen_users:,} unseen users, {card.revision}, {card.licence}",
        f"  items     {counts.items:,} unique of {counts.item_mentions:,} mentioned, so each "
        f"encoding serves {counts.encodings_saved_by_unique_items:.1f} times; "
        + ", ".join(modalities),
        f"  per user  {per_user.least:,} to {per_user.most:,} pairs, median {per_user.median:g}",
        f"  ties      {counts.ties:,} ({counts.tie_rate:.1%}); {counts.repeated:,} repeated "
        f"comparisons, {counts.contradictory:,} of them answered in contradiction",
        "  cells     " + ", ".join(cells),
    ]
    if card.splitting.prompt_groups is not None:
        lines.append(
            f"  prompts   {card.splitting.prompt_groups:,} groups that no split divides, the "
            f"largest of {card.splitting.largest_prompt_group:,} pairs"
        )
    if card.rejects:
        rejects = [f"{count:,} {reason}" for reason, count in card.rejects.items()]
        lines.append("  rejects   " + ", ".join(rejects))
    return "\n".join(lines)
