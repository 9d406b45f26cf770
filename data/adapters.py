"""The datasets by name. A new one is a file with an Adapter, its settings in pal/config/data.py, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pal.data.demo import Demo
from pal.data.hh import Hh
from pal.data.pairs import OwnPairs
from pal.data.persona import Persona
from pal.data.personalllm import PersonalLlm
from pal.data.pickapic import PickAFilter, PickAPic
from pal.data.prepare import Adapter
from pal.data.prism import Prism
from pal.data.simulated import Simulated
from pal.data.tldr import TldrLength, TldrReal
from pal.data.ultrafeedback import UltraFeedbackP

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
