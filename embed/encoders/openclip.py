"""OpenCLIP models: which files they are, and their two towers as functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pal.config import EncoderConfig
from pal.embed.digests import DigestMemory
from pal.embed.encoder import EncoderSource
from pal.embed.encoders.towers import Towers
from pal.embed.folders import find_model
from pal.embed.peak import flops_per_token
from pal.embed.trust import loading, read_json
from pal.embed.weights import RANDOM
from pal.errors import EncoderError, shown
from pal.records import JsonObject

HUB, LOCAL = "hf-hub:", "local-dir:"
PROJECTED, PENULTIMATE = -1, -2
CONFIG = "open_clip_config.json"
READ = {".safetensors", ".bin", ".pth", ".json", ".txt", ".model"}
"""kinds of files that OpenCLIP may read from a model's folder"""
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
# the shape behind random:open-clip; towers of unequal width, as in ViT-H-14
TINY_SIDE = 32
TINY: JsonObject = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": TINY_SIDE,
        "layers": 2,
        "width": 96,
        "head_width": 24,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


def open_clip_source(name: str, config: EncoderConfig, digests: Path | None) -> EncoderSource:
    """Locate the file or folder of the weights and state everything the features depend on."""
    if not config.model:
        raise EncoderError(
            f"embed.{name}.model is not set; give the name of an OpenCLIP model, e.g. ViT-H-14"
        )
    if config.layer not in (PROJECTED, PENULTIMATE):
        raise EncoderError(
            f"embed.{name}.layer = {config.layer}, but towers give -1 (projected) or -2 (before it)"
        )
    memory = DigestMemory(digests)
    if config.model.startswith((HUB, LOCAL)):
        place = config.model.removeprefix(HUB).removeprefix(LOCAL)
        folder, revision = find_model(name, config.model_copy(update={"model": place}))
        require_plain(folder, name)
        files = sorted(p for p in folder.iterdir() if p.suffix in READ and p.is_file())
        identity: JsonObject = {"files": {path.name: memory.sha256(path) for path in files}}
        memory.save()
        return EncoderSource(
            name, config, folder, _spec(config, identity), revision, untrained=False
        )
    shape = architecture(name, config)
    identity = {"model": config.model, "architecture": shape}
    if config.model.startswith(RANDOM) or config.pretrained == "random":
        from pal.embed.encoders.random_models import SEED

        identity["weights"] = f"seed {SEED}"
        return EncoderSource(
            name, config, None, _spec(config, identity), revision="seeded", untrained=True
        )
    weights, transform = find_weights(name, config)
    identity |= {"weights": memory.sha256(weights), "transform": transform}
    memory.save()
    revision = f"{config.model}/{config.pretrained}"
    return EncoderSource(name, config, weights, _spec(config, identity), revision, untrained=False)


def require_plain(folder: Path, name: str) -> None:
    """Raise EncoderError if a folder's settings would have OpenCLIP read, or run, anything else."""
    model = read_json(folder / CONFIG).get("model_cfg")
    text, vision = (
        part if isinstance(part, dict) else {}
        for part in ((model or {}).get(key) for key in ("text_cfg", "vision_cfg"))
    )
    options = text.get("tokenizer_kwargs") or {}
    odd = [key for key in options if key not in TOKENIZER_OPTIONS]
    if odd:
        raise EncoderError(
            f"{folder / CONFIG} gives its tokenizer {shown(odd[0])}, which a model may not choose; "
            f"remove it from tokenizer_kwargs (allowed: {', '.join(sorted(TOKENIZER_OPTIONS))})"
        )
    elsewhere = text.get("hf_model_name")
    if elsewhere is None and set("/:\\") & set(str(vision.get("timm_model_name", ""))):
        elsewhere = vision["timm_model_name"]
    if elsewhere is not None:
        raise EncoderError(
            f"{folder / CONFIG} builds a tower from {shown(elsewhere)}, which is not in the "
            f"folder; set embed.{name}.model to OpenCLIP's own name of the model, and pretrained "
            "to the file of its weights"
        )


def architecture(name: str, config: EncoderConfig) -> JsonObject:
    """Return OpenCLIP's own settings of a model; raises EncoderError for unknown ones."""
    import open_clip

    assert config.model is not None
    if config.model.startswith(RANDOM):
        if config.model != f"{RANDOM}open-clip":
            raise EncoderError(
                f"embed.{name}.model = {config.model!r}, but the random OpenCLIP model is open-clip"
            )
        return TINY
    shape: JsonObject | None = open_clip.get_model_config(config.model)
    if shape is None:
        raise EncoderError(
            f"embed.{name}.model = {config.model!r} is no OpenCLIP model; open_clip.list_models() "
            "has their names"
        )
    return shape


