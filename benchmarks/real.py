"""All heads on answers of real people, cross-fitted: docs/results/real.md.

    python benchmarks/real.py --source FOLDER [--sets ssis ...] [--heads pal-a ...] [--seeds 1]

FOLDER holds ``polis/<conversation>`` and ``polarized-issues``, as their platforms export them.
Every prompt (a statement; of polarized-issues, an answer) is tested once, by heads that never saw
it; settings are each head's defaults. What is done is kept under ``real/`` and taken over: killed,
the same command goes on, and a head that is new to pal, or named later, is added. The table shows
all that is there, and names what is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pal import pipeline
from pal.config import Config, load
from pal.config.heads import PROTOTYPES
from pal.dataset import PreparedDataset
from pal.errors import PalError
from pal.evaluate.compare import Comparison, compare
from pal.evaluate.cross_fit import read_folds
from pal.evaluate.folds import Fold, crossing_folds, folder_of
from pal.evaluate.free import free_baselines
from pal.evaluate.records import Cell, Metrics
from pal.evaluate.report import NOTHING, as_markdown, interval, with_interval
from pal.train.build import defaults_of, heads
from pal.train.run_record import RunRecord

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "real.md"
SETS: dict[str, dict[str, Any]] = {
    "ssis": {"kind": "polis", "min_answers": 20},
    "canadian-electoral-reform": {"kind": "polis", "min_answers": 10},
    "15-per-hour-seattle": {"kind": "polis", "min_answers": 10},
    "polarized-issues": {"kind": "remesh", "min_answers": 10},
    "bowling-green": {"kind": "polis", "min_answers": 20},
}
ONE_TASTE = "bt-linear"
PLURAL = {"pal-a": (1, 2, 4), "pal-b": (1, 2, 4), "auto": (PROTOTYPES["auto"],)}
"""K of heads that are run with several"""
USUAL_K = 4
SAME_FEATURES = "one-taste"
"""auto without deviations"""
POPULATIONS = {"test_seen": "seen users", "test_unseen_0": "unseen users, 0 shots,"}
SLOW = ("mrm", "vpl")
"""heads that are run last"""
FOLDS = 5
COLUMNS = [
    "head", "K", "seed", "s", "seen users", "against one taste", "NLL", "NLL against one taste",
    "unseen, 0 shots", "5 shots", "20 shots",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A head to be run on a set."""

    head: str
    k: int | None
    """None: it has no prototypes"""
    seed: int

    def run(self, dataset: str) -> str:
        k = "" if self.k is None else f"-k{self.k}"
        return f"{dataset}-{self.head}{k}-s{self.seed}"

    def config(self, dataset: str, source: Path) -> Config:
        k = {} if self.k is None else {"train.k": self.k}
        options = {**settings_of(dataset, source), "train.head": self.head, "seed": self.seed, **k}
        return load(None, (), options).config


def entries(seeds: int) -> list[Entry]:
    """Return all heads that pal has, one taste first and slow ones last."""
    found = []
    for name in sorted(heads(), key=lambda name: (name in SLOW, name != ONE_TASTE, name)):
        has_k = "k" in defaults_of(heads()[name])
        ks = PLURAL.get(name, (USUAL_K,)) if has_k else (None,)
        found += [Entry(name, k, seed) for k in ks for seed in range(seeds)]
    return found


def settings_of(dataset: str, source: Path) -> dict[str, Any]:
    own = SETS[dataset]
    place = source / ("" if own["kind"] == "remesh" else "polis") / dataset
    return {"dataset": dataset, f"data.{dataset}": {**own, "source": str(place)}}


def finished(config: Config, run: str) -> Metrics | None:
    """Return what was found of a run on this very dataset, or None."""
    folder = config.paths.runs / run
    record, dataset = (
        RunRecord.find(folder),
        PreparedDataset.open(config.paths.data / config.dataset),
    )
    if record is None:
        return None
    if (record.split_digest, record.pairs_digest) != (dataset.split_digest, dataset.pairs_digest):
        shutil.rmtree(folder)  # of a dataset that was prepared otherwise
        return None
    try:
        return read_folds(folder_of(folder, FOLDS))
    except PalError:
        return None


