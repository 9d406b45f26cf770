"""Heads against the equations: an implementation of method.md in NumPy that shares no line with the
package."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from torch.autograd import gradcheck
from torch.nn.functional import softplus

import pal.train.heads
import pal.train.heads.meta
from pal import pipeline
from pal.config import Config, TrainConfig, load
from pal.errors import ConfigError, TrainError
from pal.evaluate.records import Cell
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import make_prior
from pal.train.build import build_head, defaults_of, heads, resolve
from pal.train.heads import variational
from pal.train.heads.drawn import drawn
from pal.train.heads.head import Head
from pal.train.heads.linear import BradleyTerry, LinearHead
from pal.train.heads.meta import MetaLearned
from pal.train.heads.pal_a import PalA
from pal.train.heads.standardise import Standardiser
from pal.train.heads.things import Things
from pal.train.heads.users import UserWeights
from pal.train.heads.variational import Variational, blocks_of_answers
from pal.train.loss import hinge, logistic
from pal.train.module import HeadTraining
from pal.train.pairs import Pairs, Step
from pal.train.solve import SOLVERS, Problem, is_solved, solve
from pal.train.solve.convex import (
    best_of_path,
    best_ridge,
    fit_low_rank,
    fit_shrunk_users,
    low_rank_margins,
    newton,
)
from pal.train.solve.meta import episode_losses, of_worst_users
from pal.train.solve.rows import Rows
from pal.train.solve.variational import _episode_loss, _posterior, episodes
from pal.train.steps import StepOfHead, optimiser_groups

Configure = Callable[..., Config]
DIM, USERS, ROWS, K = 6, 4, 12, 3
MLPS = [
    "mlp2-relu-dropout0-residual",
    "mlp1-gelu-dropout0",
    "mlp0-linear-dropout0-nobias",
    "identity",
]
SCORES = ["squared", "distance", "normalised", "angle"]
VARIANTS = [
    *(
        ("pal-a", score, learner, mlp)
        for score in SCORES
        for learner in ("f(Pw)", "f(P)w", "Pw")
        for mlp in MLPS[:2]
    ),
    *(("pal-b", score, None, mlp) for score in SCORES for mlp in MLPS),
]
PERSONAL = ["lore", "per-user", "drm", "user-embedding", "vpl"]


def make(name: str, k: int = K, **settings: Any) -> Head:
    torch.manual_seed(0)
    head = build_head(TrainConfig(head=name, k=k, **settings), DIM, USERS).double().eval()
    for parameter in head.parameters():  # solved heads start at zero, where everything is equal
        if parameter.numel() and not bool(parameter.detach().any()):
            parameter.data.normal_()
    return head


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, ROWS, DIM, generator=generator, dtype=torch.float64)
    return (
        features[0],
        features[1],
        features[2],
        torch.randint(0, USERS, (ROWS,), generator=generator),
    )


class Reference:
    """The equations of method.md 1.3 to 1.6, one comparison at a time."""

    def __init__(self, head: Head, name: str, score: str, learner: str | None, mlp: str) -> None:
        self.state = {n: v.detach().numpy() for n, v in head.state_dict().items()}
        self.name, self.score, self.learner, self.mlp = name, score, learner, mlp

    def map(self, prefix: str, copy: int, x: np.ndarray) -> np.ndarray:
        if self.mlp == "identity":
            return x
        value, layer = x, 0
        while f"{prefix}.weights.{layer}" in self.state:
            value = self.state[f"{prefix}.weights.{layer}"][copy] @ value
            if f"{prefix}.biases.{layer}" in self.state:
                value = value + self.state[f"{prefix}.biases.{layer}"][copy]
            layer += 1
            if f"{prefix}.weights.{layer}" in self.state:
                gelu = 0.5 * value * (1.0 + erf(value / math.sqrt(2.0)))
                value = (
                    np.maximum(value, 0.0)
                    if "relu" in self.mlp
                    else gelu
                    if "gelu" in self.mlp
                    else value
                )
        return x + value if "residual" in self.mlp else value

    def ideal(self, prompt: np.ndarray, user: int) -> np.ndarray:
        logits = self.state["users.logits"][user]
        w = np.exp(logits) / np.exp(logits).sum()
        if self.name == "pal-b":
            return sum(w[k] * self.map("g", k, prompt) for k in range(K))  # type: ignore[return-value]
        prototypes = self.state["prototypes_KD"]
        if self.learner == "f(Pw)":
            return self.map("f", 0, sum(w[k] * prototypes[k] for k in range(K)))  # type: ignore[arg-type]
        mapped = prototypes if self.learner == "Pw" else [self.map("f", 0, p) for p in prototypes]
        return sum(w[k] * mapped[k] for k in range(K))  # type: ignore[return-value]

    def reward(self, prompt: np.ndarray, item: np.ndarray, user: int) -> float:
        a, z = self.ideal(prompt, user), self.map("f", 0, item)
        if self.score == "squared":
            return -float(np.sum((z - a) ** 2))
        if self.score == "distance":
            return -float(np.sqrt(np.sum((z - a) ** 2)))
        unit_a, unit_z = a / np.linalg.norm(a), z / np.linalg.norm(z)
        if self.score == "normalised":
            return -float(np.sum((unit_z - unit_a) ** 2))
        return float(min(math.exp(self.state["log_scale"]), 100.0) * (unit_a @ unit_z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_a_head_begins_with_are_those_of_randn(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for shape in [(1, 1), (3, 5), (40, 50)]:
            torch.manual_seed(3)
            found = drawn(*shape)
            torch.manual_seed(3)
            torch.testing.assert_close(found, torch.randn(*shape), rtol=0.0, atol=0.0)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "score", "learner", "mlp"), VARIANTS)
def test_margins_and_losses_equal_the_equations(
    name: str, score: str, learner: str | None, mlp: str
) -> None:
    head = make(name, score=score, learner=learner, mlp=mlp)
    prompt, first, second, user = batch()
    reference = Reference(head, name, score, learner, mlp)
    expected = [
        reference.reward(p, a, int(u)) - reference.reward(p, b, int(u))
        for p, a, b, u in zip(prompt.numpy(), first.numpy(), second.numpy(), user, strict=True)
    ]
    margin = head(prompt if head.uses_prompt else None, first, second, user)
    np.testing.assert_allclose(margin.detach().numpy(), expected, rtol=1e-5, atol=1e-12)
    prepared = head.prepare(prompt if head.uses_prompt else None, first, second)
    again = head.prepared_margin(prepared, head.users(torch.arange(USERS)), user)
    np.testing.assert_allclose(again.detach().numpy(), expected, rtol=1e-5, atol=1e-9)
    label = np.resize([1.0, 0.0, 0.5, 0.7], ROWS)
    p = 1.0 / (1.0 + np.exp(-np.array(expected)))
    entropy = -(label * np.log(p) + (1.0 - label) * np.log(1.0 - p))
    np.testing.assert_allclose(
        logistic(margin, torch.tensor(label)).detach().numpy(), entropy, rtol=1e-5, atol=1e-8
    )
    t = np.where(label > 0.5, 1.0, -1.0)
    decided = np.isin(label, (0.0, 1.0))
    expected_hinge = np.maximum(0.0, 1.0 - t * np.array(expected))[decided]
    np.testing.assert_allclose(
        hinge(margin, torch.tensor(label)).detach().numpy()[decided],
        expected_hinge,
        rtol=1e-5,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("name", "score", "learner", "mlp"), [v for v in VARIANTS if "relu" not in v[3]]
)
def test_gradients_are_those_of_finite_differences(
    name: str, score: str, learner: str | None, mlp: str
) -> None:
    head = make(name, score=score, learner=learner, mlp=mlp)
    check_gradients(head)


@pytest.mark.parametrize("name", [*PERSONAL, "bt-linear", "bt-mlp"])
def test_gradients_of_baselines_are_those_of_finite_differences(name: str) -> None:
    check_gradients(make(name))


def check_gradients(head: Head) -> None:
    prompt, first, second, user = (value[:4] for value in batch())
    names = [name for name, p in head.named_parameters() if p.numel()]
    values = [p.detach().clone().requires_grad_() for _, p in head.named_parameters() if p.numel()]

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        margin = torch.func.functional_call(
            head, state, (prompt if head.uses_prompt else None, first, second, user)
        )
        return logistic(margin, torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)).sum()

    assert gradcheck(loss, values, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", sorted(heads()))
def test_optimiser_groups_hold_each_parameter_once(name: str) -> None:
    head = make(name)
    grouped = [
        id(p)
        for group in optimiser_groups(head, resolve(TrainConfig(head=name)))
        for p in group["params"]
    ]
    wanted = [id(p) for p in head.parameters()]
    assert sorted(grouped) == sorted(wanted)


@pytest.mark.parametrize("name", sorted(heads()))
def test_every_head_scores_single_items_and_margins_are_differences(name: str) -> None:
    head = make(name)
    prompt, first, second, user = batch()
    vector = head.users(user)
    difference = head.reward(prompt, first, vector) - head.reward(prompt, second, vector)
    torch.testing.assert_close(head.margin(prompt, first, second, vector), difference)
    torch.testing.assert_close(head.margin(prompt, second, first, vector), -difference)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "k": st.integers(1, 4),
    "latent_dim": st.sampled_from([None, 3, DIM + 1]),
    "mlp": st.sampled_from([None, *MLPS, "mlp2-relu-dropout5-batchnorm"]),
    "score": st.sampled_from(SCORES),
    "learner": st.sampled_from(["f(Pw)", "f(P)w", "Pw"]),
    "weights": st.sampled_from(["mixture", "partition", "gumbel"]),
    "reads": st.sampled_from(["prompt", "items", "both"]),
}


@st.composite
def any_head(draw: st.DrawFn, **fixed: Any) -> Head:
    """Any head that can be built, in evaluation mode: fresh, with settings drawn from those it
    reads."""
    name = draw(st.sampled_from(sorted(heads())))
    chosen = {key: draw(VALUES[key]) for key in defaults_of(heads()[name])}
    mlp = chosen.get("mlp") or defaults_of(heads()[name]).get("mlp", "")
    if mlp == "identity" or "residual" in mlp:
        chosen["latent_dim"] = None
    return make(name, **chosen | {key: value for key, value in fixed.items() if key in chosen})


few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@given(head=any_head())
def test_a_margin_is_a_difference_of_rewards_and_swapping_sides_flips_it(head: Head) -> None:
    prompt, first, second, user = batch()
    vector = head.users(user)
    one, other = (head.reward(prompt, item, vector) for item in (first, second))
    torch.testing.assert_close(head.margin(prompt, first, second, vector), one - other)
    torch.testing.assert_close(head.margin(prompt, second, first, vector), other - one)
    torch.testing.assert_close(head(prompt, first, second, user), one - other)


@few
@given(head=any_head(k=1))
def test_with_one_prototype_everybody_has_the_same_reward(head: Head) -> None:
    if not isinstance(head.users, UserWeights):
        return  # one direction of drm is still each user's to stretch
    prompt, first, _, user = batch()
    mine = head.reward(prompt, first, head.users(user))
    theirs = head.reward(prompt, first, head.users((user + 1) % USERS))
    torch.testing.assert_close(mine, theirs)


@few
@given(head=any_head())
def test_prepared_pairs_have_the_same_margins_and_the_slopes_of_autograd(head: Head) -> None:
    prompt, first, second, user = batch()
    user = user.sort().values
    vector_UR = head.users.soft(head.users.logits.detach())
    expected = head.margin(prompt, first, second, vector_UR[user]).detach()
    with torch.no_grad():
        prepared = head.prepare(prompt, first, second)
        each = head.margins_of_each(prepared, vector_UR)
    own = vector_UR[user].requires_grad_()
    margin = head.prepared_margin(prepared, own, torch.arange(ROWS))
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(margin.detach(), expected, **close)
    torch.testing.assert_close(each.gather(1, user[:, None])[:, 0], expected, **close)
    again, slope = head.margin_and_slope(prepared, vector_UR, user)
    torch.testing.assert_close(again.detach(), expected, **close)
    if own.numel():
        (wanted,) = torch.autograd.grad(head.margin(prompt, first, second, own).sum(), own)
        torch.testing.assert_close(slope.detach(), wanted, **close)


@few
@given(head=any_head())
@torch.no_grad()
def test_the_mean_reward_is_the_mean_of_the_rewards(head: Head) -> None:
    prompt, item, _, _ = batch()
    vector_UR = head.users.soft(head.users.logits.detach())
    each = [head.reward(prompt, item, vector.expand(ROWS, -1)) for vector in vector_UR]
    found = head.mean_reward(prompt, item, vector_UR)
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), rtol=1e-5, atol=1e-6)


@few
@given(head=any_head())
def test_every_parameter_has_one_role(head: Head) -> None:
    grouped = [id(p) for parameters in head.roles().values() for p in parameters]
    assert sorted(grouped) == sorted(id(p) for p in head.parameters())


def test_a_head_is_built_from_numbers_and_strings_as_from_settings() -> None:
    torch.manual_seed(3)
    plain = PalA(DIM, USERS, k=K, score="angle")
    torch.manual_seed(3)
    built = build_head(TrainConfig(head="pal-a", k=K, score="angle"), DIM, USERS)
    assert plain.state_dict().keys() == built.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, built.state_dict()[name]), name
    assert defaults_of(BradleyTerry) == {}, "a head without prototypes does not mention them"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mlp": "mlp2"}, "mlp = 'mlp2' is not an architecture; write identity or"),
        ({"mlp": "identity", "latent_dim": 4}, "keeps the dimension, so latent_dim must be 6"),
        ({"score": "cosine"}, "score = 'cosine' must be one of squared, distance"),
        ({"learner": "wP"}, "learner = 'wP' must be one of"),
        ({"weights": "hard"}, "weights = 'hard' must be one of mixture, partition, gumbel"),
    ],
)
def test_arguments_that_make_no_head_are_one_sentence(wrong: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        PalA(DIM, USERS, **wrong)


def test_settings_that_make_no_head_are_named_by_their_keys() -> None:
    with pytest.raises(ConfigError, match="train.mlp = 'mlp2' is not an architecture"):
        build_head(TrainConfig(head="pal-b", mlp="mlp2"), DIM, USERS)
    with pytest.raises(ConfigError, match=r"train.mlp = .*so train.latent_dim must be 6, not 4"):
        build_head(TrainConfig(head="pal-b", mlp="identity", latent_dim=4), DIM, USERS)
    with pytest.raises(ConfigError, match="unknown head 'pal-c'; did you mean 'pal-"):
        resolve(TrainConfig(head="pal-c"))


TOY = '''
"""A new head is this file."""
from torch import nn, randn
from pal.train.heads.head import Head
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import UserWeights

class Toy(Head):
    """r_u(e) = <item_scale(e), sum_k w_k t_k>."""
    name = "toy"

    def __init__(self, dim, users, *, k=2, temperature=0.5):
        super().__init__()
        if k % 2:
            raise ValueError(f"k = {k} must be even")
        self.item_scale = Standardiser(dim)
        self.users = UserWeights(users, k)
        self.tastes_KD = nn.Parameter(randn(k, dim) / temperature)

    def reward(self, prompt_BD, item_BD, vector_BR):
        return (self.item_scale(item_BD) * (vector_BR @ self.tastes_KD)).sum(dim=1)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Add one file to the folder of heads, and return the name of the head in it."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(pal.train.heads, "__path__", [*pal.train.heads.__path__, str(tmp_path)])
    yield "toy"
    sys.modules.pop("pal.train.heads.toy", None)


def test_a_new_head_is_one_file(toy: str) -> None:
    head = build_head(TrainConfig(head=toy, k=4), DIM, USERS).double().eval()
    assert head.users.logits.shape == (USERS, 4)
    assert resolve(TrainConfig(head=toy)).view == "prompt+response"
    with pytest.raises(ConfigError, match=r"train.k = 3 must be even"):
        build_head(TrainConfig(head=toy, k=3), DIM, USERS)
    with pytest.raises(ConfigError, match="train.mlp = 'identity' is not read by head toy"):
        resolve(TrainConfig(head=toy, mlp="identity"))
    check_gradients(head)
    prompt, first, second, user = batch()
    prepared = head.prepare(None, first, second)
    margin, slope = head.margin_and_slope(prepared, head.users.soft(head.users.logits), user)
    torch.testing.assert_close(margin, head(prompt, first, second, user).detach())
    assert slope.shape == (ROWS, 4)


def assert_same(one: Cell | None, other: Cell | None) -> None:
    """Compare cells but for rounding: where a tensor lies in memory decides which instructions some
    processors take."""
    assert one is not None
    assert other is not None
    wanted = other.model_dump()
    for field, value in one.model_dump().items():
        is_number = isinstance(value, float | tuple)
        assert value == (pytest.approx(wanted[field], rel=1e-6) if is_number else wanted[field])


def test_a_new_head_trains_is_saved_and_evaluated(toy: str, configure: Configure) -> None:
    config = configure({"dataset": "simulated", "encoder": "identity", "train.head": toy})
    pipeline.embed(config)
    metrics = pipeline.train(config, "one")
    again = pipeline.evaluate(config, ["one"]).runs[0]
    assert_same(again.test_seen, metrics.test_seen)


def test_heads_that_are_solved_have_a_solver_and_others_have_none() -> None:
    assert {head for head in heads().values() if is_solved(head)} == set(SOLVERS)
    assert not is_solved(make("pal-a"))


def problem_of(count: int = 120) -> Problem:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(40, DIM, generator=generator)

    def pairs() -> Pairs:
        first, second = torch.randint(0, 40, (2, count), generator=generator)
        label = (features[first, 0] > features[second, 0]).float()
        return Pairs(None, first, second, torch.arange(count) % USERS, label)

    return Problem(features, pairs(), pairs(), USERS)


@pytest.mark.parametrize("name", [name for name in sorted(heads()) if is_solved(heads()[name])])
def test_a_solved_head_explains_what_everybody_prefers(name: str) -> None:
    train = TrainConfig(head=name, epochs=10, batch_size=64)
    torch.manual_seed(0)
    head, problem = build_head(train, DIM, USERS), problem_of()
    solve(head, problem, train)
    held_out = problem.val.batch(problem.features, slice(None))
    margin = head(None, held_out.first, held_out.second, held_out.user)
    decided = held_out.first[:, 0] != held_out.second[:, 0]
    right = ((margin > 0) == (held_out.label > 0.5))[decided]
    assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize("name", ["vpl", "mrm"])
def test_where_nobody_has_two_answers_there_is_nothing_to_learn_from(name: str) -> None:
    problem = problem_of()
    rows = torch.stack([(problem.train.user == user).nonzero()[0, 0] for user in range(USERS)])
    alone = Problem(problem.features, problem.train.take(rows), problem.val, USERS)
    train = TrainConfig(head=name, epochs=1)
    with pytest.raises(TrainError, match="nobody has two training answers; raise train.pairs_per"):
        solve(build_head(train, DIM, USERS), alone, train)


def test_who_has_a_single_answer_takes_no_place_in_an_episode() -> None:
    """One of many users has several; every episode is about that one."""
    user = torch.cat([torch.arange(200), torch.full((5,), 7)])
    for context, target in itertools.islice(episodes(user, 200, 32), 20):
        assert set(user[context].tolist()) == set(user[target].tolist()) == {7}


def test_a_loss_that_is_never_finite_is_one_sentence() -> None:
    problem = problem_of()
    problem.features.fill_(torch.nan)
    train = TrainConfig(head="vpl", epochs=1)
    with pytest.raises(TrainError, match="never finite; train with a lower --set train.lr"):
        solve(build_head(train, DIM, USERS), problem, train)


def test_gumbel_weights_are_on_the_simplex_and_random_only_in_training() -> None:
    head = make("pal-a", weights="gumbel").train()
    user = torch.zeros(2, dtype=torch.long)
    assert not torch.equal(head.users(user)[0], head.users(user)[1])
    torch.testing.assert_close(head.users(user).sum(dim=1), torch.ones(2, dtype=torch.float64))
    head.eval()
    assert torch.equal(head.users(user)[0], head.users(user)[1])


def test_bound_adds_the_excess_norms_and_is_refused_where_nothing_reads_it() -> None:
    head = make("pal-b")
    prompt, first, second, user = batch()
    module = HeadTraining(head, TrainConfig(head="pal-b", bound=0.5))
    norm = torch.linalg.vector_norm(head.ideal(prompt, head.users(user)), dim=1)  # type: ignore[operator]
    expected = (norm - 0.5).clamp(min=0).sum()
    things = Things.of(prompt, first, second)
    margin, *excess = StepOfHead(head, 0.5)(things, user)
    torch.testing.assert_close(excess[0].sum(), expected)
    torch.testing.assert_close(margin, head(prompt, first, second, user))
    loss = module.training_step(Step(things, user, torch.ones(ROWS).double()), 0)
    torch.testing.assert_close(loss, softplus(-margin).mean() + expected)
    with pytest.raises(ConfigError, match="bound"):
        resolve(TrainConfig(head="lore", bound=0.5))


def test_scale_comes_back_from_its_limit() -> None:
    head = make("pal-b")
    head.log_scale.data.fill_(10.0)  # type: ignore[union-attr]
    head.constrain()
    assert math.exp(float(head.log_scale.detach())) == pytest.approx(100.0)  # type: ignore[arg-type]
    prompt, first, second, user = batch()
    head(prompt, first, second, user).sum().backward()
    assert float(head.log_scale.grad) != 0.0  # type: ignore[union-attr, arg-type]


def random_rows(count: int = 300) -> Rows:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(DIM, generator=generator, dtype=torch.float64) > 0).double()
    y[::7] = 1.0 - y[::7]
    return Rows(x, y, torch.randint(0, USERS, (count,), generator=generator))


def test_newton_finds_where_the_gradient_is_zero() -> None:
    rows = random_rows()
    theta = newton(rows, 0.1, torch.zeros(DIM, dtype=torch.float64))
    gradient = rows.x.T @ (torch.sigmoid(rows.x @ theta) - rows.y) / len(rows.y) + 0.1 * theta
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("users", [2, 60])
def test_pairs_of_one_difference_are_fitted_as_if_each_had_its_own(users: int) -> None:
    """With few users a table of all users and differences is made, with many it is not."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, DIM, generator=generator, dtype=torch.float64)
    thing = torch.randint(0, 40, (200,), generator=generator)
    y = (torch.rand(200, generator=generator) < torch.sigmoid(2.0 * x[thing, 0])).double()
    y[::5] = 0.3  # a soft label
    user = torch.randint(0, users, (200,), generator=generator)
    few, each = Rows(x, y, user, thing), Rows(x[thing], y, user)
    assert (40 * users <= DIM // 2 * 200) == (users == 2)
    torch.testing.assert_close(best_ridge(few, few, None), best_ridge(each, each, None))
    theta = torch.randn(DIM, generator=generator)
    shrunk = [fit_shrunk_users(theta, rows, rows, users) for rows in (few, each)]
    torch.testing.assert_close(*shrunk, atol=1e-3, rtol=1e-3)
    start = 0.1 * torch.randn(DIM, 2, generator=generator), torch.zeros(users, 2)
    low_rank = [fit_low_rank(*start, rows, 0.05) for rows in (few, each)]
    low_rank_of_each = [low_rank_margins(*found, each.float()) for found in low_rank]
    torch.testing.assert_close(*low_rank_of_each, atol=1e-2, rtol=1e-2)
    basis, chosen = torch.randn(DIM, 3, dtype=torch.float64), torch.arange(0, 200, 9)
    for rows, others in ((few, each), (few.some(chosen), each.some(chosen))):
        torch.testing.assert_close(rows.times(basis), others.times(basis))
        assert float(rows.count.sum()) == len(rows.y)


@pytest.mark.parametrize("pairs", [30, 300])
def test_rows_are_the_differences_of_their_pairs(pairs: int) -> None:
    """Of 36 items' 1,296 pairs 30 are nearly all distinct; 300 are drawn from 20."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(36, DIM, generator=generator)
    first, second = torch.randint(0, 36, (2, 30 if pairs == 30 else 20), generator=generator)
    drawn = torch.arange(30) if pairs == 30 else torch.randint(0, 20, (300,), generator=generator)
    label, user = torch.rand(pairs, generator=generator), torch.zeros(pairs, dtype=torch.long)
    made = Pairs(None, first[drawn], second[drawn], user, label)
    scale = Standardiser(DIM)
    scale.fit(features, torch.arange(36))
    rows = Rows.of(scale, features, made)
    assert (rows.thing is not None) == (pairs == 300)
    one = torch.eye(DIM, dtype=torch.float64)
    wanted = scale(features[made.first]) - scale(features[made.second])
    torch.testing.assert_close(rows.times(one), wanted.double())
    torch.testing.assert_close(rows.y, label.double())
    torch.testing.assert_close(float(rows.liked.sum()), float(label.sum()), rtol=1e-5, atol=0.0)


def test_lore_with_one_direction_is_bradley_terry() -> None:
    rows = random_rows()
    theta = best_ridge(rows, rows, 0.05)
    basis, _ = fit_low_rank(torch.zeros(DIM, 1), torch.zeros(USERS, 1), rows, 0.05)
    torch.testing.assert_close(basis[:, 0], theta, rtol=1e-3, atol=1e-4)


def test_a_path_of_ridges_goes_past_a_plateau_and_ends_where_it_clearly_gets_worse() -> None:
    losses = {4.0: 0.6931, 3.0: 0.6932, 2.0: 0.6936, 1.0: 0.3, 0.5: 0.32, 0.4: 0.35, 0.1: 0.1}
    asked: list[float] = []

    def fit(strength: float) -> tuple[float, float]:
        asked.append(strength)
        return losses[strength], strength

    assert best_of_path(list(losses), fit) == 1.0
    assert asked == list(losses)[:6], "two in a row were clearly worse than the best"


def test_a_path_without_a_finite_loss_is_one_sentence() -> None:
    with pytest.raises(TrainError, match="never finite; look for NaN among the features"):
        best_of_path((1.0, 0.1, 0.01), lambda strength: (math.nan, strength))


def opposed_users(noise: float = 0.5) -> tuple[Problem, Problem]:
    """Half of the users have a taste theta and half have -theta; the second problem has other pairs
    of theirs."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(200, DIM, generator=generator)
    taste = torch.randn(DIM, generator=generator)

    def pairs() -> Pairs:
        first, second = torch.randint(0, 200, (2, 60 * USERS), generator=generator)
        user = torch.arange(60 * USERS) % USERS
        sign = torch.where(user % 2 == 0, 1.0, -1.0)
        drawn = noise * torch.randn(60 * USERS, generator=generator)
        label = (sign * ((features[first] - features[second]) @ taste) + drawn > 0).float()
        return Pairs(None, first, second, user, label)

    parts = [pairs() for _ in range(3)]
    return Problem(features, parts[0], parts[1], USERS), Problem(
        features, parts[2], parts[2], USERS
    )


def solved_accuracy(name: str, **settings: Any) -> float:
    known, new = opposed_users()
    torch.manual_seed(0)
    train = TrainConfig(head=name, **settings)
    head = build_head(train, DIM, USERS)
    solve(head, known, train)
    batch = new.train.batch(new.features, slice(None))
    margin = head.eval()(None, batch.first, batch.second, batch.user)
    return float(((margin > 0) == (batch.label > 0.5)).float().mean())


@pytest.mark.parametrize("name", ["lore", "per-user", "mrm"])
def test_users_who_oppose_each_other_are_found_though_their_common_taste_is_none(
    name: str,
) -> None:
    """One taste for all is best at the strongest ridge, under which no direction is learned."""
    assert solved_accuracy("bt-linear") < 0.6
    assert solved_accuracy(name) > 0.9


@pytest.mark.parametrize("name", ["lore", "bt-linear"])
def test_a_ridge_that_is_given_is_taken_as_it_is(name: str) -> None:
    known, _ = opposed_users()
    norms = []
    for ridge in (1e-1, 1e-3):
        torch.manual_seed(0)
        head = build_head(TrainConfig(head=name), DIM, USERS)
        solve(head, known, TrainConfig(head=name, ridge=ridge))
        assert isinstance(head, LinearHead)
        direction = head.theta(head.users(torch.arange(USERS)))
        norms.append(float(direction.detach().norm()))
    assert norms[1] > norms[0]


def consensus_pairs() -> tuple[torch.Tensor, Pairs]:
    """User 0 always answers by the common taste, 1 mostly, 2 at random, 3 by the opposite."""
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(100, DIM, generator=generator)
    first, second = torch.randint(0, 100, (2, 100 * USERS), generator=generator)
    user = torch.arange(100 * USERS) % USERS
    agrees = torch.rand(len(user), generator=generator) < torch.tensor([1.0, 0.8, 0.5, 0.0])[user]
    label = ((features[first, 0] > features[second, 0]) == agrees).float()
    return features, Pairs(None, first, second, user, label)


def test_consensus_learns_who_is_reliable_and_lets_nobody_prefer_the_opposite() -> None:
    features, pairs = consensus_pairs()
    torch.manual_seed(0)
    module = HeadTraining(build_head(TrainConfig(head="consensus"), DIM, USERS), TrainConfig())
    first = module.head.users.logits.detach().clone()
    torch.testing.assert_close(softplus(first), torch.ones(USERS, 1))
    optimiser = module.configure_optimizers()
    for number in range(150):
        optimiser.zero_grad()
        module.training_step(pairs.step(features, slice(None)), number).backward()
        module.optimizer_step(0, number, optimiser)
    reliability = softplus(module.head.users.logits.detach())[:, 0]
    assert bool((reliability >= 0).all())
    assert reliability.tolist() == sorted(reliability.tolist(), reverse=True)
    assert float(reliability[2:].max()) < 0.5 * float(reliability[0])
    batch = pairs.batch(features, slice(None))
    margins = [
        module.head(None, batch.first, batch.second, torch.full_like(batch.user, user)) >= 0
        for user in range(USERS)
    ]
    assert all(torch.equal(margins[0], other) for other in margins)


@pytest.mark.parametrize("user", [0, 2])
def test_a_new_user_of_consensus_gets_a_reliability_from_a_few_answers(user: int) -> None:
    head = make("consensus").float()
    _, first, second, _ = batch()
    prepared = head.prepare(None, first.float(), second.float())
    margin = head.prepared_margin(prepared, torch.zeros(1, 1), torch.zeros(ROWS).long())
    label = (margin.detach() > 0).float()
    if user == 2:
        label[::2] = 1.0 - label[::2]
    answers = Answers(prepared, label, torch.zeros(ROWS).long(), 1)
    prior = make_prior(head, 0.3)
    adapted = adapt_map(head, answers, prior)
    assert (float(adapted.vectors) > float(prior.mean)) == (user == 0)


def test_the_steps_of_mrm_are_differentiated_through() -> None:
    """Autograd through hand-written gradients; the steps are those of the user's mean loss."""
    head = make("mrm")
    assert isinstance(head, MetaLearned)
    _, first, second, user = batch()
    x, label = first - second, torch.ones(ROWS, dtype=torch.float64)
    known, judged = Rows(x[:8], label[:8], user[:8]), Rows(x[8:], label[8:], user[8:])

    def loss(basis: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        head.basis_DK.data, head.start_K.data = basis, start
        return torch.func.functional_call(
            Episode(head), {"head.basis_DK": basis, "head.start_K": start}, (known, judged)
        )

    values = [p.detach().clone().requires_grad_() for p in (head.basis_DK, head.start_K)]
    assert gradcheck(loss, values, eps=1e-6, atol=1e-5)
    here = head.start_K.detach().expand(1, -1).clone().requires_grad_()
    projected = (x @ head.basis()).detach()
    one = torch.zeros(ROWS, dtype=torch.long)
    mean = logistic((projected * here.softmax(dim=1)).sum(dim=1), label).mean()
    (slope,) = torch.autograd.grad(mean, here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pal.train.heads.meta, "STEPS", 1)
        stepped = head.adapt(projected, label, one, 1)
    torch.testing.assert_close(stepped, here - pal.train.heads.meta.RATE * slope)


class Episode(torch.nn.Module):
    def __init__(self, head: MetaLearned) -> None:
        super().__init__()
        self.head = head

    def forward(self, known: Rows, judged: Rows) -> torch.Tensor:
        return of_worst_users(episode_losses(self.head, known, judged))


def test_an_episode_of_mrm_costs_its_own_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many others change nothing but memory and time."""
    head = make("mrm")
    assert isinstance(head, MetaLearned)
    _, first, second, _ = batch()
    x, label = first - second, (torch.arange(ROWS) % 2).double()
    user = torch.tensor([2, 900, 900_000]).repeat(ROWS)[:ROWS]
    known, judged = Rows(x[:8], label[:8], user[:8]), Rows(x[8:], label[8:], user[8:])
    stepped: list[int] = []
    adapt = head.adapt

    def watched(*given: Any) -> torch.Tensor:
        stepped.append(given[-1])
        return adapt(*given)

    monkeypatch.setattr(head, "adapt", watched)
    losses = episode_losses(head, known, judged)
    assert stepped == [3]
    basis = head.basis()
    for place, name in enumerate((2, 900, 900_000)):
        own = known.user == name
        logits = adapt(known.times(basis)[own], known.y[own], torch.zeros(int(own.sum())).long(), 1)
        margin = judged.times(basis)[judged.user == name] @ logits[0].softmax(dim=0)
        torch.testing.assert_close(
            losses[place], logistic(margin, judged.y[judged.user == name]).mean()
        )


def test_mrm_leaves_users_without_answers_at_its_start() -> None:
    head = make("mrm")
    assert isinstance(head, MetaLearned)
    _, first, second, _ = batch()
    prepared = head.prepare(None, first, second)
    owner = torch.zeros(ROWS, dtype=torch.long)
    found = head.infer(prepared, torch.ones(ROWS).double(), owner, 2)
    torch.testing.assert_close(found[1], head.start_K.detach().softmax(dim=0))
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", ["vpl", "mrm"])
def test_people_without_any_answer_are_inferred_too(name: str) -> None:
    head = make(name)
    _, first, second, _ = batch()
    none = torch.zeros(0, dtype=torch.long)
    found = head.infer(head.prepare(None, first[:0], second[:0]), none.double(), none, 3)
    assert found.shape[0] == 3
    assert torch.equal(found[0], found[2])


def test_the_worst_users_weigh_more_than_the_others() -> None:
    losses = torch.tensor([0.1, 0.2, 0.9, 1.5], requires_grad=True)
    of_worst_users(losses).backward()
    assert losses.grad is not None
    assert float(losses.grad[-1]) > 2.0 * float(losses.grad[0])


def test_per_user_shrinkage_is_bounded_by_the_population_and_the_own_fit() -> None:
    rows = random_rows()
    theta = best_ridge(rows, rows, 0.05)
    offsets = fit_shrunk_users(theta, rows, rows, USERS)
    own = (rows.x * (theta + offsets.to(rows.x)[rows.user])).sum(dim=1)
    assert float(logistic(own, rows.y).mean()) < float(
        logistic(rows.x @ theta.double(), rows.y).mean()
    )


def test_inference_of_vpl_ignores_the_order_of_answers() -> None:
    head = make("vpl", latent_dim=5)
    assert isinstance(head, Variational)
    _, first, second, user = batch()
    label = (torch.arange(ROWS) % 2).double()
    shuffle = torch.randperm(ROWS)
    one = head.infer(head.prepare(None, first, second), label, user, USERS)
    again = head.prepare(None, first[shuffle], second[shuffle])
    two = head.infer(again, label[shuffle], user[shuffle], USERS)
    torch.testing.assert_close(one, two)
    swapped = head.infer(head.prepare(None, second, first), 1.0 - label, user, USERS)
    torch.testing.assert_close(one, swapped)


def vpl_of_scaled_features() -> tuple[Variational, Problem]:
    """With each answer twice, half of them the other way round, and some undecided."""
    problem = problem_of()
    pairs, features = problem.train, 3.0 * problem.features + 1.0
    pairs.label[::7] = 0.5
    is_turned = (torch.arange(len(pairs)) % 2 == 1) & (pairs.label != 0.5)
    again = Pairs(
        None,
        torch.cat([pairs.first, torch.where(is_turned, pairs.second, pairs.first)]),
        torch.cat([pairs.second, torch.where(is_turned, pairs.first, pairs.second)]),
        torch.cat([pairs.user, pairs.user]),
        torch.cat([pairs.label, torch.where(is_turned, 1.0 - pairs.label, pairs.label)]),
    )
    torch.manual_seed(0)
    head = build_head(TrainConfig(head="vpl", latent_dim=5), DIM, USERS)
    assert isinstance(head, Variational)
    head.item_scale.fit(features, again.item_rows())
    for layer in (*head.read_answer, head.query, head.key):
        for weight in layer.parameters():  # so that users differ
            weight.data *= 3.0
    return head, Problem(features, again, problem.val, USERS)


def test_vpl_reads_each_distinct_answer_once() -> None:
    """Users are inferred in training as from all their rows, one by one."""
    head, problem = vpl_of_scaled_features()
    counts: list[int] = []
    head.read_answer.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    pairs, rows = problem.train, torch.arange(len(problem.train))
    mean, _ = _posterior(head, problem, rows, pairs.user, USERS)
    batch = pairs.batch(problem.features, rows)
    prepared = head.prepare(None, batch.first, batch.second)
    torch.testing.assert_close(mean, head.infer(prepared, batch.label, pairs.user, USERS))
    is_decided = pairs.label != 0.5
    is_first = (pairs.label > 0.5).unsqueeze(1)
    both = torch.stack([pairs.first, pairs.second], dim=1)
    distinct = torch.where(is_first, both, both.flip(1))[is_decided].unique(dim=0)
    assert len(distinct) < len(pairs) / 2 + 1
    assert counts == [len(distinct), int(is_decided.sum())]


@pytest.mark.parametrize("only_ties", [False, True])
def test_the_sides_of_ties_say_nothing_to_vpl(only_ties: bool) -> None:
    """Neither in training nor of new users, some or all of whose answers are ties."""
    head, problem = vpl_of_scaled_features()
    pairs, found = problem.train, []
    is_tie = pairs.label == 0.5
    is_tie |= pairs.user == 1 if only_ties else (torch.arange(len(pairs)) % 3 == 0)
    pairs.label[is_tie] = 0.5
    start = {name: value.clone() for name, value in head.state_dict().items()}
    for turned in (torch.zeros_like(is_tie), is_tie):
        first = torch.where(turned, pairs.second, pairs.first)
        second = torch.where(turned, pairs.first, pairs.second)
        answers = Pairs(None, first, second, pairs.user, pairs.label)
        head.load_state_dict(start)
        batch = answers.batch(problem.features, slice(None))
        prepared = head.prepare(None, batch.first, batch.second)
        inferred = head.infer(prepared, batch.label, batch.user, USERS)
        torch.manual_seed(0)
        train = TrainConfig(head="vpl", epochs=2)
        solve(head, Problem(problem.features, answers, problem.val, USERS), train)
        judged = problem.val.batch(problem.features, slice(None))
        found.append((inferred, head(None, judged.first, judged.second, judged.user).detach()))
        again = head.infer(prepared, batch.label, batch.user, USERS)
        torch.testing.assert_close(again, head.users.logits.detach(), rtol=1e-4, atol=1e-5)
    if only_ties:
        torch.testing.assert_close(found[0][0][1], start["users.logits"].mean(dim=0))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_of_vpl_is_that_of_its_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    head, problem = vpl_of_scaled_features()
    monkeypatch.setattr(head, "draw", lambda mean, log_variance: mean + log_variance)
    pairs, features = problem.train, problem.features
    context, target = torch.arange(0, 60), torch.arange(60, len(pairs))
    context = context[pairs.user[context] != 1]
    target = target[pairs.user[target] != 1]
    beta = 0.3
    found = _episode_loss(head, problem, context, target, beta, "logistic")
    mean, log_variance = _posterior(head, problem, context, pairs.user[context], USERS)
    asked, user = pairs.batch(features, target), pairs.user[target]
    z = mean + log_variance
    margin = head.margin(None, asked.first, asked.second, z[user])
    divergence = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
    wanted = logistic(margin, asked.label).mean() + beta * divergence[user].mean()
    torch.testing.assert_close(found, wanted)


def test_vpl_lays_out_some_users_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many answers among many of few: all beside one another would be 1.2e9 numbers."""
    count = torch.tensor([2] * 299 + [2000])
    blocks = list(blocks_of_answers(count, 16))
    assert torch.cat(blocks).sort().values.tolist() == list(range(300))
    assert [len(block) for block in blocks] == [299, 1]
    head = make("vpl", latent_dim=5)
    assert isinstance(head, Variational)
    _, first, second, _ = batch()
    user = torch.tensor([0, 1, 1, 3, 3, 3, 3, 3]).repeat(ROWS)[:ROWS]
    label = (torch.arange(ROWS) % 2).double()
    prepared = head.prepare(None, first, second)
    whole = head.infer(prepared, label, user, USERS)
    monkeypatch.setattr(variational, "NUMBERS_AT_ONCE", 40)
    assert len(list(blocks_of_answers(torch.bincount(user), 5))) > 1
    torch.testing.assert_close(head.infer(prepared, label, user, USERS), whole)


def test_vpl_never_reads_a_target_as_context() -> None:
    user = torch.arange(40) % USERS
    for context, target in itertools.islice(episodes(user, USERS, 512), 20):
        assert not set(context.tolist()) & set(target.tolist())
        assert set(user[target].tolist()) <= set(user[context].tolist())


@pytest.mark.parametrize("name", sorted(heads()))
def test_every_head_trains_saves_loads_and_is_evaluated(name: str, configure: Configure) -> None:
    options = {
        "dataset": "simulated",
        "encoder": "identity",
        "train.head": name,
        "train.latent_dim": None,
    }
    if name == "pal-b":
        options |= {"dataset": "demo", "encoder": "tiny-text"}
    config = configure(options)
    pipeline.embed(config)
    metrics = pipeline.train(config, "one")
    again = pipeline.evaluate(config, ["one"]).runs[0]
    assert_same(again.test_seen, metrics.test_seen)


@pytest.mark.parametrize("preset", ["pal-b-t2i", "pal-b-text", "pal-a-text"])
def test_presets_are_named_heads_whose_settings_can_still_be_overridden(preset: str) -> None:
    settings = load(None, ["train.epochs=3"], {"train.head": preset})
    train = settings.config.train
    assert train.head == preset[:5]
    assert train.lr == pytest.approx(1e-4)
    assert train.epochs == 3
    assert settings.origins["train.lr"] == f"preset {preset}"
    resolve(train)
