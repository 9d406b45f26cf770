"""Peers' own code against ours on the same features.

    python benchmarks/peers.py --pal PATH --lore PATH --vpl PATH --source ../shared/persona
    python benchmarks/peers.py --pal PATH --only new-users
    python benchmarks/peers.py --pal PATH --lore PATH --vpl PATH --mrm PATH --golden

writes docs/results/peers.md (with ``--only`` some of its sections, and keeps the others), or
tests/peers.json. The paths are checkouts of RamyaLab/pluralistic-alignment,
facebookresearch/LoRe, WEIRDLabUW/vpl_llm and ModalityDance/MRM at the commits in ``peer_code.py``;
nothing of them is copied. Each seed draws other users, questions and first weights; intervals are
mean +- t(0.975) * s / sqrt(seeds).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from accuracy import Place, mean_and_interval
from peer_code import COMMITS
from peer_methods import (
    SHOTS,
    VPL,
    Reached,
    World,
    few_shot,
    lore_theirs,
    ours,
    pal_training,
    vpl_theirs,
)
from sections import sections_of
from torch import Tensor

from pal import pipeline
from pal.dataset import Population, Split
from pal.evaluate.inputs import open_inputs
from pal.evaluate.report import Table, as_markdown
from pal.train.build import resolve
from pal.train.data import TrainingData
from pal.train.heads.standardise import Standardiser
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.solve.problem import Problem

ROOT = Path(__file__).resolve().parents[1]
TABLE, GOLDEN = ROOT / "docs" / "results" / "peers.md", ROOT / "tests" / "peers.json"
HEADER = ["code", "accuracy", "per seed", "NLL", "seconds"]
FEW_SHOT = {
    "one": "`pal-b` with K = 1, ours",
    "taste": "`one-taste`, ours",
    "theirs": "PAL's few-shot protocol, their code, last epoch",
    "chosen": "PAL's few-shot protocol, their code, epoch best on what is judged",
    "sgd": "`--method sgd`, ours",
    "map": "MAP, one vector, ours",
    "average": "`--method map`, ours",
}
"""the names of ``few_shot`` and what they are"""


class Section(NamedTuple):
    """What a part of the page shows."""

    table: Table
    told: Sequence[str] = ()


def opposed(
    seed: int = 0, dim: int = 64, users: int = 40, train: int = 60, test: int = 50
) -> World:
    """Half of the users have a taste theta, half have -theta; answers are Bradley-Terry's."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2000, dim, generator=generator)
    theta = torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=0) * 3.0

    def pairs(count: int) -> Pairs:
        first, second = torch.randint(0, len(raw), (2, users * count), generator=generator)
        user = torch.arange(users).repeat_interleave(count)
        margin = torch.where(user % 2 == 0, 1.0, -1.0) * ((raw[first] - raw[second]) @ theta)
        label = (torch.rand(len(user), generator=generator) < margin.sigmoid()).float()
        return Pairs(None, first, second, user, label)

    parts = pairs(train), pairs(20)
    return World(Problem(standardised(raw), *parts, users), raw, pairs(test))


def standardised(raw: Tensor) -> Tensor:
    scale = Standardiser(raw.shape[1])
    scale.fit(raw, torch.arange(len(raw)))
    return scale(raw)


def persona(place: Place, groups: int, seed: int, head: str = "lore") -> World:
    """Real statements, MiniLM features, planted interests; new users too."""
    options = {"dataset": "persona", "data.persona.source": place.source, "train.head": head}
    config = place.config(seed, {**options, "data.persona.groups": groups})
    pipeline.embed(config)
    dataset, store = open_inputs(config)
    data = TrainingData.load(resolve(config.train), dataset, store, "cpu")

    def pairs(split: Split, population: Population) -> Pairs:
        frame = drop_without_feature(dataset.pairs(split, population), store)
        users = data.users if population == "seen" else sorted(frame["user_id"].unique())
        return Pairs.join(frame, store, users, head == "pal-b", "cpu")

    test, known, judged = pairs("test", "seen"), pairs("train", "unseen"), pairs("test", "unseen")
    raw = data.features.float()
    features = data.item_scale(raw)
    if head == "pal-b":  # prompts are no items: each feature is scaled as what it is
        every = [part.prompt for part in (data.train, data.val, test, known, judged)]
        rows = torch.cat([prompt for prompt in every if prompt is not None]).unique()
        assert data.prompt_scale is not None
        features[rows] = data.prompt_scale(raw[rows])
    problem = Problem(features, data.train, data.val, len(data.users))
    return World(problem, raw, test, known, judged)


