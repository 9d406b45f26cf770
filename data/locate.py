"""Where raw data lies: a local folder, or a dataset repository on the Hub at a pinned commit."""

from __future__ import annotations

from pathlib import Path

from pal.errors import DataError
from pal.hub import fetch


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
