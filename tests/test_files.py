"""Files and folders on any file system: whole or absent, whoever else is at work or was killed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from pal import files
from pal.errors import OF_DISKS, DiskError, disk_error
from pal.files import atomic_directory, atomic_file, inflight, locked, recover


@pytest.fixture(params=["exchanging", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let two directories change places at once, or not, as on macOS and over old protocols."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return str(request.param)


def write_folder(target: Path, content: str) -> None:
    with atomic_directory(target) as temporary:
        for name in "ab":
            (temporary / name).write_text(content)


def content_of(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


@pytest.mark.usefixtures("system")
def test_a_folder_is_replaced_as_a_whole_and_nothing_else_is_left() -> None:
    for content in ("one", "two", "three"):
        write_folder(Path("x"), content)
        assert content_of(Path("x")) == {content}
    with pytest.raises(ZeroDivisionError), atomic_directory(Path("x")) as temporary:
        (temporary / "a").write_text(str(1 / 0))
    assert content_of(Path("x")) == {"three"}
    assert os.listdir() == ["x"]


@pytest.mark.usefixtures("system")
def test_many_may_replace_a_folder_at_once() -> None:
    """A reader recovers meanwhile, as all readers do, and never sees two halves."""

    def write(number: int) -> None:
        for _ in range(15):
            write_folder(Path("x"), str(number))

    def read(_: int) -> None:
        for _ in range(60):
            recover(Path("x"))

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(write, number) for number in range(3)] + [pool.submit(read, 0)]
        for one in work:
            one.result()
    assert len(content_of(Path("x"))) == 1
    assert os.listdir() == ["x"]


def test_a_kill_between_two_renames_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Die by one's own hand there, for an exception would clear up."""
    write_folder(Path("x"), "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    usual = files._is_renamed
    child = os.fork()
    if child == 0:

        def rename_once(old: Path, new: Path) -> bool:
            return usual(old, new) and (new.name != ".parked-x" or os._exit(9))

        files._is_renamed = rename_once
        write_folder(Path("x"), "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert sorted(name[:9] for name in os.listdir()) == [".inflight", ".parked-x"]
    recover(Path("x"))
    assert content_of(Path("x")) == {"old"}
    files._remove_leftovers.cache_clear()
    write_folder(Path("x"), "new")
    assert content_of(Path("x")) == {"new"}
    assert os.listdir() == ["x"]


@pytest.mark.parametrize("is_reader", [True, False])
def test_what_killed_processes_left_is_removed_and_what_living_ones_use_is_not(
    is_reader: bool,
) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    machine = files._machine()
    left = {
        f".inflight-{machine}-{killed.pid}-0.txt": True,
        f".inflight-{machine}-{os.getppid()}-0.txt": False,
        f".inflight-00000000-{killed.pid}-0.txt": False,  # of another machine, or container
        f".inflight-00000000-{killed.pid}-1.txt": True,  # ... of last month
    }
    for name in left:
        Path("x").mkdir(exist_ok=True)
        Path("x", name).touch()
    month = time.time() - 30 * 86_400
    os.utime(Path("x", list(left)[3]), (month, month))
    if is_reader:
        recover(Path("x/folder"))
    else:
        with atomic_file(Path("x/new")) as temporary:
            temporary.touch()
    kept = {name for name, is_removed in left.items() if not is_removed}
    assert set(os.listdir("x")) - {"new"} == kept


def test_only_one_holds_a_lock_and_none_is_left() -> None:
    held, most = [], []

    def work(_: int) -> None:
        with locked(Path("x")):
            held.append(1)
            most.append(len(held))
            time.sleep(0.002)
            held.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    assert max(most) == 1
    assert os.listdir() == []
    with locked(Path("x")), pytest.raises(Timeout), locked(Path("x"), wait=False):
        pass
    assert os.listdir() == []


def test_where_the_disk_has_no_locks_a_file_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileLock, **_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(Path("x")), pytest.raises(Timeout), locked(Path("x"), wait=False):
        pass
    assert os.listdir() == []


@pytest.mark.parametrize("number", OF_DISKS)
def test_what_a_disk_refuses_is_one_sentence_with_the_folder(number: int) -> None:
    words = os.strerror(number)
    with pytest.raises(OSError, match=words) as caught, atomic_file(Path("runs/one/x.json")):
        raise OSError(number, os.strerror(number))
    told = disk_error(caught.value)
    assert isinstance(told, DiskError)
    assert ";" in str(told)
    assert "runs/one" in str(told) or number in (errno.EMFILE, errno.ENFILE)
    assert ".inflight" not in str(told)
    assert os.listdir("runs/one") == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)
def test_libraries_that_write_themselves_are_told_alike(error: Exception) -> None:
    with pytest.raises(OSError, match="x.bin") as caught, inflight(Path("x.bin")):
        raise error
    assert str(disk_error(caught.value)) == (
        "no space is left for .; free some and run the command again"
    )
    outer = ValueError("could not save")
    outer.__cause__ = caught.value
    assert str(disk_error(outer)) == str(disk_error(caught.value))


def test_a_database_that_is_full_is_a_full_disk() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    assert "no space is left" in str(disk_error(caught.value))


def test_a_folder_that_cannot_be_exchanged_is_named_not_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EXDEV)  # as in a container, of a folder of its image
        return -1

    write_folder(Path("runs/one"), "old")
    monkeypatch.setattr(files, "_renameat2", lambda: refuse)
    with pytest.raises(OSError, match="cross-device") as caught:
        write_folder(Path("runs/one"), "new")
    assert str(disk_error(caught.value)).startswith("runs/one cannot be replaced, as it belongs")
    assert content_of(Path("runs/one")) == {"old"}
    assert os.listdir("runs") == ["one"]


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(2, "gone", "x"), OSError("no number")]
)
def test_errors_of_our_own_keep_their_traceback(error: Exception) -> None:
    assert disk_error(error) is None
    with pytest.raises(type(error)) as caught, inflight(Path("x.bin")):
        raise error
    assert caught.value is error