def row(name: str, of_seeds: list[Reached]) -> list[str]:
    accuracy = [one.accuracy for one in of_seeds]
    listed = " ".join(f"{value:.3f}" for value in accuracy)
    nll = [one.nll for one in of_seeds]
    means = [mean_and_interval(v) if len(v) > 1 else f"{v[0]:.3f}" for v in (accuracy, nll)]
    seconds = sum(one.seconds for one in of_seeds) / len(of_seeds)
    return [name, means[0], listed, means[1], f"{seconds:.0f}"]


def compared(part: str, folders: Mapping[str, Path], place: Place) -> Section:
    """All methods on a world: opposed users, or persona statements of two or four interests."""
    k = 4 if part == "persona-4" else 2
    rows: dict[str, list[Reached]] = {}
    for seed in range(place.seeds):
        world = opposed(seed) if part == "opposed" else persona(place, k, seed)
        lore = folders["lore"]
        found = {
            "LoRe, their code": lore_theirs(lore, world, k, seed),
            "LoRe, their code, z-scored features": lore_theirs(lore, world, k, seed, raw=False),
            "LoRe, their code, regularised": lore_theirs(lore, world, k, seed, ridge=True),
            "`lore`, ours": ours("lore", world, k, seed),
            "`mrm`, ours": ours("mrm", world, k, seed),
            "`per-user`, ours": ours("per-user", world, 1, seed),
            "`bt-linear`, ours": ours("bt-linear", world, 1, seed),
            "`consensus`, ours": ours("consensus", world, 1, seed),
        }
        if part != "opposed":
            judged = persona(place, k, seed, head="pal-b")
            for name in ("auto", "one-taste"):
                found[f"`{name}`, ours"] = ours(name, judged, 8, seed, reads="prompt")
        if part == "opposed" or (k == 2 and seed == 0):  # minutes on persona
            found["VPL, their code"] = vpl_theirs(folders["vpl"], world, seed, 64)
            found["`vpl`, ours"] = ours("vpl", world, 1, seed, **VPL)
        for name, one in found.items():
            rows.setdefault(name, []).append(one)
            print(part, seed, name, one, flush=True)
    return Section([HEADER, *(row(name, of_seeds) for name, of_seeds in rows.items())])


def one_epoch(part: str, folders: Mapping[str, Path], place: Place) -> Section:
    """One epoch of PAL-B: theirs and ours."""
    found = []
    for seed in range(place.seeds):
        world = persona(place, 4, seed, head="pal-b")
        found.append(pal_training(folders["pal"], world, seed, 4))
        print(part, seed, found[-1], flush=True)
    both = zip(("PAL-B, their code", "`pal-b-text`, ours"), zip(*found, strict=True), strict=True)
    return Section([HEADER, *(row(name, list(of_seeds)) for name, of_seeds in both)])


def new_users(part: str, folders: Mapping[str, Path], place: Place) -> Section:
    """New users by the number of their answers."""
    found = []
    for seed in range(place.seeds):
        found.append(few_shot(folders["pal"], persona(place, 4, seed, head="pal-b"), seed, 4))
        print(part, seed, found[-1], flush=True)
    table = [["answers", *HEADER]]
    for shots in SHOTS:
        for name, title in FEW_SHOT.items():
            if shots in found[0][name]:
                table.append([f"{shots}", *row(title, [one[name][shots] for one in found])])
    told = [
        "Both MAPs have the default prior, which no validation users tune; the seconds are beside "
        "other work.",
        better("map", "theirs", found),
        better("average", "chosen", found),
        *(without_answers(name, found) for name in ("map", "average")),
    ]
    return Section(table, told)


