"""Where raw data lies: a local folder, or a dataset repository on the Hub at a pinned commit; which
of its files hold rows, and which split a file's name says."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from pal.dataset import Split
from pal.errors import DataError
from pal.hub import fetch

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""words in the names of files and folders that say a split, as on the Hub"""
SAVED_STATE = "state.json"
"""beside a dataset that the library ``datasets`` saved: names the files that hold its rows"""
SIDECARS = {SAVED_STATE, "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""files of that library that hold no rows"""
NOT_DATA = "__MACOSX"
"""what macOS adds to archives"""


def resolve_source(dataset: str, source: str, allow: list[str]) -> tuple[Path, str]:
    """Return the local folder of a source and its origin with the revision that was read.

    ``source`` is a path or ``hf:REPO[@REVISION]``; of a Hub repository only the files that match
    ``allow`` are fetched.
    """
    if not source.startswith("hf:"):
        folder = Path(source)
        if not _exists(folder):
            raise DataError(
                f"the source {source!r} of dataset {dataset} does not exist; give --source PATH "
                "or hf:REPO@REV"
            )
        return folder, str(folder)
    repository, _, revision = source.removeprefix("hf:").partition("@")
    try:
        folder = fetch(repository, revision or None, allow, "dataset")
    except Exception as error:
        raise DataError(
            f"cannot fetch {source} from the Hub ({type(error).__name__}); "
            f"give a local copy: pal prepare --dataset {dataset} --source PATH"
        ) from error
    return folder, f"hf:{repository}@{folder.name}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no path can have
        return False


def files_of(place: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a source that match, sorted by path; a source that is a file is that
    file.

    Hidden files and folders, such as a notebook's checkpoints, are no part of a source; of a
    dataset that the library ``datasets`` saved, the files that it names are.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place} is neither a file nor a folder; give --source PATH of one")
    ends = [f"*{pattern}" for pattern in patterns]
    saved: dict[Path, set[str] | None] = {}
    found = []
    for path in place.rglob("*"):
        within = path.relative_to(place)
        if _is_hidden(within) or not path.is_file():
            continue
        names = path.as_posix(), path.with_name(path.name.lower()).as_posix()
        if not any(fnmatch.fnmatch(name, end) for name in names for end in ends):
            continue
        if path.parent not in saved:
            saved[path.parent] = _saved_files(path.parent)
        named = saved[path.parent]
        if named is None and path.name in SIDECARS:
            continue
        if named is None or path.name in named:
            found.append(path)
    return sorted(found)


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") or part == NOT_DATA for part in path.parts)


def _saved_files(folder: Path) -> set[str] | None:
    """Return the files of rows of a saved dataset, None for any other folder."""
    state = folder / SAVED_STATE
    if not (state.is_file() and any(folder.glob("*.arrow"))):
        return None
    try:
        named = json.loads(state.read_bytes())
        if named.get("_indices_data_files"):
            raise DataError(
                f"{folder} holds a selection of rows that only the library datasets can read; "
                "save it again: load_from_disk(FOLDER).flatten_indices().save_to_disk(OTHER)"
            )
        return {str(one["filename"]) for one in named["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{state} does not name the files of a saved dataset ({type(error).__name__}); save "
            "it again"
        ) from error


def splits_of_names(names: Sequence[str]) -> list[Split | None]:
    """Return the split that each file's path within its source says, as on the Hub.

    ``data/train-00000-of-00001.parquet``, ``test.csv`` and ``validation/0000.parquet`` say one, a
    file's name before its folders. Where no two names say train and another one they say nothing:
    a file that happens to be called test.csv is a source of its own.
    """
    splits = [_split_of_name(name) for name in names]
    is_divided = "train" in splits and ("val" in splits or "test" in splits)
    return splits if is_divided else [None] * len(splits)


def _split_of_name(name: str) -> Split | None:
    for part in reversed(PurePath(name).parts):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_WORDS]
        if words:
            return SPLIT_WORDS[words[0]] if len(set(words)) == 1 else None
    return None
