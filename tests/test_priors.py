"""Training under priors: its equations, what a residual is for, and what it must leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize, softplus

from pal.config import TrainConfig
from pal.errors import ConfigError
from pal.train.build import build_head, resolve
from pal.train.data import TrainingData
from pal.train.fit import can_be_stacked, fit_head
from pal.train.heads.held import HeldMLPs, deviating, moved
from pal.train.heads.mlp import Architecture
from pal.train.heads.pal_b import PalB
from pal.train.heads.shrunk import FAR, ShrunkHead, ShrunkPalA, ShrunkPalB
from pal.train.heads.standardise import Standardiser
from pal.train.module import HeadTraining
from pal.train.pairs import Pairs
from pal.train.priors import Priors, gains_clearly, prepare, with_things
from pal.train.relevant import relevant_settings
from pal.train.steps import optimiser_groups

DIM, K, USERS, ROWS = 5, 3, 6, 40
MLP = "mlp1-gelu-dropout0"
AS_THEY_ARE = Standardiser(DIM)
"""before it is fitted it changes nothing"""


def pairs_of(features: int = 30, seed: int = 0) -> tuple[torch.Tensor, Pairs]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(features, DIM, generator=generator) / math.sqrt(DIM)
    prompt, first, second = torch.randint(0, features, (3, ROWS), generator=generator)
    label = torch.randint(0, 2, (ROWS,), generator=generator).float()
    return points, Pairs(prompt, first, second, torch.arange(ROWS) % USERS, label)


def votes_of(things: int, users: int, seed: int = 0, dim: int = DIM) -> TrainingData:
    """Return votes on statements of which everybody likes some, whatever their features say; items
    0 and 1 are the answers. A third of the statements validates."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 + things, dim, generator=generator)
    liking = 1.5 * torch.randn(things, generator=generator)
    thing = torch.arange(things).repeat_interleave(users)
    user = torch.arange(users).repeat(things)
    chance = torch.rand(len(thing), generator=generator)
    agrees = (chance < torch.sigmoid(liking[thing])).float()
    swapped = torch.rand(len(thing), generator=generator) < 0.5
    first = swapped.long()
    label = torch.where(swapped, 1.0 - agrees, agrees)
    every = Pairs(2 + thing, first, 1 - first, user, label)
    is_val = thing % 3 == 0
    train, val = (
        Pairs(2 + thing[rows], first[rows], 1 - first[rows], user[rows], label[rows])
        for rows in (~is_val, is_val)
    )
    assert len(train) + len(val) == len(every)
    names = [f"u{number}" for number in range(users)]
    store = cast(Any, type("Store", (), {"dim": dim})())
    data = TrainingData(cast(Any, None), store, names, features, train, val)
    data.__dict__["is_vote"] = True
    return data


def head_of(name: str, users: int = USERS, **settings: Any) -> ShrunkHead:
    torch.manual_seed(0)
    train = TrainConfig(head=name, k=K, priors="auto", mlp=MLP, **settings)
    head = build_head(train, DIM, users)
    assert isinstance(head, ShrunkHead)
    return head


def filled(name: str) -> ShrunkHead:
    """Return a head with numbers of every kind."""
    head = head_of(name)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    head.side_D.copy_(torch.randn(DIM))
    return head.eval()


def test_the_shared_part_that_is_integrated_out_is_the_prior_of_its_sum() -> None:
    sigma, value = 0.7, torch.randn(K, 2)
    inverse = np.linalg.inv(sigma**2 * np.eye(K) + np.ones((K, K)))
    expected = sum(0.5 * column @ inverse @ column for column in value.double().numpy().T)
    assert deviating(value, sigma).item() == pytest.approx(expected, rel=1e-5)


def test_maps_begin_at_zero_and_have_outputs_of_variance_one_under_their_prior() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 64) / 8.0
    maps = HeldMLPs(2, 64, 64, Architecture.parse("mlp2-gelu-dropout0"))
    maps.fit(x)
    assert not maps(x).any()
    with torch.no_grad():
        maps.out_CHF.normal_()
    assert maps(x).var().item() == pytest.approx(1.0, abs=0.15)
    first = {name: value.detach().clone() for name, value in maps.hidden().items()}
    assert moved(dict(maps.hidden()), first).item() == 0.0