def better(name: str, other: str, found: Sequence[Mapping[str, Mapping[int, Reached]]]) -> str:
    """Say where one way to adapt is better than another, seed by seed."""
    told = []
    for what, sign in (("accuracy", 1.0), ("nll", -1.0)):
        counts = []
        for shots in SHOTS:
            gains = [getattr(one[name][shots], what) - getattr(one[other][shots], what)
                     for one in found]  # fmt: skip
            counts.append(f"{sum(sign * gain > 0 for gain in gains)}")
        told.append(f"{'NLL lower' if what == 'nll' else 'accuracy higher'} in {', '.join(counts)}")
    shown = ", ".join(f"{shots}" for shots in SHOTS)
    return (
        f"{FEW_SHOT[name]}, against {FEW_SHOT[other]}: {' and '.join(told)} of {len(found)} seeds "
        f"(after {shown} answers)."
    )


def without_answers(name: str, found: Sequence[Mapping[str, Mapping[int, Reached]]]) -> str:
    """Say what a head of several prototypes gains before any answer over heads of one."""
    told = []
    for other in ("one", "taste"):
        right = [one[name][0].accuracy - one[other][0].accuracy for one in found]
        loss = [one[name][0].nll - one[other][0].nll for one in found]
        told.append(f"{FEW_SHOT[other]}: accuracy {listed(right)}, NLL {listed(loss)}")
    return f"{FEW_SHOT[name]}, without answers less {'; less '.join(told)} (each seed)."


def listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:+.3f}" for value in values)


Make = Callable[[str, Mapping[str, Path], Place], Section]
PARTS: Mapping[str, tuple[str, tuple[str, ...], Make]] = {
    "opposed": (
        "Opposed users, d = 64, 40 users of 60 noisy answers", ("lore", "vpl"), compared,
    ),
    "persona-2": ("Persona, K* = 2", ("lore", "vpl"), compared),
    "persona-4": ("Persona, K* = 4", ("lore",), compared),
    "one-epoch": (
        "Persona, K* = 4: one epoch of PAL-B in batches of 4, same weights and order",
        ("pal",), one_epoch,
    ),
    "new-users": ("Persona, K* = 4: 50 new users of one PAL-B head of ours", ("pal",), new_users),
}  # fmt: skip
"""the page's sections: title, whose code, and what makes it"""


def write(page: Path, of_title: Mapping[str, str]) -> None:
    """Write a page of those sections that there are, in their order."""
    text = (
        "# Peers: their own code against ours\n\n"
        "Made by `python benchmarks/peers.py`, one CPU thread; each section says when, with how "
        "many seeds and against which commits. Accuracy and NLL on new\npairs, means over users; "
        "intervals over seeds.\n"
    )
    for title, _, _ in PARTS.values():
        if title in of_title:
            text += f"\n## {title}\n\n{of_title[title]}\n"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, commit in COMMITS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"a checkout of {commit}")
    parser.add_argument("--golden", action="store_true", help="write tests/peers.json instead")
    parser.add_argument("--source", default="../shared/persona", help="raw persona statements")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    folders = {name: getattr(arguments, name) for name in COMMITS if getattr(arguments, name)}
    if arguments.golden:
        from peer_golden import as_record, theirs

        text = json.dumps(as_record(theirs(folders)), indent=1)
        GOLDEN.write_text(text + "\n", encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), arguments.source, arguments.seeds)
        for part in arguments.only:
            title, names, make = PARTS[part]
            section = make(part, folders, place)
            commits = ", ".join(f"{name} {COMMITS[name]}" for name in names)
            text = f"{datetime.now(UTC):%Y-%m-%d}, {arguments.seeds} seeds; {commits}.\n\n"
            text += as_markdown(section.table)
            if section.told:
                text += "\n\n" + "\n".join(f"- {line}" for line in section.told)
            write(arguments.out, {**sections_of(arguments.out), title: text})


if __name__ == "__main__":
    main()
