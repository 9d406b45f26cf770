"""Small models of the real architectures with seeded random weights, for tests and smoke runs.

Whatever they produce is labelled ``untrained``: it shows that the machinery works, never how well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEED = 20240610
WIDTH = 64
_SHAPE = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
}

# Settings of each family's own configuration class; the vocabulary is that of the byte tokenizer.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": WIDTH, **_SHAPE},
    "opt": {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 128,
        "max_position_embeddings": 1024, "word_embed_proj_dim": 32, "do_layer_norm_before": False,
    },
    "gpt2": {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 1024},
    "llama": {"hidden_size": WIDTH, "num_key_value_heads": 2, **_SHAPE},
    "mistral": {"hidden_size": WIDTH, "num_key_value_heads": 2, **_SHAPE},
    "qwen2": {"hidden_size": WIDTH, "num_key_value_heads": 2, **_SHAPE},
    "gemma2": {"hidden_size": WIDTH, "num_key_value_heads": 2, "head_dim": 16, **_SHAPE},
    "distilbert": {
        "dim": WIDTH, "n_layers": 3, "n_heads": 4, "hidden_dim": 128,
        "max_position_embeddings": 1024,
    },
}  # fmt: skip


_TOWER = {"hidden_size": WIDTH, **_SHAPE}
_EYE = {**_TOWER, "image_size": 32, "patch_size": 8}
CLIP_FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {
        "text_config": {**_TOWER, "max_position_embeddings": 77},
        "vision_config": {**_EYE, "hidden_size": 96},
        "projection_dim": 48,
    },
    "siglip": {"text_config": {**_TOWER, "max_position_embeddings": 64}, "vision_config": _EYE},
    "siglip2": {
        "text_config": {**_TOWER, "max_position_embeddings": 64, "projection_size": WIDTH},
        "vision_config": {**_TOWER, "patch_size": 8, "num_patches": 16},
    },
}  # fmt: skip
_PATCHES = {
    "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
IMAGE_FAMILIES: dict[str, dict[str, Any]] = {
    "dinov2": _PATCHES,
    "vit": {**_PATCHES, "intermediate_size": 128},
}


def families(kind: str) -> dict[str, dict[str, Any]]:
    """Return the random families that a kind of encoder reads."""
    known = {"hf-text": FAMILIES, "hf-clip": CLIP_FAMILIES, "hf-image": IMAGE_FAMILIES}
    return known[kind]


def settings_of(family: str) -> Any:
    """Return the configuration of a family, of the class that transformers has for it."""
    from transformers import AutoConfig

    if family in IMAGE_FAMILIES:
        return AutoConfig.for_model(family, **IMAGE_FAMILIES[family])
    tokenizer = byte_tokenizer()
    marks = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if family in FAMILIES:
        return AutoConfig.for_model(family, **marks, **FAMILIES[family])
    settings = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in CLIP_FAMILIES[family].items()
    }
    settings["text_config"] |= marks
    return AutoConfig.for_model(family, **settings)


@contextmanager
def saved(family: str) -> Iterator[Path]:
    """Write a random model as its users' models are written, for as long as it is read."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="pal-random-") as place:
        folder = Path(place)
        if family in FAMILIES:
            parts: tuple[Any, ...] = (random_model(family), byte_tokenizer())
        elif family in CLIP_FAMILIES:
            parts = random_clip(family)
        else:
            parts = random_image(family)
        for part in parts:
            part.save_pretrained(folder)
        yield folder


def random_model(family: str) -> Any:
    """Build a family's base model with weights drawn from the fixed seed, in evaluation mode."""
    import torch
    from transformers import AutoModel

    settings = settings_of(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModel.from_config(settings).eval()


def random_clip(family: str) -> tuple[Any, Any, Any]:
    """Build a model of two towers from the fixed seed, its image processor and a byte tokenizer."""
    from transformers import CLIPImageProcessor, Siglip2ImageProcessor, SiglipImageProcessor

    if family == "siglip2":
        processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
        return random_model(family), processor, siglip2_tokenizer()
    side = CLIP_FAMILIES[family]["vision_config"]["image_size"]
    if family == "clip":
        processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    else:
        processor = SiglipImageProcessor(size={"height": side, "width": side})
    return random_model(family), processor, byte_tokenizer()


def random_image(family: str) -> tuple[Any, Any]:
    """Build a model of images alone from the fixed seed, and its image processor."""
    from transformers import ViTImageProcessor

    side = IMAGE_FAMILIES[family]["image_size"]
    return random_model(family), ViTImageProcessor(size={"height": side, "width": side})


def siglip2_tokenizer() -> Any:
    """Build a tokenizer of the class that transformers has for SigLIP 2; its tokens are letters."""
    from transformers import Siglip2Tokenizer

    letters = [chr(number) for number in range(33, 127)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *letters]
    return Siglip2Tokenizer({token: number for number, token in enumerate(tokens)})


def byte_tokenizer() -> Any:
    """Build a tokenizer whose tokens are bytes; texts become <s> bytes </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
