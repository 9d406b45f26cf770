"""Where a layer is read: the block after which a forward pass is tapped.

A tap ends the pass at its block, so that the layers above never run. That a block gives what the
library itself calls the states of that layer is tried on a text as the model is loaded; where it
does not (XLM's layers are no modules, XLNet's have other shapes), the library lists the states.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from pal.embed.encoders.padding import TOLERANCE, difference
from pal.errors import EncoderError

Arguments = dict[str, Any]
"""what a model's forward takes, by name"""


class LastLayerReached(Exception):
    """Ends a forward pass at the highest wanted layer; the layers above never run."""


class Taps:
    """The layers that are read of a model."""

    def __init__(
        self, model: Any, layers: Sequence[int], norm: str | None, name: str, probe: Arguments
    ) -> None:
        """``probe``: any input. Raises EncoderError for a layer that does not exist."""
        self.model = model
        self.name = name
        self.own = [layer for layer in layers if layer == -1 and norm != "pre"]
        """the model's last state, behind its final norm"""
        self.blocks: dict[int, Any] = {}
        self.listed: list[int] = []
        """layers whose states the library lists"""
        lower = [layer for layer in layers if layer not in self.own]
        states = self._states(probe) if any(layer < -1 for layer in lower) else ()
        for layer in lower:
            if layer == -1:
                self.blocks[layer] = block_of(model, layer, name)
            elif states and -layer > len(states) - 1:
                raise EncoderError(
                    f"encoder {name} has {len(states) - 1} blocks, so layer {layer} does not exist"
                )
            elif states and not self._is_block(layer, states, probe):
                self.listed.append(layer)
            else:
                self.blocks[layer] = block_of(model, layer, name)

    @torch.inference_mode()
    def _states(self, probe: Arguments) -> Sequence[torch.Tensor]:
        """Return the states as the library lists them, the first those below the first block; none
        where it does not."""
        try:
            output = self.model(**probe, output_hidden_states=True)
        except TypeError:  # code of a model's own that does not know the option
            return ()
        return getattr(output, "hidden_states", None) or ()

    @torch.inference_mode()
    def _is_block(self, layer: int, states: Sequence[torch.Tensor], probe: Arguments) -> bool:
        """Say whether what a block gives is among the states; where, libraries count otherwise."""
        try:
            block = block_of(self.model, layer, self.name)
        except EncoderError:
            return False
        found = _tapped(self.model, {layer: block}, (), probe).get(layer)
        if found is None:  # it is not called as a module (SqueezeBERT)
            return False
        tolerance = TOLERANCE[str(found.dtype).removeprefix("torch.")]
        return any(
            found.shape == state.shape
            and difference(found.flatten(0, -2), state.flatten(0, -2)) <= tolerance
            for state in states
        )

    def run(self, arguments: Arguments) -> dict[int, torch.Tensor]:
        """Return the states of all layers, (n, length, dim) each."""
        if self.listed:
            output = self.model(**arguments, output_hidden_states=True)
            reached = {layer: output.hidden_states[layer] for layer in self.listed}
            reached |= {layer: output.last_hidden_state for layer in self.own}
            if not self.blocks:
                return reached
            return {**reached, **_tapped(self.model, self.blocks, (), arguments)}
        return _tapped(self.model, self.blocks, self.own, arguments)


def _tapped(
    model: Any, blocks: dict[int, Any], own: Sequence[int], arguments: Arguments
) -> dict[int, torch.Tensor]:
    """Run a model to the highest of some blocks, or through, and return what they give."""
    reached: dict[int, torch.Tensor] = {}
    highest, own_thread = max(blocks, default=0), threading.get_ident()

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() != own_thread:  # another pass over the same model
                return
            reached[layer] = output[0] if isinstance(output, tuple | list) else output
            if layer == highest and not own:
                raise LastLayerReached

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in blocks.items()]
    try:
        last = model(**arguments).last_hidden_state
        reached.update((layer, torch.as_tensor(last)) for layer in own)
    except LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return reached


def block_of(model: Any, layer: int, name: str) -> Any:
    """Return a block; raises EncoderError for one that does not exist."""
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
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    named = [stack for stack in stacks if len(stack[1]) == count]
    if named:
        return min(named, key=lambda stack: stack[0].count("."))[1]
    return max(stacks, key=lambda stack: len(stack[1]))[1]
