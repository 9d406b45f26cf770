"""Which share of users with another taste would have been found, and with how many more answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pal.audit.answers import Answers
from pal.audit.cross_fit import CrossFit
from pal.audit.overlap_test import OverlapFound, OverlapTest
from pal.audit.power import MORE, Instrument, Other, smallest_share, with_more
from pal.audit.record import Planting
from pal.audit.verdict import SMALL
from pal.train.sharing import Array

MOST_NULL = 59
"""draws of the null where there are more answers"""
OTHERS: tuple[Other, ...] = ("opposite", "unrelated")


def answers_per_user(answers: Answers) -> float:
    return float(np.median(np.bincount(answers.user)))


def search_power(instrument: Instrument, null: Array) -> list[Planting]:
    """Return what test B would have found; where an opposite quarter would have been overlooked,
    also with 2 and 4 times the answers per user. ``null``: gains of the bootstrap, (draws,)."""
    own = answers_per_user(instrument.answers)
    found = [_planting(instrument, other, own, null) for other in OTHERS]
    share = found[0].share
    for times in MORE if share is None or share > SMALL else ():
        more = with_more(instrument.answers, times, instrument.seed)
        before = instrument.cross_fit
        cross_fit = CrossFit(more, before.z, instrument.seed, before.spreads, before.count)
        larger = replace(instrument, cross_fit=cross_fit, name=f"{times} times, ")
        of_larger = larger.null(min(MOST_NULL, len(null)))[:, 0]
        found.append(_planting(larger, "opposite", times * own, of_larger))
        if (found[-1].share or math.inf) <= SMALL:
            break
    return found


def _planting(instrument: Instrument, other: Other, answers: float, null: Array) -> Planting:
    users = instrument.answers.users
    share = smallest_share(lambda share: instrument.detections(share, other, null), users)
    return Planting(other=other, answers_per_user=answers, share=share)


def search_overlap(test: OverlapTest, found: OverlapFound, answers: float) -> list[Planting]:
    """Return what test A would have found; ``answers``: the median of its users."""
    plantings = []
    for other in OTHERS:
        share = smallest_share(
            lambda share, other=other: test.detections(share, other, found.null),  # type: ignore[misc]
            found.users,
        )
        plantings.append(Planting(other=other, answers_per_user=answers, share=share))
    return plantings
