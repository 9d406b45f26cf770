"""Small projects, and what is on their disk without what no two calls have in common."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pal.audit.record import AuditPlan, AuditRecord
from pal.cache.records import Manifest, SpecRecord
from pal.dataset import DatasetCard
from pal.errors import PalError
from pal.records import HEADER, Damaged, Record, read_sealed
from pal.reward.export_record import ExportRecord
from pal.train.run_record import RunRecord

SIZES = {
    "encoder": "tiny-text",
    "embed": {
        "rows_per_shard": 100,
        "tiny-last": {"model": "random:llama", "pooling": "last", "max_length": 128},
    },
    "train": {"epochs": 2},
    "adapt": {"shots": [0, 2], "repeats": 1},
    "sweep": {"head": ["pal-a"], "k": [1, 2], "seed": [0, 1], "together": 2},
    "evaluate": {"ties": "half"},
}
WORDS = ("tea", "rain", "sun", "sea", "hills", "books", "films", "bread", "rice", "cats", "dogs")
FOLDERS: dict[str, type[Record]] = {"data": DatasetCard, "runs": RunRecord, "exports": ExportRecord}
"""what is made and replaced as a whole"""
CHANGING = {
    "seconds", "spent", "rows_per_s", "created_utc", "encoded", "reused", "trained", "together",
    "mode", "tokens_real", "tokens_padded", "mtime_ns", "rows_per_second", "files", "pal.sha256",
}  # fmt: skip
"""what tells of the work of one call, not of its result; seals of files that tell it"""
TEXTS = {".md", ".csv", ".yaml", ".log"}
"""what is made for people out of the rest, with times in it"""
LEFT = (".inflight-", ".parked-", ".held", ".part", ".unfinished")
"""what no command may leave behind that comes to its end"""
LOCKS = ".lock"
"""the ending of empty files that killed commands leave; nobody holds them: they block nobody"""


def answers_of(seed: int, users: int, each: int, numbers: int) -> list[dict[str, str]]:
    """Return comparisons of people who like six of eleven things, ``each`` so many; prompts have
    one of so many ``numbers``."""
    chance = random.Random(seed)
    rows = []
    for user in range(users):
        likes = chance.sample(WORDS, 6)
        for number in range(each):
            one, other = chance.sample(WORDS, 2)
            first = one in likes if (one in likes) != (other in likes) else chance.random() < 0.5
            chosen, rejected = (one, other) if first else (other, one)
            prompt = f"What would you like, {chance.choice(WORDS)} or {number % numbers}?"
            answer = {"chosen": f"I like {chosen}.", "rejected": f"I like {rejected}."}
            rows.append({"user_id": f"u{user}", "prompt": prompt, **answer})
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def to_score(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return what was chosen, as rows for ``pal score``."""
    return [
        {"prompt": row["prompt"], "response": row["chosen"], "user_id": row["user_id"]}
        for row in rows
    ]


def write_source(folder: Path, seed: int) -> None:
    """Write answers of some people in three files, settings, and rows to score."""
    rows = answers_of(seed, 12, 24, 9)
    (folder / "source").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        write_lines(folder / "source" / f"{number}.jsonl", rows[number::3])
    write_lines(folder / "rows.jsonl", to_score(rows[10:70]))
    own = {"source": "source", "min_pairs": 4, "grouping": "prompt"}
    settings = {**SIZES, "dataset": "pairs", "data": {"pairs": own}}
    (folder / "pipeline.yaml").write_text(json.dumps(settings))


@dataclass(frozen=True)
class Tree:
    """What is below a folder: the digest of each value of each file."""

    values: dict[str, dict[str, str]]

    @classmethod
    def of(cls, folder: Path) -> Tree:
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() and not path.is_dir():
                found[str(path.relative_to(folder))] = {"link": str(path.readlink())}
            elif path.is_file() and path.suffix != LOCKS:
                found[str(path.relative_to(folder))] = _values(path)
        return cls(found)

    def differences(self, *others: Tree) -> list[str]:
        """Return what is as in none of the others: values, missing and additional files."""
        told = []
        for name in sorted({*self.values, *(n for other in others for n in other.values)}):
            mine = self.values.get(name)
            theirs = [other.values.get(name) for other in others]
            if mine in theirs:
                continue
            if mine is None or all(values is None for values in theirs):
                told.append(f"{name} is {'missing' if mine is None else 'additional'}")
                continue
            keys = sorted(
                key for key in mine if all(mine[key] != (v or {}).get(key) for v in theirs)
            )
            told.append(f"{name} differs: {', '.join(keys[:5]) or 'keys'}")
        return told

    def left(self) -> list[str]:
        """Return the files that only a killed command may leave."""
        parts = {part for name in self.values for part in Path(name).parts}
        return sorted(p for p in parts if any(one in p for one in LEFT))


def _values(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    if path.suffix in TEXTS or path.suffix == ".png":
        return {}
    if path.suffix == ".json":
        try:
            return dict(_leaves(json.loads(raw), ""))
        except ValueError:
            pass
    if path.suffix == ".parquet" and "results" in path.name:
        table = pq.read_table(path)
        kept = [name for name in table.column_names if name not in CHANGING]
        return {name: _digest(repr(table.column(name).to_pylist()).encode()) for name in kept}
    return {"bytes": _digest(raw)}


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in CHANGING and key != HEADER:
                yield from _leaves(inner, f"{place}.{key}")
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}.{number}")
    else:
        yield place, _digest(json.dumps(value, sort_keys=True).encode())


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def broken(folder: Path) -> list[str]:
    """Return what there is in a project that is neither absent nor whole."""
    told = []
    for place, kind in FOLDERS.items():
        for path in sorted((folder / place).glob("[!.]*/")):
            told += _broken_folder(path, kind)
    for path in sorted((folder / "audits").glob("[!.]*/")):
        told += _broken_folder(path, AuditPlan) + _broken_folder(path, AuditRecord)
    for path in sorted((folder / "cache").glob(f"*/*/{Manifest.file}")):
        told += _broken_folder(path.parent, Manifest)
    for path in sorted((folder / "cache").glob(f"*/*/{SpecRecord.file}")):
        told += _broken_folder(path.parent, SpecRecord)
    return told


def _broken_folder(folder: Path, kind: type[Record]) -> list[str]:
    try:
        record = kind.read(folder)
    except PalError as error:
        return [f"{folder}: {error}"]
    told = []
    for name, seal in (getattr(record, "files", None) or {}).items():
        path = folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != seal:
                read_sealed(path, seal)
        except (OSError, Damaged) as problem:
            told.append(f"{path} {problem}")
    return told


def fresh(sound: Path, work: Path) -> None:
    """Put a copy of a project in the place of another; the folder itself stays."""
    work.mkdir(exist_ok=True)
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(sound, work, symlinks=True, dirs_exist_ok=True)
