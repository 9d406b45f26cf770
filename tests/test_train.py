"""Heads: the mathematics, the optimiser, and training that can be repeated."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pal import pipeline
from pal.config import Config, TrainConfig
from pal.dataset import PreparedDataset
from pal.errors import CacheError, ConfigError, EvaluationError, PalError, TrainError
from pal.evaluate.inputs import open_inputs
from pal.train.build import build_head, defaults_of, heads, resolve
from pal.train.by_lightning import fit
from pal.train.data import TrainingData
from pal.train.datamodules import PairsDataModule
from pal.train.fit import fit_head
from pal.train.heads.ideal_point import LARGEST_SCALE, IdealPointHead
from pal.train.heads.mlp import Architecture, MLPs
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import UserWeights
from pal.train.lanes import Lane, Lanes
from pal.train.loss import hinge, logistic
from pal.train.module import HeadTraining
from pal.train.pairs import Pairs
from pal.train.relevant import relevant_names
from pal.train.row_adam import RowAdam
from pal.train.run_record import RunRecord, TrainedHead
from pal.train.stack import widen
from pal.train.stack_training import StackTraining
from pal.train.steps import optimiser_groups
from pal.train.together import Together

Configure = Callable[..., Config]
DIM, USERS, ROWS = 8, 5, 40
HEADS = [
    ("pal-a", "squared"),
    ("pal-a", "distance"),
    ("pal-a", "angle"),
    ("pal-b", "squared"),
    ("pal-b", "angle"),
]
every_head = pytest.mark.parametrize(("name", "score"), HEADS)


def make(name: str, score: str, k: int = 3, **settings: Any) -> IdealPointHead:
    torch.manual_seed(0)
    head = build_head(TrainConfig(head=name, score=score, k=k, **settings), DIM, USERS)
    return head.double().eval()


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return prompts, first and second items, and user numbers."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, ROWS, DIM, generator=generator, dtype=torch.float64)
    return (
        features[0],
        features[1],
        features[2],
        torch.randint(0, USERS, (ROWS,), generator=generator),
    )


def margins(head: IdealPointHead, swap: bool = False) -> torch.Tensor:
    prompt, first, second, user = batch()
    if swap:
        first, second = second, first
    return head.margin(prompt, first, second, head.users(user))


@every_head
def test_margin_is_the_difference_of_rewards(name: str, score: str) -> None:
    head, (prompt, first, second, user) = make(name, score), batch()
    w = head.users(user)
    torch.testing.assert_close(
        margins(head), head.reward(prompt, first, w) - head.reward(prompt, second, w)
    )


@every_head
def test_swapping_the_items_negates_the_margin(name: str, score: str) -> None:
    head = make(name, score)
    torch.testing.assert_close(margins(head, swap=True), -margins(head))


@every_head
def test_one_prototype_ignores_the_user(name: str, score: str) -> None:
    head, (prompt, first, _, user) = make(name, score, k=1), batch()
    rewards = [
        head.reward(prompt, first, head.users((user + shift) % USERS)) for shift in range(USERS)
    ]
    for other in rewards[1:]:
        assert torch.equal(rewards[0], other)
    rewards[0].sum().backward()
    assert head.users.logits.grad is not None
    assert not head.users.logits.grad.any()


@every_head
def test_permuting_prototypes_with_their_weights_changes_nothing(name: str, score: str) -> None:
    head = make(name, score)
    before, order = margins(head), torch.tensor([2, 0, 1])
    with torch.no_grad():
        head.users.logits.copy_(head.users.logits[:, order])
        if name == "pal-a":
            head.prototypes_KD.copy_(head.prototypes_KD[order])  # type: ignore[operator, index]
        else:
            for parameter in head.g.parameters():  # type: ignore[union-attr]
                parameter.copy_(parameter[order])
    torch.testing.assert_close(margins(head), before)


def reference_mlp(x: torch.Tensor, mlps: MLPs, copy: int) -> torch.Tensor:
    """Apply one copy by hand."""
    out = x
    for layer, (weight, bias) in enumerate(zip(mlps.weights, mlps.biases, strict=True)):
        out = out @ weight[copy].T + bias[copy]
        if layer < len(mlps.weights) - 1:
            out = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[
                mlps.architecture.activation
            ](out)
    return x + out if mlps.architecture.residual else out


@every_head
def test_margins_are_those_of_the_equations(name: str, score: str) -> None:
    """The equations of method.md 1.3 and 1.4, user by user, in float64."""
    head, (prompt, first, second, user) = make(name, score), batch()
    wanted = []
    for row in range(ROWS):
        w = torch.exp(head.users.logits[user[row]])
        w = w / w.sum()
        if name == "pal-a":
            a = reference_mlp(sum(w[k] * head.prototypes_KD[k] for k in range(3)), head.f, 0)  # type: ignore[index, misc]
        else:
            a = sum(w[k] * reference_mlp(prompt[row], head.g, k) for k in range(3))  # type: ignore[arg-type, misc]
        reward = []
        for item in (first[row], second[row]):
            z = reference_mlp(item, head.f, 0)
            if score == "angle":
                reward.append((z @ a) / (z.norm() * a.norm()) / 0.07)
            else:
                reward.append(-((z - a).norm() ** (2 if score == "squared" else 1)))
        wanted.append(reward[0] - reward[1])
    torch.testing.assert_close(margins(head), torch.stack(wanted), rtol=1e-5, atol=1e-9)


@every_head
def test_gradients_are_those_of_finite_differences(name: str, score: str) -> None:
    head, (prompt, first, second, user) = make(name, score, mlp="mlp1-gelu-dropout0"), batch()
    parameters = dict(head.named_parameters())

    def loss(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(parameters, values, strict=True))

        class Wrapped(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = head

            def forward(self) -> torch.Tensor:
                margin = head.margin(prompt[:4], first[:4], second[:4], head.users(user[:4]))
                return logistic(
                    margin, torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
                ).mean()

        return torch.func.functional_call(Wrapped(), {f"head.{n}": v for n, v in state.items()})  # type: ignore[no-any-return]

    inputs = tuple(value.detach().clone().requires_grad_() for value in parameters.values())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True, atol=1e-5)


def test_user_weights_lie_on_the_simplex() -> None:
    for mode in ("mixture", "partition"):
        users = UserWeights(50, 4, mode).eval()
        w = users(torch.arange(50))
        assert (w >= 0).all()
        torch.testing.assert_close(w.sum(dim=1), torch.ones(50))
        torch.testing.assert_close(users.population().sum(), torch.tensor(1.0))
    assert set(w.unique().tolist()) == {0.0, 1.0}  # a partition in evaluation
    assert not set(users.train()(torch.arange(50)).unique().tolist()) <= {
        0.0,
        1.0,
    }  # soft in training


def test_logits_matter_only_up_to_a_constant() -> None:
    users = UserWeights(3, 4)
    torch.testing.assert_close(users.of_logits(users.logits + 7.0), users.of_logits(users.logits))


def test_losses_at_known_margins() -> None:
    margin, label = torch.tensor([0.0, 2.0, -2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.5])
    torch.testing.assert_close(
        logistic(margin, label),
        torch.tensor(
            [
                math.log(2),
                math.log1p(math.exp(-2)),
                math.log1p(math.exp(2)),
                math.log1p(math.exp(0.5)) - 0.25,
            ]
        ),
    )
    torch.testing.assert_close(hinge(margin, label), torch.tensor([1.0, 0.0, 3.0, 1.0]))
    torch.testing.assert_close(hinge(-margin, 1 - label), hinge(margin, label))
    torch.testing.assert_close(logistic(-margin, 1 - label), logistic(margin, label))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mlp2-gelu-dropout0", (2, "gelu", 0.0, False, False, True)),
        ("mlp2-relu-dropout5-residual", (2, "relu", 0.5, True, False, True)),
        ("mlp0-linear-dropout75-nobias", (0, "linear", 0.75, False, False, False)),
        ("mlp1-relu-dropout2-residual-batchnorm", (1, "relu", 0.2, True, True, True)),
        ("mlp1-relu-dropout2-batchnorm-residual", (1, "relu", 0.2, True, True, True)),
    ],
)
def test_architecture_names(name: str, wanted: tuple[object, ...]) -> None:
    made = Architecture.parse(name)
    assert (
        made.hidden_layers,
        made.activation,
        made.dropout,
        made.residual,
        made.batchnorm,
        made.bias,
    ) == wanted
    assert MLPs(2, DIM, DIM, made)(torch.randn(7, DIM)).shape == (2, 7, DIM)


def test_parameter_count_is_that_of_the_method() -> None:
    for dim, count in ((512, 787_968), (768, 1_771_776), (1024, 3_148_800)):
        mlps = MLPs(1, dim, dim, Architecture.parse("mlp2-relu-dropout0"))
        assert sum(parameter.numel() for parameter in mlps.parameters()) == count


@pytest.mark.parametrize("name", ["mlp2", "mlp2-tanh-dropout0", "mlp-gelu-dropout0", "Identity"])
def test_a_bad_architecture_is_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=f"mlp = '{name}' is not an architecture"):
        Architecture.parse(name)
    with pytest.raises(ConfigError, match=f"train.mlp = '{name}' is not an architecture"):
        make("pal-a", "squared", mlp=name)


def test_a_residual_map_keeps_its_dimension() -> None:
    with pytest.raises(ConfigError, match="train.latent_dim must be 8, not 4"):
        make("pal-a", "squared", latent_dim=4)
    assert make("pal-b", "angle", latent_dim=4).place(batch()[0]).shape == (ROWS, 4)


def test_copies_share_nothing() -> None:
    mlps = MLPs(2, DIM, DIM, Architecture.parse("mlp2-gelu-dropout0"))
    mlps(torch.randn(3, DIM))[0].sum().backward()
    for parameter in mlps.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].any()
        assert not parameter.grad[1].any()


def test_standardised_features_have_unit_expected_norm() -> None:
    x = torch.randn(5000, DIM) * 3 + 7
    x[:, 2] = 4.2
    scaler = Standardiser(DIM)
    scaler.fit(x, torch.arange(len(x)))
    y = scaler(x)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(DIM), atol=1e-5, rtol=0)
    assert y.square().sum(dim=1).mean().item() == pytest.approx((DIM - 1) / DIM, rel=1e-4)
    assert not y[:, 2].any()


@every_head
def test_every_parameter_has_exactly_one_role(name: str, score: str) -> None:
    head = make(name, score)
    groups = {
        group["name"]: group
        for group in optimiser_groups(head, TrainConfig(weight_decay=0.3, user_lr=0.7))
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(head.parameters()))
    assert (groups["users"]["lr"], groups["users"]["weight_decay"]) == (0.7, 0.0)
    assert groups["maps"]["weight_decay"] == 0.3
    head.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(AssertionError, match="no role"):
        optimiser_groups(head, TrainConfig())


def test_the_scale_comes_back_from_its_limit() -> None:
    head = make("pal-b", "angle")
    assert head.log_scale is not None
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    head.constrain()
    assert head.log_scale.exp().item() == pytest.approx(LARGEST_SCALE)
    margins(head).square().mean().backward()
    assert head.log_scale.grad is not None
    assert head.log_scale.grad.item() != 0.0


def simulated(configure: Configure, **options: Any) -> Config:
    settings = {
        "dataset": "simulated",
        "encoder": "identity",
        "train.head": "pal-a",
        "train.epochs": 2,
    }
    return configure(settings | options)


def test_training_twice_gives_the_same_bytes(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    for run in ("one", "two"):
        pipeline.train(config, run)
    assert (
        Path("runs/one/head.safetensors").read_bytes()
        == Path("runs/two/head.safetensors").read_bytes()
    )
    pipeline.train(config.model_copy(update={"seed": 1}), "three")
    assert (
        Path("runs/one/head.safetensors").read_bytes()
        != Path("runs/three/head.safetensors").read_bytes()
    )


@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("together", [False, True])
def test_training_leaves_torch_as_it_was_and_fills_no_memory_for_nothing(
    configure: Configure, together: bool, ends: str
) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    seen: list[bool] = []

    def progress(_: int) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        seen.append(not torch.utils.deterministic.fill_uninitialized_memory)
        if ends == "badly":
            raise InterruptedError

    dataset, store = open_inputs(config)[:2]
    data = TrainingData.load(config.train, dataset, store, "cpu")
    settings = resolve(config.train)
    assert torch.get_deterministic_debug_mode() == 0
    with suppress(InterruptedError):
        if together:
            Together([data], [0, 1], [settings, settings]).fit(progress=progress)
        else:
            fit_head(data, settings, 0, progress)
    assert set(seen) == {True}
    assert torch.get_deterministic_debug_mode() == 0
    assert not torch._inductor.config.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_signal_to_end_reaches_whoever_waits_for_it_once(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    data = TrainingData.load(config.train, *open_inputs(config), "cpu")
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(SystemExit):
            fit_head(data, resolve(config.train), 0, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_a_signal_to_end_ends_a_process_by_it(configure: Configure) -> None:
    """By Lightning's own way it would end with 0, as if the run were there."""
    config = simulated(configure)
    pipeline.embed(config)
    program = (
        "import json, os, signal, sys; from pal import pipeline; from pal.config import Config; "
        "config = Config.model_validate_json(sys.argv[1]); "
        "pipeline.train(config, 'x', lambda _: os.kill(os.getpid(), signal.SIGTERM))"
    )
    done = subprocess.run([sys.executable, "-c", program, config.model_dump_json()], check=False)
    assert done.returncode == -signal.SIGTERM
    assert not Path("runs/x").exists()


