"""What comparisons of runs show, in sentences: whether plurality is shown, above all."""

from __future__ import annotations

from collections.abc import Sequence

from pal.evaluate.compare import CELLS, Comparison
from pal.evaluate.evaluation import Evaluation
from pal.evaluate.records import Interval, Metrics

SURE = 0.05
"""p, corrected for all comparisons, below which a difference is said to be shown"""
OF_ONE_TASTE = ("one-taste", "consensus", "bt-linear", "bt-mlp")
"""heads without prototypes, or with one, whatever else they know of each person"""
LEAST_P = 0.001
"""a smaller p is said to be below this: 0.0000 is no probability that anything has"""
WHERE = {CELLS["seen"]: "seen people", CELLS["unseen"]: "new people without an answer"}


def has_one_taste(head: str, k: int) -> bool:
    """Say whether a head gives all people one taste."""
    return head in OF_ONE_TASTE or k == 1


def sentences_of(found: Evaluation) -> list[str]:
    """Return what an evaluation shows: of each run of many tastes that was compared with one of one
    taste whether plurality is shown, and why runs were not compared."""
    if len(found.runs) < 2:
        return []
    if not found.comparisons:
        return [
            "The runs are not compared, as they are of different datasets or splits and share no "
            "answer; name runs of one dataset."
        ]
    runs = {run.run: run for run in found.runs}
    told = [
        plurality_sentence(one, runs)
        for one in found.comparisons
        if one.cell == CELLS["seen"] and _is_of_both_kinds(one, runs)
    ]
    return told or [
        "Whether people differ is not tested here: compare a run of many tastes with one of one "
        "taste, e.g. of pal train --head pal-a --k 1."
    ]


def p_cell(p: float) -> str:
    """Return a p as a table shows it."""
    return f"< {LEAST_P:g}" if p < LEAST_P else f"{p:.3f}"


def p_told(p: float) -> str:
    """Return a p as a sentence says it."""
    return f"p {p_cell(p)}" if p < LEAST_P else f"p = {p_cell(p)}"


def plurality_sentence(one: Comparison, runs: dict[str, Metrics]) -> str:
    """Say whether a comparison of one taste with many shows plurality."""
    turn = 1.0 if has_one_taste(runs[one.a].head, runs[one.a].k) else -1.0
    single, many = (one.a, one.b) if turn > 0 else (one.b, one.a)
    gain, ends = turn * one.difference, _turned(one.ci95, turn)
    told = f"{many}, of many tastes, against {single}, of one: {points(gain, ends)}"
    if one.p_holm >= SURE:
        return f"Plurality is not shown: {told}, which may be chance ({p_told(one.p_holm)}, Holm)."
    shown = "Plurality is shown" if gain > 0.0 else "Many tastes do worse"
    return (
        f"{shown}: {told} of accuracy on new answers of seen people ({p_told(one.p_holm)}, Holm)."
    )


def difference_sentence(one: Comparison) -> str:
    """Say what a comparison with a baseline shows, or does not, and how many are worse off."""
    told = f"{one.b} against {one.a}, {WHERE[one.cell]}: {points(one.difference, one.ci95)}"
    if one.ci95 is None and one.p_holm >= SURE:
        return (
            f"{told}; a single user or prompt, or one difference everywhere, has no interval, so "
            "nothing is shown."
        )
    outcome = "no difference is shown"
    if one.p_holm < SURE:
        outcome = f"{one.b} is {'better' if one.difference > 0.0 else 'worse'}"
    return (
        f"{told}, {p_told(one.p_holm)} (Holm): {outcome}. {one.harmed:.0%} of the {one.n_users} "
        f"people are worse off; coin flips would give {one.harmed_by_chance:.0%}."
    )


def points(difference: float, ci95: Interval | None) -> str:
    """Return a difference of accuracies in points, with its interval."""
    told = f"{100 * difference:+.1f} points"
    return told if ci95 is None else f"{told} [{100 * ci95[0]:+.1f}, {100 * ci95[1]:+.1f}]"


def _is_of_both_kinds(one: Comparison, runs: dict[str, Metrics]) -> bool:
    kinds: Sequence[bool] = [has_one_taste(runs[n].head, runs[n].k) for n in (one.a, one.b)]
    return any(kinds) and not all(kinds)


def _turned(ci95: Interval | None, turn: float) -> Interval | None:
    if ci95 is None or turn > 0:
        return ci95
    return -ci95[1], -ci95[0]
