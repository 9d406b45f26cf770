"""A GPU gives what the CPU gives: features, heads, adapted users, rewards.

Every test runs on the CPU twice too, which shows that the test itself works.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from pal.config import EncoderConfig, TrainConfig
from pal.embed.encoder import load, locate
from pal.errors import PalWarning
from pal.items import Image, Item, Text, Turn
from pal.reward import Answer, RewardModel
from pal.reward.export import Choice, export
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import make_prior
from pal.train.build import build_head, defaults_of, heads
from pal.train.data import TrainingData
from pal.train.fit import fit_head
from pal.train.lanes import Lane, Lanes
from pal.train.pairs import Pairs
from pal.train.probe import choose_device
from pal.train.stack_training import StackTraining

DIM, USERS = 8, 5
DRAWS_ITSELF = {"vpl"}
"""heads whose training draws numbers on the device, so that none are those of the CPU"""
LOOSE = {"lore"}
"""heads that take so weak a ridge here that rounding decides what few answers leave open"""
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return choose_device(request.param)


def picture(number: int) -> Image:
    noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    out = io.BytesIO()
    Pil.fromarray(noise).save(out, "PNG")
    return Image.of_bytes(out.getvalue())


TEXTS: list[Item] = [
    Text("a"), Text("some words"), Text("ab" * 200), Text("an answer", (Turn("user", "why?"),)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("hf-text", "random:bert"),
        ("hf-text", "random:llama"),
        ("hf-text", "random:gemma2"),
        ("hf-clip", "random:clip"),
        ("hf-clip", "random:siglip"),
        ("open-clip", "random:open-clip"),
    ],
)
def test_features_are_those_of_the_cpu(kind: Any, model: str, device: str) -> None:
    source = locate("tiny", EncoderConfig(kind=kind, model=model, max_length=64), None)
    items = TEXTS if kind == "hf-text" else [*TEXTS, *(picture(number) for number in range(5))]

    def features(on: str) -> torch.Tensor:
        made, found = load(source, on, 300, [-1], False), {}
        inputs = made.prepare(items)
        for rows in made.batches(inputs):
            batch, failures = made.load_batch(inputs, rows), {}
            for done, taps in made.encode_each(inputs, batch, failures):
                found.update(zip(done.tolist(), taps[0].cpu(), strict=True))
            assert failures == {}
        return torch.stack([found[row] for row in range(len(items))])

    torch.testing.assert_close(features(device), features("cpu"), atol=1e-4, rtol=1e-3)


def made_data(device: str) -> TrainingData:
    """Return answers of users who follow a plane of their own, with prompts, on a device."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, DIM, generator=generator)
    user = torch.arange(80) % USERS
    prompt, first, second = torch.randint(0, 60, (3, 80), generator=generator)
    planes = torch.randn(USERS, DIM, generator=generator)
    label = ((features[first] - features[second]) * planes[user]).sum(dim=1).sigmoid().round()
    pairs = Pairs(*(part.to(device) for part in (prompt, first, second, user, label)))
    names = [f"u{number}" for number in range(USERS)]
    store = cast(Any, SimpleNamespace(dim=DIM))
    return TrainingData(cast(Any, None), store, names, features.to(device), pairs, pairs)


def margins(head: Any) -> torch.Tensor:
    """Return a head's margins on the CPU: what it says, whatever its parameters are."""
    data, head = made_data("cpu"), head.cpu().eval()
    sides = [
        data.features[rows] for rows in (data.train.prompt, data.train.first, data.train.second)
    ]
    prompt = sides[0] if head.uses_prompt else None
    found: torch.Tensor = head.margin(prompt, *sides[1:], head.users(data.train.user)).detach()
    return found


@pytest.mark.parametrize("name", sorted(heads()))
def test_a_head_that_is_trained_or_solved_alone_is_that_of_the_cpu(name: str, device: str) -> None:
    options: dict[str, Any] = {"head": name, "k": 2, "epochs": 3, "batch_size": 32}
    if "mlp" in defaults_of(heads()[name]):
        options["mlp"] = "mlp1-gelu-dropout0"  # what is dropped, each device draws itself
    if "reads" in defaults_of(heads()[name]):
        options["reads"] = "items"  # there is no dataset that decides
    if name in LOOSE:
        options["ridge"] = 0.01
    settings = TrainConfig(**options)
    here, there = (margins(fit_head(made_data(on), settings, 0).head) for on in (device, "cpu"))
    if name in DRAWS_ITSELF:
        assert bool(torch.isfinite(here).all())
    else:
        torch.testing.assert_close(here, there, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_a_stack_of_heads_is_that_of_the_cpu(name: str, device: str) -> None:
    trains = [
        TrainConfig(head=name, k=2, epochs=3, lr=lr, bound=0.5, mlp="mlp1-gelu-dropout0")
        for lr in (1e-3, 1e-2)
    ]

    def losses(on: str) -> list[float]:
        data = made_data(on)
        lanes = Lanes(data.features, [Lane(data.train, data.val, 0)], 32)
        training = StackTraining([data.new_head(train, 0) for train in trains], trains, lanes)
        training.fit()
        return [float(loss) for loss in training.best_loss]

    assert losses(device) == pytest.approx(losses("cpu"), rel=1e-3)


@pytest.mark.parametrize("name", ["pal-a", "pal-b", "lore", "per-user"])
def test_adapted_users_are_those_of_the_cpu(name: str, device: str) -> None:
    torch.manual_seed(0)
    head = build_head(TrainConfig(head=name, k=3), DIM, USERS).eval()
    generator = torch.Generator().manual_seed(3)
    prompt, first, second = torch.randn(3, 60, DIM, generator=generator)
    label = (torch.rand(60, generator=generator) > 0.4).float()

    def vectors(on: str) -> torch.Tensor:
        made = head.to(on)
        with torch.no_grad():
            prepared = made.prepare(prompt.to(on), first.to(on), second.to(on))
        answers = Answers(prepared, label.to(on), (torch.arange(60) % USERS).to(on), USERS)
        return adapt_map(made, answers, make_prior(made, 0.5)).vectors.detach().cpu()

    torch.testing.assert_close(vectors(device), vectors("cpu"), atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["pal-a", "pal-b", "lore"])
@pytest.mark.filterwarnings(f"ignore::{PalWarning.__module__}.PalWarning")
def test_rewards_are_those_of_the_cpu(
    name: str, device: str, opened: Callable[..., RewardModel]
) -> None:
    export(opened(["1", "2"], name), Choice(), Path("mine"))
    here, there = (RewardModel.from_pretrained("mine", device=on) for on in (device, "cpu"))
    prompts, responses = ["p", "q", "r"], ["one", "another", "a third one"]
    for users in (None, "1", ["1", "2", "nobody"]):
        wanted = there.score(prompts, responses, users)
        assert here.score(prompts, responses, users) == pytest.approx(wanted, abs=1e-3, rel=1e-3)
    answers = [Answer("p", "one", "another"), Answer("q", "a third one", "one")]
    torch.testing.assert_close(
        here.adapt(answers).cpu(), there.adapt(answers).cpu(), atol=2e-3, rtol=1e-2
    )
