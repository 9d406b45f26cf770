"""Test B's statistic: how much better answers that were held out are predicted by many tastes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from pal.audit.answers import Answers
from pal.audit.descent import minimise
from pal.audit.design import UNIT, Design, Spreads
from pal.audit.model import K, Model
from pal.train.sharing import Numbers
from pal.train.solve.choose import DEFAULT
from pal.train.solve.mixture import START, Strength

FOLDS = 5
ITERATIONS = 60
"""of either model; the plural one begins where the other ended"""
AT_ONCE = 400_000
"""numbers of a batch's largest table: more fall out of the caches"""
LARGEST, BLOCK = 20_000_000, 65_536
"""cells of a table of users and rows that may stand in memory; else answers are added in blocks"""
ROUNDS = 4
"""of the power iteration that finds where the plural model begins"""


def design_of(answers: Answers, z: Tensor, spreads: Spreads = UNIT) -> Design:
    """Return the design of answers about things with features ``z``."""
    place, row = answers.rows
    first = torch.from_numpy(answers.first[place])
    second = None if answers.second is None else torch.from_numpy(answers.second[place])
    x = z[first] if second is None else z[first] - z[second]
    shown = torch.from_numpy(answers.place).to(z.dtype).unsqueeze(1)
    who = torch.from_numpy(answers.user)
    return Design(
        x, first, second, torch.from_numpy(row), who, shown, answers.things, answers.users, spreads
    )


class Fitted(NamedTuple):
    """Both models, fitted to the same answers."""

    consensus: Model
    one: Tensor
    """(P, B)"""
    plural: Model
    many: Tensor


def fit_consensus(design: Design, label: Tensor) -> tuple[Model, Tensor]:
    """Fit one taste to labels (n, B)."""
    model = Model(design, 0)
    start = model.zeros(label.shape[1])
    return model, minimise(model.of_labels(label), start, model.scale, ITERATIONS)


def fit_both(
    design: Design, label: Tensor, strength: Strength = DEFAULT, seed: int | None = None
) -> Fitted:
    """Fit one taste, then many, from where one ended; ``seed``: with deviations at random instead
    of where users differ most from what one taste expects."""
    consensus, one = fit_consensus(design, label)
    plural = Model(design, K, strength)
    start = plural.zeros(label.shape[1])
    before, begun = consensus.split(one), plural.split(start)
    for name in ("base", "ready", "omega", "shared", "shared_residual"):
        getattr(begun, name).copy_(getattr(before, name))
    if seed is None:
        deviations, logits = _where_users_differ(consensus, one, label)
    else:
        rng = torch.Generator().manual_seed(seed)
        deviations, logits = (
            START * torch.randn(part.shape, generator=rng)
            for part in (begun.deviations, begun.logits)
        )
    begun.deviations.copy_(deviations)
    begun.logits.copy_(logits)
    many = minimise(plural.of_labels(label), start, plural.scale, ITERATIONS)
    return Fitted(consensus, one, plural, many)


