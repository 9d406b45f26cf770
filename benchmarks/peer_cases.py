"""Small fixed inputs, and what our code makes of them: margins, losses, gradients, steps.

``benchmarks/peers.py --golden`` asks the released code of the peers the same and keeps the answers
in ``tests/peers.json``. Numbers are sines of their places, in float64: no generator is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.adapt.answers import Answers
from pal.train.adapt.descent import adapt_sgd
from pal.train.build import build_head
from pal.train.heads.linear import LowRank
from pal.train.heads.meta import GAIN, MetaLearned
from pal.train.heads.pal_a import PalA
from pal.train.heads.pal_b import PalB
from pal.train.heads.things import Things
from pal.train.heads.variational import Variational, choices
from pal.train.loss import LOSSES, logistic, weights_of_users
from pal.train.module import HeadTraining
from pal.train.pairs import Batch, Step
from pal.train.solve.convex import low_rank_margins
from pal.train.solve.meta import of_worst_users
from pal.train.solve.rows import Rows as Differences

Case = dict[str, Tensor]
DIM, USERS, K, ROWS, STEPS = 4, 3, 2, 8, 6
MLP = {"a": "mlp2-relu-dropout0-residual", "b": "mlp2-gelu-dropout0"}
KINDS = {"a": PalA, "b": PalB}
SCALE = 1.5
"""ln tau of PAL-B; the released first value is not reached from a config"""
NEW_USERS, NEW_ANSWERS, NEW_SEED = 3, 5, 0


def sines(*shape: int, shift: float) -> Tensor:
    """Return sin(1.7 i + shift) over the places i."""
    count = torch.Size(shape).numel()
    return torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + shift).view(shape)


def comparisons(rows: int = ROWS, users: int = USERS, dim: int = DIM) -> Batch:
    """Return comparisons with their features, users in turn."""
    prompt, first, second = (sines(rows, dim, shift=shift) for shift in (0.1, 0.2, 0.3))
    label = (torch.arange(rows) % 3 != 1).double()
    return Batch(prompt, first, second.flip(0), torch.arange(rows) % users, label)


def some(batch: Batch, rows: Tensor) -> Batch:
    return Batch(*(None if value is None else value[rows] for value in batch))  # type: ignore[arg-type]


def batches() -> list[Batch]:
    """Return batches of four, of which some lack some users."""
    everything = comparisons(4 * STEPS)
    by_user = everything.user.argsort(stable=True)
    return [some(everything, rows) for rows in by_user.split(4)]


def pal_head(kind: str, users: int = USERS) -> PalA | PalB:
    train = TrainConfig(
        head=f"pal-{kind}", k=K, mlp=MLP[kind], score="distance" if kind == "a" else "angle"
    )
    head = build_head(train, DIM, users).double()
    assert isinstance(head, PalA | PalB)
    with torch.no_grad():
        for place, parameter in enumerate(head.parameters()):
            if parameter.dim():
                parameter.copy_(0.6 * sines(*parameter.shape, shift=0.4 + place))
            else:
                parameter.fill_(SCALE)
    return head


def losses() -> Case:
    margin, label = 3.0 * sines(ROWS, shift=0.5), comparisons().label
    owner = comparisons().user
    weight = weights_of_users(torch.tensor([0, 0, 0, 1, 1, 2]), USERS).double()[owner]
    of_users = {
        f"{name}, over users": (weight * LOSSES[name](margin, label)).sum() / weight.sum()
        for name in ("hinge", "logistic")
    }
    return {name: loss(margin, label) for name, loss in LOSSES.items()} | of_users


def pal_forward(kind: str) -> Case:
    head, batch = pal_head(kind), comparisons()
    margin = head(batch.prompt, batch.first, batch.second, batch.user)
    loss = LOSSES["hinge" if kind == "a" else "logistic"](margin, batch.label).mean()
    loss.backward()
    found = {"margins": margin, "loss": loss, "f": head.f.weights[0].grad}
    found["users"] = head.users.logits.grad
    if isinstance(head, PalA):
        return found | {"P": head.prototypes_KD.grad}  # type: ignore[dict-item]
    return found | {"g": head.g.weights[0].grad, "scale": head.log_scale.grad}  # type: ignore[dict-item, union-attr]


def pal_steps(kind: str) -> Case:
    """Steps with the rates of the presets, without weight decay, which is coupled there."""
    head = pal_head(kind)
    train = TrainConfig(
        head=f"pal-{kind}", loss="hinge" if kind == "a" else "logistic", lr=1e-4, user_lr=5e-3,
        prototype_lr=5e-3, scale_lr=1e-1, weight_decay=0.0, absent_users="stay",
    )  # fmt: skip
    module = HeadTraining(head, train)
    optimiser = module.configure_optimizers()
    for number, batch in enumerate(batches()):
        optimiser.zero_grad()
        module.training_step(
            Step(Things.of(*batch[:3]), batch.user, batch.label), number
        ).backward()
        module.optimizer_step(0, number, optimiser)
    found = {"users": head.users.logits, "f": head.f.weights[0]}
    if isinstance(head, PalA):
        return found | {"P": head.prototypes_KD}
    return found | {"g": head.g.weights[0], "scale": head.log_scale}  # type: ignore[dict-item]


def new_answers() -> Batch:
    return comparisons(NEW_USERS * NEW_ANSWERS, NEW_USERS)


def pal_new_users(kind: str) -> Case:
    """The few-shot protocol; first logits and orders are torch's for a seed."""
    head, batch = pal_head(kind).eval(), new_answers()
    with torch.no_grad():
        prompt = batch.prompt if head.uses_prompt else None
        prepared = head.prepare(prompt, batch.first, batch.second)
    answers = Answers(prepared, batch.label, batch.user, NEW_USERS)
    loss = "hinge" if kind == "a" else "logistic"
    return {"users": adapt_sgd(head, answers, NEW_SEED, loss=loss).logits}


