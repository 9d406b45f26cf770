"""Does an encoder give what its model says, whatever its architecture?

    python benchmarks/architectures.py [NAME...] [--out docs/results/architectures.md]

Small models of real architectures with random weights are saved as their users' models are, loaded
by pal from the folder, and compared with a forward pass of transformers' own of one item at a time:
two layers, padding on either side, items alone and together. The figure is the largest difference
of a feature relative to its largest value, in float32; or the sentence that refuses it.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pal.config import EncoderConfig
from pal.embed.encoder import load, locate
from pal.embed.encoders.random_models import byte_tokenizer, siglip2_tokenizer
from pal.errors import EncoderError
from pal.items import Image, Item, Text

WORDS = [
    "a", "Trees in the city give shade.", "more roads, please",
    "Nobody should pay for the bus, neither here nor anywhere else, and that is my last word.",
]  # fmt: skip
SMALL: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "d_embed": 32,
    "embedding_size": 32, "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3,
    "num_decoder_layers": 3, "encoder_layers": 3, "decoder_layers": 3, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_head": 8, "d_kv": 8,
    "intermediate_size": 64, "n_inner": 64, "ffn_dim": 64, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "d_ff": 64, "d_inner": 64, "hidden_dim": 64, "dff": 64,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256,
    "type_vocab_size": 2, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "attention_window": 8, "state_size": 8,
}  # fmt: skip
"""settings by the names that configurations have for them; each takes those that it knows"""
LISTED_BEHIND = {"falcon_mamba", "mamba", "mamba2", "rwkv"}
"""types whose list of states begins behind the first block and not before it"""
DROPPED = ...
"""in the place of a setting that a type does not take"""
VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_channels": 3}
ENCODERS = [
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta",
    "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "fnet",
    "ibert", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert",
    "mpnet", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roformer",
    "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
]  # fmt: skip
DECODERS = [
    "apertus", "arcee", "bamba", "biogpt", "bloom", "codegen", "cohere", "cohere2", "ctrl",
    "deepseek_v3", "ernie4_5", "exaone4", "falcon", "falcon_mamba", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite",
    "helium", "jamba", "lfm2", "llama", "mamba", "mamba2", "ministral", "mistral", "mixtral",
    "modernbert-decoder", "mpt", "nemotron", "olmo", "olmo2", "openai-gpt", "opt", "persimmon",
    "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "recurrent_gemma",
    "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "xglm",
]  # fmt: skip
BOTH = [
    "bart", "blenderbot", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5",
    "umt5",
]  # fmt: skip
"""encoders with a decoder, of which the encoder is read"""
IMAGES = [
    "beit", "convnext", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa",
    "swin", "vit", "vit_mae",
]  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4, "n_ctx": 256},
    "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deepseek_v3": {"n_routed_experts": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    "esm": {"position_embedding_type": "absolute"},
    "falcon": {"head_dim": DROPPED},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "led": {"max_encoder_position_embeddings": 256},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "opt": {"word_embed_proj_dim": 16},
    "qwen3_next": {"num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads":
        2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 32},
    "recurrent_gemma": {"lru_width": 32},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "rwkv": {"attention_hidden_size": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "swin": {"num_attention_heads": DROPPED, "num_hidden_layers": DROPPED, "num_layers":
        DROPPED, "hidden_size": DROPPED, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
        "window_size": 2, "patch_size": 4},
    "xlnet": {"max_position_embeddings": DROPPED},
}  # fmt: skip
"""what a type wants besides ``SMALL``"""
TOWERS = ("clip", "chinese_clip", "metaclip_2", "siglip", "siglip2")
ROUNDING = 1e-3
"""a relative difference that float32 does not explain"""


@dataclass
class Row:
    """What was found for one architecture."""

    name: str
    reads: str
    figures: dict[str, float | str] = field(default_factory=dict)
    """largest relative difference, or the sentence, by column"""
    attention: str = ""

    @property
    def is_right(self) -> bool:
        found = [value for value in self.figures.values() if isinstance(value, float)]
        return all(value < ROUNDING for value in found)


def main() -> None:
    """Measure, print a line for each architecture, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all without any")
    parser.add_argument("--out", type=Path, help="where the table is written")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for name, measure in cases().items():
        if given.names and name not in given.names:
            continue
        try:
            rows.append(measure())
        except Exception as error:  # the library itself cannot make or run such a model
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        print(line(rows[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(table(rows), encoding="utf-8")
    wrong = [row.name for row in rows if not row.is_right]
    if wrong:
        sys.exit(f"other features than the model's: {', '.join(wrong)}")


def cases() -> dict[str, Callable[[], Row]]:
    """Return what measures each architecture, by name."""
    found: dict[str, Callable[[], Row]] = {}
    for name in (*ENCODERS, *DECODERS, *BOTH):
        found[name] = lambda n=name: text_row(n, SPECIAL.get(n, {}))
    for name in IMAGES:
        found[name] = lambda n=name: image_row(n, SPECIAL.get(n, {}))
    for name in TOWERS:
        found[name] = lambda n=name: towers_row(n)
    found["open-clip"] = open_clip_row
    return found


def settings_of(kind: str, special: dict[str, Any], **more: Any) -> Any:
    """Return a small configuration of a model type."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    known = {key: value for key, value in {**SMALL, **more}.items() if hasattr(default, key)}
    wanted = {key: value for key, value in {**known, **special}.items() if value is not DROPPED}
    return AutoConfig.for_model(kind, **wanted)


def save(settings: Any, folder: Path, *beside: Any) -> None:
    """Write a model with random weights, and what lies beside it."""
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(settings).save_pretrained(folder)
    for part in beside:
        part.save_pretrained(folder)


def text_row(name: str, special: dict[str, Any]) -> Row:
    """Compare a text model."""
    tokenizer = byte_tokenizer()
    marks = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    row = Row(name, "text")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(settings_of(name, {**marks, **special}), folder, tokenizer)
        for layer in (-1, -2):
            wanted = text_reference(folder, tokenizer, layer)
            for side in ("right", "left"):
                config = EncoderConfig(model=place, layer=layer, padding_side=side)
                items = [Text(words) for words in WORDS]
                compare(row, f"{side}, layer {layer}", config, items, wanted)
    return row


def text_reference(folder: Path, tokenizer: Any, layer: int) -> torch.Tensor:
    """Return the mean of a layer's states, one text at a time, by transformers alone."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    found = []
    for words in WORDS:
        ids = torch.tensor([tokenizer(words)["input_ids"]])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
        place = layer - (model.config.model_type in LISTED_BEHIND)
        states = output.last_hidden_state if layer == -1 else output.hidden_states[place]
        found.append(states[0].float().mean(dim=0))
    return torch.stack(found)


def pictures() -> list[Any]:
    """Return images of several shapes."""
    from PIL import Image as Pil

    chance = np.random.default_rng(0)
    sizes = [(32, 32), (40, 60), (90, 30)]
    return [Pil.fromarray(chance.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def item_of(picture: Any) -> Image:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return Image.of_bytes(out.getvalue())


def image_row(name: str, special: dict[str, Any]) -> Row:
    """Compare a model of images alone."""
    from transformers import AutoModel, ViTImageProcessor

    row = Row(name, "images")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(settings_of(name, special, **VISION, mask_ratio=0.0), folder, processor)
        model = AutoModel.from_pretrained(folder).eval()
        for layer in (-1, -2):
            found = []
            for picture in pictures():
                pixels = processor(images=picture, return_tensors="pt")
                with torch.no_grad():
                    output = model(**pixels, output_hidden_states=True)
                if layer == -1:
                    own = getattr(output, "pooler_output", None)
                    found.append(output.last_hidden_state[0, 0] if own is None else own.flatten())
                else:
                    found.append(output.hidden_states[layer][0, 0])
            config = EncoderConfig(kind="hf-image", model=place, layer=layer)
            items = [item_of(picture) for picture in pictures()]
            compare(row, f"right, layer {layer}", config, items, torch.stack(found))
    return row


def towers_row(name: str) -> Row:
    """Compare a model of two towers."""
    from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, SiglipImageProcessor

    row = Row(name, "images, text")
    tokenizer = siglip2_tokenizer() if name == "siglip2" else byte_tokenizer()
    settings = tower_settings(name, tokenizer)
    if name == "siglip2":
        from transformers import Siglip2ImageProcessor

        processor: Any = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    elif name == "siglip":
        processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        processor = CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(settings, folder, tokenizer, processor)
        model = AutoModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        length = model.config.text_config.max_position_embeddings
        found = []
        with torch.no_grad():
            for picture in pictures():
                given = processor(images=picture, return_tensors="pt")
                found.append(model.get_image_features(**given).pooler_output[0])
            for words in WORDS:
                ids = tokenizer([words], padding="max_length", truncation=True, max_length=length,
                                return_tensors="pt")["input_ids"]  # fmt: skip
                found.append(model.get_text_features(input_ids=ids).pooler_output[0])
        config = EncoderConfig(kind="hf-clip", model=place)
        items: list[Item] = [item_of(picture) for picture in pictures()]
        items += [Text(words) for words in WORDS]
        compare(row, "right, layer -1", config, items, torch.stack(found))
    return row


def tower_settings(name: str, tokenizer: Any) -> Any:
    """Return a small configuration of two towers."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(name)
    marks = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 64,
    }  # fmt: skip
    text, vision = (
        {key: v for key, v in {**SMALL, **more}.items() if hasattr(inner, key)}
        for inner, more in (
            (default.text_config, {**marks, "projection_size": 32}),
            (default.vision_config, {**VISION, "num_patches": 16}),
        )
    )
    sizes = {"projection_dim": 16} if hasattr(default, "projection_dim") else {}
    return AutoConfig.for_model(name, text_config=text, vision_config=vision, **sizes)


def open_clip_row() -> Row:
    """Compare OpenCLIP's own model."""
    from pal.embed.encoders import openclip

    row = Row("open-clip", "images, text")
    config = EncoderConfig(kind="open-clip", model="random:open-clip", images="as-library")
    model, transform, tokenizer = openclip.build(locate("tiny", config, None))
    with torch.no_grad():
        found = [model.encode_image(transform(picture)[None])[0] for picture in pictures()]
        found += [model.encode_text(tokenizer([words]))[0] for words in WORDS]
    items: list[Item] = [item_of(picture) for picture in pictures()]
    items += [Text(words) for words in WORDS]
    compare(row, "right, layer -1", config, items, torch.stack(found))
    return row


def compare(
    row: Row, column: str, config: EncoderConfig, items: Sequence[Item], wanted: torch.Tensor
) -> None:
    """Note the largest difference from ``wanted``, (n, dim), of items alone and together."""
    try:
        source = locate(row.name, config, None)
        row.attention = str(source.spec.get("attention", ""))
        made = load(source, "cpu", 10_000, [config.layer], False)
        inputs = made.prepare(items)
        if inputs.failures:
            raise EncoderError(next(iter(inputs.failures.values())).message)
        together = torch.empty(len(items), wanted.shape[1])
        alone = torch.empty(len(items), wanted.shape[1])
        for rows in made.batches(inputs):
            together[torch.from_numpy(rows)] = made.encode(made.load_batch(inputs, rows))[0]
        for number in range(len(items)):
            batch = made.load_batch(inputs, np.array([number]))
            alone[number] = made.encode(batch)[0][0]
    except EncoderError as error:
        row.figures[column] = str(error)
        return
    scale = wanted.abs().amax(dim=1, keepdim=True)
    worst = max(float(((found - wanted).abs() / scale).max()) for found in (together, alone))
    row.figures[column] = worst


COLUMNS = ("right, layer -1", "left, layer -1", "right, layer -2", "left, layer -2")


def line(row: Row) -> str:
    """Return a row of the table."""
    cells = [row.figures.get(column, "") for column in COLUMNS]
    shown = [f"{cell:.1e}" if isinstance(cell, float) else short(cell) for cell in cells]
    return f"| {row.name} | {row.reads} | {row.attention} | {' | '.join(shown)} |"


def short(sentence: str) -> str:
    """Return a sentence for a cell."""
    return sentence.replace("|", "/")


def table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    import transformers

    numbers = [v for row in rows for v in row.figures.values() if isinstance(v, float)]
    refused = sum(any(isinstance(v, str) for v in row.figures.values()) for row in rows)
    return "\n".join(
        [
            "# Architectures", "",
            "Made by `python benchmarks/architectures.py --out docs/results/architectures.md` with "
            f"transformers {transformers.__version__}: small models with random weights, saved, "
            "loaded by pal from the folder,",
            "and compared with a forward pass of transformers' own of one item at a time; float32, "
            "mean pooling of texts. Figures are the largest difference of a feature relative to",
            "its largest value, of items alone and in one batch; a sentence is what refuses it. A "
            "model that padding would disturb at the right gets texts of one length in a batch.",
            "",
            f"{len(rows)} architectures, {refused} with a sentence; the largest of {len(numbers)} "
            f"differences is {max(numbers):.1e}.", "",
            "| architecture | reads | attention | padded right, layer -1 | left, -1 | right, -2 | "
            "left, -2 |",
            "|---|---|---|---|---|---|---|", *map(line, rows), "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
