"""What the seeds of a head show together, from the lines of ``real.py``: means, and who loses to
one taste."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lines import Line

from pal.evaluate.report import NOTHING, as_markdown

Name = tuple[str, int | None]
"""a head and its K"""
PEOPLE = ("seen users", "new people, 0 answers", "new people, 5 answers", "new people, 20 answers")
PLACES = (1, 5, 6, 7)
"""where a row shows their accuracy"""
SEEN = [(what, PEOPLE[0]) for what in ("accuracy", "NLL")]
NEW = [(what, people) for people in PEOPLE[1:] for what in ("accuracy", "NLL")]
MEANS = [
    "head", "K", "seeds", "seen users (seeds)", "NLL (seeds)", "unseen, 0 shots", "NLL", "5 shots",
    "NLL", "20 shots", "NLL", "worse", "better",
]  # fmt: skip
AUTO = "auto"


def named_in_short(head: str, k: int | None) -> str:
    return f"`{head}`" if k is None else f"`{head}` K={k}"


def by_head(found: Sequence[Line]) -> dict[Name, list[Line]]:
    """Return the rows of all seeds by their head, in their order."""
    of: dict[Name, list[Line]] = {}
    for row in found:
        of.setdefault((row["head"], row["k"]), []).append(row)
    return of


def over_seeds(found: Sequence[Line]) -> str:
    """Return the means of heads of several seeds, "" where there are none."""
    table = [MEANS]
    for (head, k), rows in by_head(found).items():
        if len(rows) < 2:
            continue
        every = [values(row) for row in rows]
        seen = [mean([one[cell] for one in every], spread=True) for cell in SEEN]
        new = [mean([one[cell] for one in every]) for cell in NEW]
        counts = [
            f"{count_beyond(rows, 'accuracy', sign)}, {count_beyond(rows, 'NLL', sign)}"
            for sign in (-1, 1)
        ]
        table.append([head, "" if k is None else f"{k}", f"{len(rows)}", *seen, *new, *counts])
    return f"Means over seeds:\n\n{as_markdown(table)}" if len(table) > 1 else ""


def values(row: Line) -> dict[tuple[str, str], float | None]:
    """Return a row's numbers by what they are and whose; None: not kept, or there is none."""
    accuracy, nll = row.get("accuracy", {}), row["nll"]
    found = {("NLL", people): nll.get(people) for people in PEOPLE}
    if found[SEEN[1]] is None:
        found[SEEN[1]] = first_number(row["row"][3])
    for place, people in zip(PLACES, PEOPLE, strict=True):
        found["accuracy", people] = accuracy.get(people, first_number(row["row"][place]))
    return found


def first_number(shown: str) -> float | None:
    return None if shown == NOTHING else float(shown.split()[0])


def mean(of: Sequence[float | None], spread: bool = False) -> str:
    known = [value for value in of if value is not None]
    if len(known) < len(of):
        return NOTHING
    told = f"{sum(known) / len(known):.3f}"
    return f"{told} ({min(known):.3f} to {max(known):.3f})" if spread else told


def count_beyond(rows: Sequence[Line], what: str, sign: int) -> int:
    """Return how many rows are better (+1) or worse (-1) than one taste beyond the interval."""
    if what == "accuracy":
        return sum(row["beyond"] == sign for row in rows)
    gained = [row["row"][4].partition("[")[2].rstrip("]") for row in rows]
    ends = [tuple(map(float, each.split(", "))) for each in gained if each]
    return sum(high < 0.0 if sign > 0 else low > 0.0 for low, high in ends)


def in_short(sets: Mapping[str, Sequence[Line]], order: Sequence[Name]) -> str:
    """Say which heads lose to one taste, and where ``auto`` is above a coin."""
    rows_of = {dataset: by_head(rows) for dataset, rows in sets.items()}
    told = []
    for word, sign in (("Worse", -1), ("Better", 1)):
        for what in ("accuracy", "NLL"):
            found = [named_where(name, rows_of, what, sign) for name in order]
            told.append(
                f"{word} than one taste on seen users beyond the interval, {what}, in how many of "
                f"the seeds: {'; '.join(filter(None, found)) or 'none'}."
            )
    told.append(above_a_coin(rows_of))
    return "## In short\n\n" + "\n".join(f"- {line}" for line in told)


def named_where(
    name: Name, rows_of: Mapping[str, Mapping[Name, Sequence[Line]]], what: str, sign: int
) -> str:
    """Name a head and the sets where some seeds of it are beyond the interval; "" if none is."""
    found = []
    for dataset, heads_of in rows_of.items():
        rows = heads_of.get(name, [])
        count = count_beyond(rows, what, sign)
        found += [f"{dataset} {count} of {len(rows)}"] if count else []
    return f"{named_in_short(*name)} ({', '.join(found)})" if found else ""


def above_a_coin(rows_of: Mapping[str, Mapping[Name, Sequence[Line]]]) -> str:
    """Say in which cells ``auto`` is worse than a coin, in the mean over seeds."""
    above, cells = [], 0
    for dataset, heads_of in rows_of.items():
        kept = [row["nll"] for (head, _), rows in heads_of.items() if head == AUTO for row in rows]
        for cell in kept[0] if kept else ():
            nll = sum(one[cell] for one in kept) / len(kept)
            cells += 1
            if nll > math.log(2):
                named = cell.replace(" 1 answers", " 1 answer")
                above.append(f"{dataset}, {named}, {nll:.3f} ({len(kept)} seeds)")
    return (
        f"Cells where the NLL of `{AUTO}`, mean over seeds, is above ln 2: {len(above)} of "
        f"{cells}{': ' if above else ''}{'; '.join(above)}."
    )
