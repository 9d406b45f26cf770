"""All heads on answers of real people, cross-fitted: docs/results/real.md.

    python benchmarks/real.py --source FOLDER [--sets ssis ...] [--heads pal-a ...] [--seeds 1]

FOLDER holds ``polis/<conversation>`` and ``polarized-issues``, as their platforms export them.
Every prompt (a statement; of polarized-issues, an answer) is tested once, by heads that never saw
it; settings are each head's defaults. Runs are kept under ``real/`` and taken over: killed, the
same command goes on. A row is a line of benchmarks/results/real, so that a head that is new to pal,
or named later, is added to the others; rows say when they were made. ``--sets`` without a name
writes the page alone, ``--missing`` runs only what has no line yet. ``bt-linear`` of seed 0, which
all are compared with, is always run. The table names what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lines import Line, lines_of
from real_seeds import in_short, named_in_short, over_seeds

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
from pal.files import atomic_file
from pal.train.build import defaults_of, heads
from pal.train.run_record import HEAD, RunRecord

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "real.md"
LINES = Path(__file__).resolve().parent / "results" / "real"
SETS: dict[str, dict[str, Any]] = {
    "ssis": {"kind": "polis", "min_answers": 20},
    "canadian-electoral-reform": {"kind": "polis", "min_answers": 10},
    "15-per-hour-seattle": {"kind": "polis", "min_answers": 10},
    "polarized-issues": {"kind": "remesh", "min_answers": 10},
    "bowling-green": {"kind": "polis", "min_answers": 20},
}
ONE_TASTE = "bt-linear"
SEVERAL = {"pal-a": (1, 2, 4), "pal-b": (1, 2, 4), "auto": (PROTOTYPES["auto"],)}
"""heads that are run with several K, and these"""
USUAL_K = 4
SAME_FEATURES = {"one-taste": None, "auto": PROTOTYPES["auto"]}
"""and their K: the first is the second without deviations"""
PLURALITY, CROSSING = "auto against one taste", "across folds"
"""remarks"""
POPULATIONS = {"test_seen": "seen users", "test_unseen_0": "unseen users, 0 shots,"}
SLOW = ("mrm", "vpl")
"""heads that are run last"""
FOLDS = 5
COLUMNS = [
    "head", "K", "seed", "made", "s", "seen users", "against one taste", "NLL",
    "NLL against one taste", "unseen, 0 shots", "5 shots", "20 shots",
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


FIRST = Entry(ONE_TASTE, None, 0)
"""what all others are compared with"""


def entries(seeds: int) -> list[Entry]:
    """Return all heads that pal has, one taste first and slow ones last."""
    found = []
    for name in sorted(heads(), key=lambda name: (name in SLOW, name != ONE_TASTE, name)):
        has_k = "k" in defaults_of(heads()[name])
        ks = SEVERAL.get(name, (USUAL_K,)) if has_k else (None,)
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
    if RunRecord.find(config.paths.runs / run) is None:  # else killed behind its training
        pipeline.train(config, run, tell=nothing)
    (metrics,) = pipeline.evaluate(config, [run], FOLDS, tell=nothing).runs
    spent = time.perf_counter() - began
    print(f"{run}: {metrics.seconds:.1f} s in {FOLDS} folds, {spent:.1f} s in all", flush=True)
    return True


def nothing(line: str) -> None:
    """Say nothing: stage one has told what the dataset leaves out."""


class Lines:
    """What is known of a set: a line for each head, baseline and remark, the newest of each."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.path = folder / f"{dataset}.jsonl"
        self.rows = lines_of(self.path)

    def find(self, head: str, k: int | None = None, seed: int | None = None) -> Line | None:
        key = (head, k, seed)
        return next((row for row in self.rows if key_of(row) == key), None)

    def of_heads(self) -> list[Line]:
        return [row for row in self.rows if row["seed"] is not None]

    def put(self, row: Line, of: Path) -> None:
        """Add a line in the place of an earlier one of the same, whoever wrote that; it was made
        when the file ``of`` was."""
        made = datetime.fromtimestamp(of.stat().st_mtime, UTC)
        row = {**row, "made": f"{made:%Y-%m-%d}"}
        self.rows = [*(one for one in lines_of(self.path) if key_of(one) != key_of(row)), row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = "".join(f"{json.dumps(one)}\n" for one in self.rows)
        with atomic_file(self.path) as temporary:
            temporary.write_text(told, encoding="utf-8")


def key_of(row: Line) -> tuple[str, int | None, int | None]:
    return row["head"], row["k"], row["seed"]


def keep_set(lines: Lines, config: Config) -> None:
    """Keep what holds of a set with any heads: baselines that need no training, and what crosses
    folds."""
    folder = config.paths.data / config.dataset
    prepared, of = PreparedDataset.open(folder), folder / "dataset.json"
    for one in free_baselines(config.evaluate, Fold.all_of(prepared, FOLDS)):
        row = cells_of(one.test_seen, None, [one.test_unseen])
        lines.put({"head": one.baseline, "k": None, "seed": None, "row": ["", *row]}, of)
    crossing = crossing_folds(prepared, FOLDS)
    told = f"{crossing:,} comparisons of items in different folds were not tested."
    lines.put({"head": CROSSING, "k": None, "seed": None, "told": told if crossing else ""}, of)


def keep(lines: Lines, entry: Entry, config: Config) -> None:
    """Keep the row of a head that was run."""
    dataset, run = config.dataset, entry.run(config.dataset)
    metrics, of = finished(config, run), config.paths.runs / run / HEAD
    assert metrics is not None
    first = FIRST.run(dataset)
    against: Comparison | None = None
    if run != first:
        rows = compare(config.evaluate, config.paths.runs, [first, run], FOLDS)
        against = next(row for row in rows if row.cell == "test_seen")
    shown = cells_of(
        metrics.test_seen, against, [metrics.test_unseen.get(n) for n in ("0", "5", "20")]
    )
    every = {"seen users": metrics.test_seen}
    for shots, cell in metrics.test_unseen.items():
        every[f"new people, {shots} answers"] = cell
    lines.put(
        {
            "head": entry.head, "k": entry.k, "seed": entry.seed,
            "row": [f"{metrics.seconds:.0f}", *shown],
            "beyond": beyond(against),
            "accuracy": {
                name: round(cell.macro_accuracy, 4)
                for name, cell in every.items()
                if cell is not None
            },
            "nll": {name: round(cell.nll, 4) for name, cell in every.items() if cell is not None},
        },
        of,
    )  # fmt: skip
    same = {head: Entry(head, k, 0).run(dataset) for head, k in SAME_FEATURES.items()}
    if run in same.values() and all(finished(config, name) for name in same.values()):
        told = plurality(config, list(same.values()))
        lines.put({"head": PLURALITY, "k": None, "seed": None, "told": told}, of)


def beyond(against: Comparison | None) -> int:
    """Return 1 where a head's accuracy is above one taste beyond the interval, -1 below, else 0."""
    if against is None or against.ci95 is None:
        return 0
    low, high = sorted(against.ci95)
    return int(low > 0.0) - int(high < 0.0)


def section(dataset: str, lines: Lines) -> str | None:
    """Return the table of what is known of a set; None where nothing is."""
    heads_of = lines.of_heads()
    if not heads_of:
        return None
    order = {name: place for place, name in enumerate(one.head for one in entries(1))}
    heads_of.sort(key=lambda row: (order[row["head"]], row["k"] or 0, row["seed"]))
    free = [row for row in lines.rows if row["seed"] is None and "row" in row]
    table = [COLUMNS]
    for row in [*sorted(free, key=lambda row: str(row["head"])), *heads_of]:
        named = ["" if value is None else f"{value}" for value in key_of(row)]
        table.append([*named, row["made"], *row["row"]])
    told = []
    for head in (PLURALITY, CROSSING):
        row = lines.find(head)
        told += [row["told"]] if row is not None and row["told"] else []
    missing = [one for one in entries(1) if lines.find(one.head, one.k, one.seed) is None]
    if missing:
        names = [named_in_short(one.head, one.k) for one in missing]
        told.append(f"Not run: {', '.join(names)}.")
    parts = [f"## {dataset}", as_markdown(table), over_seeds(heads_of)]
    parts.append("\n".join(f"- {line}" for line in told))
    return "\n\n".join(filter(None, parts))


def plurality(config: Config, names: Sequence[str]) -> str:
    """Say what auto gains over one taste of the same features."""
    found = []
    for row in compare(config.evaluate, config.paths.runs, names, FOLDS):
        accuracy = with_interval(row.difference, row.ci95, row.ci95_from, "+")
        likelihood = with_interval(row.nll_difference, row.nll_ci95, sign="+")
        found.append(f"{POPULATIONS[row.cell]} {accuracy}, NLL {likelihood}")
    return f"`auto` against `one-taste`: {'; '.join(found)}."


def cells_of(
    seen: Cell | None, against: Comparison | None, unseen: Sequence[Cell | None]
) -> list[str]:
    difference, likelihood, gained = NOTHING, NOTHING, NOTHING
    if against is not None:
        difference = with_interval(against.difference, against.ci95, against.ci95_from, "+")
        gained = with_interval(against.nll_difference, against.nll_ci95, sign="+")
    if seen is not None:
        likelihood = with_interval(seen.nll, seen.nll_ci95)
    cells = [interval(cell) for cell in [*unseen, None, None][:3]]
    return [interval(seen), difference, likelihood, gained, *cells]


def as_text(sections: list[str]) -> str:
    head = (
        "# Heads on answers of real people\n\n"
        "Made by `python benchmarks/real.py --source FOLDER` from benchmarks/results/real, a line "
        "for each row and when it was made;\n"
        f"MiniLM, {FOLDS} folds over prompts: every prompt is tested once, by\n"
        "heads that never saw it; unseen users are adapted by answers to the other folds. Accuracy "
        "is the mean over users; 95 % intervals are\n"
        "over users and prompts (`p`: most of it comes from the prompts), so is the difference "
        f"from one taste for all, `{ONE_TASTE}`. A coin has NLL\n"
        "0.693. 0 shots are all unseen users, 5 and 20 those of them who gave enough answers for "
        "every number of shots: other people, so\ncompare down a column, and along a row in "
        "new_people.md. Settings are each head's defaults; s: seconds of training, all folds, "
        "beside other work and with any stops of it. Rows of different\ndates are of different "
        "states of pal. "
        "Below each table are means over seeds; there, worse and better count the seeds that are "
        "so beyond their interval, in accuracy\nand in NLL, on seen users against one taste."
    )
    return "\n\n".join([head, *sections]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--heads", nargs="+", default=list(heads()), choices=list(heads()))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--missing", action="store_true", help="only rows that have no line yet")
    parser.add_argument("--work", type=Path, default=Path("real"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    source, out = options.source.resolve(), options.out.resolve()
    options.work.mkdir(exist_ok=True, parents=True)
    os.chdir(options.work)
    known = {dataset: Lines(LINES, dataset) for dataset in SETS}
    for dataset in options.sets:
        config = load(None, (), settings_of(dataset, source)).config
        pipeline.embed(config)
        keep_set(known[dataset], config)
    chosen = [e for e in entries(options.seeds) if e.head in (ONE_TASTE, *options.heads)]
    for entry in chosen:  # head by head, so that slow ones come last on all sets
        for dataset in options.sets:
            found = known[dataset].find(entry.head, entry.k, entry.seed)
            if options.missing and found is not None and entry != FIRST:
                continue
            if work_on(entry, dataset, source) or found is None:
                keep(known[dataset], entry, entry.config(dataset, source))
                write(out, known)
    write(out, known)
    return 0


def write(out: Path, known: Mapping[str, Lines]) -> None:
    sections = [section(dataset, lines) for dataset, lines in known.items()]
    heads_of = {dataset: lines.of_heads() for dataset, lines in known.items()}
    every = dict.fromkeys((one.head, one.k) for one in entries(1))
    found = [in_short(heads_of, list(every)), *(text for text in sections if text)]
    out.write_text(as_text(found), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
