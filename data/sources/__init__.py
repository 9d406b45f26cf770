"""The datasets by name. A new one is a file with an Adapter, its settings in pal/config/data.py,
and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pal.data.build import Adapter
from pal.data.sources.demo import Demo
from pal.data.sources.hh import Hh
from pal.data.sources.pairs import OwnPairs
from pal.data.sources.persona import Persona
from pal.data.sources.personalllm import PersonalLlm
from pal.data.sources.pickapic import PickAFilter, PickAPic
from pal.data.sources.prism import Prism
from pal.data.sources.simulated import Simulated
from pal.data.sources.tldr import TldrLength, TldrReal
from pal.data.sources.ultrafeedback import UltraFeedbackP

ADAPTERS: dict[str, Callable[[Any], Adapter]] = {
    "demo": Demo,
    "hh": Hh,
    "pairs": OwnPairs,
    "persona": Persona,
    "personalllm": PersonalLlm,
    "pickafilter": PickAFilter,
    "pickapic": PickAPic,
    "prism": Prism,
    "simulated": Simulated,
    "tldr-length": TldrLength,
    "tldr-real": TldrReal,
    "ultrafeedback-p": UltraFeedbackP,
}
