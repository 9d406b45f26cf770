"""What does another encoder give? Heads on MiniLM, MPNet and a decoder: docs/results/encoders.md.

    python benchmarks/encoders.py --persona FOLDER --polis FOLDER [--mpnet FOLDER] [--smollm2 FILE]

Every prompt is tested once, by heads that never saw it; settings are each head's defaults. FOLDER
of --polis is the export of a conversation, of --mpnet the files of all-mpnet-base-v2; FILE is a
GGUF file of SmolLM2-135M-Instruct, read with its chat template at the last token. Rows that the
page has are kept: strike out those that are to be made again. So is what stands round the table.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pal import pipeline
from pal.config import Config, load
from pal.evaluate.folds import folder_of
from pal.evaluate.records import Metrics
from pal.evaluate.report import interval
from pal.files import atomic_file

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "encoders.md"
HEADS = (
    "bt-linear", "one-taste", "auto", "pal-a", "pal-b", "per-user", "user-embedding", "bt-mlp",
    "consensus", "drm", "mrm", "lore", "vpl",
)  # fmt: skip
ENCODERS = ("minilm", "mpnet", "smollm2-135m")
COLUMNS = (
    "dataset", "encoder", "D", "items", "s", "head", "made", "seen users", "NLL",
    "unseen, 20 shots",
)  # fmt: skip
FOLDS = 5
SHOTS = "20"
Key = tuple[str, str, str]
"""of a row: dataset, encoder, head"""


@dataclass
class Page:
    """The table, with the text round it."""

    path: Path
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    rows: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Page:
        page = cls(path)
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if not line.startswith("|"):
                (page.after if page.rows else page.before).append(line)
                continue
            told = (cell.strip() for cell in line[1:-1].split("|"))
            cells = dict(zip(COLUMNS, told, strict=True))
            if cells["head"] in HEADS:
                page.add(cells)
        return page

    def add(self, cells: dict[str, str]) -> str:
        """Return the line of a row that is added."""
        line = f"| {' | '.join(cells[name] for name in COLUMNS)} |"
        self.rows[cells["dataset"], cells["encoder"], cells["head"]] = line
        return line

    def write(self) -> None:
        title = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        rows = [self.rows[key] for key in sorted(self.rows, key=place_of)]
        with atomic_file(self.path) as path:
            path.write_text("\n".join([*self.before, *title, *rows, *self.after, ""]), "utf-8")


def place_of(key: Key) -> tuple[bool, str, int, int]:
    dataset, encoder, head = key
    return dataset == "persona", dataset, ENCODERS.index(encoder), HEADS.index(head)


def main() -> None:
    """Run what has no row yet, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--persona", type=Path, required=True)
    parser.add_argument("--polis", type=Path, required=True)
    parser.add_argument("--mpnet", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--only", choices=("persona", "polis"))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--limit", type=int, default=400, help="statements of each interest")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    page = Page.read(given.out)
    for dataset, about in datasets(given).items():
        for encoder, settings in encoders(given).items():
            heads = [name for name in given.heads if (dataset, encoder, name) not in page.rows]
            settings = {**about, **settings, "encoder": encoder, "dataset": dataset}
            for cells in rows(settings, heads):
                print(page.add(cells), flush=True)
                page.write()


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
    minilm, mpnet, smollm2 = ENCODERS
    found: dict[str, dict[str, Any]] = {minilm: {}}
    if given.mpnet is not None:
        found[mpnet] = {f"embed.{mpnet}.model": str(given.mpnet)}
    if given.smollm2 is not None:
        found[smollm2] = {
            f"embed.{smollm2}.model": str(given.smollm2.parent),
            f"embed.{smollm2}.gguf_file": given.smollm2.name,
        }
    return found


def rows(settings: dict[str, Any], heads: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield a row of the table for each head."""
    if not heads:
        return
    base = load(None, (), settings).config
    spent = Path(f"{base.dataset}-{base.encoder}.seconds")
    embedded = pipeline.embed(base)
    if embedded.encoded:
        spent.write_text(f"{embedded.seconds.total:.0f}")
    seconds = spent.read_text() if spent.is_file() else ""
    for head in heads:
        metrics = judged(load(None, (), {**settings, "train.head": head}).config)
        seen, unseen = metrics.test_seen, metrics.test_unseen.get(SHOTS)
        cells = (
            base.dataset, base.encoder, str(embedded.dim), str(embedded.items_unique), seconds,
            head, f"{datetime.now(UTC):%Y-%m-%d}", interval(seen), f"{seen.nll:.4f}",
            interval(unseen),
        )  # fmt: skip
        yield dict(zip(COLUMNS, cells, strict=True))


def judged(config: Config) -> Metrics:
    """Return what a head reaches in folds, trained if it is not there."""
    run = f"{config.dataset}-{config.encoder}-{config.train.head}"
    found = Metrics.find(folder_of(config.paths.runs / run, FOLDS))
    if found is not None:
        return found
    if not (config.paths.runs / run / "head.json").is_file():
        pipeline.train(config, run)
    (metrics,) = pipeline.evaluate(config, [run], FOLDS).runs
    return metrics


if __name__ == "__main__":
    main()
