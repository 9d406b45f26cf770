"""Rotary positions whose frequencies follow the longest text of a pass: ``longrope``, ``dynamic``.

So that a text has the feature that it has alone, whatever is read beside it, texts above the length
where that begins share a pass with equally long ones alone. transformers keeps the frequencies in
the model, so one pass must end before the next begins. (``dynamic`` would also remember earlier
passes, but begins at the model's most positions, and longer texts are refused or cut.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

FOLLOWING = ("longrope", "dynamic")


def unchanged_up_to(model: nn.Module) -> float:
    """Return up to which length all texts have the same frequencies, infinity for most models."""
    found = []
    modules: Iterable[Any] = model.modules()
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        for layers, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if isinstance(kind, str) and any(name in kind for name in FOLLOWING):
                settings = module.config.rope_parameters
                settings = settings if layers is None else settings[layers]
                known = settings.get("original_max_position_embeddings")
                found.append(int(known or module.original_max_seq_len))
    return min(found, default=math.inf)
