"""Error bars over people and prompts at once (evaluation.md 2.4).

A mean over answers would be another one if other people had been asked, and if they had been asked
other things. Its variance is V = V_users + V_prompts - V_cells, each a sum over clusters of squared
influences, never less than the larger of the first two (two-way clustering: Cameron, Gelbach and
Miller 2011); the first two are scaled to be unbiased where only that side varies (``Sharing``).
Intervals are Student's t with V^2 / (V_users^2 / (U - 1) + V_prompts^2 / (P - 1))
degrees of freedom (Satterthwaite 1946), at least min(U, P) - 1, which by itself makes intervals of
five users and five prompts up to a fifth wider. Resampling users alone calls a number certain that
hangs on twenty prompts.

n answers of U users to P prompts; ``benchmarks/coverage.py`` measures how often the intervals hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from pal.train.sharing import Array as Array
from pal.train.sharing import Numbers, Sharing

Side = Literal["users", "prompts"]
PROMPT_GROUP, OTHER_GROUP = "prompt_group", "other_group"
"""columns: what two answers have in common if their outcomes vary together apart from the user"""

ROUNDING = 1e-12
"""a standard error below this share of the largest value is none"""


@cache
def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return float(stdtrit(freedom, 0.975))


class Estimate(NamedTuple):
    """A mean over answers, and how far it would be off with other users and other prompts."""

    value: float
    error: float
    """standard error; NaN with a single user or a single prompt"""
    freedom: float
    """degrees of freedom, in tenths; below 1 with a single user or a single prompt"""
    side: Side
    """where most of the error comes from"""

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval; None with a single user or a single prompt, where none is known."""
        if self.freedom < 1:
            return None
        half = quantile(self.freedom) * self.error
        return self.value - half, self.value + half

    @property
    def ci95_of_difference(self) -> tuple[float, float] | None:
        """The same of a difference that may be of any size: None, too, where neither users nor
        prompts differ in it and it is not zero: nothing says how far others would be from it."""
        return None if self.error == 0.0 and self.value != 0.0 else self.ci95

    @property
    def ci95_of_share(self) -> tuple[float, float] | None:
        """The 95 % interval of a mean of numbers between 0 and 1, an accuracy say.

        Wilson's (1927): of the shares s that the mean is no further from than t standard errors,
        the squared error taken to grow with s (1 - s). It stays within 0 and 1 and leans to 1/2, as
        it must where nearly all answers are right: of five users with 100 answers each and an
        accuracy of 0.86, ``ci95`` holds in 92 % of cases, this one in 94 %. Where all answers are
        right, as many answers as there are users or prompts, whichever are fewer, stand for them.
        """
        if self.freedom < 1:
            return None
        mean, t = self.value, quantile(self.freedom)
        if self.error == 0.0 and 0.0 < mean < 1.0:
            return mean, mean
        answers = mean * (1.0 - mean) / self.error**2 if self.error else self.freedom + 1.0
        shrink = 1.0 + t * t / answers
        middle = (mean + t * t / (2.0 * answers)) / shrink
        spread = mean * (1.0 - mean) / answers + t * t / (4.0 * answers * answers)
        half = t * math.sqrt(max(spread, 0.0)) / shrink
        # the mean itself is within, whatever is lost by rounding
        return min(max(middle - half, 0.0), mean), max(min(middle + half, 1.0), mean)

    @property
    def p(self) -> float:
        """Two-sided p of the mean being zero; where n users or prompts, whichever are fewer, do
        not differ in it, that of n coins."""
        if self.value == 0.0 or self.freedom < 1:
            return 1.0
        if self.error == 0.0:  # nobody and nothing differs: of the differences the sign speaks
            return float(2.0**-self.freedom)
        return float(2.0 * stdtr(self.freedom, -abs(self.value) / self.error))


