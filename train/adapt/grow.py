"""Users whom no mixture of the prototypes explains, and prototypes for them that leave the old ones
as they are.

The paper names users outside the prototypes' convex hull as a limit; finding them and growing the
head is ours. Shapes: U users, N users of the table, K old prototypes, G new ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior
from pal.train.build import build_head
from pal.train.heads.head import Head
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.loss import logistic
from pal.train.pairs import Batch

EPOCHS, BATCH, LR, USER_LR = 100, 512, 5e-3, 5e-2
QUANTILE = 0.95
"""share of the seen users who are, by definition, explained"""


@torch.no_grad()
def surprise(head: Head, answers: Answers, prior: Prior) -> Tensor:
    """Return each user's mean cross-entropy (U,), every second answer predicted from the others;
    chance is ln 2."""
    place = torch.empty_like(answers.user)
    order = answers.user.argsort(stable=True)
    place[order] = torch.arange(len(order), device=order.device)
    halves = [answers.take((place % 2 == half).nonzero().squeeze(1)) for half in (0, 1)]
    total = torch.zeros(answers.users, device=answers.label.device)
    for shots, rest in (halves, halves[::-1]):
        vectors = adapt_map(head, shots, prior).vectors
        margin = head.prepared_margin(rest.prepared, vectors, rest.user)
        total.index_add_(0, rest.user, logistic(margin, rest.label))
    return total / torch.bincount(answers.user, minlength=answers.users).clamp(min=1)


def outside(new: Tensor, seen: Tensor) -> Tensor:
    """Return which new users (U,) surprise the head more than 1.5 times the 95 % quantile of the
    seen users, and 0.05 nats."""
    return new > 1.5 * torch.quantile(seen, QUANTILE) + 0.05


def require_growable(head: Head, settings: TrainConfig) -> IdealPointHead:
    """Return a head that has prototypes to add to; raises TrainError for others."""
    if isinstance(head, IdealPointHead):
        return head
    if settings.priors == "auto":
        raise TrainError(
            f"head {settings.head} was trained under train.priors = 'auto', where no prototype can "
            "be added; grow pal-a or pal-b of train.priors=none"
        )
    raise TrainError(f"head {settings.head} has no prototypes to add to; grow pal-a or pal-b")


def grow(
    head: Head,
    settings: TrainConfig,
    users: Sequence[str],
    answers: Batch,
    names: Sequence[str],
    count: int,
    seed: int,
) -> tuple[Head, TrainConfig, list[str]]:
    """Return a head with ``count`` more prototypes, learned from the answers of users whom ``head``
    does not explain; its settings; and the users of its table.

    ``settings`` and ``users`` are those of ``head``; ``answers.user`` numbers the new users by
    ``names``. Only the new prototypes and the weights of the new users, who join the table as
    ``new:<name>``, are learned. Every old number keeps its bytes, and users of the old table give
    the new prototypes a weight of exactly 0. Raises TrainError for heads without prototypes.
    """
    growable = require_growable(head, settings)
    torch.manual_seed(seed)
    settings = settings.model_copy(update={"k": settings.k + count})
    grown, old = _widened(growable, settings, len(users) + len(names))
    own = nn.Parameter(torch.zeros(len(names), grown.k, device=answers.label.device))
    learned = {name: parameter for name, parameter in grown.named_parameters() if name in old}
    groups = [{"params": list(learned.values()), "lr": LR}, {"params": [own], "lr": USER_LR}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    parameters = [*learned.values(), own]
    grown.eval()
    grown.users.train()  # soft weights have gradients, one-hot ones have none
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(answers.label)).to(own.device).split(BATCH):
            prompt, first, second = (None if v is None else v[rows] for v in answers[:3])
            assert first is not None
            assert second is not None
            vectors = grown.users.of_logits(own[answers.user[rows]])
            margin = grown.margin(prompt, first, second, vectors)
            loss = logistic(margin, answers.label[rows]).mean()
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            _restore(learned, old)
    with torch.no_grad():
        grown.users.logits[-len(names) :] = own
    return grown.eval(), settings, [*users, *(f"new:{name}" for name in names)]


def _widened(
    head: IdealPointHead, settings: TrainConfig, users: int
) -> tuple[IdealPointHead, dict[str, Tensor]]:
    """Return a head with room for more prototypes and users, and the old values of parameters that
    got longer."""
    wider = build_head(settings, len(head.item_scale.mean), users).to(head.item_scale.mean.device)
    assert isinstance(wider, IdealPointHead)
    wider.users.logits.data.fill_(-torch.inf)
    state, old = wider.state_dict(), {}
    for name, value in head.state_dict().items():
        state[name][tuple(slice(0, size) for size in value.shape)] = value
        if state[name].shape != value.shape and name != "users.logits":
            old[name] = value
    wider.load_state_dict(state)
    return wider, old


@torch.no_grad()
def _restore(learned: dict[str, nn.Parameter], old: dict[str, Tensor]) -> None:
    """Undo what a step did to the old prototypes, to the byte."""
    for name, value in old.items():
        learned[name][: len(value)] = value