def work_on(entry: Entry, dataset: str, source: Path) -> bool:
    """Train and cross-fit one head on one set; returns whether that was still to be done."""
    config, run = entry.config(dataset, source), entry.run(dataset)
    if finished(config, run) is not None:
        return False
    began = time.perf_counter()
    pipeline.train(config, run, tell=nothing)
    (metrics,) = pipeline.evaluate(config, [run], FOLDS, tell=nothing).runs
    spent = time.perf_counter() - began
    print(f"{run}: {metrics.seconds:.1f} s in {FOLDS} folds, {spent:.1f} s in all", flush=True)
    return True


def nothing(line: str) -> None:
    """Say nothing: stage one has told what the dataset leaves out."""


def section(dataset: str, source: Path, seeds: int) -> str | None:
    """Return the table of what is there of a set; None where nothing is."""
    config = load(None, (), settings_of(dataset, source)).config
    if not (config.paths.data / dataset / "dataset.json").is_file():
        return None
    done = [(e, finished(config, e.run(dataset))) for e in entries(seeds)]
    found = [(entry, metrics) for entry, metrics in done if metrics is not None]
    if not found:
        return None
    first = next((e.run(dataset) for e, _ in found if e.head == ONE_TASTE), None)
    others = [e.run(dataset) for e, _ in found if e.head != ONE_TASTE]
    against: dict[str, Comparison] = {}
    if first is not None and others:
        rows = compare(config.evaluate, config.paths.runs, [first, *others], FOLDS)
        against = {row.b: row for row in rows if row.cell == "test_seen"}
    prepared = PreparedDataset.open(config.paths.data / dataset)
    table = [COLUMNS]
    for one in free_baselines(config.evaluate, Fold.all_of(prepared, FOLDS)):
        table.append(row_of([one.baseline, "", "", ""], one.test_seen, None, [one.test_unseen]))
    for entry, metrics in found:
        k = "" if entry.k is None else f"{entry.k}"
        told = [entry.head, k, f"{entry.seed}", f"{metrics.seconds:.0f}"]
        unseen = [metrics.test_unseen.get(shots) for shots in ("0", "5", "20")]
        table.append(row_of(told, metrics.test_seen, against.get(entry.run(dataset)), unseen))
    there = {(entry.head, entry.k) for entry, _ in found}
    none = [(e.head, e.k) for e, _ in done if (e.head, e.k) not in there]
    missing = [head if k is None else f"{head} K={k}" for head, k in none]
    told = remarks(prepared, against, missing)
    same = {head: e.run(dataset) for e, _ in found for head in [e.head] if e.seed == 0}
    if {"auto", SAME_FEATURES} <= set(same):
        told = f"{plurality(config, same)}\n{told}"
    told = "\n".join([*over_seeds(found), told])
    return f"## {dataset}\n\n{as_markdown(table)}\n\n{told}"


def over_seeds(found: Sequence[tuple[Entry, Metrics]]) -> Iterator[str]:
    """Yield what heads of several seeds reach in the mean."""
    for head in (SAME_FEATURES, "auto"):
        every = [metrics for entry, metrics in found if entry.head == head]
        if len(every) < 2:
            continue
        cells = {"seen users": [one.test_seen for one in every]}
        for shots in every[0].test_unseen:
            cells[f"new people, {shots} answers"] = [one.test_unseen.get(shots) for one in every]
        told = []
        for name, some in cells.items():
            nll = [cell.nll for cell in some if cell is not None]
            told.append(f"{name} {sum(nll) / len(nll):.3f} ({', '.join(f'{n:.3f}' for n in nll)})")
        yield f"NLL of {head}, mean of {len(every)} seeds (each): {'; '.join(told)}."


