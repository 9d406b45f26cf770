"""Which devices encode on this machine, and how many tokens a batch has on them."""

from __future__ import annotations

from pal.config import EmbedConfig, EncoderConfig
from pal.errors import ConfigError
from pal.probe import device_of

CPU_TOKEN_BUDGET = 1024
"""padded tokens; on a CPU a batch should stay in its caches"""
GPU_TOKEN_BUDGET = 65_536


def devices_of(settings: EmbedConfig, encoder: EncoderConfig | None = None) -> list[str]:
    """Return the devices of this machine's workers; one that is spread over all has one worker."""
    import torch

    if settings.device != "auto":
        return [settings.device]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if encoder is not None and encoder.device_map is not None:
        count = min(count, 1)
    if not count:
        return ["cpu"] * (settings.actors or 1)
    return [f"cuda:{number}" for number in range(min(count, settings.actors or count))]


def require_device(settings: EmbedConfig) -> None:
    """Raise ConfigError where the device of the settings is not one of this machine's."""
    device_of(settings.device, "embed.device", ConfigError, all_of_torch=True)


def token_budget(device: str) -> int:
    """Return how many padded tokens a batch may have on a device, where nothing else is said."""
    return GPU_TOKEN_BUDGET if device.startswith("cuda") else CPU_TOKEN_BUDGET