@pytest.mark.parametrize("sort", ["-residual", "-batchnorm"])
def test_maps_that_no_prior_can_hold_are_one_sentence(sort: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.mlp = .* cannot be held by priors"):
        build_head(TrainConfig(head="pal-b", priors="auto", mlp=f"mlp2-relu-dropout0{sort}"), 4, 2)


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_rewards_are_the_equation_and_margins_their_differences(name: str) -> None:
    head, (points, pairs) = filled(name), pairs_of()
    head.moderate(1.3)
    batch = pairs.batch(points, slice(None))
    vector = head.users(batch.user)
    placed = head.get_submodule("f")(batch.first * (math.sqrt(DIM) if name == "pal-b" else 1.0))[0]
    if isinstance(head, ShrunkPalB):
        assert batch.prompt is not None
        each = (normalize(placed, dim=1) * head.g(batch.prompt)).sum(dim=2).T
    else:
        assert isinstance(head, ShrunkPalA)
        away = placed.unsqueeze(1) - head.prototypes_KH
        # -|z - p|^2 less what a margin does not see
        each = head.prototypes_KH.square().sum(dim=1) - away.square().sum(dim=2)
    expected = (each * vector[:, 1:]).sum(dim=1) + vector[:, 0] * (batch.first @ head.side_D)
    reward = head.reward(batch.prompt, batch.first, vector)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(reward, expected / 1.3, **close)
    other = head.reward(batch.prompt, batch.second, vector)
    margin = head.margin(batch.prompt, batch.first, batch.second, vector)
    torch.testing.assert_close(margin, reward - other, **close)
    prepared = head.prepare(batch.prompt, batch.first, batch.second)
    table = head.users.of_logits(head.users.logits)
    again, slope = head.margin_and_slope(prepared, table, batch.user)
    torch.testing.assert_close(again, margin, **close)
    each_B = head.margins_of_each(prepared, table).gather(1, batch.user[:, None])[:, 0]
    torch.testing.assert_close(each_B, margin, **close)
    torch.testing.assert_close((slope * vector).sum(dim=1), margin, **close)
    groups = optimiser_groups(head, TrainConfig())
    assert sum(len(group["params"]) for group in groups) == len(list(head.parameters()))


def test_things_are_items_or_items_under_prompts_or_the_prompts_of_two_answers() -> None:
    points, pairs = pairs_of()
    items = with_things(pairs, points, AS_THEY_ARE, False, False).judged
    assert items is not None
    assert items.thing.max() + 1 == len(pairs.item_rows())
    both = with_things(pairs, points, AS_THEY_ARE, False, True).judged
    assert both is not None
    assert both.thing.max() + 1 > items.thing.max() + 1
    assert both.sign.tolist() == [[1.0, -1.0]] * ROWS
    answers = replace(pairs, first=torch.arange(ROWS) % 2, second=1 - torch.arange(ROWS) % 2)
    votes = with_things(answers, points, AS_THEY_ARE, True, True).judged
    assert votes is not None
    assert votes.thing.max() + 1 == len(pairs.prompt.unique())  # type: ignore[union-attr]
    assert votes.sign[0, 0].abs() == 0.5
    assert torch.equal(votes.sign[0::2], votes.sign[:1].expand(ROWS // 2, 2)), "by the answer"
    assert torch.equal(votes.sign[1::2], -votes.sign[0::2])


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_the_loss_over_all_pairs_is_the_negative_log_posterior(name: str) -> None:
    """Written down by hand, and its prior counts the same however many answers there are."""
    points, pairs = pairs_of()
    head = head_of(name, sigma=0.5)
    known = with_things(pairs, points, AS_THEY_ARE, False, head.uses_prompt)
    prepare(head, known, points, False)
    module = HeadTraining(head, TrainConfig(), Priors(head, known, False))
    assert module.priors is not None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    loss = module.training_step(known.step(points, slice(None)), 0).item() * ROWS
    head.eval()
    batch = known.step(points, slice(None))
    assert batch.judged is not None
    residual_T = module.priors.residual_T
    residual = residual_T[batch.judged.thing]
    margin = head.margins(batch.things, batch.user) + residual[:, 0] - residual[:, 1]
    expected = (softplus(margin) - batch.label * margin).sum() + 0.5 * residual_T.square().sum()
    prior = 0.5 * head.users.logits.square().sum()
    for key, value in head.named_parameters():
        away = value - module.priors.first.get(key, torch.zeros(()))
        if key == "prototypes_KH":
            prior = prior + 2.0 * DIM / (0.5 * FAR) ** 2 * away.square().sum()
        elif "out_CHF" in key or "bias_CH" in key:
            own = deviating(value, 0.5) if name == "pal-b" else 0.5 * (FAR * value).square().sum()
            prior = prior + own
        elif key != "users.logits":
            prior = prior + 1.5 * DIM * away.square().sum()
    assert loss == pytest.approx((expected + prior).item(), rel=1e-4)
    rows = torch.arange(ROWS).repeat(2)
    assert pairs.prompt is not None
    sides = pairs.first[rows], pairs.second[rows]
    twice = Pairs(pairs.prompt[rows], *sides, pairs.user[rows], pairs.label[rows])
    again = Priors(head, with_things(twice, points, AS_THEY_ARE, False, head.uses_prompt), False)
    again.residual_T.data = module.priors.residual_T.data
    again.first = module.priors.first
    assert again.penalty(head).item() == pytest.approx(module.priors.penalty(head).item() / 2.0)


def test_without_priors_maps_memorise_what_everybody_likes_and_with_them_not() -> None:
    """Thirty statements whose liking no feature tells: nothing is to be learned but how readily
    people agree, and a coin has 0.693."""
    data = votes_of(things=30, users=40, seed=2, dim=32)
    options: dict[str, Any] = {"head": "pal-b", "k": K, "epochs": 8, "batch_size": 128, "lr": 0.01}
    last = {}
    for priors, sigma in (("none", None), ("auto", 1.0)):
        log = fit_head(data, TrainConfig(priors=priors, sigma=sigma, **options), 0).log
        last[priors] = log[-1]["val/loss"]
    assert last["auto"] < 0.78
    assert last["none"] > last["auto"] + 0.2


def test_a_weaker_prior_is_taken_only_where_things_say_so() -> None:
    _, pairs = pairs_of()
    judged = with_things(pairs, pairs_of()[0], AS_THEY_ARE, False, False).judged
    default = torch.rand(ROWS)
    assert not gains_clearly(default, default, judged)
    assert gains_clearly(default, default - 0.1 - 0.01 * torch.rand(ROWS), judged)
    one_thing = torch.zeros(ROWS)
    assert judged is not None
    one_thing[(judged.thing == judged.thing[0, 0]).any(dim=1)] = 5.0
    assert not gains_clearly(one_thing, torch.zeros(ROWS), judged), "one thing is no evidence"


def test_margins_after_training_are_those_of_validation() -> None:
    """The head that is returned is moderated once: its validation loss is that of its epoch."""
    data = votes_of(things=20, users=20)
    for name in ("pal-a", "pal-b", "bt-mlp", "user-embedding"):
        train = TrainConfig(head=name, k=K, epochs=3, priors="auto", batch_size=64)
        fitted = fit_head(data, train, 0)
        batch = data.val.batch(data.features, slice(None))
        prompt = batch.prompt if fitted.head.uses_prompt else None
        head = fitted.head.eval()
        with torch.no_grad():
            margin = head(prompt, batch.first, batch.second, batch.user)
        loss = (softplus(margin) - batch.label * margin).mean().item()
        assert loss == pytest.approx(min(row["val/loss"] for row in fitted.log), rel=1e-4), name


def test_priors_are_off_unless_chosen_and_refuse_what_is_no_posterior() -> None:
    assert isinstance(build_head(TrainConfig(head="pal-b"), DIM, USERS), PalB)
    assert not can_be_stacked(TrainConfig(head="pal-b", priors="auto"))
    assert can_be_stacked(TrainConfig(head="pal-b"))
    for wrong, sentence in (
        ({"loss": "hinge"}, "train.loss = 'hinge' is no likelihood"),
        ({"weights": "partition"}, "train.weights = 'partition' has no prior"),
        ({"score": "angle"}, "train.score = 'angle' is not read by head pal-b under priors"),
        ({"bound": 4.0}, "train.bound = 4.0 is not read by head pal-b under priors"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            resolve(TrainConfig(head="pal-b", priors="auto", **wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train.sigma = 2.0 is not read by head pal-b; leave"):
        resolve(TrainConfig(head="pal-b", sigma=2.0))


def test_residuals_learn_at_the_rate_of_users_and_no_map_decays() -> None:
    """So heads that differ in the one are two heads, and in the other one."""

    def decides(**settings: Any) -> object:
        return relevant_settings(TrainConfig(head="bt-mlp", priors="auto", **settings))

    assert decides(user_lr=0.05) != decides(user_lr=0.005)
    assert decides(weight_decay=0.0) == decides(weight_decay=0.1)


@pytest.mark.parametrize(("key", "value"), [("loss_over", "users"), ("absent_users", "stay")])
def test_weighed_answers_and_priors_on_some_users_are_no_posterior(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"train.{key} = '{value}' .* or train.priors=none"):
        resolve(TrainConfig(head="pal-a", priors="auto", **{key: value}))  # type: ignore[arg-type]


def test_a_head_under_priors_is_built_from_its_settings_and_numbers() -> None:
    head, again = filled("pal-b"), head_of("pal-b").eval()
    again.load_state_dict(head.state_dict())
    points, pairs = pairs_of()
    batch = pairs.batch(points, slice(None))
    margins = [one(batch.prompt, batch.first, batch.second, batch.user) for one in (head, again)]
    assert torch.equal(*margins)
