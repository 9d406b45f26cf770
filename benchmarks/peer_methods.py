"""What ``peers.py`` compares: methods of the peers, by their own code, and ours, on one world."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from peer_code import PeerPal, chosen_and_rejected, copy_maps, differences_by_user, load_file
from torch import Tensor
from torch.nn.functional import softplus

from pal.config import TrainConfig, load
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import predictive, zero_shot
from pal.train.adapt.descent import adapt_sgd
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import DEFAULT_STRENGTH, make_prior
from pal.train.build import build_head, resolve
from pal.train.by_lightning import fit
from pal.train.datamodules import PairsDataModule
from pal.train.heads.head import Head
from pal.train.heads.pal_b import PalB
from pal.train.module import HeadTraining
from pal.train.pairs import Batch, Pairs
from pal.train.solve import is_solved, solve
from pal.train.solve.problem import Problem
from pal.train.solve.variational import episodes

LORE_STEPS, LORE_RATE = 1000, 0.5
VPL = {"lr": 3e-4, "epochs": 60, "weight_decay": 1e-3}
SHOTS = (0, 1, 2, 5, 10, 20)


class Reached(NamedTuple):
    """On test pairs; the mean over users."""

    accuracy: float
    nll: float
    seconds: float


@dataclass(frozen=True)
class World:
    """Users, their pairs and features, that every method is given."""

    problem: Problem
    """of the seen users; features standardised"""
    raw: Tensor
    """features as the encoder gives them"""
    test: Pairs
    known: Pairs | None = None
    """answers of new users, by user, and"""
    judged: Pairs | None = None
    """what they are judged by"""

    def rows(self, pairs: Pairs, raw: bool = False) -> Batch:
        batch = pairs.batch(self.raw if raw else self.problem.features, slice(None))
        return Batch(*(v.float() if v is not None and v.dim() == 2 else v for v in batch))


def reached(margin: Tensor, label: Tensor, user: Tensor, began: float) -> Reached:
    seconds = time.perf_counter() - began
    margin = margin.detach()
    right = torch.where(margin == 0, 0.5, ((margin > 0) == (label > 0.5)).float())
    loss = softplus(margin) - label * margin
    users = user.unique()
    means = [float(torch.stack([v[user == u].mean() for u in users]).mean()) for v in (right, loss)]
    return Reached(means[0], means[1], seconds)


def ours(name: str, world: World, k: int, seed: int, **settings: float | str) -> Reached:
    """Train a head of ours on a world with the settings' defaults."""
    train = resolve(TrainConfig(head=name, k=k, **settings))  # type: ignore[arg-type]
    began = time.perf_counter()
    head = fitted(train, world, seed)
    batch = world.rows(world.test)
    return reached(head(batch.prompt, *batch[1:4]), batch.label, batch.user, began)


def fitted(train: TrainConfig, world: World, seed: int, start: Head | None = None) -> Head:
    problem = world.problem
    torch.manual_seed(seed)
    head = start or build_head(train, problem.features.shape[1], problem.users)
    if is_solved(head):
        solve(head, problem, train)
        return head.eval()
    module = HeadTraining(head, train)
    parts = (problem.features, problem.train, problem.val, train.batch_size, seed)
    fit(module, PairsDataModule(*parts), "cpu", lambda _: None)
    head.load_state_dict(module.best_state)
    return head.eval()


def lore_theirs(
    folder: Path, world: World, k: int, seed: int, raw: bool = True, ridge: bool = False
) -> Reached:
    """LoRe with its own steps; ``ridge``: pulled towards its one reward for all, by a strength that
    validation chooses."""
    module, users = load_file(folder, "utils.py"), world.problem.users
    train, val, test = (
        differences_by_user(world.rows(part, raw), users)
        for part in (world.problem.train, world.problem.val, world.test)
    )
    if not raw:  # a spread of one in each dimension
        train, val, test = ([x * x.shape[1] ** 0.5 for x in part] for part in (train, val, test))
    torch.manual_seed(seed)
    began = time.perf_counter()
    towards, strengths = torch.zeros(train[0].shape[1]), (0.0,)
    if ridge:
        # of rank one: what they have for a single reward names a class that is not there
        _, single = module.solve_regularized(towards, 0.0, train, 1, LORE_STEPS, LORE_RATE)
        towards = single[:, 0]
        strengths = (1e-9, 1e-8, 1e-7, 1e-6)
    best: tuple[float, Tensor, Tensor] | None = None
    for strength in strengths:
        w, v = module.solve_regularized(towards, strength, train, k, LORE_STEPS, LORE_RATE)
        loss = float(softplus(-_lore_margins(val, v, w)).mean())
        if best is None or loss < best[0]:
            best = (loss, v, w.detach())
    assert best is not None
    margin = _lore_margins(test, best[1], best[2])
    owner = torch.cat([torch.full((len(x),), u) for u, x in enumerate(test)])
    return reached(margin, torch.ones(len(margin)), owner, began)


