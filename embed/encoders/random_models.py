"""Small models of the real architectures with seeded random weights, for tests and smoke runs.

Whatever they produce is labelled ``untrained``: it shows that the machinery works, never how well.
"""

from __future__ import annotations

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
}  # fmt: skip


def random_model(family: str) -> Any:
    """Build a family's base model with weights drawn from the fixed seed, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **FAMILIES[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModel.from_config(config).eval()


def random_clip(family: str) -> tuple[Any, Any, Any]:
    """Build a model of two towers from the fixed seed, its image processor and a byte tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, CLIPImageProcessor, SiglipImageProcessor

    tokenizer = byte_tokenizer()
    settings = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in CLIP_FAMILIES[family].items()
    }
    settings["text_config"] |= {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    side = settings["vision_config"]["image_size"]
    if family == "clip":
        processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    else:
        processor = SiglipImageProcessor(size={"height": side, "width": side})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return (
            AutoModel.from_config(AutoConfig.for_model(family, **settings)).eval(),
            processor,
            tokenizer,
        )


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
