"""What answers would be if there were one taste: drawn from it, or users exchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.special import expit

from pal.audit.answers import Answers
from pal.audit.cross_fit import design_of, fit_consensus
from pal.audit.model import Design, Model, Parts
from pal.train.heads.consensus import OF_ONE
from pal.train.sharing import Array, Numbers

FEWEST_USERS = 2
"""of a prompt group that is a stratum of its own"""


@dataclass(frozen=True)
class Population:
    """One taste and all who follow it, as far as the answers tell: means of the posterior, and how
    far each number may be off (Laplace's approximation, each number by itself)."""

    ready: Array
    """(N,) s_0 + a_u"""
    omega: Array
    """(N,)"""
    taste: Array
    """(T,) S of things"""
    ready_error: Array
    omega_error: Array
    taste_error: Array

    @classmethod
    def fitted(cls, answers: Answers, z: torch.Tensor) -> Population:
        """Fit the consensus model to all answers."""
        design = design_of(answers, z)
        label = torch.from_numpy(answers.label).to(z.dtype).unsqueeze(1)
        model, found = fit_consensus(design, label)
        return cls._of(model, model.split(found), design, z)

    @classmethod
    def _of(cls, model: Model, part: Parts, design: Design, z: torch.Tensor) -> Population:
        shared, _ = model.rows(part)
        shared = shared.index_select(0, design.row)
        reliability = design.of_user(part.reliability)
        margin = design.place * (part.base + design.of_user(part.ready)) + reliability * shared
        p = torch.sigmoid(margin)
        bend = p * (1.0 - p)
        steep = torch.sigmoid(part.omega + OF_ONE)
        of_ready = 1.0 + design.by_user(bend)
        of_omega = 1.0 + steep.square() * design.by_user(bend * shared.square())
        of_rows = design.by_row(bend * reliability.square())
        of_things = of_rows.new_zeros(design.things, 1).index_add_(0, design.first, of_rows)
        if design.second is not None:
            of_things.index_add_(0, design.second, of_rows)
        taste = z @ part.shared + part.shared_residual
        errors = [1.0 / torch.sqrt(values) for values in (of_ready, of_omega, 1.0 + of_things)]
        numbers = [part.base + part.ready, part.omega, taste, *errors]
        return cls(*(values[:, 0].double().numpy() for values in numbers))

    @property
    def reliability(self) -> Array:
        """(N,) b"""
        found: Array = np.logaddexp(0.0, self.omega + OF_ONE)
        return found

    def drawn(self, rng: np.random.Generator) -> Population:
        """Return another population that the answers allow.

        The maximum of the posterior alone has people and things that are too alike, and a null that
        is too narrow.
        """
        means = (self.ready, self.omega, self.taste)
        errors = (self.ready_error, self.omega_error, self.taste_error)
        numbers = (m + e * rng.standard_normal(len(m)) for m, e in zip(means, errors, strict=True))
        return Population(*numbers, *errors)

    def margins(self, answers: Answers, taste: Array | None = None) -> Array:
        """Return the margins of answers, (n,); ``taste``: (N, T) or (T,), instead of the common
        one."""
        taste = self.taste if taste is None else taste
        of_users = np.broadcast_to(taste, (answers.users, answers.things))
        found = of_users[answers.user, answers.first]
        if answers.second is not None:
            found = found - of_users[answers.user, answers.second]
        margin: Array = answers.place * self.ready[answers.user]
        return margin + self.reliability[answers.user] * found


def drawn_labels(margin: Array, label: Array, rng: np.random.Generator) -> Array:
    """Return labels drawn at margins, (n,), each as decided as the answer in whose place it is: a
    tie stays a tie."""
    decided = np.abs(label - 0.5)
    prefers = rng.random(len(margin)) < expit(margin)
    found: Array = 0.5 + np.where(prefers, decided, -decided)
    return found


def bootstrap(answers: Answers, population: Population, seed: int, number: int) -> Array:
    """Return the labels of one draw of the parametric bootstrap, (n,)."""
    rng = np.random.default_rng([seed, 2, number])
    return drawn_labels(population.drawn(rng).margins(answers), answers.label, rng)


def strata(answers: Answers, z: torch.Tensor, seed: int) -> tuple[Numbers, str]:
    """Return the stratum of each answer, (n,), within which users are exchanged, and its name.

    It is the prompt group where several users answered it; of other answers, a cluster of things
    that are alike: users who ask about different things are not users of different tastes.
    """
    pairs = np.unique(np.stack([answers.group, answers.user]), axis=1)
    users = np.bincount(pairs[0], minlength=int(answers.group.max()) + 1)
    alone = users[answers.group] < FEWEST_USERS
    found = answers.group.copy()
    if not alone.any():
        return found, "prompt groups"
    design = design_of(answers, z)
    things = design.x if answers.second is None else 0.5 * (
        z[design.first] + z[design.second]  # type: ignore[index]
    )
    points = things.double().numpy()[answers.rows[1][alone]]
    count = max(1, math.isqrt(len(points)))
    rng = np.random.default_rng([seed, 3])
    _, cluster = kmeans2(points, count, minit="++", seed=rng)
    found[alone] = int(found.max()) + 1 + cluster
    if alone.all():
        return found, f"{len(np.unique(cluster))} clusters of prompts or items"
    return found, "prompt groups of several users, clusters of the others"


def exchanged(answers: Answers, stratum: Numbers, seed: int, number: int) -> Numbers:
    """Return the users of one permutation within strata, (n,)."""
    rng = np.random.default_rng([seed, 4, number])
    order = np.lexsort((rng.random(len(answers)), stratum))
    places = np.argsort(stratum, kind="stable")
    found = np.empty_like(answers.user)
    found[places] = answers.user[order]
    return found