def _lore_margins(parts: list[Tensor], v: Tensor, w: Tensor) -> Tensor:
    return torch.cat([x @ v @ w[u] for u, x in enumerate(parts)]).detach() / 100.0


def vpl_theirs(folder: Path, world: World, seed: int, hidden: int) -> Reached:
    """VPL's networks, losses and annealing on raw features and on episodes as ours draws them, best
    epoch by validation as ours; a user's context at the end is all the user's training answers."""
    with mock.patch.dict("os.environ", {"WANDB_DISABLED": "true"}):
        module = load_file(folder, "hidden_context/vae_utils.py")
    problem, rows = world.problem, world.rows(world.problem.train, raw=True)
    dim = problem.features.shape[1]
    torch.manual_seed(seed)
    began = time.perf_counter()
    model = module.VAEModel(dim, dim, hidden, hidden, None, None)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=VPL["lr"], weight_decay=VPL["weight_decay"]
    )
    annealer = module.Annealer(total_steps=1e4, shape="cosine", baseline=0.1, cyclical=True)

    def run(context: Tensor, target: Batch) -> tuple[Tensor, ...]:
        context = context[rows.user[context].argsort(stable=True)]
        owners, count = rows.user[context].unique(return_counts=True)
        stops = count.cumsum(0).tolist()
        spans = list(zip([0, *stops[:-1]], stops, strict=True))
        pairs = model.encode_pair(*chosen_and_rejected(_some(rows, context)))
        mean, log_variance = (v.clamp(-1, 1) for v in model.encode_sequence(pairs, spans))
        z = mean
        if model.training:
            z = model.reparameterization(mean, (0.5 * log_variance).exp())
        place = torch.searchsorted(owners, target.user)
        first, second = model.decode(target.first, target.second, z[place])
        return (first - second)[:, 0], mean[place], log_variance[place]

    def evaluate(pairs: Pairs) -> tuple[Tensor, Batch]:
        model.eval()
        with torch.no_grad():
            target = world.rows(pairs, raw=True)
            margin = run(torch.arange(len(rows.label)), target)[0]
        model.train()
        return margin, target

    best, best_loss = model.state_dict(), float("inf")
    for _ in range(int(VPL["epochs"])):
        for context, chosen in episodes(rows.user, problem.users, 512):
            target = _some(rows, chosen)
            margin, mean, log_variance = run(context, target)
            loss = (softplus(margin) - target.label * margin).mean()
            spread = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
            optimiser.zero_grad()
            (loss + 3e-6 * annealer(spread)).backward()
            annealer.step()
            optimiser.step()
        margin, target = evaluate(problem.val)
        now = float((softplus(margin) - target.label * margin).mean())
        if now < best_loss:
            best = {name: value.clone() for name, value in model.state_dict().items()}
            best_loss = now
    model.load_state_dict(best)
    margin, target = evaluate(world.test)
    return reached(margin, target.label, target.user, began)


def _some(batch: Batch, rows: Tensor) -> Batch:
    return Batch(*(None if value is None else value[rows] for value in batch))  # type: ignore[arg-type]


def pal_training(folder: Path, world: World, seed: int, k: int) -> tuple[Reached, Reached]:
    """One epoch of PAL-B by the preset from the same weights in the same order: theirs, ours."""
    preset = load(None, (), {"train.head": "pal-b-text", "train.k": k}).config.train
    train = resolve(preset.model_copy(update={"epochs": 1}))
    problem = world.problem
    torch.manual_seed(seed)
    head = build_head(train, problem.features.shape[1], problem.users)
    assert isinstance(head, PalB)
    peer = peer_of(folder, head, train, decay=0.01)
    target = world.rows(world.test)
    began = time.perf_counter()
    order = torch.randperm(len(problem.train), generator=torch.Generator().manual_seed(seed))
    optimiser, rows = peer.optimiser(), world.rows(problem.train)
    for chosen in order.split(train.batch_size):
        peer.step(optimiser, _some(rows, chosen))
    with torch.no_grad():
        theirs = reached(peer.margins(target), target.label, target.user, began)
    began = time.perf_counter()
    trained = fitted(train, world, seed, start=head)
    return theirs, reached(trained(*target[:4]), target.label, target.user, began)


