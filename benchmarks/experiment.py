"""What ``auto`` fits under the protocol of an experiment with known numbers, and what each part
of it buys.

    python benchmarks/experiment.py --work real [--seeds 3]       -> docs/results/experiment.md
    python benchmarks/experiment.py --work real --ablation        -> docs/results/ablation.md

WORK is a folder where ``benchmarks/real.py`` has prepared and encoded the conversations. Five folds
over all statements, moderated ones too; all others train, none validates; everybody who gave enough
answers is in; accuracy and NLL are means over users, intervals crossed. Beside the choice that
``auto`` makes stand fixed priors; ``--ablation`` builds it up part by part, and takes single parts
away. ``--only FILE`` is a JSON file of users, by conversation. ``--keep FOLDER`` keeps what each
fold earned, so that a run that was stopped goes on; remove the folder once the code has changed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from experiment_methods import ABLATION, FOLDS, METHODS, WHOLE, Fold, Margins, Votes, folds_of

from pal.evaluate.crossed import Crossing
from pal.evaluate.metrics import credit, negative_log_likelihoods
from pal.evaluate.report import NOTHING, as_markdown, with_interval
from pal.train.solve.mixture import Array, Numbers

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SETS = ("ssis", "canadian-electoral-reform", "15-per-hour-seattle", "bowling-green")


@dataclass(frozen=True)
class Study:
    """What is asked of each conversation."""

    title: str
    file: Path
    methods: dict[str, Margins]
    words: str
    """what the rows are"""
    against: str | None = None
    """the method that the others are compared with"""


STUDIES = {
    False: Study(
        "`auto` under the protocol of the experiment",
        RESULTS / "experiment.md",
        METHODS,
        "s: seconds of a fold on one core.",
    ),
    True: Study(
        "What each part of `auto` buys",
        RESULTS / "ablation.md",
        ABLATION,
        "Rows 2 to 8 build `auto` up from nothing, with (1, 1) and without a choice; the others "
        "take one part\naway from the whole. Without residuals nothing is dropped, so nothing is "
        "moderated either.",
        WHOLE,
    ),
}


@dataclass(frozen=True)
class Earned:
    """What each answer of a fold, or of all folds, earned: (n,) each."""

    user: Numbers
    thing: Numbers
    right: Array
    loss: Array
    seconds: Array
    """(folds,) of one core"""

    @classmethod
    def of(cls, method: Margins, fold: Fold) -> Earned:
        began = time.perf_counter()
        margin = method(fold)
        spent = time.perf_counter() - began
        return cls.by_margins(fold.test.user, fold.test.first, margin, fold.test.label, spent)

    @classmethod
    def by_margins(
        cls, user: Numbers, thing: Numbers, margin: Array, label: Array, spent: float
    ) -> Earned:
        right, loss = credit(margin, label), negative_log_likelihoods(margin, label)
        return cls(user, thing, right, loss, np.array([spent]))

    @classmethod
    def kept(cls, file: Path, method: Margins, fold: Fold) -> Earned:
        """Return what an earlier run has earned, else earn and keep it."""
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".part.npz")
            np.savez(temporary, **vars(cls.of(method, fold)))
            temporary.rename(file)
        return cls(**np.load(file))

    @classmethod
    def joined(cls, parts: Sequence[Earned]) -> Earned:
        return cls(*(np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0])))


def earned(votes: Votes, method: Margins, seeds: int, keep: Path | None) -> Earned:
    """Return what a method earns on all folds of all seeds; ``keep`` is a folder of its own."""
    parts = []
    for seed in range(seeds):
        for fold in folds_of(votes, seed):
            if keep is None:
                parts.append(Earned.of(method, fold))
            else:
                parts.append(Earned.kept(keep / f"{fold.seed}.npz", method, fold))
    return Earned.joined(parts)


def row_of(name: str, found: Earned, whole: Earned | None) -> list[str]:
    """Return accuracy and NLL of one method, and less those of another, or if there is none how
    long a fold took."""
    crossing = Crossing.of_names(found.user, found.thing)
    right, loss = (crossing.macro(values) for values in (found.right, found.loss))
    cells = [with_interval(value.value, value.ci95, value.side) for value in (right, loss)]
    if whole is None:
        return [name, *cells, f"{found.seconds.mean():.1f}"]
    for ours, theirs in ((found.right, whole.right), (found.loss, whole.loss)):
        value = crossing.macro(ours - theirs)
        told = with_interval(value.value, value.ci95, value.side, "+")
        cells.append(NOTHING if found is whole else told)
    return [name, *cells]


def table_of(
    study: Study, votes: Votes, options: argparse.Namespace, folder: str
) -> list[list[str]]:
    """Return a row for each method, and print it as soon as it is known."""
    whole = None
    header = ["method", "accuracy", "NLL"]
    if study.against is None:
        header += ["s"]
    else:
        header += [f"accuracy less {study.against}'s", f"NLL less {study.against}'s"]
    table = [header]
    for name, method in study.methods.items():
        keep = None
        if options.keep is not None:
            keep = options.keep / folder / name.replace(" ", "_")
        found = earned(votes, method, options.seeds, keep)
        if name == study.against:
            whole = found
        table.append(row_of(name, found, whole))
        print(folder, *table[-1], flush=True)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--only", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    study = STUDIES[options.ablation]
    out = options.out or study.file
    only = {} if options.only is None else json.loads(options.only.read_text("utf-8"))
    command = "python benchmarks/experiment.py --work real" + " --ablation" * options.ablation
    command += "" if options.only is None else " --only FILE"
    text = [
        f"# {study.title}",
        "",
        f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}: {FOLDS} folds over all statements, "
        f"{options.seeds} seeds of folds,",
        "accuracy and NLL over users, intervals crossed (p: most of it comes from the statements).",
        study.words,
    ]
    for name in options.sets:
        votes = Votes.of(options.work, name, only.get(name))
        table = table_of(study, votes, options, name)
        people = f"{votes.rows.users:,} people, {len(votes.features):,} statements"
        text += ["", f"## {name}: {people}, {len(votes.rows):,} votes", "", as_markdown(table)]
        out.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