def plurality(config: Config, runs: dict[str, str]) -> str:
    """Say what auto gains over one taste of the same features."""
    names = [runs[SAME_FEATURES], runs["auto"]]
    found = []
    for row in compare(config.evaluate, config.paths.runs, names, FOLDS):
        accuracy = with_interval(row.difference, row.ci95, row.ci95_from, "+")
        likelihood = with_interval(row.nll_difference, row.nll_ci95, sign="+")
        found.append(f"{POPULATIONS[row.cell]} {accuracy}, NLL {likelihood}")
    return f"auto against {SAME_FEATURES}: {'; '.join(found)}."


def row_of(
    told: list[str], seen: Cell | None, against: Comparison | None, unseen: list[Cell | None]
) -> list[str]:
    difference, likelihood, gained = NOTHING, NOTHING, NOTHING
    if against is not None:
        difference = with_interval(against.difference, against.ci95, against.ci95_from, "+")
        gained = with_interval(against.nll_difference, against.nll_ci95, sign="+")
    if seen is not None:
        likelihood = with_interval(seen.nll, seen.nll_ci95)
    cells = [interval(cell) for cell in [*unseen, None, None][:3]]
    return [*told, interval(seen), difference, likelihood, gained, *cells]


def remarks(prepared: PreparedDataset, against: dict[str, Comparison], missing: list[str]) -> str:
    """Say which heads are worse or better than one taste, and what is not in the table."""
    lines = []
    for word, sign in (("below", -1.0), ("above", 1.0)):
        beyond = [
            run.removeprefix(f"{prepared.name}-")
            for run, row in against.items()
            if row.ci95 is not None and min(sign * row.ci95[0], sign * row.ci95[1]) > 0.0
        ]
        lines.append(
            f"Seen users, {word} one taste beyond the interval: {', '.join(beyond) or 'none'}."
        )
    crossing = crossing_folds(prepared, FOLDS)
    if crossing:
        lines.append(f"{crossing:,} comparisons of items in different folds were not tested.")
    if missing:
        lines.append(f"Not run: {', '.join(dict.fromkeys(missing))}.")
    return "\n".join(lines)


def as_text(sections: list[str]) -> str:
    head = (
        "# Heads on answers of real people\n\n"
        f"Made by `python benchmarks/real.py --source FOLDER` on {datetime.now(UTC):%Y-%m-%d}, "
        f"MiniLM, {FOLDS} folds over prompts: every prompt is tested once, by\n"
        "heads that never saw it; unseen users are adapted by answers to the other folds. Accuracy "
        "is the mean over users; 95 % intervals are\n"
        "over users and prompts (`p`: most of it comes from the prompts), so is the difference "
        f"from one taste for all, `{ONE_TASTE}`. A coin has NLL\n"
        "0.693. Settings are each head's defaults; s: seconds of training, all folds."
    )
    return "\n\n".join([head, *sections]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--heads", nargs="+", default=list(heads()), choices=list(heads()))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("real"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    source, out = options.source.resolve(), options.out.resolve()
    options.work.mkdir(exist_ok=True, parents=True)
    os.chdir(options.work)
    for dataset in options.sets:
        pipeline.embed(load(None, (), settings_of(dataset, source)).config)
    sections = {dataset: section(dataset, source, options.seeds) for dataset in SETS}
    chosen = [entry for entry in entries(options.seeds) if entry.head in options.heads]
    for entry in chosen:  # head by head, so that slow ones come last on all sets
        for dataset in options.sets:
            if work_on(entry, dataset, source):
                sections[dataset] = section(dataset, source, options.seeds)
                write(out, sections.values())
    write(out, sections.values())
    return 0


def write(out: Path, sections: Iterable[str | None]) -> None:
    out.write_text(as_text([text for text in sections if text]), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
