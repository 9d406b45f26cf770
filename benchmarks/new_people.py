"""People that a head was not trained on, by the number of their answers.

    python benchmarks/new_people.py --source FOLDER [--work real] [--sets ssis ...]

writes docs/results/new_people.md, of which other sets' sections stay.
Works in the folder of ``benchmarks/real.py`` and on its sets. Two tables for each set: questions
that nobody was asked before (five folds over prompts), and questions that others were asked
(five folds over answers), each with the seen users. ``auto`` against ``one-taste``, the same
without deviations. All numbers of shots judge the same answers of the same people.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from real import FOLDS, SAME_FEATURES, SETS, Entry, nothing, settings_of
from sections import sections_of

from pal import pipeline
from pal.config import AdaptConfig, Config, load
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.compare import compare
from pal.evaluate.crossed import Array, Crossing
from pal.evaluate.few_shot import Trial, balanced
from pal.evaluate.folds import Fold, Over, folder_of
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.panel import FewShot, few_shot
from pal.evaluate.records import Metrics
from pal.evaluate.report import as_markdown, interval, with_interval
from pal.train.run_record import RunRecord, TrainedHead

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "new_people.md"
HEADS = SAME_FEATURES
SHOTS = (0, 1, 5, 20)
OVERS: dict[Over, str] = {
    "prompts": "Questions that nobody was asked",
    "answers": "Questions that others were asked",
}


def cross_fitted(dataset: str, source: Path, over: Over) -> tuple[Config, dict[str, str]]:
    """Train and cross-fit both heads where that was not done, and return their runs."""
    runs = {}
    for head, k in HEADS.items():
        entry = Entry(head, k, 0)
        config, runs[head] = entry.config(dataset, source), entry.run(dataset)
        if RunRecord.find(config.paths.runs / runs[head]) is None:
            pipeline.train(config, runs[head], tell=nothing)  # anew, it would lose its folds
        pipeline.evaluate(config, [runs[head]], FOLDS, tell=nothing, over=over)
    return config, runs


def adapted(config: Config, run: str, over: Over) -> FewShot | None:
    """Return what people nobody trained on reach; None where too few have enough answers."""
    folder = folder_of(config.paths.runs / run, FOLDS, over)
    heads = [TrainedHead.load(folder / f"{number}") for number in range(FOLDS)]
    dataset, store = inputs_of_run(config.paths, heads[0].metadata)
    folds = Fold.all_of(dataset, FOLDS, over)
    trials = [Trial(head, fold, store) for head, fold in zip(heads, folds, strict=True)]
    shots = [count for count in SHOTS if is_usual(trials, count)]
    if not shots:
        return None
    return few_shot(AdaptConfig(shots=tuple(shots)), config.evaluate, trials)


def is_usual(trials: Sequence[Trial], count: int) -> bool:
    """Say whether at least half of the new people gave so many answers."""
    try:
        names, left_out = balanced(trials, count)
    except EvaluationError:
        return False
    return len(names) >= left_out


def gained(answers: Crossing, one: Array, other: Array, digits: str) -> str:
    found = answers.macro(one - other)
    low, high = found.ci95 or (float("nan"), float("nan"))
    return f"{found.value:{digits}} [{low:{digits}}, {high:{digits}}]"


def section(dataset: str, source: Path, over: Over) -> str:
    """Return the table of one set and one kind of question."""
    config, runs = cross_fitted(dataset, source, over)
    head = ["people", "answers", *HEADS, "difference", "NLL", "", "difference"]
    table = [head]
    metrics = [Metrics.read(folder_of(config.paths.runs / r, FOLDS, over)) for r in runs.values()]
    for row in compare(config.evaluate, config.paths.runs, list(runs.values()), FOLDS, over):
        if row.cell == "test_seen":
            cells = [m.test_seen for m in metrics]
            nlls = [f"{cell.nll:.3f}" for cell in cells if cell is not None]
            accuracy = with_interval(row.difference, row.ci95, row.ci95_from, "+")
            likelihood = with_interval(row.nll_difference, row.nll_ci95, sign="+")
            shown = map(interval, cells)
            table.append(["seen", "all others", *shown, accuracy, *nlls, likelihood])
    one, plural = (adapted(config, run, over) for run in runs.values())
    if one is None or plural is None:
        return f"### {OVERS[over]}\n\n{as_markdown(table)}\n\nNew people gave too few answers."
    for count in one.scores:
        a, b = one.scores[count], plural.scores[count]
        table.append(
            ["new", count, *(interval(found.cells[count]) for found in (one, plural))]
            + [gained(one.answers, b.right, a.right, "+.3f")]
            + [f"{found.cells[count].nll:.3f}" for found in (one, plural)]
            + [gained(one.answers, b.loss, a.loss, "+.3f")]
        )
    prepared = PreparedDataset.open(config.paths.data / dataset)
    told = f"{one.n_users} new people, {one.n_users_left_out} with too few answers left out; "
    told += f"{prepared.card.counts.seen_users:,} seen."
    return f"### {OVERS[over]}\n\n{as_markdown(table)}\n\n{told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--work", type=Path, default=Path("real"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    source, out = options.source.resolve(), options.out.resolve()
    options.work.mkdir(exist_ok=True, parents=True)
    os.chdir(options.work)
    for dataset in options.sets:
        pipeline.embed(load(None, (), settings_of(dataset, source)).config)
        found = []
        for over in OVERS:
            found.append(section(dataset, source, over))
            print(found[-1], flush=True)
        text = "\n\n".join([f"{datetime.now(UTC):%Y-%m-%d}.", *found])
        write(out, {**sections_of(out), dataset: text})
    return 0


def write(page: Path, of_set: Mapping[str, str]) -> None:
    text = [
        "# People that a head was not trained on",
        f"Made by `python benchmarks/new_people.py --source FOLDER`, each set on the day below it, "
        f"MiniLM, {FOLDS} folds, one seed. Accuracy and NLL are means over\n"
        "people, intervals and differences crossed over people and prompts; a coin has NLL 0.693. "
        "Heads with few answers\naverage over who the person may be (docs/design/009).",
    ]
    text += [f"## {dataset}\n\n{of_set[dataset]}" for dataset in SETS if dataset in of_set]
    page.write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
