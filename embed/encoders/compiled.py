"""``embed.compile``: the blocks of a model through torch.compile.

All blocks share one piece of code, so it is compiled once whatever their number, and layers can
still be tapped behind any of them.
"""

from __future__ import annotations

from typing import Any

import torch

from pal.embed.encoders.taps import blocks_of
from pal.errors import EncoderError


def compile_blocks(model: Any) -> None:
    """Compile a model's blocks in their places, or all of a model that has no stack of blocks."""
    try:
        parts = blocks_of(model)
    except EncoderError:
        parts = [model]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=True)
