"""Training steps in bfloat16: what is rounded, what never is, and who decides."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pal import pipeline
from pal.config import Config, TrainConfig
from pal.evaluate.predict import load_run
from pal.train import build
from pal.train.build import build_head, heads, resolve
from pal.train.data import TrainingData
from pal.train.fit import fit_head
from pal.train.heads.arithmetic import SMALLEST, matrices
from pal.train.module import HeadTraining
from pal.train.pairs import Pairs
from pal.train.relevant import relevant_settings
from pal.train.together import Together

Configure = Callable[..., Config]
DIM, ITEMS, USERS = SMALLEST, 40, 5
ROUNDED = ["pal-a", "pal-b", "bt-mlp", "consensus", "user-embedding"]


def data_of(pairs: int = 120) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ITEMS, DIM, generator=generator)
    planes = torch.randn(USERS, DIM, generator=generator)

    def answers(count: int) -> Pairs:
        prompt, first, second = torch.randint(0, ITEMS, (3, count), generator=generator)
        user = torch.arange(count) % USERS
        away = features[first] - features[second]
        return Pairs(prompt, first, second, user, ((away * planes[user]).sum(dim=1) > 0).float())

    names = [f"u{number}" for number in range(USERS)]
    store = cast(Any, SimpleNamespace(dim=DIM))
    return TrainingData(cast(Any, None), store, names, features, answers(pairs), answers(40))


DATA = data_of()


def settings_of(head: str, precision: str, **more: Any) -> TrainConfig:
    return resolve(
        TrainConfig(head=head, precision=precision, epochs=2, batch_size=32, **more)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("head", ROUNDED)
def test_only_matrices_are_rounded_and_only_in_training_steps(head: str) -> None:
    own = settings_of(head, "bfloat16")
    module = HeadTraining(DATA.new_head(own, 0), own)
    step = DATA.train.step(DATA.features, slice(0, 32))
    seen: set[torch.dtype] = set()
    layers = [m for m in module.head.modules() if hasattr(m, "weights") or hasattr(m, "weight")]
    assert module.rounded
    assert all(".weight" in name for name in module.rounded)
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda layer, _: seen.update(p.dtype for p in layer.parameters())
        )
    loss = module.training_step(step, 0)
    assert seen == {torch.bfloat16, torch.float32}
    loss.backward()
    for parameter in module.head.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    assert loss.dtype == torch.float32
    seen.clear()
    module.eval()
    losses, _ = module.judge(step)
    assert losses.dtype == torch.float32
    assert seen == {torch.float32}


@pytest.mark.parametrize("head", ROUNDED)
def test_rounded_derivatives_are_near_those_of_float32(head: str) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        own = settings_of(head, precision)
        module = HeadTraining(DATA.new_head(own, 0), own)
        module.training_step(DATA.train.step(DATA.features, slice(None)), 0).backward()
        found.append(torch.cat([p.grad.flatten() for p in module.head.parameters() if p.numel()]))  # type: ignore[union-attr]
    exact, rounded = found
    assert not torch.equal(exact, rounded)
    assert torch.linalg.vector_norm(exact - rounded) < 0.02 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_a_stack_rounds_as_each_head_alone_does(head: str) -> None:
    own = settings_of(head, "bfloat16")
    for seed, found in zip((0, 1), Together([DATA], [0, 1], [own, own]).fit(), strict=True):
        alone, exact = (
            fit_head(DATA, one, seed).log for one in (own, settings_of(head, "float32"))
        )
        assert found is not None
        mine = found.log[0]["val/loss"]
        of_alone, of_exact = (min(row["val/loss"] for row in log) for log in (alone, exact))
        # sums are in another order, which may move a number to the next of 8 bits
        assert mine == pytest.approx(of_alone, rel=2e-3)
        assert of_alone != of_exact


def test_small_matrices_and_double_precision_are_left_as_they_are() -> None:
    small = build_head(TrainConfig(head="pal-b"), SMALLEST - 1, USERS)
    assert matrices(small) == []
    own = settings_of("pal-b", "bfloat16")
    losses = []
    for precision in ("float32", "bfloat16"):
        one = own.model_copy(update={"precision": precision})
        module = HeadTraining(DATA.new_head(one, 0).double(), one)
        losses.append(module.training_step(DATA.train.step(DATA.features, slice(None)), 0))
    assert torch.equal(*losses)


@pytest.mark.parametrize("head", ROUNDED)
@pytest.mark.parametrize(("dim", "latent"), [(8, SMALLEST), (SMALLEST, 8)])
def test_layers_of_one_network_may_differ(head: str, dim: int, latent: int) -> None:
    """Where the features are few and the latent dimensions many, or the other way round."""
    mlp = None if head in ("bt-mlp", "consensus", "user-embedding") else "mlp1-gelu-dropout0"
    own = settings_of(head, "bfloat16", latent_dim=latent, mlp=mlp)
    module = HeadTraining(build_head(own, dim, USERS), own)
    step = DATA.train.step(DATA.features[:, :dim], slice(None))
    module.training_step(step, 0).backward()
    mixed = latent == SMALLEST and head not in ("bt-mlp", "consensus")
    assert bool(module.rounded) == mixed
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())


def test_auto_asks_the_machine_once_and_the_run_says_what_it_took(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(build, "quickest", lambda device: asked.append(device) or "bfloat16")
    config = configure(
        {
            "dataset": "simulated",
            "encoder": "identity",
            "train.head": "pal-a",
            "train.precision": "auto",
        }
    )
    pipeline.embed(config)
    pipeline.train(config, "one")
    assert load_run(config.paths.runs, "one").metadata.train.precision == "bfloat16"
    assert set(asked) == {config.train.device}


def test_heads_that_know_no_other_arithmetic_are_float32() -> None:
    for name, kind in heads().items():
        settings = settings_of(name, "bfloat16")
        assert (settings.precision == "bfloat16") == kind.can_be_rounded
        assert ("precision" in relevant_settings(settings)) == kind.can_be_rounded
    assert {name for name, kind in heads().items() if kind.can_be_rounded} == set(ROUNDED)
    under_priors = TrainConfig(head="pal-b", precision="bfloat16", priors="auto")
    assert resolve(under_priors).precision == "float32"
