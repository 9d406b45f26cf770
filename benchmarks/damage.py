"""What comes of damage: every file that we write, damaged in every way, read by every command.

    python benchmarks/damage.py [--flips 3] [--only whole/runs/] [--jobs 2]

writes docs/results/damage.md.

A small project is made twice, with other people in the second. Then one file at a time is
truncated, has one bit flipped, is deleted, or is replaced by the file in its place in the second
project, and every command that may read it is run. What it prints is compared with what it prints
over an undamaged project:

refused   one sentence, exit code 1, nothing on standard output
rebuilt   the same result, and the file is sound again
warned    a result, and a warning that says what is missing
unread    the same result, the file still as it was: the command does not need it
BELIEVED  another result, without a word
TRACEBACK an error of our own
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from forked import Done, run
from trees import CHANGING, answers_of, to_score, write_lines

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "docs" / "results" / "damage.md"
SIZES = {
    "encoder": "tiny-text",
    "embed": {
        "rows_per_shard": 64,
        "max_error_rate": 0.5,
        "last": {"model": "random:llama", "pooling": "last", "max_length": 128},
    },
    "train": {"epochs": 2},
    "adapt": {"shots": [0, 2], "repeats": 2},
    "sweep": {"head": ["pal-a"], "k": [1, 2], "seed": [0]},
}
OWN_DATA = {"source": "pairs.jsonl", "min_pairs": 4, "grouping": "prompt"}
DATA = ["--dataset", "pairs"]
LAST = ["--encoder", "last"]
"""read at the last token, so that a head can be folded into the model"""
PAGE = "page.html"
COMMANDS: dict[str, list[str]] = {
    "prepare": ["prepare", *DATA, "--json"],
    "embed": ["embed", *DATA, "--json"],
    "retry": ["embed", *DATA, "--retry-errors", "--json"],
    "train": ["train", *DATA, "--run", "new", "--json"],
    "verify": ["cache", "verify", "cache/pairs/tiny-text", "--json"],
    "evaluate": ["evaluate", "--run", "one", "--run", "two", "--json"],
    "folds": ["evaluate", "one", "--folds", "2", "--json"],
    "adapt": ["adapt", "--run", "one", "--json"],
    "sweep": ["sweep", *DATA, "--name", "s", "--json"],
    "optuna": ["sweep", *DATA, "--name", "o", "--set", "sweep.sampler=optuna", "--set",
               "sweep.samples=3", "--json"],
    "export": ["export", "--run", "one", "--name", "new", "--json"],
    "audit": ["audit", *DATA, "--name", "a", "--permutations", "19", "--set",
              "audit.overlap_draws=19", "--json"],
    "report": ["report", "dataset:pairs", "run:one", "sweep:s", "audit:a", "--out", PAGE,
               "--json"],
    "runs": ["runs", "ls", "--json"],
    "score": ["score", "--model", "exports/one", "--input", "rows.jsonl", "--output",
              "scored.jsonl", "--json"],
    "score merged": ["score", "--model", "exports/merged", "--input", "of-nobody.jsonl", "--output",
                     "again.jsonl", "--json"],
}  # fmt: skip
READERS = {
    "half/cache/": ["embed", "retry"],
    "killed/audits/": ["audit", "report"],
    "whole/audits/": ["audit", "report"],
    "whole/data/": ["prepare", "embed", "train", "evaluate", "adapt", "sweep", "export", "audit",
                    "report"],
    "whole/cache/": ["embed", "retry", "train", "verify", "evaluate", "adapt", "sweep", "export",
                     "audit", "report"],
    "whole/runs/one/folds/": ["folds", "adapt", "export", "report", "runs"],
    "whole/runs/": ["train", "evaluate", "adapt", "sweep", "export", "report", "runs"],
    "whole/sweeps/s": ["sweep", "report"],
    "whole/sweeps/o": ["optuna"],
    "whole/exports/one": ["score"],
    "whole/exports/merged": ["score merged"],
    "whole/.scored": ["score"],
}  # fmt: skip
"""by the start of a path: the commands that may read what lies there"""
OF_THE_CALL = CHANGING | {"tokens_padded", "truncated", "answers_cut", "bytes"}
"""what tells of the work of one call or of the disk, not of its result"""
NOT_SHOWN = re.compile(r"(is not|cannot be) shown: |<td>(damaged|incomplete)<")
"""what a page says of a part that it has to leave out"""
LISTED_AS = re.compile(r'"state": "(damaged|damaged evaluation|not evaluated)"')
"""what a list of runs says of one"""


class Damage(NamedTuple):
    """One way in which a file comes to harm."""

    name: str
    do: Callable[[Path, Path | None, random.Random], bool]
    """changes the file; False where it cannot"""


def truncate(path: Path, twin: Path | None, chance: random.Random) -> bool:
    raw = path.read_bytes()
    path.write_bytes(raw[: chance.randrange(len(raw))] if raw else b"")
    return bool(raw)


def flip(path: Path, twin: Path | None, chance: random.Random) -> bool:
    raw = bytearray(path.read_bytes())
    if not raw:
        return False
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return True


def delete(path: Path, twin: Path | None, chance: random.Random) -> bool:
    path.unlink()
    return True


def swap(path: Path, twin: Path | None, chance: random.Random) -> bool:
    if twin is None or twin.read_bytes() == path.read_bytes():
        return False
    path.write_bytes(twin.read_bytes())
    return True


DAMAGES = [
    Damage("truncated", truncate),
    Damage("one bit flipped", flip),
    Damage("deleted", delete),
    Damage("swapped", swap),
]


def write_source(folder: Path, seed: int) -> None:
    """Write answers of some people, and rows to score."""
    rows = answers_of(seed, 14, 40, 40)
    write_lines(folder / "pairs.jsonl", rows)
    asked = to_score(rows[10:40])
    write_lines(folder / "rows.jsonl", asked)
    write_lines(folder / "of-nobody.jsonl", [{**row, "user_id": ""} for row in asked])
    settings = {
        **SIZES,
        "dataset": "pairs",
        "data": {"pairs": {**OWN_DATA, "salt": f"v{seed}"}},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(settings))


def build(folder: Path, seed: int) -> None:
    """Make a whole project: every kind of file that we write."""
    folder.mkdir(parents=True)
    write_source(folder, seed)
    steps = [
        ["embed", *DATA],
        ["train", *DATA, "--run", "one", "--k", "2"],
        ["train", *DATA, "--run", "two", "--head", "bt-linear"],
        ["adapt", "--run", "one"],
        ["sweep", *DATA, "--name", "s"],
        COMMANDS["optuna"][:-1],
        ["evaluate", "--run", "one", "--run", "two"],
        COMMANDS["folds"],
        ["export", "--run", "one", "--name", "one"],
        ["embed", *DATA, *LAST],
        ["train", *DATA, *LAST, "--run", "three", "--head", "bt-linear"],
        ["export", "--run", "three", "--name", "merged", "--merge"],
        COMMANDS["audit"],
    ]  # fmt: skip
    for step in steps:
        done = run([*step, "--seed", str(seed)] if step[0] == "train" else step, folder)
        if done.code:
            raise SystemExit(f"pal {' '.join(step)}: {done.err}")
    run(COMMANDS["score"], folder, before=_end_before_the_output)


def refuse_one_text() -> None:
    """Let the encoder fail at one item, so that there is a table of failed ones."""
    from pal.embed.encoders import text as encoder
    from pal.embed.odd import Failure

    usual = encoder.unreadable

    def unreadable(item: Any) -> Failure | None:
        is_chosen = item.text == "I like dogs." and not item.context
        return Failure("decode", "Chosen", "refused by the script") if is_chosen else usual(item)

    encoder.unreadable = unreadable


def _end_before_the_output() -> None:
    """Let a scoring end as a killed one does, with its state left."""
    import os

    from pal.reward.output import Output

    Output.write = lambda *rest: os._exit(9)  # type: ignore[method-assign]


def result_of(done: Done, folder: Path) -> Any:
    """Return what a command found, without what no two calls have in common."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in OF_THE_CALL}
        return [plain(v) for v in value] if isinstance(value, list) else value

    found = [plain(json.loads(line)) for line in done.out.splitlines()]
    written = [folder / name for name in ("scored.jsonl", "again.jsonl", PAGE)]
    return found, [path.read_text() for path in written if path.exists()]


