"""Test C: what this dataset could have shown. Other tastes are planted, and test B looks for them.

The null of the set serves all plantings in it: their answers are drawn from the same population.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pal.audit.answers import Answers
from pal.audit.cross_fit import CrossFit
from pal.audit.drawing import HERE, Draw, Drawing
from pal.audit.ledger import Ledger
from pal.audit.nulls import Population, bootstrap, drawn_labels
from pal.evaluate.crossed import Crossing
from pal.train.sharing import Array, Numbers

Other = Literal["opposite", "unrelated"]
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5)
PLANTINGS, FOUND, LEVEL = 20, 0.8, 0.05
MORE = (2, 4)
"""times the answers of each user"""
Progress = Callable[[int], None]


def p_of(value: float, null: Array) -> float:
    """Return the share of draws that are no less, the value itself among them; a value that is no
    number is never more than chance."""
    return float((1 + (~(null < value)).sum()) / (1 + len(null)))


@dataclass(frozen=True)
class Instrument:
    """Test B, ready to be applied to any labels of the same answers."""

    cross_fit: CrossFit
    population: Population
    ledger: Ledger
    seed: int
    progress: Progress
    name: str = ""
    """before the kinds of draws, for other answers than those of the dataset"""
    drawing: Drawing = HERE

    @property
    def answers(self) -> Answers:
        return self.cross_fit.answers

    def measured(
        self, kind: str, count: int, labels: Callable[[int], Array], with_low: bool = False
    ) -> Array:
        """Return gains of so many draws of labels, (count, 1 + parts): of all, of each part; or,
        ``with_low``, of all and the lower end of its interval."""
        return self._taken(kind, count, partial(gains_of_labels, self.cross_fit, labels, with_low))

    def _taken(self, kind: str, count: int, draw: Draw) -> Array:
        """Return the values of so many draws, (count, width), from the ledger or computed."""
        at_once = self.cross_fit.at_once
        return self.ledger.take(
            f"{self.name}{kind}", count, lambda wanted: self.drawing.parts(draw, wanted, at_once),
            self.progress,
        )  # fmt: skip

    def null(self, count: int) -> Array:
        """Return the gains of the parametric bootstrap, (count, 1 + parts)."""
        return self.measured(
            "bootstrap", count, partial(bootstrap, self.answers, self.population, self.seed)
        )

    def exchanged(self, count: int, users: Callable[[int], Numbers]) -> Array:
        """Return the gains of so many draws of users, (count,)."""
        draw = partial(gains_of_users, self.cross_fit, users)
        return self._taken("permutation", count, draw)[:, 0]

    def planted(self, share: float, other: Other) -> Callable[[int], Array]:
        """Return what gives the labels of a draw, (n,), of which a share of the users follow
        another taste."""
        return partial(planted, self.cross_fit, self.population, self.seed, share, other)

    def detections(self, share: float, other: Other, null: Array) -> float:
        """Return the share of plantings that are found: p at most 0.05, interval above 0."""
        found = self.measured(
            f"{other} {share:g}", PLANTINGS, self.planted(share, other), with_low=True
        )
        return float(np.mean([p_of(value, null) <= LEVEL and low > 0.0 for value, low in found]))


def gains_of_labels(
    cross_fit: CrossFit, labels: Callable[[int], Array], with_low: bool, numbers: Sequence[int]
) -> Array:
    """Return the gains of draws of labels, (draws, 1 + parts): of all, of each part; or,
    ``with_low``, (draws, 2): of all, and lower ends."""
    drawn = np.stack([labels(number) for number in numbers], axis=1)
    of_draws = lows if with_low else of_parts
    found = cross_fit.gains(torch.from_numpy(drawn).float())
    return np.concatenate([of_draws(cross_fit, gains) for gains in found])


def gains_of_users(
    cross_fit: CrossFit, users: Callable[[int], Numbers], numbers: Sequence[int]
) -> Array:
    """Return the gains of draws of users, (draws, 1)."""
    label = torch.from_numpy(cross_fit.answers.label).float().unsqueeze(1)
    who = torch.from_numpy(np.stack([users(number) for number in numbers], axis=1))
    found = []
    for start in range(0, len(numbers), cross_fit.at_once):
        some = who[:, start : start + cross_fit.at_once]
        for gains in cross_fit.gains(label.expand(-1, some.shape[1]), some):
            found.append(cross_fit.of_users(gains, users=some).unsqueeze(1).numpy())
    return np.concatenate(found)


def planted(
    cross_fit: CrossFit, population: Population, seed: int, share: float, other: Other, number: int
) -> Array:
    """Return labels of which a share of the users follow another taste, (n,)."""
    kind = ("opposite", "unrelated").index(other)
    rng = np.random.default_rng([seed, 7, kind, round(1000 * share), number])
    answers, population = cross_fit.answers, population.drawn(rng)
    others = np.zeros(answers.users, bool)
    others[rng.choice(answers.users, planted_users(share, answers.users), replace=False)] = True
    theirs = -population.taste
    if other == "unrelated":
        theirs = unrelated(population, cross_fit.z.double().numpy(), rng)
    common, own = population.margins(answers), population.margins(answers, theirs)
    margin = np.where(others[answers.user], own, common)
    return drawn_labels(margin, answers.label, rng)


def lows(cross_fit: CrossFit, gains: torch.Tensor) -> Array:
    """Return means and the lower ends of their intervals, (B, 2)."""
    crossing = held_out_crossing(cross_fit)
    found = [crossing.macro(column) for column in gains.T.numpy()]
    return np.array([(e.value, -np.inf if e.ci95 is None else e.ci95[0]) for e in found])


def of_parts(cross_fit: CrossFit, gains: torch.Tensor) -> Array:
    """Return mean gains over users, (B, 1 + parts)."""
    found = [cross_fit.of_users(gains)]
    answers = cross_fit.answers
    if answers.part is not None:
        part = torch.from_numpy(answers.part[cross_fit.rows])
        found += [cross_fit.of_users(gains, part == n) for n in range(len(answers.parts))]
    return torch.stack(found, dim=1).numpy()


def held_out_crossing(cross_fit: CrossFit, some: NDArray[np.bool_] | None = None) -> Crossing:
    """Return whose answers about what those are that were held out, or some of them, (m,)."""
    a, rows = cross_fit.answers, cross_fit.rows
    rows = rows if some is None else rows[some]
    return Crossing.of_names(a.user[rows], a.group[rows], a.other[rows])


def planted_users(share: float, users: int) -> int:
    return max(1, round(share * users))


def unrelated(population: Population, z: Array, rng: np.random.Generator) -> Array:
    """Return a taste, (T,), that varies as much as the common one and says nothing about it."""
    text, residual = population.text, population.taste - population.text
    found = z @ rng.standard_normal(z.shape[1])
    found = found - found.mean()
    centred = text - text.mean()
    found -= centred * (found @ centred) / max(centred @ centred, 1e-12)
    size = np.sqrt(np.square(centred).mean() / max(np.square(found).mean(), 1e-12))
    other: Array = size * found + rng.permutation(residual)
    return other


def smallest_share(detected: Callable[[float], float], users: int) -> float | None:
    """Return the smallest share of the grid that is found four times in five, None where even half
    of the users is not. Larger shares are taken to be found more often."""
    grid: list[float] = []
    for share in SHARES:
        if planted_users(share, users) not in [planted_users(other, users) for other in grid]:
            grid.append(share)
    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        if detected(grid[middle]) >= FOUND:
            high = middle
        else:
            low = middle + 1
    return None if low == len(grid) else planted_users(grid[low], users) / users


def with_more(answers: Answers, times: int, seed: int) -> Answers:
    """Return as many answers of each user again, about pairs drawn from all; their labels are to be
    drawn."""
    rng = np.random.default_rng([seed, 8, times])
    place, _ = answers.rows
    picked = place[rng.integers(len(place), size=(times - 1) * len(answers))]
    every = np.concatenate([np.arange(len(answers)), picked])
    second = None if answers.second is None else answers.second[every]
    side = answers.place[every]
    if second is not None:
        side[len(answers) :] = rng.choice([-1.0, 1.0], size=len(picked))
    decided = np.where(answers.label[every] == 0.5, 0.5, 1.0)
    user = np.tile(answers.user, times)
    return Answers(
        answers.first[every], second, user, decided, side, answers.group[every],
        answers.other[every], answers.things,
    )  # fmt: skip
