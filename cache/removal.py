"""Removing caches: those that are named, or those that nothing needs any more."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from pal.cache.records import Manifest, SpecRecord
from pal.cache.spec import encoder_of, fingerprint, place_of
from pal.errors import CacheError
from pal.files import bytes_of, remove_leftovers
from pal.names import did_you_mean, require_name
from pal.records import Entry


class Removable(Entry):
    """A cache that may be removed, and what that would mean."""

    dir: str
    encoder: str
    bytes: int
    sole: bool
    """no other cache has the same encoder's specification, so no features could be taken over:
    they would be encoded anew"""
    runs: list[str]
    """that were trained on it, and can then not be evaluated or adapted"""


class RemovedCaches(Entry):
    """What was removed."""

    removed: list[str]
    bytes: int


def caches_of(root: Path, dataset: str, encoder: str | None = None) -> list[Path]:
    """Return the caches of a dataset, or those of one encoder; raises CacheError for none."""
    require_name("dataset", dataset, CacheError)
    if encoder is not None:
        require_name("encoder", encoder, CacheError)
    _clear(root / dataset)
    there = [path for path in _all(root) if path.parent.name == dataset]
    found = [path for path in there if encoder is None or encoder_name(path) == encoder]
    if not found:
        known = sorted({encoder_name(path) for path in there})
        others = sorted({path.parent.name for path in _all(root)})
        meant = did_you_mean(encoder, known) if known and encoder else did_you_mean(dataset, others)
        hint = f"its encoders are {', '.join(known)}" if known else "see pal cache ls"
        which = "" if encoder is None else f" under {encoder}"
        raise CacheError(f"there is no cache of {dataset}{which} in {root}{meant} {hint}")
    return found


def unused_caches(root: Path, is_needed: Callable[[Path], bool]) -> list[Path]:
    """Return the caches of which nobody says that they are needed."""
    return [path for path in _all(root) if not is_needed(path)]


def removable(root: Path, folders: Collection[Path], runs: Callable[[str], list[str]]) -> list[
    Removable
]:  # fmt: skip
    """Describe caches before they are removed; ``runs`` names those that were trained on a
    fingerprint."""
    staying = {_encoder_digest(path) for path in _all(root) if path not in folders}
    return [
        Removable(
            dir=str(path),
            encoder=encoder_name(path),
            bytes=bytes_of(path),
            sole=_encoder_digest(path) not in staying,
            runs=runs(fingerprint_of(path)),
        )
        for path in folders
    ]


def remove(found: Collection[Removable]) -> RemovedCaches:
    """Remove caches and our own links that lead to them; raises CacheError for what is no cache of
    ours."""
    freed = 0
    for one in found:
        folder = Path(one.dir)
        freed += SpecRecord.remove(folder)
        _clear(folder.parent)
    return RemovedCaches(removed=[one.dir for one in found], bytes=freed)


def encoder_name(folder: Path) -> str:
    """Return the encoder's name in the name of a cache's folder."""
    place = place_of(folder)
    return folder.name if place is None else place[1]


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of a cache, complete or not; empty where its record is damaged."""
    manifest = Manifest.find(folder)
    if manifest is not None:
        return manifest.fingerprint
    record = SpecRecord.find(folder)
    return "" if record is None else fingerprint(record.spec)


def _clear(folder: Path) -> None:
    """Remove what a killed removal has left: parts of caches, and our links to them."""
    remove_leftovers(folder)
    for link in folder.glob("*"):
        if link.is_symlink() and not link.exists():
            target = folder / link.readlink()
            if target.parent == folder and place_of(target) is not None:
                link.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _all(root: Path) -> list[Path]:
    """Return every cache below a folder whose own record says that it is one."""
    folders = [path.parent for path in sorted(root.glob(f"*/*/{SpecRecord.file}"))]
    return [path for path in folders if not path.is_symlink() and SpecRecord.is_ours(path)]


def _encoder_digest(folder: Path) -> str:
    record = SpecRecord.find(folder)
    return str(folder) if record is None else fingerprint(encoder_of(record.spec))
