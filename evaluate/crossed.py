"""Error bars over people and prompts at once (evaluation.md 2.4).

A mean over answers would be another one if other people had been asked, and if they had been asked
other things. Its variance is V_users + V_prompts - V_cells, each a sum over clusters of squared
influences, never less than the larger of the first two, with Student's t of min(U, P) - 1 degrees
of freedom (two-way clustering: Cameron, Gelbach and Miller 2011). Resampling users alone calls a
number certain that hangs on twenty prompts.

n answers of U users to P prompts; ``benchmarks/coverage.py`` measures how often the intervals hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student

from pal.dataset import oriented

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Side = Literal["users", "prompts"]
PROMPT_GROUP = "prompt_group"
"""column: what two answers have in common if their outcomes vary together apart from the user"""


class Estimate(NamedTuple):
    """A mean over answers, and how far it would be off with other users and other prompts."""

    value: float
    error: float
    """standard error; NaN with a single user or a single prompt"""
    freedom: int
    """degrees of freedom"""
    side: Side
    """where most of the error comes from"""

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval; None with a single user or a single prompt, where none is known."""
        if self.freedom < 1:
            return None
        half = float(student.ppf(0.975, self.freedom)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p of the mean being zero."""
        if self.value == 0.0 or self.freedom < 1:
            return 1.0
        if self.error == 0.0:
            return 0.0
        return float(2.0 * student.sf(abs(self.value) / self.error, self.freedom))


@dataclass(frozen=True)
class Crossing:
    """Whose answers to what n numbers are."""

    users: Numbers
    """(n,) from 0"""
    prompts: Numbers
    """(n,) from 0"""

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Crossing:
        """Return the crossing of rows with columns ``user_id`` and ``prompt_group``."""
        return cls.of_names(frame["user_id"].to_numpy(), frame[PROMPT_GROUP].to_numpy())

    @classmethod
    def of_names(cls, users: NDArray[np.generic], prompts: NDArray[np.generic]) -> Crossing:
        """Return the crossing of users and prompts by any kind of name."""
        names = (np.unique(values, return_inverse=True)[1] for values in (users, prompts))
        return cls(*names)

    @cached_property
    def answers(self) -> Array:
        """(U,) answers of each user."""
        return np.bincount(self.users).astype(np.float64)

    @property
    def n_users(self) -> int:
        return len(self.answers)

    @property
    def n_prompts(self) -> int:
        return int(self.prompts.max()) + 1

    def repeated(self, times: int) -> Crossing:
        """Return the crossing of several draws over the same answers, end to end."""
        return Crossing(np.tile(self.users, times), np.tile(self.prompts, times))

    def user_means(self, values: Array) -> Array:
        """Return the mean of each user's values, (U,)."""
        return np.bincount(self.users, values) / self.answers

    def macro(self, values: Array) -> Estimate:
        """Estimate the mean over users of each user's mean of ``values``, (n,)."""
        mean = float(self.user_means(values).mean())
        return self._estimate(mean, (values - mean) / (self.n_users * self.answers[self.users]))

    def micro(self, values: Array) -> Estimate:
        """Estimate the mean over answers of ``values``, (n,)."""
        mean = float(values.mean())
        return self._estimate(mean, (values - mean) / len(values))

    def _estimate(self, mean: float, influence: Array) -> Estimate:
        cells = np.unique(self.users * self.n_prompts + self.prompts, return_inverse=True)[1]
        users, prompts, both = (
            float(np.square(np.bincount(cluster, influence)).sum())
            for cluster in (self.users, self.prompts, cells)
        )
        side: Side = "users" if users >= prompts else "prompts"
        freedom = min(self.n_users, self.n_prompts) - 1
        if freedom < 1:
            return Estimate(mean, math.nan, freedom, side)
        users *= self.n_users / (self.n_users - 1)
        prompts *= self.n_prompts / (self.n_prompts - 1)
        variance = max(users + prompts - both, users, prompts)
        return Estimate(mean, math.sqrt(variance), freedom, side)


def with_prompt_group(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add ``prompt_group``: the prompt; where there is none, the two items that are compared."""
    prompt, *compared = (pl.col(n).bin.encode("hex") for n in ("prompt_id", "low", "high"))
    group = pl.coalesce(prompt, pl.concat_str(compared)).alias(PROMPT_GROUP)
    return oriented(pairs).select(*pairs.columns, group)
