"""CLIP-type models of transformers (CLIP, PickScore, SigLIP, SigLIP 2): their two towers as
functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pal.embed.encoder import EncoderSource
from pal.embed.encoders.pretrained import Loaded, files_of, load_model, require_own_weights
from pal.embed.encoders.towers import Pixels, Towers, blank_of
from pal.embed.peak import flops_per_token
from pal.embed.trust import loading, loading_options
from pal.errors import EncoderError

PENULTIMATE = -2


def build(source: EncoderSource) -> tuple[Any, Any, Any]:
    """Return model, image processor and tokenizer, on the CPU."""
    loaded, processor = load_with_processor(source)
    return loaded.model, processor, loaded.tokenizer


def load_with_processor(source: EncoderSource) -> tuple[Loaded, Any]:
    """Load two towers, their tokenizer and their image processor; raises EncoderError."""
    from transformers import AutoImageProcessor, AutoTokenizer

    options = loading_options(source)
    with files_of(source) as folder, loading(source):
        loaded = load_model(source, folder, options)
        loaded.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return loaded, AutoImageProcessor.from_pretrained(folder, **options)


def placed(loaded: Loaded, source: EncoderSource, device: str) -> Any:
    """Return a model on its device in its dtype."""
    if loaded.is_placed:
        return loaded.model
    return loaded.model.to(device=device, dtype=getattr(torch, source.config.compute_dtype))


def pixels_of(processor: Any) -> Any:
    """Return what makes a model's inputs of one PIL image."""

    def transform(image: Any) -> Pixels:
        read = processor(images=image.convert("RGB"), return_tensors="pt")
        return {key: value[0] for key, value in read.items()}

    return transform


def hf_clip_towers(source: EncoderSource, device: str) -> Towers:
    """Load a model's towers; ``layer: -2`` takes the pooled states before the projections."""
    config = source.config
    if config.layer not in (-1, PENULTIMATE):
        raise EncoderError(
            f"embed.{source.name}.layer = {config.layer}, but towers give -1 (projected) or -2"
        )
    loaded, processor = load_with_processor(source)
    model, tokenizer = placed(loaded, source, device), loaded.tokenizer
    penultimate = config.layer == PENULTIMATE
    if penultimate and not hasattr(model, "visual_projection"):
        raise EncoderError(
            f"encoder {source.name} has no projection that could be left out; use layer: -1"
        )
    length = model.config.text_config.max_position_embeddings

    def tokenise(texts: list[str]) -> tuple[Any, np.ndarray]:
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        # all texts are padded to the full length, as SigLIP was trained; CLIP looks at no padding
        padded = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return padded["input_ids"], np.array(lengths, dtype=np.int64)

    def images(**pixels: Any) -> Any:
        if penultimate:
            return model.vision_model(**pixels).pooler_output
        return pooled(model.get_image_features(**pixels))

    def texts(ids: Any) -> Any:
        if penultimate:
            return model.text_model(input_ids=ids).pooler_output
        return pooled(model.get_text_features(input_ids=ids))

    towers = Towers(
        transform=pixels_of(processor),
        images=images,
        image_tokens=image_tokens(model.config.vision_config, processor),
        image_flops=flops_per_token(model.vision_model),
        tokenise=tokenise,
        texts=texts,
        text_tokens=length,
        text_flops=flops_per_token(model.text_model),
        parts=(model.vision_model, model.text_model),
    )
    require_own_weights(source, loaded, lambda: [*_probe(towers, model)])
    return towers


def _probe(towers: Towers, model: Any) -> list[torch.Tensor]:
    """Return the features of a blank image and an empty text."""
    assert towers.tokenise is not None
    assert towers.texts is not None
    ids = towers.tokenise(["-"])[0].to(model.device)
    return [
        towers.texts(ids),
        towers.images(**blank_of(towers.transform, model.device, model.dtype)),
    ]


def image_tokens(settings: Any, processor: Any) -> int:
    """Return how many tokens a model makes of an image, at most."""
    patches = getattr(processor, "max_num_patches", None)
    if patches:
        return int(patches)
    size, patch = (
        value[0] if isinstance(value, list | tuple) else int(value)
        for value in (settings.image_size, settings.patch_size)
    )
    return int(size // patch) ** 2 + 1


def pooled(output: Any) -> Any:
    """Return the features, which later transformers wrap in an output object."""
    return getattr(output, "pooler_output", output)
