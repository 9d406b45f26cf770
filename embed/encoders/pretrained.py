"""Models of transformers as their files have them: the one road for real and for random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pal.embed.architecture import OWN
from pal.embed.encoder import EncoderSource
from pal.embed.encoders.mixed import weight_dtype
from pal.embed.trust import loading, loading_options, read_json
from pal.embed.weights import RANDOM
from pal.errors import EncoderError


@contextmanager
def files_of(source: EncoderSource) -> Iterator[Path]:
    """Give the folder of a model's files; that of a random one is written for the while."""
    assert source.config.model is not None
    if source.folder is None:
        from pal.embed.encoders.random_models import saved

        with saved(source.config.model.removeprefix(RANDOM)) as folder:
            yield folder
    else:
        yield source.folder


@dataclass
class Loaded:
    """A model with what belongs to it."""

    model: Any
    """what is run: of an encoder and a decoder the encoder"""
    tokenizer: Any = None
    dense: list[torch.nn.Module] = field(default_factory=list)
    """layers behind the pooling, float32"""
    made_up: dict[str, torch.Tensor] = field(default_factory=dict)
    """weights that the files do not hold, by name"""
    is_placed: bool = False
    """whether it lies on its devices already, in its own dtypes"""


def load_text(source: EncoderSource) -> Loaded:
    """Load a text model, its tokenizer and the layers behind it; raises EncoderError."""
    from transformers import AutoTokenizer

    options = loading_options(source)
    if source.config.gguf_file is not None:
        require_package("gguf", "gguf_file", source.name)
        options["gguf_file"] = source.config.gguf_file
    with files_of(source) as folder, loading(source):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        loaded = load_model(source, folder, options)
        loaded.tokenizer = tokenizer
        loaded.dense = [_dense(folder / d.folder, d.activation) for d in source.dense]
    if source.spec.get("half") == "encoder" and hasattr(loaded.model, "get_encoder"):
        loaded.model = loaded.model.get_encoder()
    return loaded


def load_model(source: EncoderSource, folder: Path, options: dict[str, Any]) -> Loaded:
    """Load a model in the attention, dtype, quantisation and places of its settings."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.utils import logging

    logging.disable_progress_bar()
    config, options = source.config, dict(options)
    if source.attention != OWN:
        options["attn_implementation"] = source.attention
    if config.gguf_file is None:
        options["use_safetensors"] = True
    if config.quantization is not None:
        require_package("bitsandbytes", "quantization", source.name)
        options["quantization_config"] = _quantization(config.quantization, config.compute_dtype)
    if config.device_map is not None:
        require_package("accelerate", "device_map", source.name)
        options["device_map"] = config.device_map
    dtype = weight_dtype(config.compute_dtype)
    is_half = source.spec.get("half") == "encoder"
    auto: Any = AutoModelForTextEncoding if is_half and _has_half(folder, options) else AutoModel
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    made_up = {name: tensors[name] for name in sorted(info["missing_keys"]) if name in tensors}
    is_placed = bool(config.device_map or config.quantization)
    return Loaded(model.eval().requires_grad_(False), made_up=made_up, is_placed=is_placed)


def _has_half(folder: Path, options: dict[str, Any]) -> bool:
    """Say whether transformers has a class for the encoder alone, as for T5."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    names = ("trust_remote_code", "local_files_only", "code_revision", "gguf_file")
    known = {key: value for key, value in options.items() if key in names}
    return type(AutoConfig.from_pretrained(folder, **known)) in MODEL_FOR_TEXT_ENCODING_MAPPING


def _quantization(bits: str, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )


def require_package(package: str, setting: str, name: str) -> None:
    """Raise EncoderError if a package is missing that a setting needs."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise EncoderError(
            f"embed.{name}.{setting} needs the package {package}; pip install {package}"
        )


def _dense(folder: Path, activation: str) -> torch.nn.Module:
    """Return a layer of sentence-transformers: a matrix, perhaps a bias, and its activation."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = read_json(folder / "config.json")
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    if bias is None and settings.get("bias", True):
        raise ValueError(f"{folder} lacks linear.bias")
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    layer = torch.nn.Sequential(linear, getattr(torch.nn, activation)())
    return layer.float().eval().requires_grad_(False)


def require_own_weights(
    source: EncoderSource, loaded: Loaded, features: Callable[[], Sequence[torch.Tensor]]
) -> None:
    """Raise EncoderError if features depend on weights that transformers had to make up.

    ``features`` computes some. Weights that they do not read may be missing, as those of a pooler
    or a decoder are: gradients tell which they read.
    """
    floats = {n: t for n, t in loaded.made_up.items() if t.is_floating_point() and not t.is_meta}
    if not floats:
        return
    for tensor in floats.values():
        tensor.requires_grad_(True)
    try:
        with torch.enable_grad():
            read = None
            if any(feature.requires_grad for feature in features()):
                read = next(n for n in floats if _is_read(floats[n], floats, features))
    finally:
        for tensor in floats.values():
            tensor.requires_grad_(False)
    if read is not None:
        raise EncoderError(
            f"cannot load encoder {source.name} from {source.folder}: its files lack "
            f"{len(floats)} weights, such as {read}, and features are computed from them; check "
            "its files, or fetch them again"
        )


def _is_read(
    tensor: torch.Tensor,
    floats: dict[str, torch.Tensor],
    features: Callable[[], Sequence[torch.Tensor]],
) -> bool:
    """Say whether features depend on one tensor."""
    for other in floats.values():
        other.requires_grad_(other is tensor)
    return any(feature.requires_grad for feature in features())