@dataclass(frozen=True)
class Crossing:
    """Whose answers to what n numbers are."""

    users: Numbers
    """(n,) from 0"""
    prompts: Numbers
    """(n,) from 0"""
    others: Numbers | None = None
    """(n,) what else an answer is about, numbered as prompts are: of a comparison whose two items
    are what varies, the second; None where each answer is about one prompt"""

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Crossing:
        """Return the crossing of rows with columns ``user_id``, ``prompt_group`` and
        ``other_group``."""
        names = (frame[name].to_numpy() for name in ("user_id", PROMPT_GROUP, OTHER_GROUP))
        return cls.of_names(*names)

    @classmethod
    def of_names(
        cls,
        users: NDArray[np.generic],
        prompts: NDArray[np.generic],
        others: NDArray[np.generic] | None = None,
    ) -> Crossing:
        """Return the crossing of users and prompts by any kind of name."""
        user = np.unique(users, return_inverse=True)[1]
        if others is None or bool((prompts == others).all()):
            return cls(user, np.unique(prompts, return_inverse=True)[1])
        both = np.unique(np.concatenate([prompts, others]), return_inverse=True)[1]
        return cls(user, *both.reshape(2, -1))

    @cached_property
    def answers(self) -> Array:
        """(U,) answers of each user."""
        return np.bincount(self.users).astype(np.float64)

    @property
    def n_users(self) -> int:
        return len(self.answers)

    @cached_property
    def n_prompts(self) -> int:
        every = self.prompts if self.others is None else np.maximum(self.prompts, self.others)
        return int(every.max()) + 1

    def repeated(self, times: int) -> Crossing:
        """Return the crossing of several draws over the same answers, end to end."""
        others = None if self.others is None else np.tile(self.others, times)
        return Crossing(np.tile(self.users, times), np.tile(self.prompts, times), others)

    def user_means(self, values: Array) -> Array:
        """Return the mean of each user's values, (U,)."""
        return np.bincount(self.users, values) / self.answers

    def macro(self, values: Array) -> Estimate:
        """Estimate the mean over users of each user's mean of ``values``, (n,)."""
        mean = float(self.user_means(values).mean())
        return self._estimate(mean, values, 1.0 / (self.n_users * self.answers[self.users]))

    def micro(self, values: Array) -> Estimate:
        """Estimate the mean over answers of ``values``, (n,)."""
        return self._estimate(float(values.mean()), values, np.full(len(values), 1 / len(values)))

    @cached_property
    def sharing(self) -> tuple[Sharing, Sharing, Sharing]:
        """Which answers share the user, which a prompt, and which both."""
        own = self.users * self.n_prompts
        others = None if self.others is None else own + self.others
        return (
            Sharing.of(self.users, None),
            Sharing.of(self.prompts, self.others),
            Sharing.of(own + self.prompts, others),
        )

    def _estimate(self, mean: float, values: Array, weights: Array) -> Estimate:
        users, prompts, both = (
            sharing.products(weights * (values - mean)) for sharing in self.sharing
        )
        side: Side = "users" if users >= prompts else "prompts"
        others = self.n_users - 1, self.n_prompts - 1
        least = min(others)
        missing = [sharing.shortfall(weights) for sharing in self.sharing[:2]]
        if least < 1 or not math.isfinite(max(missing)):
            return Estimate(mean, math.nan, min(least, 0), side)
        users *= missing[0]
        prompts *= missing[1]
        variance = max(users + prompts - both, users, prompts)
        if variance <= (ROUNDING * float(np.abs(values).max())) ** 2:
            return Estimate(mean, 0.0, least, side)
        freedom = variance**2 / (users**2 / others[0] + prompts**2 / others[1])
        # in tenths, rounded down: their quantiles are known already
        return Estimate(
            mean, math.sqrt(variance), max(least, math.floor(10.0 * freedom) / 10.0), side
        )


def with_prompt_group(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add ``prompt_group`` and ``other_group``, the names in hex digits of the groups that were
    stored with each pair; they differ only where items are divided."""
    group = pl.col("group_id").bin.encode("hex")
    other = group
    if "other_group_id" in pairs.columns:
        other = pl.coalesce(pl.col("other_group_id").bin.encode("hex"), group)
    return pairs.with_columns(group.alias(PROMPT_GROUP), other.alias(OTHER_GROUP))
