"""What does another encoder give? Heads on MiniLM, MPNet and a decoder: docs/results/encoders.md.

    python benchmarks/encoders.py --persona FOLDER --polis FOLDER [--mpnet FOLDER] [--smollm2 FILE]

Every prompt is tested once, by heads that never saw it; settings are each head's defaults. FOLDER
of --polis is the export of a conversation, of --mpnet the files of all-mpnet-base-v2; FILE is a
GGUF file of SmolLM2-135M-Instruct, read with its chat template at the last token. What is done is
kept in the working directory and taken over.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pal import pipeline
from pal.config import Config, load
from pal.evaluate.folds import folder_of
from pal.evaluate.records import Metrics
from pal.evaluate.report import interval

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "encoders.md"
HEADS = {"bt-linear": {}, "one-taste": {}, "auto": {}}
MORE_HEADS = {**HEADS, "pal-a": {"train.k": 2}, "pal-b": {"train.k": 2}}
FOLDS = 5
SHOTS = "20"


def main() -> None:
    """Run what is not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persona", type=Path, required=True)
    parser.add_argument("--polis", type=Path, required=True)
    parser.add_argument("--mpnet", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--only", choices=("persona", "polis"))
    parser.add_argument("--limit", type=int, default=400, help="statements of each interest")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "# Encoders", "",
        f"Made by `python benchmarks/encoders.py`: the votes of the Polis conversation "
        f"{given.polis.name}, and persona (two opposed groups, {given.limit} statements of each",
        f"interest). Every prompt is tested once in {FOLDS} folds; accuracy is the mean over "
        "users, with its 95 % interval over users and prompts (p: most of it from the prompts); s",
        "are those of stage one on a shared core.", "",
        "| dataset | encoder | D | items | s | head | seen users | NLL | unseen, 20 shots |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    chosen = datasets(given)
    before = given.out.read_text(encoding="utf-8").splitlines() if given.out.is_file() else []
    lines += [
        line
        for line in before
        if line.startswith("| ") and line.split()[1] not in {"dataset", *chosen}
    ]
    for dataset, about in chosen.items():
        heads = MORE_HEADS if dataset == "persona" else HEADS
        for encoder, settings in encoders(given).items():
            for line in rows({**about, **settings, "encoder": encoder, "dataset": dataset}, heads):
                lines.append(line)
                print(line, flush=True)
                given.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


def datasets(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of each dataset, by name."""
    votes = {"kind": "polis", "min_answers": 20, "source": str(given.polis)}
    statements = {
        "data.persona.source": str(given.persona),
        "data.persona.limit": given.limit,
        "data.persona.users": 100,
    }
    found = {given.polis.name: {f"data.{given.polis.name}": votes}, "persona": statements}
    left_out = {"persona": given.polis.name, "polis": "persona"}.get(given.only)
    return {name: about for name, about in found.items() if name != left_out}


def encoders(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of each encoder that is here, by name."""
    found: dict[str, dict[str, Any]] = {"minilm": {}}
    if given.mpnet is not None:
        found["mpnet"] = {"embed.mpnet.model": str(given.mpnet)}
    if given.smollm2 is not None:
        found["smollm2-135m"] = {
            "embed.smollm2-135m.model": str(given.smollm2.parent),
            "embed.smollm2-135m.gguf_file": given.smollm2.name,
        }
    return found


def rows(settings: dict[str, Any], heads: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a line of the table for each head."""
    base = load(None, (), settings).config
    spent = Path(f"{base.dataset}-{base.encoder}.seconds")
    embedded = pipeline.embed(base)
    if embedded.encoded:
        spent.write_text(f"{embedded.seconds.total:.0f}")
    seconds = spent.read_text() if spent.is_file() else ""
    for head, own in heads.items():
        metrics = judged(load(None, (), {**settings, "train.head": head, **own}).config, head)
        seen, unseen = metrics.test_seen, metrics.test_unseen.get(SHOTS)
        yield (
            f"| {base.dataset} | {base.encoder} | {embedded.dim} | {embedded.items_unique} | "
            f"{seconds} | {head} | {interval(seen)} | {seen.nll:.4f} | {interval(unseen)} |"
        )


def judged(config: Config, head: str) -> Metrics:
    """Return what a head reaches in folds, trained if it is not there."""
    run = f"{config.dataset}-{config.encoder}-{head}"
    found = Metrics.find(folder_of(config.paths.runs / run, FOLDS))
    if found is not None:
        return found
    if not (config.paths.runs / run / "head.json").is_file():
        pipeline.train(config, run)
    (metrics,) = pipeline.evaluate(config, [run], FOLDS).runs
    return metrics


if __name__ == "__main__":
    main()