def lore() -> Case:
    """Their loss sums users' means of features / 100; as many pairs of each user here."""
    batch = some(comparisons(), torch.arange(6))
    head = LowRank(DIM, USERS, k=K).double()
    basis = (sines(DIM, K, shift=0.7) / 100.0).requires_grad_()
    logits = sines(USERS, K, shift=0.8).requires_grad_()
    x = head.item_scale(batch.first) - head.item_scale(batch.second)
    margin = low_rank_margins(basis, logits, Differences(x, batch.label, batch.user))
    loss = USERS * logistic(margin, batch.label).mean()
    loss.backward()
    assert basis.grad is not None
    assert logits.grad is not None
    return {"loss": loss, "V": basis.grad / 100.0, "W": logits.grad}


def fill(module: nn.Module) -> None:
    """Give a module's linear layers weights that are sines, in their order."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for place, layer in enumerate(layers):
            layer.weight.copy_(0.5 * sines(*layer.weight.shape, shift=1.0 + place))
            if layer.bias is not None:
                layer.bias.zero_()


def vpl() -> Case:
    """Users 0 and 1 with answers; a target each."""
    head = Variational(DIM, 2, latent_dim=DIM).double()
    fill(head.read_answer)
    for place, layer in enumerate((head.query, head.key, head.value, head.mean, head.log_variance)):
        with torch.no_grad():
            layer.weight.copy_(sines(DIM, DIM, shift=2.0 + place))
            layer.bias.zero_()
    fill(head.net)
    batch, target = comparisons(users=2), comparisons(2, 2)
    rows, chosen, rejected = choices(batch.first, batch.second, batch.label)
    mean, log_variance = head.posterior(chosen, rejected, None, batch.user[rows], 2)
    torch.manual_seed(0)
    drawn = head.draw(mean, log_variance)
    margins = [head.margin(None, target.first, target.second, z) for z in (mean, drawn)]
    return {
        "mean": mean, "log variance": log_variance, "drawn": drawn,
        "margins": margins[0], "margins in training": margins[1],
    }  # fmt: skip


def mrm() -> Case:
    """Their features are multiplied by 0.01; the loss over users is a sum there."""
    head = MetaLearned(DIM, USERS, k=K).double()
    with torch.no_grad():
        head.basis_DK.copy_(0.01 * sines(K, DIM, shift=0.9).T / (GAIN * DIM**0.5))
    batch = comparisons()
    weights = sines(K, shift=1.1).softmax(0).expand(ROWS, -1)
    each = sines(5, shift=0.6).abs().requires_grad_()
    total = 5 * of_worst_users(each)
    total.backward()
    assert each.grad is not None
    return {
        "margins": head.margin(None, batch.first, batch.second, weights),
        "worst": total, "slope of worst": each.grad,
    }  # fmt: skip


OURS: Mapping[str, Callable[[], Case]] = {
    "pal losses": losses,
    "lore": lore,
    "vpl": vpl,
    "mrm": mrm,
    **{
        f"pal-{kind} {what}": (lambda kind=kind, make=make: make(kind))
        for kind in ("a", "b")
        for what, make in (
            ("forward", pal_forward), ("steps", pal_steps), ("new users", pal_new_users),
        )
    },
}  # fmt: skip
"""every case by its name in the golden file"""