def outcome_of(done: Done, usual: Any, folder: Path, path: Path, raw: bytes | None) -> str:
    """Return what came of a command that met a damaged file, ``raw`` after the damage."""
    if done.is_sentence:
        return "refused"
    if done.code or "Traceback" in done.err:
        return "TRACEBACK"
    is_same = result_of(done, folder) == usual
    now = path.read_bytes() if path.exists() else None
    if is_same:
        return "unread" if now == raw else "rebuilt"
    page = folder / PAGE
    is_told = page.exists() and NOT_SHOWN.search(page.read_text()) is not None
    is_told |= LISTED_AS.search(done.out) is not None or "pal: warning: " in done.err
    return "warned" if is_told else "BELIEVED"


def role_of(path: Path) -> str:
    """Return a path without what differs between two projects: numbers and fingerprints."""
    name = re.sub(r"-[0-9a-f]{12}(?=/)", "-*", str(path))
    return re.sub(r"\.[0-9a-f]{8}(?=\.)|(?<=part-)\d+(?=-of)|(?<=of-)\d+", "*", name)


Outcomes = dict[str, dict[str, set[str]]]
"""what was seen of one kind of file: by damage and outcome, the commands"""


def fill_half(folder: Path) -> None:
    """Let the cache be one that is still being filled: without a manifest and a shard."""
    cache = folder / "cache" / "pairs" / "tiny-text"
    (cache / "manifest.json").unlink()
    for path in (cache / "shards").glob("part-00001-*"):
        path.unlink()


def kill_audit(folder: Path) -> None:
    """Let the audit be one that was killed: with its draws, without its record."""
    (folder / "audits" / "a" / "audit.json").unlink()


WHOLE = "whole"
UNFINISHED = {"half": fill_half, "killed": kill_audit}
"""the same project before a command had come to its end"""


