"""To the device and back without keeping it waiting: from pinned memory, and on a stream beside."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor as a GPU can fetch it by itself; called where batches are made ready."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copy without waiting where the device allows it, which is from pinned memory."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


class Leaving:
    """Features on their way to the CPU, while the device computes what comes after them."""

    def __init__(self, features: Sequence[torch.Tensor]) -> None:
        self.features = list(features)
        self.event: torch.cuda.Event | None = None
        if self.features and self.features[0].is_cuda:
            self._start(self.features[0].device)

    def _start(self, device: torch.device) -> None:
        beside = _stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for place, feature in enumerate(self.features):
                feature.record_stream(beside)
                host = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True)
                self.features[place] = host.copy_(feature, non_blocking=True)
            self.event = beside.record_event()

    def arrived(self) -> list[torch.Tensor]:
        """Wait until they are there, and return them."""
        if self.event is not None:
            self.event.synchronize()
        return self.features


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
