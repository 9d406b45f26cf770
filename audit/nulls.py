"""What answers would be if there were one taste: drawn from it, or users exchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.special import expit

from pal.audit.answers import Answers
from pal.audit.cross_fit import design_of, fit_consensus
from pal.audit.design import UNIT, Spreads
from pal.audit.model import Model, Parts
from pal.train.heads.consensus import OF_ONE
from pal.train.sharing import Array, Numbers

ROUNDS = 8
LEAST, MOST = 0.1, 5.0
"""spreads that are believed"""
FEW = 0.02
"""share of the answers that is next to none"""
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
    text: Array
    """(T,) what features tell of it"""
    ready_error: Array
    omega_error: Array
    taste_error: Array
    spreads: Spreads

    @classmethod
    def fitted(cls, answers: Answers, z: torch.Tensor) -> Population:
        """Fit the consensus model to all answers, its priors by expectation and maximisation.

        With priors that are too narrow, people who answer at random look like people of another
        taste.
        """
        label = torch.from_numpy(answers.label).to(z.dtype).unsqueeze(1)
        spreads = UNIT
        for _ in range(ROUNDS):
            design = design_of(answers, z, spreads)
            model, theta = fit_consensus(design, label)
            found, squares = cls._of(model, model.split(theta), z)
            roots = (math.sqrt(square) for square in squares)
            spreads = Spreads(*(min(max(root, LEAST), MOST) for root in roots))
        return found

    @classmethod
    def _of(
        cls, model: Model, part: Parts, z: torch.Tensor
    ) -> tuple[Population, tuple[float, float, float, float]]:
        """Return the posterior, and the variances of a, omega, s and E under it."""
        design, prior = model.design, model.design.spreads
        shared, _ = model.rows(part)
        shared = shared.index_select(0, design.row)
        reliability = design.of_user(part.reliability)
        margin = design.place * (part.base + design.of_user(part.ready)) + reliability * shared
        p = torch.sigmoid(margin)
        bend = p * (1.0 - p)
        steep = torch.sigmoid(part.omega + OF_ONE)
        of_ready = prior.ready**-2 + design.by_user(bend)
        of_omega = prior.omega**-2 + steep.square() * design.by_user(bend * shared.square())
        of_rows = design.by_row(bend * reliability.square())
        of_things = of_rows.new_zeros(design.things, 1).index_add_(0, design.first, of_rows)
        if design.second is not None:
            of_things.index_add_(0, design.second, of_rows)
        # of a row the residuals are integrated out: what is left for the features to be told by
        free = (1.0 if design.second is None else 2.0) * prior.residual**2
        of_text = design.x.T @ (design.x * (of_rows / (1.0 + free * of_rows)))
        of_text.diagonal().add_(prior.text**-2)
        covariance = torch.linalg.inv(of_text.double()).to(z.dtype)
        text_error = covariance.diagonal().unsqueeze(1)
        text = z @ part.shared
        taste = text + part.shared_residual
        squared = [1.0 / of_ready, 1.0 / of_omega, 1.0 / (prior.residual**-2 + of_things)]
        # what features tell is not known either, and what they do not tell is its residual
        leans = of_things / (prior.residual**-2 + of_things)
        unsure = ((z @ covariance) * z).sum(dim=1, keepdim=True)
        of_residual = part.shared_residual.square() + squared[2] + leans.square() * unsure
        judged = of_things > 0
        squares = (
            float((part.ready.square() + squared[0]).mean()),
            # about their own mean: how reliable all are is the size of the taste
            float(part.omega.var(correction=0) + squared[1].mean()),
            float((part.shared.square() + text_error).mean()),
            float(of_residual[judged].mean()),
        )
        numbers = [part.base + part.ready, part.omega, taste, text, *(v.sqrt() for v in squared)]
        columns = [values[:, 0].double().numpy() for values in numbers]
        ready, omega, everything, told, *errors = columns
        found = cls(ready, omega, everything, told, errors[0], errors[1], errors[2], prior)
        return found, squares

    @property
    def reliability(self) -> Array:
        """(N,) b"""
        found: Array = np.logaddexp(0.0, self.omega + OF_ONE)
        return found

    def expected(self, answers: Answers) -> Array:
        """Return what one taste prefers in each row, (R,): margins of a usual user."""
        place, _ = answers.rows
        found = self.taste[answers.first[place]]
        if answers.second is None:
            shifted: Array = found + float(self.ready.mean())
            return shifted
        margin: Array = found - self.taste[answers.second[place]]
        return margin

    def drawn(self, rng: np.random.Generator) -> Population:
        """Return another population that the answers allow.

        The maximum of the posterior alone has people and things that are too alike, and a null that
        is too narrow.
        """
        means = (self.ready, self.omega, self.taste)
        errors = (self.ready_error, self.omega_error, self.taste_error)
        ready, omega, taste = (
            m + e * rng.standard_normal(len(m)) for m, e in zip(means, errors, strict=True)
        )
        return replace(self, ready=ready, omega=omega, taste=taste)

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
    tie stays a tie.

    A margin says what labels are on average, soft ones too, so sides are drawn as often as that
    takes.
    """
    decided = np.abs(label - 0.5)
    lean = (expit(margin) - 0.5) / np.maximum(2.0 * decided, 1e-12)
    prefers = rng.random(len(margin)) < 0.5 + lean
    found: Array = 0.5 + np.where(prefers, decided, -decided)
    return found