def artefacts(folder: Path) -> Iterator[Path]:
    """Yield one file of each kind, relative to the folder of both projects."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or not readers_of(relative):
            continue
        if role_of(relative) not in seen:
            seen.add(role_of(relative))
            yield relative


def twins(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.setdefault(role_of(path.relative_to(folder)), path)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=3, help="bits flipped one after the other")
    parser.add_argument("--only", default="", help="paths that begin so")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    refuse_one_text()
    every: list[Seen] = []
    with TemporaryDirectory() as place:
        sound, other = Path(place) / "sound", Path(place) / "other"
        for folder, seed in ((sound, 1), (other, 2)):
            build(folder / WHOLE, seed)
            for name, unfinish in UNFINISHED.items():
                shutil.copytree(folder / WHOLE, folder / name, symlinks=True)
                unfinish(folder / name)
        chosen = [one for one in artefacts(sound) if str(one).startswith(options.only)]
        others, children = twins(other), []
        for job in range(options.jobs):
            if not (child := os.fork()):
                trial = Trial(sound, Path(place) / f"work-{job}", others)
                seen = list(tried(trial, chosen[job :: options.jobs], options))
                (Path(place) / f"seen-{job}.json").write_text(json.dumps(seen))
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        for job in range(options.jobs):
            seen = json.loads((Path(place) / f"seen-{job}.json").read_text())
            every += [Seen(*one) for one in seen]
    table: dict[str, Outcomes] = {role_of(one): {} for one in chosen}
    for one in every:
        of_damage = table[one.role].setdefault(one.damage, {})
        of_damage.setdefault(one.outcome, set()).add(one.command)
    bad, trials = sum(one.outcome.isupper() for one in every), len(every)
    text = as_text(table, trials, options)
    print(text)
    if not options.only:
        TABLE.write_text(text)
    print(f"{bad} of {trials} believed a damaged file or ended with an error of our own")
    return 1 if bad else 0


class Seen(NamedTuple):
    """What came of one command over one damaged file."""

    role: str
    damage: str
    outcome: str
    command: str


def tried(trial: Trial, files: Sequence[Path], options: argparse.Namespace) -> Iterator[Seen]:
    """Damage files in every way, run every command that may read them, and say what came of it."""
    for relative in files:
        for damage in DAMAGES:
            for number in range(options.flips if damage.do is flip else 1):
                seed = f"{options.seed} {relative} {damage.name} {number}"
                for name in readers_of(relative):
                    outcome, told = trial.of(relative, damage, name, seed)
                    if outcome is None:
                        continue
                    if outcome.isupper():
                        print(f"{relative}, {damage.name}, {name}: {outcome}\n{told}", flush=True)
                    yield Seen(role_of(relative), damage.name, outcome, name)


@dataclass
class Trial:
    """The projects, and what each command prints over an undamaged one."""

    sound: Path
    work: Path
    twins: dict[str, Path]
    usual: dict[tuple[str, str], Any] = field(default_factory=dict)

    def of(self, relative: Path, damage: Damage, name: str, seed: str) -> tuple[str | None, str]:
        """Damage one file, run one command, and return what came of it, with its last words.

        None where the file cannot be damaged so.
        """
        project = relative.parts[0]
        if (project, name) not in self.usual:
            fresh(self.sound / project, self.work)
            self.usual[project, name] = result_of(run(COMMANDS[name], self.work), self.work)
        fresh(self.sound / project, self.work)
        path = self.work / relative.relative_to(project)
        if not damage.do(path, self.twins.get(role_of(relative)), random.Random(seed)):
            return None, ""
        raw = path.read_bytes() if path.exists() else None
        done = run(COMMANDS[name], self.work)
        outcome = outcome_of(done, self.usual[project, name], self.work, path, raw)
        return outcome, done.err[-2000:]


def readers_of(relative: Path) -> list[str]:
    """Return the commands that may read a file."""
    return next((r for start, r in READERS.items() if str(relative).startswith(start)), [])


def fresh(sound: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work, symlinks=True)


def as_text(table: dict[str, Outcomes], trials: int, options: argparse.Namespace) -> str:
    names = [damage.name for damage in DAMAGES]
    lines = [
        "# Damaged files",
        "",
        f"Made by `python benchmarks/damage.py --flips {options.flips} --seed {options.seed}` on "
        f"{datetime.now(UTC):%Y-%m-%d}: {trials:,} commands over damaged files. Each cell",
        "says what the commands did that may read the file; the script tells what the words mean.",
        "",
        f"| file | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for role, found in table.items():
        cells = [_cell(found.get(name, {})) for name in names]
        lines.append(f"| `{role.removeprefix('whole/')}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(outcomes: dict[str, set[str]]) -> str:
    if not outcomes:
        return "–"
    told = {word: sorted(commands) for word, commands in sorted(outcomes.items())}
    if len(told) == 1:
        return next(iter(told))
    parts = [f"{word}: {', '.join(c)}" for word, c in told.items() if word != "unread"]
    return "; ".join(parts) if len(parts) > 1 else parts[0]


if __name__ == "__main__":
    raise SystemExit(main())
