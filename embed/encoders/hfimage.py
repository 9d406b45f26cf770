"""Models of transformers that read images alone (DINOv2, DINOv3, ViT): a tower as functions."""

from __future__ import annotations

from typing import Any

import torch

from pal.embed.encoder import EncoderSource
from pal.embed.encoders.hfclip import image_tokens, pixels_of, placed
from pal.embed.encoders.pretrained import Loaded, files_of, load_model, require_own_weights
from pal.embed.encoders.taps import Taps
from pal.embed.encoders.towers import Pixels, Towers, blank_of
from pal.embed.peak import flops_per_token
from pal.embed.trust import loading, loading_options
from pal.errors import EncoderError


def load_with_processor(source: EncoderSource) -> tuple[Loaded, Any]:
    """Load a model and its image processor; raises EncoderError."""
    from transformers import AutoImageProcessor

    options = loading_options(source)
    with files_of(source) as folder, loading(source):
        loaded = load_model(source, folder, options)
        return loaded, AutoImageProcessor.from_pretrained(folder, **options)


def hf_image_tower(source: EncoderSource, device: str) -> Towers:
    """Load a model as a tower without texts; it gives states, (n, tokens, dim), that are pooled.

    The tokens in front of the patches, the class token and registers, are none of the mean.
    """
    loaded, processor = load_with_processor(source)
    model, config = placed(loaded, source, device), source.config
    if config.pooling == "last":
        raise EncoderError(
            f"embed.{source.name}.pooling = 'last' means nothing of an image; use auto, cls or mean"
        )
    settings, transform = model.config, pixels_of(processor)
    probe = blank_of(transform, model.device, model.dtype)
    taps = Taps(model, [config.layer], config.norm, source.name, probe)

    def images(**pixels: Any) -> torch.Tensor:
        if taps.own and config.pooling == "auto":
            output = model(**pixels)
            own: torch.Tensor | None = getattr(output, "pooler_output", None)
            if own is not None and own is not output.last_hidden_state:
                return own.flatten(1)
        states = taps.run(pixels)[config.layer]
        if states.ndim != 3:
            raise EncoderError(
                f"encoder {source.name} gives no state for each patch; use layer: -1 and pooling: "
                "auto"
            )
        if config.pooling == "mean":
            return states[:, -patches_of(pixels, settings) :].float().mean(dim=1)
        return states[:, 0]

    towers = Towers(
        transform=transform,
        images=images,
        image_tokens=image_tokens(settings, processor) if hasattr(settings, "patch_size") else 256,
        image_flops=flops_per_token(model),
        parts=(model,),
    )
    require_own_weights(source, loaded, lambda: [towers.images(**probe)])
    return towers


def patches_of(pixels: Pixels, settings: Any) -> int:
    """Return how many of the last tokens are patches."""
    height, width = pixels["pixel_values"].shape[-2:]
    patch = settings.patch_size
    high, wide = patch if isinstance(patch, list | tuple) else (patch, patch)
    return int(height // high) * int(width // wide)
