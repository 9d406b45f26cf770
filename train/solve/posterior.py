"""The fit of ``auto``'s model (pal.train.solve.mixture): everything at once, at the maximum of the
posterior, by L-BFGS over all answers.

Shapes: n answers, T things, F features of a thing, K prototypes, N users.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit, softmax

from pal.train.sharing import Array
from pal.train.solve.mixture import STANDARD, START, Judgements, Mixture, Priors, Strength

HISTORY, GRADIENT, PROGRESS = 20, 1e-4, 1e-7
"""steps that L-BFGS remembers, and the largest slope and the relative progress that end it"""


def fit(
    features: Array,
    rows: Judgements,
    k: int,
    strength: Strength,
    rng: np.random.Generator,
    iterations: int,
    priors: Priors = STANDARD,
) -> Mixture:
    """Return the maximum of the posterior that L-BFGS finds from a random start.

    ``features`` are those of the things, (T, F), with a mean of zero and a mean squared norm of
    one.
    """
    from scipy.optimize import minimize  # a third of a second, which those who read heads save

    problem = _Problem(features, rows, k, strength, priors)
    found = minimize(
        problem.value_and_slope, problem.start(rng), jac=True, method="L-BFGS-B",
        options={
            "maxiter": iterations, "maxfun": 2 * iterations, "maxcor": HISTORY, "ftol": PROGRESS,
            "gtol": GRADIENT,
        },
    )  # fmt: skip
    part = problem.split(found.x)
    residuals = np.column_stack([part.shared_residual, strength.tau * part.residuals])
    return Mixture(
        float(part.base[0]), part.shared, strength.sigma * part.deviations, residuals, part.ready,
        part.logits, strength.tau, priors.dropped,
    )  # fmt: skip


class _Parts(NamedTuple):
    """What is fitted, each with a prior but the base, which has none."""

    base: Array
    shared: Array
    deviations: Array
    shared_residual: Array
    residuals: Array
    ready: Array
    logits: Array


class _Problem:
    """The negative log posterior and its slope."""

    def __init__(
        self,
        features: Array,
        rows: Judgements,
        k: int,
        strength: Strength,
        priors: Priors = STANDARD,
    ) -> None:
        self.features, self.rows, self.strength = features, rows, strength
        things, width = features.shape
        self.shapes = [
            (1,), (width,), (width, k), (things,), (things, k), (rows.users,), (rows.users, k),
        ]  # fmt: skip
        self.ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        variances = np.repeat(
            [
                np.inf, priors.maps, priors.maps, priors.residuals, priors.residuals, priors.ready,
                priors.logits,
            ],
            np.diff(self.ends, prepend=0),
        )  # fmt: skip
        self.held = variances == 0.0
        self.precision = 1.0 / np.where(self.held, 1.0, variances)
        self.is_vote = 1.0 if rows.second is None else 0.0
        answer, one = np.arange(len(rows)), np.ones(len(rows))
        things_of, sign, answers = [rows.first], [one], [answer]
        if rows.second is not None:
            things_of.append(rows.second)
            sign.append(-one)
            answers.append(answer)
        place = (np.concatenate(things_of), np.concatenate(answers))
        self.by_thing = csr_array((np.concatenate(sign), place), (things, len(rows)))
        self.by_user = csr_array((one, (rows.user, answer)), (rows.users, len(rows)))

    def start(self, rng: np.random.Generator) -> Array:
        """Return where to begin, all numbers in a row."""
        part = self.split(np.zeros(self.ends[-1]))
        part.deviations[:] = START * rng.standard_normal(part.deviations.shape)
        part.logits[:] = START * rng.standard_normal(part.logits.shape)
        numbers = np.concatenate([values.ravel() for values in part])
        numbers[self.held] = 0.0
        return numbers

    def split(self, numbers: Array) -> _Parts:
        """Return views of the parts of a row of numbers."""
        pieces = np.split(numbers, self.ends[:-1])
        return _Parts(*(p.reshape(shape) for p, shape in zip(pieces, self.shapes, strict=True)))

    def value_and_slope(self, numbers: Array) -> tuple[float, Array]:
        part, (sigma, tau) = self.split(numbers), self.strength
        user, label = self.rows.user, self.rows.label
        table = np.column_stack(
            [
                self.features @ part.shared + part.shared_residual,
                sigma * (self.features @ part.deviations) + tau * part.residuals,
            ]
        )
        taste = self.rows.difference(table)
        weights: Array = softmax(part.logits, axis=1)
        own = weights[user]
        margin = taste[:, 0] + (own * taste[:, 1:]).sum(axis=1)
        margin += self.is_vote * (part.base[0] + part.ready[user])
        off = expit(margin) - label
        value = float((np.logaddexp(0.0, margin) - label * margin).sum())
        slope = self.precision * numbers
        value += 0.5 * float((slope[1:] * numbers[1:]).sum())

        slope[0] = self.is_vote * off.sum()
        down = self.split(slope)
        of_things = self.by_thing @ np.column_stack([off, off[:, None] * own])
        of_users = self.by_user @ np.column_stack([off, off[:, None] * taste[:, 1:]])
        down.shared[:] += self.features.T @ of_things[:, 0]
        down.deviations[:] += sigma * (self.features.T @ of_things[:, 1:])
        down.shared_residual[:] += of_things[:, 0]
        down.residuals[:] += tau * of_things[:, 1:]
        down.ready[:] += self.is_vote * of_users[:, 0]
        along = of_users[:, 1:]
        down.logits[:] += weights * (along - (weights * along).sum(axis=1, keepdims=True))
        slope[self.held] = 0.0
        return value, slope
