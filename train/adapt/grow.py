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
from pal.train.adapt.map import Answers, Prior, adapt_map
from pal.train.heads.head import Head, build_head
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.pairs import Batch
from pal.train.run_record import TrainedHead
from pal.train.solve.convex import cross_entropy

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
    total = torch.zeros(answers.users, device=answers.label.device)
    for half in (0, 1):
        shots, judged = (
            answers.take((place % 2 == side).nonzero().squeeze(1)) for side in (half, 1 - half)
        )
        codes = adapt_map(head, shots, prior).codes
        margin = head.prepared_margin(judged.prepared, codes, judged.user)
        total.index_add_(0, judged.user, cross_entropy(margin, judged.label))
    return total / torch.bincount(answers.user, minlength=answers.users).clamp(min=1)


def outside(new: Tensor, seen: Tensor) -> Tensor:
    """Return which new users (U,) surprise the head more than all but a twentieth of the seen users
    do."""
    return new > 1.5 * torch.quantile(seen, QUANTILE) + 0.05


def grow(
    trained: TrainedHead, answers: Batch, names: Sequence[str], count: int, seed: int
) -> TrainedHead:
    """Return the head with ``count`` more prototypes, learned from the answers of users it did not
    explain.

    Only the new prototypes and the weights of these users, who join the table as ``new:<name>``,
    are learned; ``answers.user`` numbers them by ``names``. Every old number keeps its bytes, and
    users of the old table give the new prototypes a weight of exactly 0. Raises TrainError for
    heads without prototypes.
    """
    if not isinstance(trained.head, IdealPointHead):
        raise TrainError(
            f"head {trained.facts['train']['head']} has no prototypes to add to; grow pal-a or "
            "pal-b"
        )
    torch.manual_seed(seed)
    head, old = _widened(trained, count, len(names))
    own = nn.Parameter(torch.zeros(len(names), head.k, device=answers.label.device))
    learned = {name: parameter for name, parameter in head.named_parameters() if name in old}
    groups = [{"params": list(learned.values()), "lr": LR}, {"params": [own], "lr": USER_LR}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    head.eval()
    head.users.train()  # soft weights have gradients, one-hot ones have none
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(answers.label)).split(BATCH):
            prompt, first, second = (None if v is None else v[rows] for v in answers[:3])
            assert first is not None
            assert second is not None
            code = head.users.of_logits(own[answers.user[rows]])
            loss = cross_entropy(
                head.margin(prompt, first, second, code), answers.label[rows]
            ).mean()
            gradients = torch.autograd.grad(loss, [*learned.values(), own])
            for parameter, gradient in zip([*learned.values(), own], gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            _restore(learned, old)
    with torch.no_grad():
        head.users.logits[-len(names) :] = own
    settings = {**trained.facts["train"], "k": head.k}
    facts = {
        **trained.facts, "train": settings, "grown_from": trained.facts["run"], "params_per_user": head.k,
        "params": sum(parameter.numel() for parameter in head.parameters()), "run": f"{trained.facts['run']}-grown",
    }  # fmt: skip
    return TrainedHead(head.eval(), [*trained.users, *(f"new:{name}" for name in names)], facts)


def _widened(
    trained: TrainedHead, count: int, users: int
) -> tuple[IdealPointHead, dict[str, Tensor]]:
    """Return a head with room for more prototypes and users, and the old values of parameters that
    got longer."""
    settings = TrainConfig.model_validate(trained.facts["train"])
    wider = settings.model_copy(update={"k": settings.k + count})
    head = build_head(wider, trained.facts["dim"], len(trained.users) + users)
    assert isinstance(head, IdealPointHead)
    head.users.logits.data.fill_(-torch.inf)
    state, old = head.state_dict(), {}
    for name, value in trained.head.state_dict().items():
        state[name][tuple(slice(0, size) for size in value.shape)] = value
        if state[name].shape != value.shape and name != "users.logits":
            old[name] = value
    head.load_state_dict(state)
    return head, old


@torch.no_grad()
def _restore(learned: dict[str, nn.Parameter], old: dict[str, Tensor]) -> None:
    """Undo what a step did to the old prototypes, to the byte."""
    for name, value in old.items():
        learned[name][: len(value)] = value
