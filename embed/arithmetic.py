"""What ``compute_dtype: auto`` becomes for an encoder: float32, or ``mixed`` where that is faster.

It is settled before a specification is written, so that caches, runs and exports name the
arithmetic of their features and never ``auto``. See docs/design/015-arithmetic-of-features.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from pal.config import EncoderConfig
from pal.probe import quickest

EXACT = "float32"
FAST = "mixed"
"""products of linear layers in bfloat16, everything between them float32"""


def has_choice(config: EncoderConfig) -> bool:
    """Say whether ``auto`` may be ``mixed``: it is known for text models alone, and models of
    random weights are there to be compared."""
    return config.can_be_mixed and not config.is_random


def in_arithmetic(config: EncoderConfig, dtype: str) -> EncoderConfig:
    """Return the settings with another arithmetic."""
    return config.model_copy(update={"compute_dtype": dtype})


def either(config: EncoderConfig) -> list[EncoderConfig]:
    """Return the settings in each arithmetic that they allow, float32 first."""
    if config.compute_dtype != "auto":
        return [config]
    choices = [EXACT, FAST] if has_choice(config) else [EXACT]
    return [in_arithmetic(config, dtype) for dtype in choices]


def settled(config: EncoderConfig, device: str = "auto") -> EncoderConfig:
    """Return the settings with what the machine is fast at in the place of ``auto``."""
    if config.compute_dtype != "auto":
        return config
    return in_arithmetic(config, fastest(device) if has_choice(config) else EXACT)


def fastest(device: str) -> str:
    """Return the arithmetic that a device by its setting, ``auto`` included, is fast at."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return FAST if quickest(device) == "bfloat16" else EXACT
    except (AssertionError, RuntimeError):  # a device that this machine has not; loading says so
        return EXACT


def as_made(config: EncoderConfig, spec: Mapping[str, JsonValue]) -> EncoderConfig:
    """Return the settings with the arithmetic of the features that a specification describes, in
    the place of ``auto``: whoever encodes for an existing head computes as its cache was."""
    made = spec.get("compute_dtype")
    is_open = config.compute_dtype == "auto" and made is not None
    return in_arithmetic(config, str(made)) if is_open else config


def require_float32() -> None:
    """Let no GPU round the factors of float32 products, as torch does in convolutions."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
