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
from collections.abc import Iterator
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
from pal.config import Config, SimulatedConfig, TrainConfig, load
from pal.data.sources.simulated import Simulated
from pal.evaluate.predict import load_run
from pal.evaluate.report import as_markdown
from pal.train.adapt.map import Answers, Prior, adapt_map
from pal.train.heads.head import build_head

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

    def config(self, seed: int, options: dict[str, Any]) -> Config:
        paths = {f"paths.{name}": str(self.folder / name) for name in ("data", "cache", "runs")}
        salt = {f"data.{options['dataset']}.salt": f"seed{seed}"}
        return load(None, (), {**paths, **salt, "seed": seed, **options}).config


def measure(config: Config, shots: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Train one head and return its cells: ``seen`` and the numbers of shots."""
    pipeline.embed(config)
    metrics = pipeline.train(config)
    cells = {"seen": metrics["test_seen"]}
    chosen = config.model_copy(update={"adapt": config.adapt.model_copy(update={"shots": shots})})
    return cells | pipeline.adapt(chosen, metrics["run"])["test_unseen"]


def mean_and_interval(values: list[float]) -> str:
    spread = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {spread:.3f}"


def persona(place: Place) -> Iterator[tuple[str, list[list[str]]]]:
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
        for head, k in (*((head, groups) for head in place.heads), *COMMON):
            name, _, starts = head.partition(" x")
            options = {
                "dataset": "persona", "data.persona.source": place.source,
                "data.persona.groups": groups,
                "train.head": name, "train.k": k, "train.starts": int(starts or 1), **OWN.get(name, {}),
            }  # fmt: skip
            seeds = [measure(place.config(seed, options), shots) for seed in range(place.seeds)]
            seen = [cells["seen"]["accuracy"] for cells in seeds]
            rows.append(
                [
                    f"{groups}", head, f"{k}", mean_and_interval(seen), " ".join(f"{value:.3f}" for value in seen),
                    mean_and_interval([cells["seen"]["nll"] for cells in seeds]),
                    *(mean_and_interval([cells[f"{n}"]["accuracy"] for cells in seeds]) for n in shots),
                ]
            )  # fmt: skip
        yield f"K* = {groups}: accuracy", rows


def simulation(place: Place) -> Iterator[tuple[str, list[list[str]]]]:
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


def by_k(place: Place) -> list[list[str]]:
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
        seen = [cells["seen"]["accuracy"] for cells in seeds]
        gaps = [cells["seen"]["accuracy"] - cells["40"]["accuracy"] for cells in seeds]
        unseen = [mean_and_interval([cells[f"{n}"]["accuracy"] for cells in seeds]) for n in shots]
        per_seed = " ".join(f"{value:.3f}" for value in seen)
        rows.append([f"{k}", mean_and_interval(seen), per_seed, *unseen, mean_and_interval(gaps)])
    return rows


def recovery(place: Place) -> list[list[str]]:
    """Match learned prototypes to the planted ones by the users' weights (Hungarian); the best of
    three starts."""
    rows = [["K*", "mean abs(w - w*)", "per seed", "cosine of matched prototypes", "seen users"]]
    for groups in (2, 3, 5):
        errors, cosines, accuracy = [], [], []
        for seed in range(place.seeds):
            options = {
                **SIMULATION, "data.simulated.groups": groups, "train.k": groups, "data.simulated.map": "identity",
                "train.mlp": "identity", "train.prototype_lr": 2e-2, "train.user_lr": 1e-1,
                "train.starts": STARTS,
            }  # fmt: skip
            config = place.config(seed, options)
            accuracy.append(measure(config, (0,))["seen"]["accuracy"])
            trained = load_run(config, pipeline.default_run(config))
            truth = Simulated(config.data.simulated).truth()
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


def decay(place: Place) -> list[list[str]]:
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
                groups=k, regime="mixture", map="identity", noise=noise, users=1, validation_users=0, unseen_users=200,
                pairs_per_user=shots[-1], test_pairs_per_user=500,
            )  # fmt: skip
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
    temperature = (
        settings.noise or 0.02
    )  # noiseless answers have no temperature: that of steep ones
    head = build_head(
        TrainConfig(head="pal-a", k=settings.groups, learner="Pw", mlp="identity"), settings.dim, 1
    )
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
        codes = adapt_map(head, known.take(rows), prior).codes
        margin = head.prepared_margin(judged.prepared, codes, judged.user)
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
            )
        ):
            text += f"\n## {title}\n\n{as_markdown(rows)}\n"
            print(f"{title}\n{as_markdown(rows)}", flush=True)
            (arguments.out / f"{arguments.what}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
