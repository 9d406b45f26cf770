"""What a prepared dataset holds, in words: who and what is used, who and what was left out, and
which numbers will mean something. Every command that reads a dataset says it the same way."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pal.dataset import FEWEST, Counts, DatasetCard, SplitDetails

FEWEST_PAIRS = 100
"""pairs of which an accuracy is known to 0.1: two standard errors of a coin are 1 / sqrt(n)"""
JUDGED = {
    "val_seen": "validation of seen users, which chooses epochs and settings",
    "test_seen": "test of seen users",
    "val_unseen": "validation of new users, which tunes few-shot priors",
    "test_unseen": "test of new users",
}
"""what is evaluated, by cell"""
DIVIDED = {
    "prompt": "prompt groups (rows of one prompt)",
    "prompt+items": "prompt groups (prompts, and those that share an item)",
    "items": "items divided, each prompt is in all splits",
}


def say(line: str) -> None:
    """Print a line for people on standard error: standard output is for results."""
    print(line, file=sys.stderr)


def summary_lines(card: DatasetCard) -> list[str]:
    """Return who and what a dataset uses and leaves out, and warnings, a line each."""
    found = [rows_line(card.name, card.counts, card.splitting, card.rejects)]
    found += people_lines(card.counts, card.splitting)
    found += cell_lines(card.counts, card.splitting)
    return found + [f"  warning: {one}" for one in warnings_of(card.counts, card.splitting)]


def short_lines(card: DatasetCard) -> list[str]:
    """Return the same for a dataset that was prepared before: nothing where all of it is used."""
    if not card.rejects and not warnings_of(card.counts, card.splitting):
        return []
    return summary_lines(card)


def rows_line(
    name: str, counts: Counts, splitting: SplitDetails, rejects: Mapping[str, int]
) -> str:
    """Return how many rows became pairs, and the others by reason."""
    lost = sum(rejects.values())
    read = "" if splitting.read is None else f" -> {splitting.read:,} comparisons"
    used = f"{name}: {counts.pairs + lost:,} rows{read} -> {counts.pairs:,} pairs used"
    return used + (f"; left out: {_listed(rejects)}" if lost else "")


def people_lines(counts: Counts, splitting: SplitDetails) -> list[str]:
    """Return who is seen and new, who was left out, and what that takes in answers."""
    lost = splitting.users_left_out
    people = f"{counts.seen_users:,} seen, {counts.unseen_users:,} new"
    if lost:
        people += f", {sum(lost.values()):,} left out ({_listed(lost)})"
    found = [f"  people: {people}"]
    if splitting.min_pairs is not None and splitting.evaluated_share:
        answers = round(splitting.min_pairs / splitting.evaluated_share)
        found.append(
            f"  min_pairs: a new user needs {splitting.min_pairs} to be evaluated on, which takes "
            f"about {max(answers, splitting.min_pairs + 1)} answers"
        )
    return found


def cell_lines(counts: Counts, splitting: SplitDetails) -> list[str]:
    """Return what splits divide, and the size of each cell."""
    found = []
    if splitting.divided is not None:
        shared = splitting.shared_answers
        joins = f"; {shared:,} shared answers join nothing" if shared else ""
        found.append(
            f"  divided: {splitting.prompt_groups:,} {DIVIDED[splitting.divided]}, the largest of "
            f"{splitting.largest_prompt_group:,} pairs{joins}; {splitting.why}"
        )
    thing = "items" if splitting.divided == "items" else "prompts"
    cells = (_cell(counts, cell, thing) for cell in counts.cells)
    return [*found, "  cells: " + "; ".join(cells)]


def warnings_of(counts: Counts, splitting: SplitDetails) -> list[str]:
    """Return a sentence for each cell of which no number could mean anything."""
    found = []
    for cell, what in JUDGED.items():
        if not counts.cells.get(cell):
            found.append(f"{what}: none{_why_none(cell, splitting)}")
            continue
        users, groups = counts.cell_users[cell], counts.cell_groups[cell]
        few = [
            counted(count, kind)
            for count, kind in ((users, "user"), (groups, "prompt group"))
            if count < FEWEST
        ]
        if few:
            found.append(
                f"{what}: only {' and '.join(few)}, so no interval can be trusted; "
                f"{_remedy(cell, groups < FEWEST)}"
            )
        elif counts.cells[cell] < FEWEST_PAIRS:
            found.append(
                f"{what}: only {counted(counts.cells[cell], 'pair')}, so an accuracy is known to "
                f"{1 / counts.cells[cell] ** 0.5:.2f} at best; {_remedy(cell, True)}"
            )
    return found


def card_text(card: DatasetCard, folder: Path) -> str:
    """Return the card for people: what it is, its summary, and its items."""
    counts, per_user = card.counts, card.counts.pairs_per_user
    modalities = [f"{count:,} {name}" for name, count in counts.items_by_modality.items()]
    lines = [
        f"{folder}: {card.revision}, {card.licence}",
        *summary_lines(card),
        f"  items: {counts.items:,} unique of {counts.item_mentions:,} mentioned, so each "
        f"encoding serves {counts.encodings_saved_by_unique_items:.1f} times; "
        + ", ".join(modalities),
        f"  per user: {per_user.least:,} to {per_user.most:,} pairs, median {per_user.median:g}",
        f"  ties: {counts.ties:,} ({counts.tie_rate:.1%}); {counts.repeated:,} repeated "
        f"comparisons, {counts.contradictory:,} of them answered in contradiction",
    ]
    return "\n".join(lines)


def counted(count: int, kind: str) -> str:
    """Return "1 user", "2 users"."""
    return f"{count:,} {kind}{'' if count == 1 else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _cell(counts: Counts, cell: str, thing: str) -> str:
    users, groups = counts.cell_users[cell], counts.cell_groups[cell]
    told = ((counts.cells[cell], "pair"), (users, "user"), (groups, thing.removesuffix("s")))
    return f"{cell} {', '.join(counted(count, kind) for count, kind in told)}"


def _why_none(cell: str, splitting: SplitDetails) -> str:
    if not cell.endswith("unseen"):
        return ""
    if splitting.users_left_out.get("too-few-pairs"):
        return "; new users gave too few answers for min_pairs"
    return "; with fewer than ten users, or shares of 0, nobody is kept apart"


def _remedy(cell: str, by_folds: bool) -> str:
    if by_folds and cell.startswith("test"):
        return "pal evaluate --folds 5 tests every prompt once"
    return "more answers, or users, would help"
