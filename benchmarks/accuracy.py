"""Accuracy of heads on new pairs of seen users and on unseen users, with seeds; writes tables into
docs/results/.

    python benchmarks/accuracy.py persona --source ../shared/persona
    python benchmarks/accuracy.py simulation

Each seed draws another data split, other users' questions, initial weights and batch order.
Intervals are mean +- t(0.975) * s / sqrt(seeds).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from pal import pipeline
from pal.config import Config, TrainConfig, load
from pal.data.sources.simulated import Simulated, SimulatedConfig
from pal.evaluate.predict import load_run
from pal.evaluate.records import Cell
from pal.evaluate.report import Table, as_markdown
from pal.files import digest
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior
from pal.train.build import build_head, resolve
from pal.train.heads.pal_a import PalA

SIMULATION = {
    "dataset": "simulated",
    "encoder": "identity",
    "train.head": "pal-a",
    "train.epochs": 60,
}
SIMULATION |= {"train.user_lr": 2e-2}
PLURAL = ("pal-a", "pal-a x3", "pal-b", "lore", "per-user", "drm", "user-embedding")
"""``x3``: the best of three starts by validation. Also to be had: vpl, which takes minutes per
run."""
COMMON = (("pal-a", 1), ("pal-b", 1), ("bt-linear", 1), ("bt-mlp", 1))
STARTS = 3
"""initial weights tried where prototypes are to be recovered; the validation loss chooses"""
OWN = {"vpl": {"train.lr": 3e-4, "train.epochs": 60}}


@dataclass
class Place:
    """Where a campaign works, and for which seeds."""

    folder: Path
    source: str
    seeds: int
    heads: tuple[str, ...] = PLURAL
    groups: tuple[int, ...] = (2, 3, 4, 5, 6)
    common: tuple[tuple[str, int], ...] = COMMON

    def config(self, seed: int, options: dict[str, Any]) -> Config:
        paths = {f"paths.{name}": str(self.folder / name) for name in ("data", "cache")}
        # tables train heads of the same name under other settings, which one folder refuses
        paths["paths.runs"] = str(self.folder / "runs" / digest([seed, options], 6))
        salt = {f"data.{options['dataset']}.salt": f"seed{seed}"}
        return load(None, (), {**paths, **salt, "seed": seed, **options}).config


@dataclass(frozen=True)
class Measured:
    """What one head reaches."""

    seen: Cell
    unseen: dict[str, Cell]
    """by the number of answers"""


def measure(config: Config, shots: tuple[int, ...]) -> Measured:
    """Train one head and evaluate it on its users and on new ones."""
    pipeline.embed(config)
    metrics = pipeline.train(config)
    assert metrics.test_seen is not None, "every campaign has test pairs of seen users"
    chosen = config.model_copy(update={"adapt": config.adapt.model_copy(update={"shots": shots})})
    return Measured(metrics.test_seen, pipeline.adapt(chosen, metrics.run).test_unseen)


def mean_and_interval(values: list[float]) -> str:
    spread = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {spread:.3f}"


def accuracy_of_seen(seeds: Sequence[Measured]) -> tuple[str, str]:
    """Return the accuracy of seen users: its mean with an interval, and that of each seed."""
    values = [one.seen.accuracy for one in seeds]
    return mean_and_interval(values), " ".join(f"{value:.3f}" for value in values)


def accuracy_of_unseen(seeds: Sequence[Measured], shots: Sequence[int]) -> list[str]:
    """Return the mean accuracy of unseen users with an interval, for each number of answers."""
    return [mean_and_interval([one.unseen[f"{n}"].accuracy for one in seeds]) for n in shots]


def persona(place: Place) -> Iterator[tuple[str, Table]]:
    """Seen users and unseen ones at 0 and 20 shots, for every head, K* = 2 .. 6."""
    shots = (0, 20)
    header = [
        "K*",
        "head",
        "K",
        "seen users",
        "per seed",
        "NLL",
        *(f"unseen, {n} shots" for n in shots),
    ]
    for groups in place.groups:
        rows = [header]
        for head, k in (*((head, groups) for head in place.heads), *place.common):
            name, _, starts = head.partition(" x")
            options = {
                "dataset": "persona", "data.persona.source": place.source,
                "data.persona.groups": groups,
                "train.head": name, "train.k": k, "train.starts": int(starts or 1),
                **OWN.get(name, {}),
            }  # fmt: skip
            seeds = [measure(place.config(seed, options), shots) for seed in range(place.seeds)]
            own_k = resolve(place.config(0, options).train).k  # that of auto is its own
            rows.append(
                [
                    f"{groups}",
                    head,
                    f"{own_k}",
                    *accuracy_of_seen(seeds),
                    mean_and_interval([one.seen.nll for one in seeds]),
                    *accuracy_of_unseen(seeds, shots),
                ]
            )
        yield f"K* = {groups}: accuracy", rows


def simulation(place: Place) -> Iterator[tuple[str, Table]]:
    """Accuracy over K, recovery of what was planted, unseen users, and how their error falls."""
    yield "Accuracy of PAL-A, K* = 3, d = 16, partition, noiseless", by_k(place)
    yield (
        "Recovery of what was planted, K = K*, identity map, partition, noiseless",
        recovery(place),
    )
    yield (
        "Pairs that adapted users order wrongly, mixture, 200 new users, planted prototypes",
        decay(place),
    )


def by_k(place: Place) -> Table:
    shots = (0, 10, 20, 40, 100)
    rows = [
        [
            "K",
            "seen users",
            "per seed",
            *(f"unseen, {n} shots" for n in shots),
            "seen - unseen at 40",
        ]
    ]
    for k in (1, 2, 3, 6):
        options = {**SIMULATION, "data.simulated.groups": 3, "train.k": k}
        seeds = [measure(place.config(seed, options), shots) for seed in range(place.seeds)]
        gaps = [one.seen.accuracy - one.unseen["40"].accuracy for one in seeds]
        unseen = accuracy_of_unseen(seeds, shots)
        rows.append([f"{k}", *accuracy_of_seen(seeds), *unseen, mean_and_interval(gaps)])
    return rows


def recovery(place: Place) -> Table:
    """Match learned prototypes to the planted ones by the users' weights (Hungarian); the best of
    three starts."""
    rows = [["K*", "mean abs(w - w*)", "per seed", "cosine of matched prototypes", "seen users"]]
    for groups in (2, 3, 5):
        errors, cosines, accuracy = [], [], []
        for seed in range(place.seeds):
            options = {
                **SIMULATION, "data.simulated.groups": groups, "train.k": groups,
                "data.simulated.map": "identity", "train.mlp": "identity",
                "train.prototype_lr": 2e-2, "train.user_lr": 1e-1, "train.starts": STARTS,
            }  # fmt: skip
            config = place.config(seed, options)
            accuracy.append(measure(config, (0,)).seen.accuracy)
            trained = load_run(config.paths.runs, pipeline.default_run(config))
            settings = config.data.datasets["simulated"]
            assert isinstance(settings, SimulatedConfig)
            assert isinstance(trained.head, PalA)
            truth = Simulated(settings).truth()
            of = dict(zip(truth["users"].tolist(), truth["weights"], strict=True))
            planted = np.stack([of[name] for name in trained.users])
            learned = trained.head.users.of_logits(trained.head.users.logits).detach().numpy()
            order = linear_sum_assignment(-(planted.T @ learned))[1]
            errors.append(float(np.abs(planted - learned[:, order]).mean()))
            found = trained.head.prototypes_KD.detach().numpy()[order]
            lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(truth["prototypes"], axis=1)
            cosines.append(float(((found * truth["prototypes"]).sum(axis=1) / lengths).mean()))
        listed = " ".join(f"{value:.3f}" for value in errors)
        columns = [
            mean_and_interval(errors),
            listed,
            mean_and_interval(cosines),
            mean_and_interval(accuracy),
        ]
        rows.append([f"{groups}", *columns])
    return rows


def decay(place: Place) -> Table:
    """Share of new pairs that an adapted user's utility orders otherwise than the planted one, by m
    answers.

    The head is the planted one, so adaptation is all there is to learn: the personalisation term of
    theorem 2.
    """
    shots = (10, 20, 40, 80, 160, 320, 640)
    rows = [
        [
            "noise",
            "K",
            *(f"m = {m}" for m in shots),
            "error times sqrt(m/K)",
            "slope over ln m, from 40",
        ]
    ]
    for noise in (0.1, 0.0):
        for k in (2, 4, 8):
            settings = SimulatedConfig(
                groups=k,
                regime="mixture",
                map="identity",
                noise=noise,
                users=1,
                validation_users=0,
                unseen_users=200,
                pairs_per_user=shots[-1],
                test_pairs_per_user=500,
            )
            seeds = [
                errors_by_shots(settings.model_copy(update={"salt": f"seed{seed}"}), shots)
                for seed in range(place.seeds)
            ]
            scaled = [
                float(error) * np.sqrt(m / k)
                for m, error in zip(shots, np.mean(seeds, axis=0), strict=True)
            ]
            slopes = [
                float(np.polyfit(np.log(shots[2:]), np.log(error[2:]), 1)[0]) for error in seeds
            ]
            means = [mean_and_interval(list(column)) for column in zip(*seeds, strict=True)]
            listed = " ".join(f"{value:.3f}" for value in scaled)
            rows.append([f"{noise}", f"{k}", *means, listed, mean_and_interval(slopes)])
    return rows


@torch.no_grad()
def errors_by_shots(settings: SimulatedConfig, shots: tuple[int, ...]) -> list[float]:
    """Adapt users of the generator under its own prototypes; returns the share of wrongly ordered
    pairs for each m."""
    adapter, count = Simulated(settings), settings.unseen_users
    # noiseless answers have no temperature: that of steep ones
    temperature = settings.noise or 0.02
    head = build_head(
        TrainConfig(head="pal-a", k=settings.groups, learner="Pw", mlp="identity"), settings.dim, 1
    )
    assert isinstance(head, PalA)
    head.item_scale.scale.fill_(temperature**-0.5)
    head.prototypes_KD.data = torch.from_numpy(adapter.prototypes_KD * temperature**-0.5).float()
    pairs = pl.concat([chunk.pairs for chunk in adapter.chunks()])
    features = pl.concat([chunk.items for chunk in adapter.chunks()])

    def answers(split: str) -> Answers:
        own = pairs.filter(pl.col("split") == split, pl.col("population") == "unseen")
        sides = [
            own.join(features.rename({"item_id": side}), on=side, maintain_order="left")[
                "feature"
            ].to_list()
            for side in ("first_id", "second_id")
        ]
        first, second = (
            torch.from_numpy(np.frombuffer(b"".join(rows), np.float32).copy()).view(len(own), -1)
            for rows in sides
        )
        user = torch.arange(count).repeat_interleave(len(own) // count)
        label = torch.from_numpy(own["label"].to_numpy().copy()).float()
        return Answers(head.prepare(None, first, second), label, user, count)

    known, judged = answers("train"), answers("test")
    planted = torch.from_numpy(adapter.truth()["weights"][-count:]).float()
    truth = head.prepared_margin(judged.prepared, planted, judged.user) > 0
    # users are Dirichlet(1, .., 1), whose logarithms have variance pi^2 / 6 about their mean
    prior = Prior(
        torch.zeros(settings.groups),
        6.0 / torch.pi**2 * torch.eye(settings.groups),
        torch.empty(0, 0),
    )
    errors = []
    for m in shots:
        rows = (
            torch.arange(count).unsqueeze(1) * settings.pairs_per_user + torch.arange(m)
        ).flatten()
        vectors = adapt_map(head, known.take(rows), prior).vectors
        margin = head.prepared_margin(judged.prepared, vectors, judged.user)
        errors.append(float(((margin > 0) != truth).float().mean()))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["persona", "simulation"])
    parser.add_argument(
        "--source", default="hf:Anthropic/model-written-evals", help="raw persona statements"
    )
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--groups", nargs="+", type=int, default=(2, 3, 4, 5, 6), help="K* of the persona tables"
    )
    parser.add_argument(
        "--plural-only", action="store_true", help="persona's tables without the rows of K = 1"
    )
    parser.add_argument(
        "--heads", nargs="+", default=PLURAL, help="plural heads of the persona tables"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    seeds = arguments.seeds or {"persona": 3, "simulation": 5}[arguments.what]
    text = (
        f"# {arguments.what.capitalize()}: what each head reaches\n\n"
        f"{date.today()}, `python benchmarks/accuracy.py {arguments.what}`, {seeds} seeds, 100 "
        "seen users with 100 "
        f"training and 50 test pairs each, 50 unseen users, unless a table says otherwise.\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for title, rows in globals()[arguments.what](
            Place(
                Path(folder),
                arguments.source,
                seeds,
                tuple(arguments.heads),
                tuple(arguments.groups),
                () if arguments.plural_only else COMMON,
            )
        ):
            text += f"\n## {title}\n\n{as_markdown(rows)}\n"
            print(f"{title}\n{as_markdown(rows)}", flush=True)
            (arguments.out / f"{arguments.what}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