def test_evaluation_is_the_same_under_another_default_type(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    pipeline.train(config, "run")
    expected = pipeline.evaluate(config, ["run"]).runs[0]
    torch.set_default_dtype(torch.float64)
    try:
        found = pipeline.evaluate(config, ["run"]).runs[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert expected.test_seen is not None
    assert found.test_seen is not None
    assert found.test_seen.nll == pytest.approx(expected.test_seen.nll, abs=1e-6)
    assert found.test_unseen["0"].nll == pytest.approx(expected.test_unseen["0"].nll, abs=1e-6)


def test_a_run_has_its_files_and_replaces_its_predecessor_whole(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    for _ in range(2):
        pipeline.train(config, "run")
    names = {
        "config.yaml",
        "head.json",
        "head.safetensors",
        "metrics.json",
        "predictions.parquet",
        "log.csv",
    }
    assert {path.name for path in Path("runs/run").iterdir()} == names
    assert [path.name for path in Path("runs").iterdir()] == ["run"]
    assert len(Path("runs/run/log.csv").read_text().splitlines()) == 3


def test_of_several_starts_the_best_by_validation_is_kept(configure: Configure) -> None:
    config = configure(
        {"dataset": "simulated", "encoder": "identity", "train.head": "pal-a", "train.epochs": 3}
    )
    pipeline.embed(config)
    several = config.train.model_copy(update={"starts": 3})
    pipeline.train(config.model_copy(update={"train": several}), "of-three")
    logs = []
    for start in range(3):
        alone = config.model_copy(update={"seed": config.seed + 1000 * start})
        pipeline.train(alone, f"{start}")
        logs.append(pl.read_csv(f"runs/{start}/log.csv"))
    best = min(range(3), key=lambda start: float(logs[start]["val/loss"].min()))  # type: ignore[arg-type]
    assert pl.read_csv("runs/of-three/log.csv").equals(logs[best])
    heads = [Path(f"runs/{name}/head.safetensors").read_bytes() for name in ("of-three", f"{best}")]
    assert heads[0] == heads[1]


def test_training_reads_no_test_pair(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    from pal.train.fit import train

    config = simulated(configure)
    pipeline.embed(config)
    dataset, store = open_inputs(config)
    asked: list[Any] = []
    original = type(dataset).pairs

    def spy(self: Any, split: Any = None, population: Any = None, **rest: Any) -> Any:
        asked.append((split, population))
        return original(self, split, population, **rest)

    monkeypatch.setattr(type(dataset), "pairs", spy)
    train(config.train, config.seed, dataset, store, config.paths.runs, "run", {})
    assert asked == [("train", "seen"), ("val", "seen")]


def test_planted_groups_are_learned(configure: Configure) -> None:
    """Two planted ideal points: one prototype cannot follow both groups, two can."""
    sizes = {
        "users": 30,
        "pairs_per_user": 100,
        "validation_pairs_per_user": 30,
        "test_pairs_per_user": 50,
        "groups": 2,
        "dim": 6,
    }
    options = {f"data.simulated.{key}": value for key, value in sizes.items()} | {
        "train.epochs": 25, "train.batch_size": 128, "train.lr": 3e-3,
    }  # fmt: skip
    config = simulated(configure, **options)
    pipeline.embed(config)
    accuracy = {}
    for k in (1, 2):
        chosen = config.train.model_copy(update={"k": k})
        seen = pipeline.train(config.model_copy(update={"train": chosen})).test_seen
        assert seen is not None
        accuracy[k] = seen.macro_accuracy
    assert accuracy[2] > 0.9
    assert accuracy[2] > accuracy[1] + 0.05


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train.head": "pal-c"}, ConfigError, "unknown head 'pal-c'; did you mean"),
        (
            {"train.head": "pal-b"},
            TrainError,
            "this head reads prompts, but the dataset has none; use --head pal-a",
        ),
        (
            {"train.device": "cuda:99"},
            TrainError,
            "offers torch cpu.*use one of these, or train.device=auto",
        ),
        (
            {"train.device": "cuda:99", "train.precision": "auto"},
            TrainError,
            "train.device = 'cuda:99', but this machine offers torch cpu",
        ),
        ({"train.device": "banana"}, TrainError, "train.device = 'banana', but this machine"),
        (
            {"encoder": "tiny-text"},
            CacheError,
            "no complete cache in .*; run: pal embed --dataset simulated --encoder",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    configure: Configure, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    pipeline.embed(simulated(configure))
    with pytest.raises(error, match=words):
        pipeline.train(simulated(configure, **options), "run")
    assert not Path("runs/run").exists()


def test_a_run_with_other_settings_is_not_replaced(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    pipeline.train(config, "run")
    before = Path("runs/run/head.safetensors").read_bytes()
    changes = {"train.lr": 0.5, "seed": 3, "train.k": 5, "train.pairs_per_user": 4}
    for key, value in changes.items():
        with pytest.raises(TrainError, match=rf"runs/run holds a run with {key} = .*, not {value}"):
            pipeline.train(simulated(configure, **{key: value}), "run")
    with pytest.raises(TrainError, match="choose another name with --run, or remove that folder"):
        pipeline.train(simulated(configure, **{"train.head": "bt-linear"}), "run")
    assert Path("runs/run/head.safetensors").read_bytes() == before
    # what the head does not read, or what changes no number by intent, is no other setting
    pipeline.train(simulated(configure, **{"train.scale_lr": 0.7, "train.device": "cpu"}), "run")
    assert Path("runs/run/head.safetensors").read_bytes() == before


def test_a_run_of_other_answers_is_neither_replaced_nor_evaluated(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    pipeline.train(config, "run")
    monkeypatch.setattr(PreparedDataset, "pairs_digest", "flipped")
    with pytest.raises(TrainError, match="runs/run holds a run with pairs_digest = "):
        pipeline.train(config, "run")
    with pytest.raises(EvaluationError, match="with pairs digest .*, but the present one is flipp"):
        pipeline.evaluate(config, ["run"])


def test_only_a_run_gives_way_to_a_run(configure: Configure) -> None:
    config = simulated(configure)
    pipeline.embed(config)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/notes.txt").write_text("keep")
    with pytest.raises(PalError, match=r"runs/mine exists and is no run of ours"):
        pipeline.train(config, "mine")
    assert Path("runs/mine/notes.txt").read_text() == "keep"
    Path("runs/empty").mkdir()
    assert pipeline.train(config, "empty").run == "empty"


@pytest.mark.parametrize("name", ["", ".", "../elsewhere", "a/b", "-x", "x" * 101])
def test_a_name_that_is_no_folder_is_refused_before_any_work(
    configure: Configure, name: str
) -> None:
    from pal.train.fit import train

    nothing = cast(Any, None)
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        train(TrainConfig(), 0, nothing, nothing, Path("runs"), name, {})


def damaged(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("file", ["head.json", "head.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "absent", "swapped"])
def test_a_run_that_is_not_as_it_was_written_is_one_sentence(
    configure: Configure, file: str, how: str
) -> None:
    config = simulated(configure, **{"train.epochs": 1})
    pipeline.embed(config)
    for run, seed in (("run", 0), ("other", 1)):
        pipeline.train(config.model_copy(update={"seed": seed}), run)
    path = Path("runs/run") / file
    if how == "swapped":
        shutil.copy(Path("runs/other") / file, path)
    elif how == "absent":
        path.unlink()
    else:
        path.write_bytes(damaged(path) if how == "flipped" else path.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=r"runs/run.*pal train --run run"):
        TrainedHead.load(Path("runs/run"))
    if (file, how) not in {("head.json", "absent"), ("head.json", "swapped")}:
        assert pipeline.train(config, "run").run == "run", "the remedy helps"


def made_data(seed: int = 0) -> TrainingData:
    """Return answers of users who follow a plane of their own, with prompts, in memory."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, DIM, generator=generator)
    user = torch.arange(80) % USERS
    prompt, first, second = torch.randint(0, 60, (3, 80), generator=generator)
    planes = torch.randn(USERS, DIM, generator=generator)
    label = ((features[first] - features[second]) * planes[user]).sum(dim=1).sigmoid().round()
    pairs = Pairs(prompt, first, second, user, label)
    store = cast(Any, SimpleNamespace(dim=DIM))
    users = [f"u{number}" for number in range(USERS)]
    return TrainingData(cast(Any, None), store, users, features, pairs, pairs)


def test_one_question_for_all_pairs_stops_only_heads_that_read_it() -> None:
    made = made_data()
    asked = replace(made.train, prompt=torch.zeros_like(made.train.first))
    data = replace(made, train=asked, val=asked)
    fit_head(data, TrainConfig(head="pal-a", epochs=1), 0)
    with pytest.raises(TrainError, match="all prompts have the same feature.*--head pal-a"):
        fit_head(data, TrainConfig(head="pal-b", epochs=1), 0)


def state_of(train: TrainConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(fit_head(made_data(), train, seed).head.state_dict())


OTHERS: dict[str, Any] = {
    "lr": 0.02, "user_lr": 0.3, "prototype_lr": 0.4, "scale_lr": 0.2, "weight_decay": 0.9,
    "ridge": 3.0, "loss": "hinge", "epochs": 1, "batch_size": 17, "starts": 2, "k": 4,
    "latent_dim": 5, "weights": "partition",
}  # fmt: skip


@pytest.mark.parametrize("absent", ["move", "stay"])
def test_users_without_a_pair_in_a_batch_stay_if_the_settings_say_so(absent: str) -> None:
    """The presets say so: in the released code each user's weights are a parameter of their own."""
    train = TrainConfig(head="pal-a", absent_users=absent, user_lr=0.1)
    world = made_data()
    head = world.new_head(train, 0)
    module = HeadTraining(head, train)
    optimiser = module.configure_optimizers()
    moved = []
    for number, users in enumerate([{0, 1}, {1, 2}, {0, 2}]):
        rows = torch.tensor([row for row, u in enumerate(world.train.user.tolist()) if u in users])
        before = head.users.logits.detach().clone()
        optimiser.zero_grad()
        module.training_step(world.train.step(world.features, rows), number).backward()
        module.optimizer_step(0, number, optimiser)
        away = (head.users.logits.detach() - before).abs().amax(dim=1)
        moved.append({u for u in range(3) if float(away[u]) > 0.0})
    assert moved == [{0, 1}, {1, 2} if absent == "stay" else {0, 1, 2}, moved[2]]
    assert (moved[2] == {0, 2}) == (absent == "stay")


def test_rows_of_a_table_step_as_parameters_of_their_own_do() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    rows = [torch.nn.Parameter(row.clone()) for row in table]
    adam, reference = RowAdam(table), torch.optim.Adam(rows, lr=0.1)
    for present in ([True, False, True], [True, True, False], [False, True, True], [True] * 3):
        gradient = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        for row, own, here in zip(rows, gradient, present, strict=True):
            row.grad = own if here else None
        reference.step()
        adam.step(gradient, torch.tensor(present), 0.1)
        torch.testing.assert_close(table, torch.stack([row.detach() for row in rows]))


def test_a_head_that_is_nothing_but_user_weights_trains_with_absent_users_staying() -> None:
    options = {"mlp": "identity", "learner": "Pw", "absent_users": "stay", "epochs": 2}
    fitted = fit_head(made_data(), TrainConfig(head="pal-a", k=2, **options), 0)  # type: ignore[arg-type]
    start = made_data().new_head(TrainConfig(head="pal-a", k=2, **options), 0)  # type: ignore[arg-type]
    assert not torch.equal(fitted.head.users.logits, start.users.logits)


def test_every_user_counts_the_same_in_a_loss_over_users() -> None:
    """A user's answers given thrice change nothing."""
    world = made_data()
    thrice = torch.cat(
        [torch.arange(len(world.train)), *[(world.train.user == 0).nonzero()[:, 0]] * 2]
    )

    def slope(pairs: Pairs, over: str) -> torch.Tensor:
        train = TrainConfig(head="pal-a", loss_over=over)
        module = HeadTraining(world.new_head(train, 0), train)
        data = SimpleNamespace(train_pairs=pairs)
        module.trainer = SimpleNamespace(datamodule=data, world_size=1)  # type: ignore[assignment]
        module.on_fit_start()
        module.training_step(pairs.step(world.features, slice(None)), 0).backward()
        grad = module.head.users.logits.grad
        assert grad is not None
        return grad

    whole = world.train
    more = Pairs(
        None, whole.first[thrice], whole.second[thrice], whole.user[thrice], whole.label[thrice]
    )
    torch.testing.assert_close(slope(whole, "users"), slope(more, "users"))
    assert not torch.allclose(slope(whole, "pairs"), slope(more, "pairs"))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", sorted(heads()))
def test_settings_that_are_not_relevant_change_no_number_and_rates_that_are_change_some(
    name: str, k: int
) -> None:
    reads: Any = "items" if "reads" in defaults_of(heads()[name]) else None  # no dataset says it
    train = TrainConfig(head=name, k=k, reads=reads, epochs=2, batch_size=32)
    relevant = relevant_names(train)
    without = {key: value for key, value in OTHERS.items() if key not in relevant}
    before, after = state_of(train), state_of(train.model_copy(update=without))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert before.keys() == after.keys()
    for key in {"lr", "user_lr", "prototype_lr", "scale_lr", "ridge"} & relevant:
        other = state_of(train.model_copy(update={key: OTHERS[key]}))
        assert any(not torch.equal(before[name], other[name]) for name in before), key


def test_relevance_follows_what_the_head_reads() -> None:
    plain = relevant_names(TrainConfig(head="bt-linear"))
    assert plain == {"head", "view", "users", "pairs_per_user", "ridge"}
    assert {"k", "user_lr", "prototype_lr"} <= relevant_names(TrainConfig(head="pal-a"))
    assert not {"user_lr", "scale_lr"} & relevant_names(TrainConfig(head="pal-a", k=1))
    assert "scale_lr" in relevant_names(TrainConfig(head="pal-a", score="angle"))
    assert "lr" not in relevant_names(TrainConfig(head="pal-a", mlp="identity", learner="Pw"))
    assert "patience" in relevant_names(TrainConfig(head="pal-a", patience=3))
    assert "patience" not in relevant_names(TrainConfig(head="pal-a")), "null names no other head"
    assert "patience" not in relevant_names(TrainConfig(head="vpl", patience=3))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    relevant_names(TrainConfig(head="pal-b", k=7))
    assert torch.equal(torch.random.get_rng_state(), before), "nothing was drawn"


def record_of(train: TrainConfig) -> RunRecord:
    return RunRecord(
        run="run", dataset="made", view="response", item_text="{response}", encoder="none",
        untrained=False, seed=0, dim=DIM, params=0, params_per_user=0, seconds=0.0, best_epoch=0,
        split_digest="s", pairs_digest="p", cache_fingerprint="c", encoder_spec={}, train=train,
        users=[f"u{number}" for number in range(USERS)],
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_run_is_read_as_it_was_written(data: st.DataObject) -> None:
    """Random settings, and weights that no seed gives, among them -inf."""
    name = data.draw(st.sampled_from(sorted(heads())))
    options: dict[str, Any] = {"head": name, "k": data.draw(st.integers(1, 4))}
    if name in ("pal-a", "pal-b"):
        options["score"] = data.draw(st.sampled_from(["squared", "distance", "angle", None]))
        options["mlp"] = data.draw(st.sampled_from(["identity", "mlp1-gelu-dropout0", None]))
        options["weights"] = data.draw(st.sampled_from(["mixture", "partition", "gumbel"]))
    train = TrainConfig(**options)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    head = build_head(train, DIM, USERS).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
        head.users.logits[:1, 1:] = -torch.inf
    saved = TrainedHead(head, record_of(train)).save(Path("runs/run"), {}, [{"epoch": 0}])
    loaded = TrainedHead.load(Path("runs/run"))
    assert loaded.metadata == saved.metadata
    for key, value in head.state_dict().items():
        assert torch.equal(loaded.head.state_dict()[key], value), key
    shutil.rmtree("runs")


ARCHITECTURES = ["identity", "mlp0-linear-dropout0", "mlp1-gelu-dropout0-residual", None]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_stack_of_any_settings_trains_each_head_as_it_would_be_alone(data: st.DataObject) -> None:
    """In double precision; what is random in the forward pass itself (dropout, Gumbel) differs."""
    name = data.draw(st.sampled_from(["pal-a", "pal-b"]))
    options: dict[str, Any] = {
        "head": name,
        "epochs": 2,
        "batch_size": 32,
        "mlp": data.draw(st.sampled_from(ARCHITECTURES)),
        "score": data.draw(st.sampled_from(["squared", "distance", "normalised", "angle"])),
        "weights": data.draw(st.sampled_from(["mixture", "partition"])),
        "loss": data.draw(st.sampled_from(["logistic", "hinge"])),
        "loss_over": data.draw(st.sampled_from(["pairs", "users"])),
        "absent_users": data.draw(st.sampled_from(["move", "stay"])),
        "bound": data.draw(st.sampled_from([None, 0.05])),
        "k": 2,
    }
    if name == "pal-a":
        options["learner"] = data.draw(st.sampled_from(["f(Pw)", "f(P)w", "Pw"]))
    of_seed = []
    for _ in range(data.draw(st.integers(1, 2))):
        rate = st.sampled_from([1e-3, 1e-2])
        own = {"lr": data.draw(rate), "user_lr": data.draw(rate), "scale_lr": data.draw(rate)}
        if name == "pal-a":
            own["k"] = data.draw(st.integers(1, 3))
        of_seed.append(TrainConfig(**{**options, **own}))
    seeds = [3, 4]
    trains = of_seed * len(seeds)
    world = made_data()
    world.features = world.features.double()
    built = [world.new_head(t, s).double() for s in seeds for t in of_seed]
    wide = [widen(head, max(t.k for t in trains)) for head in built]
    lanes = [Lane(world.train, world.val, seed) for seed in seeds]
    module = StackTraining(wide, trains, Lanes(world.features, lanes, 32))
    module.fit()
    for place, (head, train) in enumerate(zip(built, trains, strict=True)):
        seed = seeds[place // len(of_seed)]
        alone = HeadTraining(head, train)
        fit(alone, PairsDataModule(world.features, world.train, world.val, 32, seed), "cpu", print)
        assert module.best_loss[place] == pytest.approx(alone.best_loss, rel=1e-4), train
        assert module.best_epoch[place] == alone.best_epoch


@pytest.mark.parametrize("options", [{"absent_users": "stay"}, {"loss_over": "users"}])
def test_a_stack_minds_absent_users_and_counts_users_as_a_head_alone_does(
    options: dict[str, Any],
) -> None:
    """With batches of two pairs most users are absent from a step, and one user has few pairs."""
    world = made_data()
    owner = world.train.user
    kept = ((owner != 0) | (torch.arange(len(owner)) % 4 == 0)).nonzero()[:, 0]
    pairs = world.train
    world.train = Pairs(
        None, pairs.first[kept], pairs.second[kept], pairs.user[kept], pairs.label[kept]
    )
    world.features = world.features.double()
    trains = [
        TrainConfig(
            head="pal-a", k=k, mlp="identity", epochs=2, batch_size=2, user_lr=0.1, **options
        )
        for k in (2, 3)
    ]
    seeds = [3, 4]
    built = [world.new_head(train, seed).double() for seed in seeds for train in trains]
    lanes = [Lane(world.train, world.val, seed) for seed in seeds]
    wide = [widen(head, 3) for head in built]
    module = StackTraining(wide, trains * 2, Lanes(world.features, lanes, 2))
    module.fit()
    for place, head in enumerate(built):
        alone = HeadTraining(head, (trains * 2)[place])
        batches = PairsDataModule(world.features, world.train, world.val, 2, seeds[place // 2])
        fit(alone, batches, "cpu", print)
        assert module.best_loss[place] == pytest.approx(alone.best_loss, rel=1e-5)
        together = module.best_state[place]["users.logits"][:, : head.k]
        torch.testing.assert_close(together, alone.best_state["users.logits"], rtol=1e-4, atol=1e-6)
