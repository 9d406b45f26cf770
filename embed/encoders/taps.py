"""Where a layer is read: the block after which a forward pass is tapped."""

from __future__ import annotations

from typing import Any

import torch

from pal.errors import EncoderError


class LastLayerReached(Exception):
    """Ends a forward pass at the highest wanted layer; the layers above never run."""


def tap_of(model: Any, layer: int, norm: str | None, name: str) -> Any:
    """Return the block after which a layer is read, None for the model's own last state."""
    if layer == -1 and norm != "pre":
        return None
    blocks = blocks_of(model)
    if -layer > len(blocks):
        raise EncoderError(
            f"encoder {name} has {len(blocks)} blocks, so layer {layer} does not exist"
        )
    return blocks[layer]


def blocks_of(model: Any) -> Any:
    """Return a model's stack of transformer blocks.

    It is the list of modules with as many as the settings say, the outermost of several; without
    one, the longest list. Block -1 ends in the states that the final norm reads; ``layer: -2`` is
    the output of block -2.
    """
    stacks = [m for m in model.named_modules() if isinstance(m[1], torch.nn.ModuleList)]
    if not stacks:
        raise EncoderError(
            f"{type(model).__name__} has no stack of blocks; only layer -1 can be read from it"
        )
    count = getattr(model.config, "num_hidden_layers", None)
    named = [stack for stack in stacks if len(stack[1]) == count]
    if named:
        return min(named, key=lambda stack: stack[0].count("."))[1]
    return max(stacks, key=lambda stack: len(stack[1]))[1]


def run_taps(
    model: Any, forward: Any, taps: dict[int, Any], arguments: dict[str, Any]
) -> dict[int, torch.Tensor]:
    """Return the states of all taps, (n, length, dim) each.

    ``taps``: block by layer, None for the model's own last state, which ``forward`` (the model,
    perhaps compiled) gives where nothing else is wanted.
    """
    reached: dict[int, torch.Tensor] = {}
    wanted = {layer: block for layer, block in taps.items() if block is not None}
    runs_through = len(wanted) < len(taps)
    highest = max(wanted, default=0)

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            reached[layer] = output[0] if isinstance(output, tuple) else output
            if layer == highest and not runs_through:
                raise LastLayerReached

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in wanted.items()]
    try:
        last = torch.as_tensor((model if wanted else forward)(**arguments).last_hidden_state)
        reached.update((layer, last) for layer, block in taps.items() if block is None)
    except LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return reached