def find_weights(name: str, config: EncoderConfig) -> tuple[Path, JsonObject]:
    """Return the weights file of a tag or path, fetched if need be, and its image settings."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(config.model)
    known = open_clip.get_pretrained_cfg(config.model, config.pretrained or "")
    if not known:
        if config.pretrained and Path(config.pretrained).is_file():
            return Path(config.pretrained), {}
        raise EncoderError(
            f"embed.{name}.pretrained = {config.pretrained!r}; {config.model} has "
            f"{', '.join(tags) or 'no tags'}; or give a local file"
        )
    try:
        weights = Path(open_clip.download_pretrained(known))
    except Exception as error:
        raise EncoderError(
            f"cannot fetch encoder {name} ({config.model}, {config.pretrained}; "
            f"{type(error).__name__}); check the network, or set embed.{name}.pretrained "
            f"to a local file"
        ) from error
    keys = ("mean", "std", "interpolation", "resize_mode")
    return weights, {
        key: list(value) if isinstance(value := known.get(key), tuple) else value for key in keys
    }


def _spec(config: EncoderConfig, identity: JsonObject) -> JsonObject:
    names = ("kind", "layer", "compute_dtype", "store_dtype")
    settings: JsonObject = {name: getattr(config, name) for name in names}
    return {**identity, **settings, "normalize": bool(config.normalize), "engine": "open_clip"}


def build(source: EncoderSource) -> tuple[Any, Any, Any]:
    """Return model, preprocessing and tokenizer, in float32 on the CPU."""
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = source.config
    assert config.model is not None
    if source.untrained:
        from pal.embed.encoders.random_models import SEED

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            if config.model.startswith(RANDOM):
                model = open_clip.CLIP(**TINY)
                transform = image_transform_v2(PreprocessCfg(size=TINY_SIDE), is_train=False)
                return model.eval(), transform, open_clip.get_tokenizer("ViT-B-32")
            model = open_clip.create_model(config.model, pretrained=None, pretrained_text=False)
        name = config.model
    else:
        assert source.folder is not None
        name = f"{LOCAL}{source.folder}" if source.folder.is_dir() else config.model
        with loading(source):
            model = open_clip.create_model(
                name,
                pretrained=None if source.folder.is_dir() else config.pretrained,
                pretrained_text=False,
                require_pretrained=True,
                weights_only=True,
            )
    with loading(source):
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        return model.eval(), transform, open_clip.get_tokenizer(name, **_tokenizer_options(source))


def _tokenizer_options(source: EncoderSource) -> dict[str, Any]:
    """Return what a tokenizer from a model's own folder is told; OpenCLIP's others take nothing."""
    folder = source.folder
    if folder is None or not folder.is_dir():
        return {}
    text = read_json(folder / CONFIG)["model_cfg"].get("text_cfg", {})
    return {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}


def open_clip_towers(source: EncoderSource, device: str) -> Towers:
    """Load a model's towers; ``layer: -2`` takes the features before the projections."""
    import torch

    model, transform, tokenizer = build(source)
    config = source.config
    text = model if hasattr(model, "text_projection") else model.text
    if config.layer == PENULTIMATE:
        if (
            getattr(model.visual, "proj", None) is None
            or getattr(text, "text_projection", None) is None
        ):
            raise EncoderError(
                f"encoder {source.name} has no projection that could be left out; use layer: -1"
            )
        model.visual.proj, text.text_projection = None, None
    model = model.to(device=device, dtype=getattr(torch, config.compute_dtype)).requires_grad_(
        False
    )
    size = (
        model.visual.image_size[0]
        if isinstance(model.visual.image_size, tuple)
        else model.visual.image_size
    )
    patch = getattr(model.visual, "patch_size", (32, 32))
    side = size // (patch[0] if isinstance(patch, tuple) else patch)

    def tokenise(texts: list[str]) -> tuple[Any, np.ndarray]:
        return tokenizer(texts), np.array(
            [_length(tokenizer, value) for value in texts], dtype=np.int64
        )

    return Towers(
        transform=lambda image: {"image": transform(image)},
        images=model.encode_image,
        image_tokens=side * side + 1,
        image_flops=flops_per_token(model.visual),
        tokenise=tokenise,
        texts=model.encode_text,
        text_tokens=int(tokenizer.context_length),
        text_flops=flops_per_token(model) - flops_per_token(model.visual),
        parts=(model.visual, getattr(text, "transformer", text)),
    )


def _length(tokenizer: Any, text: str) -> int:
    """Return how many tokens a text has, begin and end included, before it is cut."""
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(text)["input_ids"])
