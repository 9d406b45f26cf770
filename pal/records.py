"""One way to disk: every file that we read again is sealed, and says what it is.

A *record* is a JSON file with typed fields. It begins with its kind, its version and the SHA-256 of
its own bytes (the seal), and it names the seals of the files beside it, so that a truncated,
changed, swapped or stale file is refused in one sentence, never believed:

    {"pal.record": {"kind": "dataset", "version": 4, "pal.sha256": "9f0c..."},
     "name": "persona", ...,
     "files": {"items.parquet": "77ab...", "pairs.parquet": "1d2e..."}}

Parquet and safetensors files carry the same seal in their own metadata. The seal is computed with
zeros in its place, so it covers every byte of the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from filelock import Timeout
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from pal.errors import PalError
from pal.files import atomic_directory, atomic_file, bytes_of, discard, locked, recover
from pal.names import NAME

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

SEAL, DIGITS = b"pal.sha256", 64
EMPTY = b"0" * DIGITS
HEADER = "pal.record"
ROWS_PER_GROUP = 1 << 20
"""of a Parquet file, as pyarrow has it"""
JsonObject = dict[str, JsonValue]
"""settings of a foreign kind, kept as they are to be compared and shown"""


class Damaged(Exception):
    """A file is not what was written; the message says in which way. Callers add the remedy."""


class Entry(BaseModel):
    """A typed part of a record."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="null"
    )


class Record(Entry):
    """A sealed JSON file. A subclass says what it is as it is declared:

    ``class Manifest(Record, kind="cache", file="manifest.json", remedy="run pal embed again")``
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    """another version is refused, not guessed"""
    file: ClassVar[str]
    """its name within the folder that it describes"""
    error: ClassVar[type[PalError]]
    """what is raised where it cannot be trusted"""
    remedy: ClassVar[str]
    """what to do about that; ``{folder}`` and ``{name}`` are filled in"""
    beside: ClassVar[str]
    """another file that only a folder of this kind holds: it tells of one whose record is gone"""

    def __init_subclass__(
        cls,
        *,
        kind: str,
        remedy: str,
        file: str = "",
        error: type[PalError] = PalError,
        version: int = 1,
        beside: str = "",
        **rest: Any,
    ) -> None:
        super().__init_subclass__(**rest)
        cls.kind, cls.version, cls.file, cls.beside = kind, version, file, beside
        cls.error, cls.remedy = error, remedy

    def text(self) -> str:
        """Return the JSON text with an empty seal."""
        header = {"kind": self.kind, "version": self.version, SEAL.decode(): EMPTY.decode()}
        content = {HEADER: header, **self.model_dump(mode="json")}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write the record into a folder, whole or not at all."""
        with atomic_file(folder / self.file) as temporary:
            self.write_to(temporary)

    def write_to(self, path: Path) -> None:
        """Write the record to a path that the caller makes visible."""
        path.write_text(self.text(), encoding="utf-8")
        seal(path)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a folder; raises ``cls.error`` where none can be trusted."""
        recover(folder)
        return cls.read_file(folder / cls.file)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Read the record in a file of any name."""
        try:
            return cls.parse(read_sealed(path))
        except Damaged as problem:
            raise cls.error(f"{path} {problem}; {cls.remedy_for(path.parent)}") from None

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Return the record of a folder, None where there is none that can be trusted."""
        try:
            return cls.read(folder)
        except PalError:
            return None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the record of sealed bytes; raises Damaged."""
        try:
            content = json.loads(raw)
            header = content.pop(HEADER)
            kind, version = header["kind"], header["version"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged("is damaged") from None
        if kind != cls.kind:
            raise Damaged(f"is a record of kind {kind!r}, not {cls.kind!r}")
        if version != cls.version:
            raise Damaged(f"has version {version} where this version of pal reads {cls.version}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise Damaged(f"does not hold what a record of kind {kind!r} has ({where})") from None

    @classmethod
    def remedy_for(cls, folder: Path) -> str:
        return cls.remedy.format(folder=folder, name=folder.name)

    @classmethod
    def is_ours(cls, folder: Path) -> bool:
        """Say whether a folder's record says that it is ours and of this kind, damaged or not."""
        try:
            start = (folder / cls.file).read_bytes()[:200]
        except OSError:
            return False
        return re.search(rb'"kind":\s*"' + re.escape(cls.kind.encode()) + rb'"', start) is not None

    @classmethod
    def all_in(cls, root: Path) -> list[Path]:
        """Return every folder of this kind below a root, by name: also one whose record is damaged
        or gone; not what another command has not finished, whose folder has no name of ours."""
        return [
            path
            for path in sorted(root.glob("*"))
            if NAME.fullmatch(path.name)
            and any((path / file).is_file() for file in (cls.file, cls.beside) if file)
        ]

    @classmethod
    @contextmanager
    def replace(cls, folder: Path) -> Iterator[Path]:
        """Yield an empty directory that takes the place of ``folder`` as a whole.

        Whatever is there is replaced only if it is an empty folder, or one of this kind.
        """
        cls.require_replaceable(folder)
        with atomic_directory(folder.resolve() if folder.is_symlink() else folder) as temporary:
            yield temporary

    @classmethod
    def remove(cls, folder: Path) -> int:
        """Remove a folder of this kind, as a whole; returns how many bytes that frees.

        Raises ``cls.error`` for any folder whose record does not say that it is ours and of this
        kind, and for one that another pal writes.
        """
        if folder.is_symlink() or not cls.is_ours(folder):
            raise cls.error(
                f"{folder} is no {cls.kind} of ours, so it is not removed; remove it yourself"
            )
        try:
            with locked(folder, wait=False):
                freed = bytes_of(folder)
                discard(folder)
        except Timeout:
            raise cls.error(
                f"{folder} is being written by another pal; wait until that is done"
            ) from None
        return freed

    @classmethod
    def require_replaceable(cls, folder: Path) -> None:
        """Raise ``cls.error`` if ``folder`` is something that we must not replace."""
        if not os.path.lexists(folder) or cls.is_ours(folder):
            return
        if folder.is_dir() and not any(folder.iterdir()):
            return
        raise cls.error(
            f"{folder} exists and is no {cls.kind} of ours, so it is not replaced; "
            f"remove it yourself or choose another name"
        )


def seal(path: Path) -> str:
    """Fill in a file's empty seal and return it; every byte of the file counts."""
    with open(path, "r+b") as stream:
        raw = stream.read()
        place = _place_of_seal(raw)
        if place is None or raw[place : place + DIGITS] != EMPTY:
            raise AssertionError(f"{path} has no empty seal")
        found = hashlib.sha256(raw).hexdigest()
        stream.seek(place)
        stream.write(found.encode())
    return found


def read_sealed(path: Path, expected: str | None = None) -> bytes:
    """Return a file's bytes; raises Damaged unless its seal is right, and the expected one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Damaged("does not exist") from None
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror})") from None
    check_seal(raw, expected)
    return raw


def _mapped(path: Path) -> bytes | mmap.mmap:
    """Return a file's bytes without bringing all of them into memory; raises Damaged."""
    try:
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise Damaged("does not exist") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"cannot be read ({error})") from None


def check_seal(raw: bytes | mmap.mmap, expected: str | None = None) -> str:
    """Return the seal of a file's bytes; raises Damaged unless it is right and as expected."""
    place = _place_of_seal(raw)
    if place is None:
        raise Damaged("is damaged: it has no seal")
    told = raw[place : place + DIGITS].decode("latin-1")
    state = hashlib.sha256(memoryview(raw)[:place])
    state.update(EMPTY)
    state.update(memoryview(raw)[place + DIGITS :])
    if state.hexdigest() != told:
        raise Damaged("is damaged: its bytes are not those that were written")
    if expected is not None and told != expected:
        raise Damaged("is not the file that its record names: it was swapped or is stale")
    return told


def _place_of_seal(raw: bytes | mmap.mmap) -> int | None:
    """Return where a seal's digits begin: near the end of a Parquet file, else near the start."""
    start = raw.rfind(SEAL) if raw[:4] == b"PAR1" else raw.find(SEAL, 0, 4096)
    found = re.compile(rb"[^0-9a-f]{0,6}([0-9a-f]{64})").match(raw, start + len(SEAL))
    return found.start(1) if start >= 0 and found else None


def write_table(path: Path, table: pa.Table, kind: str, of: str = "") -> str:
    """Write a table as sealed Parquet to a path that the caller makes visible; returns the seal.

    ``of`` names what the table belongs to, e.g. the seal of a head, and is told by ``read_table``.
    """
    return write_row_groups(path, [table], kind, of)


def write_row_groups(path: Path, tables: Iterable[pa.Table], kind: str, of: str = "") -> str:
    """Write tables of one schema behind each other as one; each but the last one has
    ``ROWS_PER_GROUP`` rows, or the file is another one than that of the whole."""
    import pyarrow.parquet as pq

    rest = iter(tables)
    first = next(rest)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first, ROWS_PER_GROUP)
        del first
        for table in rest:
            writer.write_table(table, ROWS_PER_GROUP)
        header = json.dumps({"kind": kind, "of": of})
        writer.add_key_value_metadata({HEADER: header, SEAL.decode(): EMPTY.decode()})
    return seal(path)


