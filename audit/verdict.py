"""The rule: plural, none seen, cannot tell; in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from pal.audit.power import LEVEL
from pal.audit.record import Interval, Planting, Verdict
from pal.evaluate.sentences import p_told

SMALL = 0.25
"""the largest share of users with another taste that a dataset may overlook and still be judged"""


@dataclass(frozen=True)
class Evidence:
    """What decides."""

    test: str
    """which test decides, for people"""
    p: float | None
    """None: it cannot be done"""
    draws: int
    """of the null, which bound p"""
    interval: Interval | None
    """of the gain at the strength that the null has; it decides"""
    gain: float | None
    """nats, at the strength that is told; None where test A decides"""
    gain_interval: Interval | None
    points: float | None
    """of accuracy"""
    why_not: str
    """why the test cannot be done"""
    power: list[Planting] | None
    """None: not computed"""


def judged(found: Evidence) -> tuple[Verdict, str]:
    """Return the verdict and its sentence."""
    if found.p is None:
        return "cannot tell", f"Cannot tell: {found.why_not}."
    p = f"{p_of_draws(found.p, found.draws)} by {found.test}"
    if found.p <= LEVEL:
        return _plural(found, p)
    if found.power is None:
        return "cannot tell", (
            f"Cannot tell: no plurality was seen ({p}), but whether it would have been is not "
            "known (power not computed); use --power."
        )
    now = next(one for one in found.power if one.other == "opposite")
    if now.share is not None and now.share <= SMALL:
        return "none seen", (
            f"None seen, and it would have been: {p}; a minority of {now.share:.0%} with an "
            "opposite taste would have been found 8 times in 10."
        )
    return "cannot tell", f"Cannot tell: {p}, and {_what_would_do(found.power)}"


def p_of_draws(p: float, draws: int) -> str:
    """Return a p by so many draws of a null, and whether more of them might show a smaller one."""
    if p > 1.0 / (1 + draws):
        return p_told(p)
    return f"{p_told(p)}, the smallest that {draws:,} draws allow,"


def _plural(found: Evidence, p: str) -> tuple[Verdict, str]:
    if found.gain is None:
        return (
            "plural",
            f"Plural: users agree with each other in more than one taste explains, {p}.",
        )
    low, high = found.interval or (float("-inf"), float("inf"))
    if low <= 0.0:
        return "cannot tell", (
            f"Cannot tell: {p}, but the interval of the gain, [{low:+.4f}, {high:+.4f}] nats an "
            "answer, holds 0; more prompts or users would narrow it."
        )
    low, high = found.gain_interval or (low, high)
    points = "" if found.points is None else f", {found.points:+.1f} points of accuracy"
    return "plural", (
        f"Plural: more than one taste predicts answers not yet seen better, by {found.gain:.4f} "
        f"[{low:.4f}, {high:.4f}] nats an answer{points}; {p}."
    )


def _what_would_do(power: list[Planting]) -> str:
    opposed = [one for one in power if one.other == "opposite"]
    now, more = opposed[0], opposed[1:]
    seen = "not even half of the users" if now.share is None else f"only {now.share:.0%} or more"
    told = f"{seen} with an opposite taste would have been found 8 times in 10"
    enough = [one for one in more if one.share is not None and one.share <= SMALL]
    if enough:
        return f"{told}; about {enough[0].answers_per_user:.0f} answers per user would do."
    if not more:
        return f"{told}."
    most = more[-1].answers_per_user
    return f"{told}; even {most:.0f} answers per user would not do: it takes more users or prompts."
