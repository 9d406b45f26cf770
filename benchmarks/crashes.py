"""What comes of kills, of rivals and of disks: every command that writes, run again afterwards.

    python benchmarks/crashes.py [--points 12] [--pairs 2] [--only train] [--write]

kills   a command dies by SIGKILL just before its n-th change of the disk (rename, removal, fsync,
        new folder), at a random moment, or as a real process with its own workers. What was there
        must be whole, old or new; the same command must then give what an undisturbed one gives,
        and leave nothing behind.
pairs   two commands at once, the same one or two that meet in their files: each ends well or with
        one sentence, and after those that were refused have run again, every file is as one of the
        two orders makes it.
disks   full at several points, read-only, without hard links and exchanging renames, over two
        devices by links, and with errors of every kind: one sentence that names the folder, nothing
        half written; with a good disk, the same command gives what an undisturbed one gives.

Times, and seals of files that hold times, are not compared (benchmarks/trees.py).
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from forked import Done, finish, run, start
from trees import Tree, broken, fresh, write_source

import pal.files

RESULT = Path(__file__).resolve().parent / "results" / "crashes.md"
AUDIT = ["audit", "--name", "a", "--permutations", "19", "--set", "audit.overlap_draws=19"]
REPORT = ["report", "dataset:pairs", "run:one", "--out", "page.html"]
STATES: dict[str, tuple[str, list[list[str]]]] = {
    "empty": ("", []),
    "prepared": ("empty", [["prepare"]]),
    "embedded": ("prepared", [["embed"]]),
    "trained": (
        "embedded",
        [["train", "--run", "one"], ["train", "--run", "two", "--head", "bt-linear"]],
    ),
    "evaluated": (
        "trained",
        [["evaluate", "--run", "one", "--run", "two"], ["adapt", "--run", "one"]],
    ),
    "exported": ("trained", [["export", "--run", "one", "--name", "one"]]),
    "failed": ("prepared", [["embed", "--set", "embed.max_error_rate=0.9"]]),
    "audited": ("evaluated", [AUDIT]),
    "swept": ("embedded", [["sweep", "--name", "s", "--set", "sweep.k=[1]"]]),
    "readable by transformers": (
        "prepared",
        [
            ["embed", "--encoder", "tiny-last"],
            ["train", "--run", "two", "--head", "bt-linear", "--encoder", "tiny-last"],
        ],
    ),
}
"""of a project: the state before, and the commands that lead to it"""


class Command(NamedTuple):
    """A command that writes, and the state of the project that it is run in."""

    state: str
    arguments: list[str]
    is_same: bool = True
    """whether a killed one that is run again gives the same result"""


SCORE = ["score", "--model", "exports/one", "--input", "rows.jsonl", "--output"]
COMMANDS = {
    "prepare": Command("empty", ["prepare"]),
    "prepare again": Command("prepared", ["prepare", "--set", "data.pairs.salt=other"]),
    "embed": Command("prepared", ["embed"]),
    "embed, two processes": Command("prepared", ["embed", "--set", "embed.actors=2"]),
    "embed --retry-errors": Command("failed", ["embed", "--retry-errors"]),
    "cache export": Command("embedded", ["cache", "export", "cache/pairs/tiny-text", "-o", "copy"]),
    "train": Command("embedded", ["train", "--run", "one"]),
    "train again": Command("evaluated", ["train", "--run", "one"]),
    "evaluate": Command("trained", ["evaluate", "--run", "one", "--run", "two"]),
    "evaluate --folds": Command("trained", ["evaluate", "one", "--folds", "2"]),
    "adapt": Command("trained", ["adapt", "--run", "one"]),
    "adapt --grow": Command("trained", ["adapt", "--run", "one", "--grow", "1"]),
    "sweep": Command("embedded", ["sweep", "--name", "s"]),
    "sweep again": Command("swept", ["sweep", "--name", "s"]),
    "sweep, optuna": Command(
        "embedded",
        ["sweep", "--name", "o", "--set", "sweep.sampler=optuna", "--set", "sweep.samples=3"],
        is_same=False,
    ),
    "export": Command("trained", ["export", "--run", "one", "--name", "one"]),
    "export again": Command("exported", ["export", "--run", "one", "--name", "one"]),
    "export --merge": Command(
        "readable by transformers", ["export", "--run", "two", "--name", "m", "--merge"]
    ),
    "audit": Command("embedded", AUDIT),
    "audit again": Command("audited", [*AUDIT, "--set", "seed=1"]),
    "report": Command("evaluated", REPORT),
    "cache rm": Command("embedded", ["cache", "rm", "pairs", "--yes"]),
    "runs rm": Command("evaluated", ["runs", "rm", "one", "--yes"]),
    "score": Command("exported", [*SCORE, "scored.jsonl"]),
    "score, Parquet": Command("exported", [*SCORE, "scored.parquet"]),
}
OTHER = ["--set", "data.pairs.salt=other"]
PAIRS: list[tuple[str, list[str], list[str]]] = [
    ("empty", ["prepare"], ["prepare"]),
    ("empty", ["prepare"], ["embed"]),
    ("empty", ["embed"], ["embed"]),
    ("prepared", ["embed"], ["embed"]),
    ("prepared", ["embed"], ["embed", "--set", "embed.rows_per_shard=50"]),
    ("prepared", ["embed"], ["train", "--run", "one"]),
    ("prepared", ["embed", "--layers=-1,-2"], ["embed"]),
    ("failed", ["embed", "--retry-errors"], ["embed", "--retry-errors"]),
    ("failed", ["embed", "--retry-errors"], ["train", "--run", "one"]),
    ("prepared", ["prepare", *OTHER], ["prepare"]),
    ("embedded", ["prepare", *OTHER], ["train", "--run", "one"]),
    ("embedded", ["train", "--run", "one"], ["train", "--run", "one"]),
    ("embedded", ["train", "--run", "one"], ["train", "--run", "one", "--k", "3"]),
    ("embedded", ["train", "--run", "one"], ["train", "--run", "two", "--seed", "1"]),
    ("evaluated", ["train", "--run", "one"], ["evaluate", "one", "two"]),
    ("evaluated", ["train", "--run", "one"], ["adapt", "--run", "one"]),
    ("evaluated", ["train", "--run", "one"], ["export", "--run", "one", "--name", "one"]),
    ("trained", ["evaluate", "one", "two"], ["evaluate", "one", "two"]),
    ("trained", ["evaluate", "one", "two"], ["adapt", "--run", "one"]),
    ("trained", ["adapt", "--run", "one"], ["adapt", "--run", "one"]),
    ("embedded", ["sweep", "--name", "s"], ["sweep", "--name", "s"]),
    ("swept", ["sweep", "--name", "s"], ["evaluate", "s-best"]),
    ("trained", ["export", "--run", "one", "--name", "x"],
     ["export", "--run", "one", "--name", "x"]),
    ("exported", ["export", "--run", "one", "--name", "one"], [*SCORE, "scored.jsonl"]),
    ("exported", [*SCORE, "scored.jsonl"], [*SCORE, "scored.jsonl"]),
    ("exported", [*SCORE, "scored.jsonl"], [*SCORE, "again.jsonl"]),
    ("embedded", AUDIT, AUDIT),
    ("audited", AUDIT, [*AUDIT, "--set", "seed=1"]),
    ("audited", [*AUDIT, "--set", "seed=1"], REPORT),
    ("evaluated", ["runs", "rm", "one", "--yes"], REPORT),
    ("evaluated", ["runs", "rm", "one", "--yes"], ["evaluate", "one", "two"]),
    ("embedded", COMMANDS["cache export"].arguments, COMMANDS["cache export"].arguments),
]  # fmt: skip
CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "truncate")
"""functions of ``os`` that change the disk"""
INJECTED = {
    "quota": ("fsync", errno.EDQUOT),
    "input/output": ("fsync", errno.EIO),
    "permission": ("mkdir", errno.EACCES),
}


def refuse_one_text() -> None:
    """Let the encoder fail at one item, so that there is something to try again."""
    from pal.embed.encoders import text

    usual = text.TextEncoder.stack

    def stack(self: Any, inputs: Any, rows: Any) -> Any:
        if Path("refuse").exists() and 3 in rows:
            raise ValueError("refused by the script")
        return usual(self, inputs, rows)

    text.TextEncoder.stack = stack  # type: ignore[method-assign]


def each_change(do: Callable[[int, str], None]) -> Callable[[], None]:
    """Return what makes a process call ``do(number, name)`` before each of its changes."""

    def before() -> None:
        counted = itertools.count(1)

        def wrap(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                do(next(counted), name)
                return usual(*arguments, **options)

            return wrapped

        for name in CHANGES:
            setattr(os, name, wrap(name, getattr(os, name)))
        pal.files._exchange = wrap("exchange", pal.files._exchange)

    return before


def die_at(point: int) -> Callable[[], None]:
    def do(number: int, name: str) -> None:
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return each_change(do)


def fail_at(point: int, function: str, code: int) -> Callable[[], None]:
    """Return what lets the n-th call of a function fail, and all later ones."""
    seen = itertools.count(1)

    def do(number: int, name: str) -> None:
        if name == function and next(seen) >= point:
            raise OSError(code, os.strerror(code))

    return each_change(do)


def changes_of(command: Sequence[str], folder: Path) -> list[str]:
    """Return the changes that a command makes, in order, by running it."""
    told = folder.parent / f"{folder.name}.changes"
    told.unlink(missing_ok=True)

    def do(number: int, name: str) -> None:
        with open(told, "a") as stream:
            stream.write(f"{name}\n")

    run(command, folder, each_change(do))
    return told.read_text().split()


def without_links() -> None:
    """Take hard links and exchanging renames from a process."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = refuse
    pal.files._exchange = lambda one, other: False


