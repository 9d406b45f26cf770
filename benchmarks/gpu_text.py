"""Texts under decoders and an encoder of real shapes: pal embed's own road against plain loops.

    python benchmarks/gpu_text.py OUT.json [--device cuda] [--small]

All of them compute in bfloat16 with the same model in memory. The plain loops tokenise nothing and
write nothing; "end to end, forward alone" is torch's attention of variable length over batches that
already lie on the device, which pal embed cannot be faster than.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_sizes import Found, fastest_rate, options_of, seconds_of, timed_shards

from pal import pipeline
from pal.config import Config, load
from pal.embed.choose import claimed_job
from pal.embed.encoders import text, unpadded
from pal.embed.encoders.compiled import compile_blocks
from pal.embed.encoders.pretrained import Loaded
from pal.embed.encoders.random_models import byte_tokenizer
from pal.embed.engines.local import load_runner
from pal.embed.peak import flops_per_token
from pal.embed.render import Tokens

LONGEST, ROWS, ITEMS = 512, 1000, 8000
MODELS: dict[str, dict[str, Any]] = {
    "8B decoder (Llama 3.1 8B)": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
        "vocab_size": 128_256,
    },
    "0.6B decoder (Qwen3 0.6B)": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 3072, "vocab_size": 151_936,
    },
    "110M encoder (BERT base)": {
        "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30_522,
    },
}  # fmt: skip
SHARDS = {"8B": 2, "0.6B": 4, "110M": 8}
"""encoded of each, the first of which is not timed"""
SHRUNK = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "vocab_size": 300,
}  # fmt: skip


def main() -> None:
    options = options_of(__doc__)
    device, small = options.device, options.small
    found = Found(options.out)
    rate = fastest_rate(device, torch.bfloat16, small)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dataset = prepared(60 if small else ITEMS)
        for name, shape in MODELS.items():
            found.table(f"{name}, mean of the tokens, {LONGEST} at most.", *COLUMNS)
            shards = 2 if small else SHARDS[name.split()[0]]
            for row in measured(model_of(shape, device, small), dataset, device, shards, small):
                label, tokens, seconds, padding, per_token = row
                share = tokens / seconds * per_token / rate
                found.row(label, f"{tokens / seconds:,.0f}", f"{share:.0%}", padding)
            torch.cuda.empty_cache()


COLUMNS = ("how", "real tokens/s", "share of the bfloat16 rate", "padding")
Row = tuple[str, float, float, str, float]


def prepared(items: int) -> Any:
    """Write comparisons of texts of unequal lengths (median 180 letters), and prepare them."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 0.7, items), 5, 2 * LONGEST).astype(int)
    letters = np.frombuffer(b"etaoinshrdlu ", np.uint8)
    texts = [rng.choice(letters, n).tobytes().decode().strip() or "a" for n in lengths]
    with open("texts.jsonl", "w") as stream:
        for number in range(0, items - 1, 2):
            row = {
                "user": f"u{number % 20}", "prompt": "", "chosen": f"{number} {texts[number]}",
                "rejected": f"{number} {texts[number + 1]}",
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    return pipeline.prepare(settings("cache", ROWS))


def settings(cache: str, rows: int) -> Config:
    shape = {
        "kind": "hf-text", "model": "random:llama", "max_length": LONGEST, "pooling": "mean",
        "compute_dtype": "bfloat16",
    }  # fmt: skip
    options = {
        "dataset": "texts", "data.texts": {"kind": "pairs", "source": "texts.jsonl"},
        "encoder": "shape", "embed.shape": shape, "embed.rows_per_shard": rows,
        "paths.cache": cache,
    }  # fmt: skip
    return load(None, (), options).config


def model_of(shape: dict[str, Any], device: str, small: bool) -> Any:
    """Build a model with random weights where it will run."""
    from transformers import AutoConfig, AutoModel

    shrunk = {**SHRUNK, "num_key_value_heads": 4} if "num_key_value_heads" in shape else SHRUNK
    chosen = {**shape, **(shrunk if small else {}), "max_position_embeddings": 1024}
    config = AutoConfig.for_model(chosen.pop("model_type"), **chosen, pad_token_id=0)
    with torch.device(device):
        return AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def measured(model: Any, dataset: Any, device: str, shards: int, small: bool) -> Iterator[Row]:
    """Yield how fast a model encodes, by each road."""
    per_token = flops_per_token(model)
    text.load_text = lambda source: Loaded(model=model, tokenizer=byte_tokenizer())

    def ours(label: str, prepare: Any = lambda encoder: None) -> Row:
        with tempfile.TemporaryDirectory() as cache:
            job = claimed_job(settings(cache, 10 if small else ROWS), dataset)
            writers, tasks = job.open()
            runner = load_runner(job, writers, device)
            prepare(runner.encoder)
            receipts, seconds = timed_shards(runner, tasks[:shards])
        real = sum(receipt.tokens_real for receipt in receipts)
        all_of = sum(receipt.tokens_padded for receipt in receipts)
        return label, real, seconds, f"{1 - real / all_of:.1%}", per_token

    yield ours("pal embed, end to end")
    yield ours("pal embed, padded", pad)
    yield from plain(model, dataset, device, per_token, (shards - 1) * (10 if small else ROWS))
    yield ours("pal embed, end to end, compiled", lambda encoder: compile_blocks(encoder.model))


def pad(encoder: Any) -> None:
    """Take the road of models that know no texts end to end."""
    if encoder.joins:
        unpadded.attend_by_sdpa(encoder.model)
    encoder.joins = False


def tokens_of(dataset: Any, rows: int) -> Tokens:
    """Return the tokens of the first items."""
    read = byte_tokenizer()
    texts = dataset.items(["text"]).column("text").to_pylist()[:rows]
    ids = [np.array(read(one)["input_ids"][:LONGEST], np.int32) for one in texts]
    return Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))