def read_table(
    path: Path,
    kind: str,
    *,
    expected: str | None = None,
    of: str | None = None,
    columns: list[str] | None = None,
    rows: Any = None,
) -> pa.Table:
    """Read a sealed table; raises Damaged where it is absent, damaged, of another kind or owner.

    ``rows`` is a pyarrow expression: other rows never leave the reader.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = _mapped(path)
    check_seal(raw, expected)
    source = pa.BufferReader(pa.py_buffer(raw))
    try:
        metadata = pq.read_metadata(source).metadata or {}
        header = json.loads(metadata.get(HEADER.encode(), b"{}"))
        source.seek(0)
        if header.get("kind") != kind:
            raise Damaged(f"is a table of kind {header.get('kind')!r}, not {kind!r}")
        if of is not None and header.get("of") != of:
            raise Damaged("belongs to something else: it was swapped or is stale")
        return pq.read_table(source, columns=columns, filters=rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Damaged(f"cannot be read ({type(error).__name__})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as sealed safetensors to a path the caller makes visible; returns the seal."""
    from safetensors.torch import save

    # one key alone: safetensors writes several in no fixed order, and equal heads are equal bytes
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # not its own writing: its errors do not say what the disk refused
    path.write_bytes(save(plain, metadata={SEAL.decode(): EMPTY.decode()}))
    return seal(path)


def read_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """Read sealed tensors; raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    raw = read_sealed(path, expected)
    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"cannot be read ({type(error).__name__})") from None


def write_text(path: Path, text: str, comment: str = "#") -> str:
    """Write a text with its seal in a first comment line, e.g. YAML; returns the seal."""
    path.write_text(f"{comment} {SEAL.decode()} {EMPTY.decode()}\n{text}", encoding="utf-8")
    return seal(path)
