"""From the states of all tokens to one feature per text."""

from __future__ import annotations

import torch


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool (n, length, dim) states over the real tokens, in float32, whatever the padding side."""
    mask = mask.bool()
    everyone = torch.arange(len(hidden), device=hidden.device)
    if pooling == "mean":
        weight = mask.unsqueeze(-1).float()
        mean: torch.Tensor = (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return mean
    position = torch.arange(mask.shape[1], device=hidden.device)
    if pooling == "cls":
        first = torch.where(mask, position, mask.shape[1]).amin(dim=1).clamp(max=mask.shape[1] - 1)
        return hidden[everyone, first].float()
    last = torch.where(mask, position, -1).amax(dim=1).clamp(min=0)
    return hidden[everyone, last].float()
