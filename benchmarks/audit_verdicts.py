"""What audits find: the table of verdicts of docs/results/audit.md.

    python benchmarks/audit_verdicts.py --source FOLDER --persona FOLDER [--only NAME ...]

``--source`` holds ``polis/<conversation>`` and ``polarized-issues``, as their platforms export
them; ``--persona`` the statement files. Sets whose plurality is known are generated
(``audit_planted.py``). Everything is made under ``--work``; killed, the same command goes on. Rows
of sets that are not named, and were not audited there, stay as they are in the table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from audit_planted import write_images, write_summaries
from marked import between, part_of
from real import settings_of

from pal import pipeline
from pal.audit.record import AuditRecord
from pal.config import load
from pal.evaluate.report import NOTHING, Table, as_markdown

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "audit.md"
PERSONA = {
    "users": 100, "unseen_users": 10, "validation_users": 10, "pairs_per_user": 30,
    "validation_pairs_per_user": 10, "test_pairs_per_user": 10,
}  # fmt: skip
"""120 people of 40 or 50 answers each"""
COLUMNS = [
    "audit", "made", "verdict", "gain, nats", "points", "p of B", "users exchanged", "p of A",
    "directions", "groups", "stability", "smallest share", "people", "answers", "differ", "alpha",
    "reliability", "careless", "overruled", "s",
]  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where raw data are."""

    source: Path | None
    persona: Path | None
    made: Path
    """of generated sources"""


@dataclass(frozen=True)
class Audited:
    """A set, and how it is audited."""

    dataset: str
    settings: dict[str, Any] = field(default_factory=dict)
    """of the dataset"""
    encoder: str = "minilm"
    power: bool = False
    """whether the smallest share is looked for"""
    given: str = "made"
    """which of the places holds the raw data"""
    place: str | None = None
    """within it; None: the dataset needs none"""

    def options(self, places: Places) -> dict[str, Any]:
        """Return the settings of the audit."""
        folder = getattr(places, self.given)
        options = {"dataset": self.dataset, "encoder": self.encoder, "audit.power": self.power}
        if self.given == "source":
            return {**options, **settings_of(self.dataset, folder)}
        own = {**self.settings, **({} if self.place is None else {"source": folder / self.place})}
        return {
            **options,
            **{f"data.{self.dataset}.{key}": _plain(value) for key, value in own.items()},
        }


SETS = {
    "persona-1": Audited(
        "persona", {**PERSONA, "groups": 1}, power=True, given="persona", place="."
    ),
    "persona-2": Audited("persona", {**PERSONA, "groups": 2}, given="persona", place="."),
    "persona-4": Audited("persona", {**PERSONA, "groups": 4}, given="persona", place="."),
    "demo": Audited("demo", PERSONA),
    "tldr-one": Audited("tldr-real", {"test_worker_rows": 50}, power=True, place="tldr.json"),
    "tldr-two": Audited("tldr-length", {"test_worker_rows": 50}, place="tldr.json"),
    "pickafilter-0": Audited(
        "pickafilter", {"beta": 0.0}, "tiny-clip", power=True, place="pickapic"
    ),
    "pickafilter-1": Audited("pickafilter", {"beta": 1.0}, "tiny-clip", place="pickapic"),
    "canadian-electoral-reform": Audited("canadian-electoral-reform", given="source"),
    "ssis": Audited("ssis", given="source"),
    "15-per-hour-seattle": Audited("15-per-hour-seattle", power=True, given="source"),
    "polarized-issues": Audited("polarized-issues", given="source"),
    "bowling-green": Audited("bowling-green", given="source"),
}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def audited(name: str, places: Places, work: Path) -> AuditRecord:
    """Prepare, encode and audit a set; what is there is taken over."""
    options = SETS[name].options(places)
    options |= {
        "paths.data": str(work / name / "data"), "paths.cache": str(work / name / "cache"),
        "paths.audits": str(work / "audits"),
    }  # fmt: skip
    config = load(None, (), options).config
    pipeline.embed(config)
    return pipeline.audit(config, name)


def write_sources(folder: Path) -> None:
    """Generate the sources whose plurality is known, unless they are there."""
    if not (folder / "tldr.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_summaries(folder / "tldr.json")
    if not (folder / "pickapic").exists():
        write_images(folder / "pickapic")


def row_of(record: AuditRecord, made: str) -> list[str]:
    """Return the row of an audit."""
    r = record
    name = f"{r.name} (untrained)" if r.untrained else r.name
    return [
        name, made, r.verdict, told(r.gain_nats, r.gain_ci95, "+.4f"),
        told(r.gain_points, r.gain_points_ci95, "+.1f"),
        told(r.p_features), told(r.p_permutation), told(r.p_overlap),
        NOTHING if r.directions is None else f"{r.directions}",
        NOTHING if r.groups is None else f"{r.groups}", told(r.group_stability, None, ".2f"),
        _smallest(r), f"{r.users:,}", f"{r.answers:,}", told(r.disagreement, None, ".1%"),
        told(r.krippendorff_alpha), told(r.median_reliability, None, ".2f"),
        told(r.careless_share, None, ".1%"), told(r.overruled, None, ".1%"), f"{r.seconds:.0f}",
    ]  # fmt: skip


def told(value: float | None, interval: Sequence[float] | None = None, form: str = ".3f") -> str:
    if value is None:
        return NOTHING
    if interval is None:
        return format(value, form)
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def _smallest(record: AuditRecord) -> str:
    if record.power is None:
        return NOTHING
    return "above 50%" if record.smallest_share is None else f"{record.smallest_share:.0%}"


def rows_in(page: str) -> dict[str, list[str]]:
    """Return the rows that the table of a page has by now, by their names; columns that it lacks
    are empty."""
    part = part_of(page, "verdicts").splitlines()
    lines = [line.strip().strip("|") for line in part if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    named = [dict(zip(header, row, strict=True)) for row in rows]
    return {row["audit"]: [row.get(name, NOTHING) for name in COLUMNS] for row in named}


def table_of(folder: Path, page: str) -> str:
    """Return the table of all audits in a folder, and of those that a page has besides."""
    rows = rows_in(page)
    for place in sorted(folder.iterdir()):
        record = AuditRecord.find(place)
        if record is not None:
            written = (place / AuditRecord.file).stat().st_mtime
            row = row_of(record, f"{datetime.fromtimestamp(written, UTC):%Y-%m-%d}")
            rows[row[0]] = row
    order = list(SETS)
    known = {name: order.index(re.sub(r" \(.*", "", name)) for name in rows}
    table: Table = [COLUMNS, *(rows[name] for name in sorted(rows, key=known.__getitem__))]
    return as_markdown(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="answers of real people")
    parser.add_argument("--persona", type=Path, help="statement files")
    parser.add_argument("--only", nargs="*", choices=list(SETS), help="none: the table alone")
    parser.add_argument("--work", type=Path, default=Path("audit-verdicts"))
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    places = Places(options.source, options.persona, options.work / "made")
    named = list(SETS) if options.only is None else options.only
    write_sources(places.made)
    for name in named:
        if getattr(places, SETS[name].given) is None:
            print(f"{name}: left out, for --{SETS[name].given} is not given")
            continue
        print(f"{name}: {audited(name, places, options.work).sentence}", flush=True)
    page = options.out.read_text(encoding="utf-8")
    body = table_of(options.work / "audits", page)
    options.out.write_text(between(page, "verdicts", body), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
