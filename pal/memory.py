"""Memory that is freed and soon asked for again stays with the process while it computes.

The C library of Linux gives blocks above 32 MiB back to the system as soon as they are freed, and
the system fills each new one with zeros, page by page: an operation whose result has 100 MB then
takes up to eight times as long as the same in memory that is there. Tables of stacked heads and of
many users are of that size.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""parameters of glibc's ``mallopt``"""
NEVER = -1
LARGEST_THRESHOLD, MAPPINGS = 32 << 20, 65_536
"""what glibc itself arrives at, and begins with"""
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
"""environment variables by which a user says so; GLIBC_TUNABLES is the other way"""

COLLECT_AFTER = 20_000
"""objects more than were freed after which garbage collection begins while modules are imported; as
it comes it begins after 700 to 2,000"""

_lock, _depth = Lock(), 0


@contextmanager
def quick_imports() -> Iterator[None]:
    """Let garbage collection rest for the imports in the block: a second of the five that those of
    Lightning take."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory for the length of the block, and give it back at its end.

    Blocks may be nested and be entered by several threads: the last one to end gives back. Does
    nothing without glibc, or where the user has set how it allocates. As a decorator of a function
    it is a block round each call.
    """
    library = _library()
    if library is None:
        yield
        return
    _enter(library)
    try:
        yield
    finally:
        _leave(library)


def _enter(library: Any) -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            library.mallopt(MMAP_MAX, 0)
            library.mallopt(TRIM_THRESHOLD, NEVER)


def _leave(library: Any) -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            library.mallopt(MMAP_MAX, MAPPINGS)
            library.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
            library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
            library.malloc_trim(0)


@cache
def _library() -> Any:
    """Return the C library, if it is glibc and nobody has set it up."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc" in tunables or any(n in os.environ for n in OWN):
        return None
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    return library if is_glibc else None
