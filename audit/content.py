"""What people disagree about, as texts: what each group likes more than the others, what divides
them, and what all like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pal.audit.answers import Answers
from pal.audit.groups import Tastes
from pal.train.sharing import Array, Numbers

FEWEST = 3
"""answers that a group must have given about a thing, for its share to be told or ranked by"""
LINES, CONSENSUS = 8, 6


@dataclass(frozen=True)
class Judged:
    """How groups of users judge things, (T, G): by their answers, and by the fitted tastes."""

    wins: Array
    """answers for a thing: that agree, or prefer it; ties count a half"""
    count: Array
    taste: Array | None
    """reward of the group's average member; None where no model was fitted"""
    variance: Array | None
    """(T,) of the reward between prototypes, weighed by how much users have of each"""

    @classmethod
    def of(cls, answers: Answers, group: Numbers, tastes: Tastes | None) -> Judged:
        groups = int(group.max()) + 1
        shape = (answers.things, groups)
        own = group[answers.user]
        wins: Array = np.zeros(answers.things * groups)
        wins += np.bincount(answers.first * groups + own, answers.label, len(wins))
        count = np.bincount(answers.first * groups + own, minlength=answers.things * groups)
        if answers.second is not None:
            key = answers.second * groups + own
            wins = wins + np.bincount(key, 1.0 - answers.label, answers.things * groups)
            count = count + np.bincount(key, minlength=answers.things * groups)
        counts = count.reshape(shape).astype(float)
        if tastes is None:
            return cls(wins.reshape(shape), counts, None, None)
        mean = np.stack([tastes.weights[group == g].mean(axis=0) for g in range(groups)])
        share = tastes.weights.mean(axis=0)
        follows = np.array([tastes.reliability[group == g].mean() for g in range(groups)])
        taste = tastes.shared[:, None] * follows + tastes.deviations @ mean.T
        centre = tastes.deviations @ share
        variance = np.square(tastes.deviations - centre[:, None]) @ share
        return cls(wins.reshape(shape), counts, taste, variance)

    @property
    def groups(self) -> int:
        return self.count.shape[1]

    def share(self, thing: int, group: int) -> tuple[float | None, int]:
        """Return a group's share of answers for a thing, None where it has none, and how many."""
        count = self.count[thing, group]
        return (self.wins[thing, group] / count if count else None), int(count)

    def share_of_others(self, thing: int, group: int) -> tuple[float | None, int]:
        count = self.count[thing].sum() - self.count[thing, group]
        wins = self.wins[thing].sum() - self.wins[thing, group]
        return (wins / count if count else None), int(count)

    def apart(self, group: int) -> Array:
        """Return by how much a group likes each thing more than the others do, (T,): in reward, or
        in standard errors of its share where no model was fitted; NaN where nothing can be said."""
        count, wins = self.count[:, group], self.wins[:, group]
        others, won = self.count.sum(axis=1) - count, self.wins.sum(axis=1) - wins
        known = (count >= FEWEST) & (others >= FEWEST)
        if self.taste is not None:
            groups = self.taste.shape[1]
            rest = (self.taste.sum(axis=1) - self.taste[:, group]) / max(groups - 1, 1)
            found = self.taste[:, group] - rest
            judged = self.count.sum(axis=1) > 0
            # of things that are judged once or twice there is no share to show, but a reward
            return np.where(known if known.any() else judged, found, np.nan)
        p, q = (wins + 1.0) / (count + 2.0), (won + 1.0) / (others + 2.0)
        error = np.sqrt(p * (1 - p) / (count + 2.0) + q * (1 - q) / (others + 2.0))
        return np.where(known, (p - q) / error, np.nan)

    def ranked(self, score: Array, lines: int = LINES) -> list[int]:
        """Return the things of the largest scores, the largest first."""
        order = np.argsort(-np.where(np.isnan(score), -np.inf, score), kind="stable")[:lines]
        return [int(thing) for thing in order if np.isfinite(score[thing])]

    def most_liked(self, group: int) -> Array:
        """Return how much a group likes each thing, (T,), to rank by."""
        known = self.count[:, group] >= FEWEST
        if self.taste is not None:
            judged = self.count.sum(axis=1) > 0
            return np.where(known if known.any() else judged, self.taste[:, group], np.nan)
        return np.where(known, (self.wins[:, group] + 1.0) / (self.count[:, group] + 2.0), np.nan)

    def contested(self) -> Array:
        """Return how much prototypes, or groups, differ about each thing, (T,), to rank by."""
        known = (self.count >= FEWEST).sum(axis=1) >= 2
        if self.variance is not None:
            judged = self.count.sum(axis=1) > 0
            return np.where(known if known.any() else judged, self.variance, np.nan)
        apart = np.stack([np.abs(self.apart(g)) for g in range(self.groups)])
        return np.where(known, apart.max(axis=0), np.nan)

    def liked_by_all(self, sign: float) -> Array:
        """Return how much the group that likes each thing least likes it, (T,); with ``sign`` -1,
        how much the one that dislikes it least dislikes it."""
        known = (self.count >= FEWEST).all(axis=1)
        if self.taste is not None:
            score = (sign * (self.taste - np.median(self.taste, axis=0))).min(axis=1)
            judged = self.count.sum(axis=1) > 0
            return np.where((known if known.any() else judged) & (score > 0), score, np.nan)
        share = (self.wins + 1.0) / (self.count + 2.0) - 0.5
        score = (sign * share).min(axis=1)
        return np.where(known & (score > 0), score, np.nan)
