"""Repositories of the Hub as folders on this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]
log = logging.getLogger(__name__)


def local_copy(repository: str, revision: str, patterns: Sequence[str]) -> Path | None:
    """Return where a model lies here since an earlier download, whole or in part."""
    try:
        return _snapshot(repository, revision, patterns, "model", local_files_only=True)
    except Exception as error:  # not downloaded yet, in any of the Hub client's ways of saying so
        log.debug("no local copy of %s: %s", repository, error)
        return None


def fetch(
    repository: str,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    kind: Kind = "model",
) -> Path:
    """Download the files of a repository that fit the patterns, all without any.

    Raises what the Hub client does, which is of a dozen kinds.
    """
    return _snapshot(repository, revision, patterns, kind, local_files_only=False)


def _snapshot(
    repository: str,
    revision: str | None,
    patterns: Sequence[str] | None,
    kind: Kind,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
            local_files_only=local_files_only,
        )
    )