@dataclass
class Campaign:
    """Trials of every command in copies of a few small projects."""

    place: Path
    chance: random.Random
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    usual: dict[str, tuple[Tree, float]] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.place / "work"

    def state(self, name: str) -> Path:
        """Return the project in a state, made when it is first asked for."""
        folder = self.place / name
        if folder.exists():
            return folder
        earlier, commands = STATES[name]
        if earlier:
            shutil.copytree(self.state(earlier), folder, symlinks=True)
        else:
            write_source(folder, 1)
        if name == "failed":
            (folder / "refuse").touch()
        for command in commands:
            done = run(command, folder)
            if done.code:
                raise SystemExit(f"pal {' '.join(command)}: {done.err}")
        (folder / "refuse").unlink(missing_ok=True)
        return folder

    def undisturbed(self, name: str) -> tuple[Tree, float]:
        """Return what a command makes, and how long it takes."""
        if name not in self.usual:
            command = COMMANDS[name]
            fresh(self.state(command.state), self.work)
            done = run(command.arguments, self.work)
            if done.code:
                raise SystemExit(f"pal {' '.join(command.arguments)}: {done.err}")
            self.usual[name] = Tree.of(self.work), done.seconds
        return self.usual[name]

    def count(self, name: str, what: str) -> None:
        self.counts.setdefault(name, Counter())[what] += 1

    def find(self, name: str, what: str, told: str) -> None:
        self.findings.append(f"{name}, {what}: {told}")
        print(f"FOUND {self.findings[-1]}", flush=True)

    def require_whole(self, name: str, what: str, folder: Path) -> None:
        for told in broken(folder):
            self.find(name, what, f"half written: {told}")

    def require_rerun(self, name: str, what: str, folder: Path) -> None:
        """Run a command again and compare with what an undisturbed one makes."""
        command, (tree, _) = COMMANDS[name], self.undisturbed(name)
        done = run(command.arguments, folder)
        found = Tree.of(folder)
        is_done = is_told(done) and re.search("exists|there is no (run|cache)", done.err)
        is_there = is_done and not found.differences(tree)
        if done.code and not is_there:
            self.find(name, what, f"run again: exit {done.code}: {done.err.strip()[-1500:]}")
            return
        told = found.differences(tree) if command.is_same else found.left()
        if told or found.left():
            self.find(name, what, f"run again: {'; '.join([*told, *found.left()][:6])}")

    # kills ----------------------------------------------------------------------------------------

    def kill_at_points(self, name: str, most: int, plain: bool = True) -> None:
        """Kill a command just before its changes of the disk; ``plain``: where renames exchange."""
        command = COMMANDS[name]
        fresh(self.state(command.state), self.work)
        changes = changes_of(command.arguments, self.work)
        points = range(1, len(changes) + 1)
        if not plain:
            replaced = changes.index("exchange") + 1
            points = range(replaced, replaced + 8)
        for point in sorted(self.chance.sample(points, min(most, len(points)))):
            fresh(self.state(command.state), self.work)

            def before(point: int = point) -> None:
                if not plain:
                    without_links()
                die_at(point)()

            done = run(command.arguments, self.work, before)
            if done.code == -signal.SIGKILL:
                self.count(name, "killed at a change")
            self.require_whole(name, f"change {point} of {len(changes)}", self.work)
            self.require_rerun(name, f"change {point} of {len(changes)}", self.work)

    def kill_in_a_row(self, name: str, times: int) -> None:
        """Kill a command again and again, as far as it gets, before it is left alone."""
        command = COMMANDS[name]
        fresh(self.state(command.state), self.work)
        count = len(changes_of(command.arguments, self.work))
        fresh(self.state(command.state), self.work)
        for _ in range(times):
            done = run(command.arguments, self.work, die_at(self.chance.randint(1, count)))
            if done.code == -signal.SIGKILL:
                self.count(name, "killed in a row")
        self.require_whole(name, "in a row", self.work)
        self.require_rerun(name, "in a row", self.work)

    def kill_at_times(self, name: str, times: int) -> None:
        command, (_, seconds) = COMMANDS[name], self.undisturbed(name)
        for _ in range(times):
            fresh(self.state(command.state), self.work)
            after = self.chance.uniform(0.0, seconds)
            child = start(command.arguments, self.work, self.place)
            time.sleep(after)
            os.killpg(child, signal.SIGKILL) if _has_group(child) else os.kill(child, 9)
            done = finish(child, self.place, 0.0)
            if done.code == -signal.SIGKILL:
                self.count(name, "killed at a random time")
            self.require_whole(name, f"after {after:.2f} s", self.work)
            self.require_rerun(name, f"after {after:.2f} s", self.work)

    def kill_real(self, name: str) -> None:
        """Kill a process that the shell would start, but not those that it started itself."""
        command = COMMANDS[name]
        fresh(self.state(command.state), self.work)
        began = time.perf_counter()
        process = [sys.executable, "-m", "pal", *command.arguments]
        usual = subprocess.run(process, cwd=self.work, capture_output=True, check=False)
        assert usual.returncode == 0, usual.stderr
        seconds = time.perf_counter() - began
        fresh(self.state(command.state), self.work)
        after = self.chance.uniform(0.6 * seconds, seconds)
        running = subprocess.Popen(
            process, cwd=self.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(after)
        family = list(descendants(running.pid))
        running.kill()
        if running.wait() == -signal.SIGKILL:
            self.count(name, "killed as a real process")
        until = time.monotonic() + 10
        while any(map(is_running, family)) and time.monotonic() < until:
            time.sleep(0.05)
        for alive in filter(is_running, family):
            self.find(name, "real process", f"process {alive} outlived the one that started it")
        self.require_whole(name, f"real process, {after:.1f} s", self.work)
        self.require_rerun(name, f"real process, {after:.1f} s", self.work)

    # pairs ----------------------------------------------------------------------------------------

    def pair(self, state: str, one: list[str], other: list[str], times: int) -> None:
        """Run two commands at once, several times, and compare with both orders."""
        name = f"{' '.join(one[:3])} + {' '.join(other[:3])}"
        orders = []
        for commands in ((one, other), (other, one)):
            fresh(self.state(state), self.work)
            for command in commands:
                run(command, self.work)
            orders.append(Tree.of(self.work))
        streams = [self.place / "streams1", self.place / "streams2"]
        for number in range(times):
            fresh(self.state(state), self.work)
            began = time.perf_counter()
            children = []
            for command, stream in zip((one, other), streams, strict=True):
                stream.mkdir(exist_ok=True)
                children.append(start(command, self.work, stream))
                time.sleep(number * self.chance.uniform(0.0, 0.2))
            ended = [finish(c, s, began) for c, s in zip(children, streams, strict=True)]
            told = "both ended well" if not any(d.code for d in ended) else "one was refused"
            self.count(name, told)
            for command, done in zip((one, other), ended, strict=True):
                if done.code and not is_told(done):
                    self.find(name, "at once", f"exit {done.code}: {done.err.strip()[-1500:]}")
                elif done.code:
                    print(f"      {name}: {done.err.strip()[:150]}")
                    run(command, self.work)
            self.require_whole(name, "at once", self.work)
            found = Tree.of(self.work)
            if differences := [*found.differences(*orders), *found.left()]:
                self.find(name, "at once", "; ".join(differences[:6]))

    # disks ----------------------------------------------------------------------------------------

    def require_told(self, name: str, what: str, done: Done, words: str) -> bool:
        """Say whether a command was refused as it should be; one that needed nothing is well."""
        self.count(name, what if done.code else f"{what}: needed nothing")
        if done.code == 0:
            return False
        if not is_told(done) or not re.search(words, done.err):
            self.find(name, what, f"exit {done.code}: {done.err.strip()[-1500:]}")
        return True

    def full(self, name: str, disk: Disk, parts: Sequence[float]) -> None:
        """Run a command on a disk that has space for a part of what it writes."""
        command = COMMANDS[name]
        state = self.state(command.state)
        disk.resize(1 << 26)
        fresh(state, disk.folder)
        before = disk.used()
        run(command.arguments, disk.folder)
        written = max(disk.used() - before, 8192)
        for part in parts:
            disk.resize(1 << 26)
            fresh(state, disk.folder)
            disk.resize(disk.used() + max(4096, int(part * written)))
            done = run(command.arguments, disk.folder)
            if self.require_told(name, "full", done, r"no space is left for [^ ]+;"):
                self.require_whole(name, f"full at {part:.0%}", disk.folder)
                left = [x for x in Tree.of(disk.folder).left() if not _is_kept(x)]
                if left:
                    self.find(name, f"full at {part:.0%}", f"left behind: {left}")
            disk.resize(1 << 26)
            self.require_rerun(name, f"after a disk full at {part:.0%}", disk.folder)

    def read_only(self, name: str, disk: Disk) -> None:
        command = COMMANDS[name]
        fresh(self.state(command.state), disk.folder)
        before = Tree.of(disk.folder)
        disk.mount("remount,ro")
        done = run(command.arguments, disk.folder)
        disk.mount("remount,rw")
        self.require_told(name, "read-only", done, "can only be read|cannot be written|Read-only")
        if told := Tree.of(disk.folder).differences(before):
            self.find(name, "read-only", "; ".join(told[:5]))
        self.require_rerun(name, "after a read-only disk", disk.folder)

    def linkless(self, name: str) -> None:
        command, (tree, _) = COMMANDS[name], self.undisturbed(name)
        fresh(self.state(command.state), self.work)
        done = run(command.arguments, self.work, without_links)
        self.count(name, "without links")
        told = Tree.of(self.work).differences(tree) if command.is_same else []
        if done.code or told:
            self.find(name, "without links", f"{done.err.strip()[-1500:]} {'; '.join(told[:5])}")

    def over_devices(self, name: str, disk: Disk) -> None:
        """Run a command whose folders are links to another device."""
        command, (tree, _) = COMMANDS[name], self.undisturbed(name)
        fresh(self.state(command.state), self.work)
        fresh(self.place / "nothing", disk.folder)
        for folder in ("data", "cache", "runs", "exports", "sweeps", "audits"):
            there = disk.folder / folder
            if (self.work / folder).exists():
                shutil.copytree(self.work / folder, there, symlinks=True)
                shutil.rmtree(self.work / folder)
            there.mkdir(exist_ok=True)
            (self.work / folder).symlink_to(there)
        done = run(command.arguments, self.work)
        self.count(name, "over two devices")
        for folder in ("data", "cache", "runs", "exports", "sweeps", "audits"):
            (self.work / folder).unlink()
            shutil.copytree(disk.folder / folder, self.work / folder, symlinks=True)
        told = Tree.of(self.work).differences(tree) if command.is_same else []
        if done.code or told:
            self.find(name, "over devices", f"{done.err.strip()[-1500:]} {'; '.join(told[:5])}")

    def injected(self, name: str, what: str) -> None:
        command = COMMANDS[name]
        function, code = INJECTED[what]
        fresh(self.state(command.state), self.work)
        count = changes_of(command.arguments, self.work).count(function)
        for point in sorted({1, max(1, count // 2), max(1, count)}):
            fresh(self.state(command.state), self.work)
            done = run(command.arguments, self.work, fail_at(point, function, code))
            words = "quota|fails to read or write|not open to this user|cannot"
            self.require_told(name, f"{what} error", done, words)
            self.require_whole(name, f"{what} error at {function} {point}", self.work)
            self.require_rerun(name, f"after a {what} error at {function} {point}", self.work)


def is_told(done: Done) -> bool:
    """Say whether a command was refused with one sentence; libraries and sweeps may have said
    something before."""
    lines = [line for line in done.err.splitlines() if line.startswith("pal: ")]
    last = done.err.strip().rpartition("\n")[2]
    return (
        "Traceback" not in done.err
        and done._replace(err="\n".join(lines)).is_sentence
        and (last == lines[-1])
    )


def _is_kept(name: str) -> bool:
    """Say whether a file is kept on purpose, so that the next call goes on where this one was."""
    return ".part" in name or ".unfinished" in name


def _has_group(child: int) -> bool:
    """Say whether a forked child has its own group yet, so that no other process is hit."""
    try:
        return os.getpgid(child) == child
    except ProcessLookupError:
        return False


def descendants(parent: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


class Disk:
    """A small file system of its own in memory; needs the right to mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.mount("size=64m", new=True)

    def mount(self, options: str, new: bool = False) -> None:
        what = ["-t", "tmpfs"] if new else []
        command = ["mount", *what, "-o", options, *(["none"] if new else []), str(self.folder)]
        subprocess.run(command, check=True)

    def resize(self, size: int) -> None:
        self.mount(f"remount,size={-(-size // 4096) * 4}k")

    def used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def close(self) -> None:
        for wait in (0.1, 1.0, 3.0, None):  # a worker of a command that has ended may still end
            done = subprocess.run(["umount", str(self.folder)], check=wait is None)
            if done.returncode == 0:
                return
            time.sleep(wait or 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=12, help="kills at changes, of each command")
    parser.add_argument("--row", type=int, default=4, help="kills in a row, of each command")
    parser.add_argument("--times", type=int, default=5, help="kills at random times, of each")
    parser.add_argument("--real", type=int, default=20, help="kills of real processes, of all")
    parser.add_argument("--pairs", type=int, default=2, help="times that each pair is run")
    parser.add_argument("--disks", type=int, default=3, help="places at which the disk is full")
    parser.add_argument("--only", default="", help="commands whose names match")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args(arguments)
    refuse_one_text()
    began = time.perf_counter()
    with TemporaryDirectory(prefix="crashes-") as place:
        campaign = Campaign(Path(place), random.Random(options.seed))
        (campaign.place / "nothing").mkdir()
        names = [name for name in COMMANDS if re.search(options.only, name)]
        for name in names:
            print(f"{time.perf_counter() - began:6.0f} s  {name}", flush=True)
            if options.points:
                most = 2 if "processes" in name else options.points  # it takes long to start
                campaign.kill_at_points(name, most)
                if name.endswith("again") and not name.startswith("sweep"):
                    campaign.kill_at_points(name, options.points, plain=False)
            if options.row:
                campaign.kill_in_a_row(name, 2 if "processes" in name else options.row)
            campaign.kill_at_times(name, options.times)
        for number in range(options.real):
            campaign.kill_real(names[number % len(names)])
        for state, one, other in PAIRS:
            if options.pairs and re.search(options.only, f"{one[0]} {other[0]}"):
                print(f"{time.perf_counter() - began:6.0f} s  {one} + {other}", flush=True)
                campaign.pair(state, one, other, options.pairs)
        if options.disks:
            disk = Disk(campaign.place / "disk")
            try:
                for name in names:
                    print(f"{time.perf_counter() - began:6.0f} s  {name}, disks", flush=True)
                    if "processes" in name:  # it takes long to start
                        campaign.full(name, disk, [0.4])
                        continue
                    parts = [place / options.disks for place in range(options.disks)]
                    campaign.full(name, disk, parts)
                    campaign.read_only(name, disk)
                    campaign.linkless(name)
                    campaign.over_devices(name, disk)
                    for what in INJECTED:
                        campaign.injected(name, what)
            finally:
                disk.close()
    text = as_text(campaign, options, time.perf_counter() - began)
    print(text)
    if options.write:
        RESULT.write_text(text)
    return 1 if campaign.findings else 0


def as_text(campaign: Campaign, options: argparse.Namespace, seconds: float) -> str:
    kinds = list(dict.fromkeys(kind for found in campaign.counts.values() for kind in found))
    total = sum((found for found in campaign.counts.values()), Counter())
    told = " ".join(f"--{name} {getattr(options, name)}" for name in
                    ("points", "row", "times", "real", "pairs", "disks", "seed"))  # fmt: skip
    lines = [
        "# Kills, rivals and disks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), "
        f"{seconds / 60:.0f} minutes, `python benchmarks/crashes.py {told}`.",
        f"Findings: {len(campaign.findings)}. The script tells what is done and compared.",
        "",
    ]
    for what in ("killed", "ended well|refused", "full|read-only|links|devices|error"):
        chosen = [kind for kind in kinds if re.search(what, kind)]
        if not chosen:
            continue
        lines += [f"| command | {' | '.join(chosen)} |", f"|---|{'---|' * len(chosen)}"]
        for name, found in campaign.counts.items():
            if any(found[kind] for kind in chosen):
                lines.append(f"| {name} | {' | '.join(str(found[k]) for k in chosen)} |")
        lines += [f"| all | {' | '.join(str(total[kind]) for kind in chosen)} |", ""]
    return "\n".join([*lines, *(f"- {finding}" for finding in campaign.findings)]).rstrip() + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
