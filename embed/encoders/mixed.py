"""``compute_dtype: mixed``: products in bfloat16, all that lies between them in float32.

It is ``torch.autocast``, with the weights of linear layers rounded once as the model is loaded: as
it comes, autocast rounds weights that need no gradient again in every batch. Norms, activations,
softmax and the sum of all blocks' outputs keep float32; biases are rounded with their products.
"""

from __future__ import annotations

from typing import Any

import torch

MIXED = "mixed"


def weight_dtype(compute_dtype: str) -> torch.dtype:
    """Return the dtype in which a model with this ``compute_dtype`` is loaded."""
    found = getattr(torch, "float32" if compute_dtype == MIXED else compute_dtype)
    assert isinstance(found, torch.dtype)
    return found


def product_dtype(compute_dtype: str) -> torch.dtype:
    """Return the dtype of the factors of products under this ``compute_dtype``."""
    return torch.bfloat16 if compute_dtype == MIXED else weight_dtype(compute_dtype)


def mix(model: Any, device: torch.device) -> None:
    """Make a float32 model on a device compute so, from now on and whoever calls it.

    ``model`` is changed: its linear layers keep one copy of their weights, in bfloat16.
    """
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.to(torch.bfloat16)
    model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)
