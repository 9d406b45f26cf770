"""Heads against the equations: an implementation of method.md in NumPy that shares no line with the
package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.autograd import gradcheck

from pal import pipeline
from pal.config import Config, TrainConfig, load
from pal.errors import ConfigError
from pal.train.heads.head import Head, build_head, heads, resolve
from pal.train.heads.variational import Variational, _episodes
from pal.train.loss import hinge, logistic
from pal.train.module import HeadTraining, optimiser_groups
from pal.train.solve.convex import Rows, best_ridge, cross_entropy, fit_low_rank, newton

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
    code = head.users(user)
    difference = head.reward(prompt, first, code) - head.reward(prompt, second, code)
    torch.testing.assert_close(head.margin(prompt, first, second, code), difference)
    torch.testing.assert_close(head.margin(prompt, second, first, code), -difference)


@pytest.mark.parametrize("name", ["pal-a", "pal-b", "lore"])
def test_with_one_prototype_users_do_not_matter(name: str) -> None:
    head = make(name, k=1)
    prompt, first, second, user = batch()
    torch.testing.assert_close(
        head(prompt, first, second, user), head(prompt, first, second, (user + 1) % USERS)
    )


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
    from pal.train.pairs import Batch

    norm = torch.linalg.vector_norm(head.ideal(prompt, head.users(user)), dim=1)  # type: ignore[operator]
    expected = (norm - 0.5).clamp(min=0).sum()
    torch.testing.assert_close(
        module.bound_penalty(Batch(prompt, first, second, user, user), 0.5), expected
    )
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


def test_lore_with_one_direction_is_bradley_terry() -> None:
    rows = random_rows()
    theta, _ = best_ridge(rows, rows, 0.05)
    basis, logits = torch.zeros(DIM, 1), torch.zeros(USERS, 1)
    fit_low_rank(basis, logits, rows, 0.05)
    torch.testing.assert_close(basis[:, 0], theta, rtol=1e-3, atol=1e-4)


def test_per_user_shrinkage_is_bounded_by_the_population_and_the_own_fit() -> None:
    from pal.train.solve.convex import fit_shrunk_users

    rows = random_rows()
    theta, _ = best_ridge(rows, rows, 0.05)
    offsets = fit_shrunk_users(theta, rows, rows, USERS)
    own = (rows.x * (theta + offsets.to(rows.x)[rows.user])).sum(dim=1)
    assert float(cross_entropy(own, rows.y).mean()) < float(
        cross_entropy(rows.x @ theta.double(), rows.y).mean()
    )


def test_inference_of_vpl_ignores_the_order_of_answers() -> None:
    head = make("vpl", latent_dim=5)
    assert isinstance(head, Variational)
    _, first, second, user = batch()
    label = (torch.arange(ROWS) % 2).double()
    shuffle = torch.randperm(ROWS)
    one = head.infer((None, first, second), label, user, USERS)
    two = head.infer((None, first[shuffle], second[shuffle]), label[shuffle], user[shuffle], USERS)
    torch.testing.assert_close(one, two)
    swapped = head.infer((None, second, first), 1.0 - label, user, USERS)
    torch.testing.assert_close(one, swapped)


def test_vpl_never_reads_a_target_as_context() -> None:
    user = torch.arange(40) % USERS
    for context, target in itertools.islice(_episodes(user, USERS, 512), 20):
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
    again = pipeline.evaluate(config, ["one"])["runs"][0]
    assert again["test_seen"] == metrics["test_seen"]


@pytest.mark.parametrize("preset", ["pal-b-t2i", "pal-b-text", "pal-a-text"])
def test_presets_are_named_heads_whose_settings_can_still_be_overridden(preset: str) -> None:
    settings = load(None, ["train.epochs=3"], {"train.head": preset})
    train = settings.config.train
    assert train.head == preset[:5]
    assert train.lr == pytest.approx(1e-4)
    assert train.epochs == 3
    assert settings.origins["train.lr"] == f"preset {preset}"
    resolve(train)