@torch.inference_mode()
def plain(model: Any, dataset: Any, device: str, per_token: float, texts: int) -> Iterator[Row]:
    """Yield what plain loops of forward passes reach on the first texts."""
    tokens = tokens_of(dataset, texts)
    lengths = np.diff(tokens.starts)
    real = int(lengths.sum())
    for label, order in (
        ("plain loop, 64 a batch, in their order", np.arange(len(lengths))),
        ("plain loop, 64 a batch, by length", np.argsort(-lengths, kind="stable")),
    ):
        batches = [padded(tokens, order[n : n + 64]) for n in range(0, len(order), 64)]
        computed = sum(mask.numel() for _, mask in batches)
        loop(model, batches[:2], device)
        seconds = seconds_of(lambda some=batches: loop(model, some, device), device)
        yield label, real, seconds, f"{1 - real / computed:.1%}", per_token
    unpadded.attend_by_us(model)
    order = np.argsort(-lengths, kind="stable")
    rows = [
        unpadded.Row.of_tokens(tokens, part, torch.device("cpu")).to(torch.device(device))
        for part in np.array_split(order, max(1, real // 65_536))
    ]

    def forward(some: list[unpadded.Row]) -> None:
        for row in some:
            with unpadded.end_to_end():
                model(input_ids=row.ids, use_cache=False, **row.arguments())

    forward(rows[:1])
    yield (
        "end to end, forward alone",
        real,
        seconds_of(lambda: forward(rows), device),
        "0.0%",
        per_token,
    )
    unpadded.attend_by_sdpa(model)


def padded(tokens: Tokens, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [torch.from_numpy(tokens.ids[tokens.starts[r] : tokens.starts[r + 1]]) for r in rows]
    lengths = torch.tensor([len(one) for one in ids])
    stacked = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).long()
    return stacked, torch.arange(stacked.shape[1])[None] < lengths[:, None]


def loop(model: Any, batches: list[tuple[torch.Tensor, torch.Tensor]], device: str) -> None:
    for ids, mask in batches:
        ids, mask = ids.to(device), mask.to(device)
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        text.pool(states, mask, "mean").cpu()


if __name__ == "__main__":
    main()
