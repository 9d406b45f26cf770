"""CLIP-type models of transformers (CLIP, PickScore, SigLIP): their two towers as functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from pal.embed.encoder import EncoderSource
from pal.embed.encoders.towers import Towers
from pal.embed.peak import flops_per_token
from pal.embed.trust import loading, loading_options
from pal.embed.weights import RANDOM, require_whole
from pal.errors import EncoderError

PENULTIMATE = -2


def build(source: EncoderSource) -> tuple[Any, Any, Any]:
    """Return model, image processor and tokenizer, in float32 on the CPU."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    assert source.config.model is not None
    if source.config.model.startswith(RANDOM):
        from pal.embed.encoders.random_models import random_clip

        return random_clip(source.config.model.removeprefix(RANDOM))
    options = loading_options(source)
    with loading(source):
        model, info = AutoModel.from_pretrained(
            source.folder,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        require_whole(info)
        return (
            model.eval(),
            AutoImageProcessor.from_pretrained(source.folder, **options),
            AutoTokenizer.from_pretrained(source.folder, **options),
        )


def hf_clip_towers(source: EncoderSource, device: str) -> Towers:
    """Load a model's towers; ``layer: -2`` takes the pooled states before the projections."""
    import torch

    model, processor, tokenizer = build(source)
    config = source.config
    if config.layer not in (-1, PENULTIMATE):
        raise EncoderError(
            f"embed.{source.name}.layer = {config.layer}, but towers give -1 (projected) or -2"
        )
    penultimate = config.layer == PENULTIMATE
    if penultimate and not hasattr(model, "visual_projection"):
        raise EncoderError(
            f"encoder {source.name} has no projection that could be left out; use layer: -1"
        )
    model = model.to(device=device, dtype=getattr(torch, config.compute_dtype)).requires_grad_(
        False
    )
    length = model.config.text_config.max_position_embeddings
    vision = model.config.vision_config

    def tokenise(texts: list[str]) -> tuple[Any, np.ndarray]:
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        # all texts are padded to the full length, as SigLIP was trained; CLIP looks at no padding
        padded = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return padded["input_ids"], np.array(lengths, dtype=np.int64)

    def images(pixels: Any) -> Any:
        if penultimate:
            return model.vision_model(pixel_values=pixels).pooler_output
        return pooled(model.get_image_features(pixel_values=pixels))

    def texts(ids: Any) -> Any:
        if penultimate:
            return model.text_model(input_ids=ids).pooler_output
        return pooled(model.get_text_features(input_ids=ids))

    return Towers(
        transform=lambda image: processor(images=image.convert("RGB"), return_tensors="pt")[
            "pixel_values"
        ][0],
        tokenise=tokenise,
        images=images,
        texts=texts,
        image_tokens=(vision.image_size // vision.patch_size) ** 2 + 1,
        text_tokens=length,
        image_flops=flops_per_token(model.vision_model),
        text_flops=flops_per_token(model.text_model),
    )


def pooled(output: Any) -> Any:
    """Return the features, which later transformers wrap in an output object."""
    return getattr(output, "pooler_output", output)