def bootstrap(answers: Answers, population: Population, seed: int, number: int) -> Array:
    """Return the labels of one draw of the parametric bootstrap, (n,)."""
    rng = np.random.default_rng([seed, 2, number])
    return drawn_labels(population.drawn(rng).margins(answers), answers.label, rng)


def strata(answers: Answers, z: torch.Tensor, seed: int) -> tuple[Numbers, str]:
    """Return the stratum of each answer, (n,), within which users are exchanged, and its name.

    It is the prompt group where several users answered it. Of other answers it is a cluster of
    things that are alike, for users who ask about different things are not users of different
    tastes; where they are next to none, they stay with their users.
    """
    pairs = np.unique(np.stack([answers.group, answers.user]), axis=1)
    users = np.bincount(pairs[0], minlength=int(answers.group.max()) + 1)
    alone = users[answers.group] < FEWEST_USERS
    found = answers.group.copy()
    if float(alone.mean()) <= FEW:
        return found, "prompt groups"
    design = design_of(answers, z)
    things = design.x
    if design.second is not None:
        things = 0.5 * (z[design.first] + z[design.second])
    points = things.double().numpy()[answers.rows[1][alone]]
    count = max(1, math.isqrt(len(points)))
    rng = np.random.default_rng([seed, 3])
    _, cluster = kmeans2(points, count, minit="++", seed=rng)
    found[alone] = int(found.max()) + 1 + cluster
    if alone.all():
        return found, f"{len(np.unique(cluster))} clusters of prompts or items"
    return found, "prompt groups of several users, clusters of the others"


def are_pairs(answers: Answers, stratum: Numbers) -> bool:
    """Say whether each stratum is of votes on one thing: exchanging users is exchanging labels."""
    if answers.second is not None:
        return False
    both = np.unique(np.stack([stratum, answers.rows[1]]), axis=1)
    return bool(np.bincount(both[0]).max() == 1)


def exchanged_labels(answers: Answers, stratum: Numbers, seed: int, number: int) -> Array:
    """Return the labels, (n,), that users have after ``exchanged`` where strata are pairs."""
    order, places = _exchange(answers, stratum, seed, number)
    found = np.empty_like(answers.label)
    found[order] = answers.label[places]
    return found


def exchanged(answers: Answers, stratum: Numbers, seed: int, number: int) -> Numbers:
    """Return the users of one permutation within strata, (n,)."""
    order, places = _exchange(answers, stratum, seed, number)
    found = np.empty_like(answers.user)
    found[places] = answers.user[order]
    return found


def _exchange(
    answers: Answers, stratum: Numbers, seed: int, number: int
) -> tuple[Numbers, Numbers]:
    """Return answers in an order of strata and chance, and which answers' places they take."""
    rng = np.random.default_rng([seed, 4, number])
    order = np.lexsort((rng.random(len(answers)), stratum))
    return order, np.argsort(stratum, kind="stable")
