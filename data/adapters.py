"""The datasets by name. A new one is a file with an Adapter, its settings in pal/config.py, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pal.data.demo import Demo
from pal.data.persona import Persona
from pal.data.pickapic import PickAFilter, PickAPic
from pal.data.prepare import Adapter
from pal.data.simulated import Simulated

ADAPTERS: dict[str, Callable[[Any], Adapter]] = {
    "demo": Demo,
    "persona": Persona,
    "pickafilter": PickAFilter,
    "pickapic": PickAPic,
    "simulated": Simulated,
}