def _where_users_differ(model: Model, one: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return where deviations, (F, K, B), and logits, (N, K, B), begin.

    What one taste leaves of a user's answers is a direction among features; the K / 2 directions
    that most users share, each way, are the first deviations; where there are fewer directions, the
    other prototypes begin with none. It is where the posterior rises fastest, so that few steps and
    a single start are enough.
    """
    design = model.design
    residual = label - torch.sigmoid(model.margins(one, design, torch.zeros(len(design.x))))
    draws, width = label.shape[1], design.x.shape[1]
    slope = slopes_of_users(design, residual)
    own = design.answers_of_user
    own = own.unsqueeze(1).expand(-1, draws) if own.dim() == 1 else own
    slope = slope / torch.sqrt(1.0 + own.T).unsqueeze(2)
    axes = torch.randn(width, K // 2, generator=torch.Generator().manual_seed(0)).to(slope)
    found = axes.expand(draws, -1, -1)
    for _ in range(ROUNDS):
        found, _ = torch.linalg.qr(slope.transpose(1, 2) @ (slope @ found))
    found = pad(found, (0, K // 2 - found.shape[2]))
    along = slope @ found
    spread = along.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    logits = START * along / spread
    reach = (design.x @ found).square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    found = START * found / reach
    both_ways = [torch.cat([part, -part], dim=2).permute(1, 2, 0) for part in (found, logits)]
    return both_ways[0], both_ways[1]


def slopes_of_users(design: Design, residual: Tensor) -> Tensor:
    """Return the sum of each user's residuals, (n, B), times the features of what they are about,
    (B, N, F)."""
    draws, users, rows = residual.shape[1], design.users, len(design.x)
    who = design.user if design.user.dim() == 2 else design.user.unsqueeze(1)
    if draws * users * rows <= LARGEST:
        cell = (who * rows + design.row.unsqueeze(1)).expand(-1, draws)
        table = residual.new_zeros(users * rows, draws).scatter_add_(0, cell, residual)
        # (B, N, R) @ (R, F)
        found = table.view(users, rows, draws).permute(2, 0, 1).reshape(-1, rows) @ design.x
        return found.view(draws, users, -1)
    found = residual.new_zeros(draws, users, design.x.shape[1])
    for start in range(0, len(residual), BLOCK):
        block = slice(start, start + BLOCK)
        x = design.x[design.row[block]]
        for draw in range(draws):
            user = who[block, min(draw, who.shape[1] - 1)]
            found[draw].index_add_(0, user, residual[block, draw : draw + 1] * x)
    return found


@dataclass(frozen=True)
class Fold:
    """One part of the groups held out."""

    train: Numbers
    """answers"""
    test: Numbers
    design: Design
    tested: Design
    dropped: Tensor
    """(R,) things of the tested rows of which no answer was trained on"""


@dataclass(frozen=True)
class HeldOut:
    """Margins of answers that were held out, each predicted once, (m, B)."""

    rows: Numbers
    """(m,) answers"""
    one: Tensor
    many: Tensor


class CrossFit:
    """The folds of a dataset, and what both models predict of their answers."""

    def __init__(
        self, answers: Answers, z: Tensor, seed: int, spreads: Spreads, folds: int = FOLDS
    ) -> None:
        self.answers, self.z, self.spreads, self.count = answers, z, spreads, folds
        groups = np.unique(np.concatenate([answers.group, answers.other]))
        count = min(folds, len(groups))
        fold = np.empty(int(groups.max()) + 1, np.int64)
        order = np.random.default_rng([seed, 1]).permutation(len(groups))
        fold[groups[order]] = np.arange(len(groups)) % count
        one, two = fold[answers.group], fold[answers.other]
        parts = [((one != f) & (two != f), (one == f) & (two == f)) for f in range(count)]
        self.folds = [self._fold(*p) for p in parts if p[0].any() and p[1].any()]
        self.rows = np.concatenate([f.test for f in self.folds]) if self.folds else np.empty(0, int)
        self.at_once = max(1, min(128, AT_ONCE // max(1, len(answers) * K)))

    def _fold(self, train: np.ndarray, test: np.ndarray) -> Fold:
        answers = self.answers
        known = np.zeros(answers.things)
        for thing in (answers.first, answers.second):
            if thing is not None:
                known[thing[train]] = 1.0
        # users keep their numbers: one without an answer to learn from has the prior's
        trained, tested = (self._design(np.flatnonzero(rows)) for rows in (train, test))
        missing = 1.0 - torch.from_numpy(known).to(self.z.dtype)
        dropped = missing[tested.first]
        if tested.second is not None:
            dropped = dropped + missing[tested.second]
        return Fold(np.flatnonzero(train), np.flatnonzero(test), trained, tested, dropped)

    def _design(self, rows: Numbers) -> Design:
        a = self.answers
        second = None if a.second is None else a.second[rows]
        some = Answers(
            a.first[rows], second, a.user[rows], a.label[rows], a.place[rows], a.group[rows],
            a.other[rows], a.things,
        )  # fmt: skip
        return replace(design_of(some, self.z, self.spreads), users=a.users)

    def held_out(
        self, labels: Tensor, users: Tensor | None = None, strength: Strength = DEFAULT
    ) -> HeldOut:
        """Predict every answer that can be held out, of labels (n, B); ``users``, (n, B), where
        draws exchange them."""
        one, many = [], []
        for fold in self.folds:
            design, tested = fold.design, fold.tested
            if users is not None:
                design = replace(design, user=users[fold.train])
                tested = replace(tested, user=users[fold.test])
            fitted = fit_both(design, labels[fold.train], strength)
            one.append(fitted.consensus.margins(fitted.one, tested, fold.dropped))
            many.append(fitted.plural.margins(fitted.many, tested, fold.dropped))
        return HeldOut(self.rows, torch.cat(one), torch.cat(many))

    def gains(self, labels: Tensor, users: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each answer's gain in nats, (m, B), for so many draws as are fitted at once."""
        for start in range(0, labels.shape[1], self.at_once):
            batch = slice(start, start + self.at_once)
            who = None if users is None else users[:, batch]
            found = self.held_out(labels[:, batch], who)
            label = labels[torch.from_numpy(self.rows)][:, batch]
            yield (_loss(found.one, label) - _loss(found.many, label)).double()

    def of_users(
        self, values: Tensor, some: Tensor | None = None, users: Tensor | None = None
    ) -> Tensor:
        """Return the mean over users of their means, (B,), of values of held-out answers (m, B):
        of all, or of ``some``, (m,) bool. ``users``: (n, B), where draws exchange them."""
        if users is None:
            users = torch.from_numpy(self.answers.user).unsqueeze(1).expand(-1, values.shape[1])
        who = users[torch.from_numpy(self.rows)]
        if some is not None:
            values, who = values[some], who[some]
        zeros = values.new_zeros(self.answers.users, values.shape[1])
        total = zeros.scatter_add(0, who, values)
        count = zeros.scatter_add(0, who, torch.ones_like(values))
        means = torch.where(count > 0, total / count.clamp(min=1.0), 0.0)
        return means.sum(dim=0) / (count > 0).sum(dim=0).clamp(min=1)


def _loss(margin: Tensor, label: Tensor) -> Tensor:
    return softplus(margin) - label * margin
