"""The heads: plain modules that know nothing of Lightning, files or configuration.

A file put into this folder is all that a new head needs; ``head.py`` says what must be in it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from pal.train.heads.head import Head


def find_heads() -> Mapping[str, type[Head]]:
    """Return the heads of all files in this folder by name: the subclasses of Head that have a
    ``name`` of their own."""
    return _heads_in(tuple(name for folder in __path__ for name in os.listdir(folder)))


@functools.cache
def _heads_in(names: tuple[str, ...]) -> Mapping[str, type[Head]]:
    """``names``: those of all files that are there."""
    found: dict[str, type[Head]] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            is_head = inspect.isclass(value) and issubclass(value, Head)
            if is_head and value.__module__ == module.__name__ and "name" in vars(value):
                assert value.name not in found, f"two heads are named {value.name!r}"
                found[value.name] = value
    return MappingProxyType(dict(sorted(found.items())))
