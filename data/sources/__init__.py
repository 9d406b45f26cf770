"""One file per dataset: its settings and the class that reads it. A new file is found by itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from pal.config import DatasetConfig
from pal.data.adapter import Adapter


@cache
def adapters() -> dict[str, type[Adapter]]:
    """Return what the files of this folder can read, by name: every named Adapter that they
    define."""
    found: dict[str, type[Adapter]] = {}
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(file.name)
        for _, adapter in inspect.getmembers(module, inspect.isclass):
            if adapter.__module__ == module.__name__ and issubclass(adapter, Adapter):
                if not adapter.name or inspect.isabstract(adapter):
                    continue
                other = found.setdefault(adapter.name, adapter)
                assert other is adapter, f"{adapter} and {other} have one name"
    return dict(sorted(found.items()))


def adapter_for(dataset: str, settings: DatasetConfig) -> Callable[[Any], Adapter]:
    """Return what makes the Adapter of a dataset of any name from its settings."""
    return partial(adapters()[settings.kind or dataset], dataset=dataset)