def peer_of(folder: Path, head: PalB, train: TrainConfig, decay: float) -> PeerPal:
    """Return theirs with the weights of a head of ours."""
    assert train.mlp is not None
    users, k = head.users.logits.shape
    dim = len(head.item_scale.mean)
    peer = PeerPal.build(folder, "b", dim, users, k, train.mlp, decay)
    own = peer.learner.prefLearner
    copy_maps(head.f, peer.maps()[:1])
    copy_maps(head.g, peer.maps()[1:])
    with torch.no_grad():
        assert head.log_scale is not None
        own.logit_scale.copy_(head.log_scale)
        for parameter, row in zip(own.user_learner.W.values(), head.users.logits, strict=True):
            parameter.copy_(row)
    return peer


def few_shot(folder: Path, world: World, seed: int, k: int) -> dict[str, dict[int, Reached]]:
    """New users of one PAL-B head, trained by our defaults: by their code (``chosen``: the epoch
    that is best on the very pairs it is judged by, as released), by ours, and by MAP, of which
    ``average`` predicts as ``pal adapt`` does and ``map`` by each user's own weights alone. Theirs
    without answers are first weights that nothing trained; ``one`` and ``taste`` know no users."""
    train = resolve(TrainConfig(head="pal-b", k=k))
    head = fitted(train, world, seed)
    assert isinstance(head, PalB)
    assert world.known is not None
    assert world.judged is not None
    known, judged = world.rows(world.known), world.rows(world.judged)
    users = int(known.user.max()) + 1
    found: dict[str, dict[int, Reached]] = {"one": {}, "taste": {}}
    for name, trained in (("one", ("pal-b", 1)), ("taste", ("one-taste", 8))):
        options = {"reads": "prompt"} if name == "taste" else {}
        one = resolve(TrainConfig(head=trained[0], k=trained[1], **options))  # type: ignore[arg-type]
        began = time.perf_counter()
        alone = fitted(one, world, seed)
        with torch.no_grad():
            margin = zero_shot(alone, alone.prepare(*judged[:3]))
        found[name][0] = reached(margin, judged.label, judged.user, began)
    found |= {"theirs": {}, "chosen": {}, "sgd": {}, "map": {}, "average": {}}
    for shots in SHOTS:
        picked = [(known.user == u).nonzero()[:shots, 0] for u in range(users)]
        some = _some(known, torch.cat(picked))
        began = time.perf_counter()
        peer = peer_of(folder, head, train, decay=0.0)
        torch.manual_seed(seed)
        peer.add_users(users)
        optimiser = peer.optimiser(new_users=True)
        best, best_loss, aside = torch.zeros(0), float("inf"), 0.0
        for _ in range(20):
            for rows in torch.randperm(len(some.label)).split(4) if shots else ():
                peer.step(optimiser, _some(some, rows))
            judging = time.perf_counter()
            with torch.no_grad():
                margin = peer.margins(judged)
            aside += time.perf_counter() - judging
            now = float((softplus(margin) - judged.label * margin).mean())
            if now < best_loss:
                best, best_loss = margin, now
        found["theirs"][shots] = reached(margin, judged.label, judged.user, began + aside)
        found["chosen"][shots] = reached(best, judged.label, judged.user, began)
        with torch.no_grad():
            answers = Answers(head.prepare(*some[:3]), some.label, some.user, users)
            asked = Answers(head.prepare(*judged[:3]), judged.label, judged.user, users)
            for name in ("sgd", "map", "average"):
                began = time.perf_counter()
                margin = _margin_of_new(head, answers, asked, name, seed)
                found[name][shots] = reached(margin, asked.label, asked.user, began)
    return found


def _margin_of_new(head: Head, answers: Answers, asked: Answers, name: str, seed: int) -> Tensor:
    if name == "sgd":
        adapted = adapt_sgd(head, answers, seed)
    else:
        averages = name == "average"
        adapted = adapt_map(head, answers, make_prior(head, DEFAULT_STRENGTH), averages)
        if averages:
            return predictive(head, answers, asked, adapted)
    return head.prepared_margin(asked.prepared, adapted.vectors, asked.user)
