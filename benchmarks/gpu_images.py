"""Images under ViT-H/14 of OpenCLIP, random weights: pal embed's own road against forward alone.

    python benchmarks/gpu_images.py OUT.json [--device cuda] [--small]

"Decoded before" leaves out reading and decoding: every image is one of a few that lie in memory as
the model reads them. "Forward alone" is one batch that lies on the device, again and again.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_sizes import Found, fastest_rate, options_of, seconds_of, timed_shards
from PIL import Image

from pal import pipeline
from pal.config import Config, load
from pal.embed.choose import claimed_job
from pal.embed.encoder import load as load_encoder
from pal.embed.encoders.compiled import compile_blocks
from pal.embed.runner import ShardRunner

SIDE, IMAGES, ROWS, BATCH = 512, 6000, 1500, 255


def main() -> None:
    options = options_of(__doc__)
    device, small = options.device, options.small
    rate = fastest_rate(device, torch.bfloat16, small)
    found = Found(options.out)
    found.table(
        f"ViT-H/14, JPEG files of {SIDE} x {SIDE}.", "how", "images/s",
        "share of the bfloat16 rate", "waiting for the CPU",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dataset = prepared(200 if small else IMAGES)
        for label, images, seconds, flops, waited in measured(dataset, device, small):
            share = images / seconds * flops / rate
            found.row(label, f"{images / seconds:,.0f}", f"{share:.0%}", f"{waited:.0%}")


def prepared(images: int) -> Any:
    """Write images of smooth noise, and prepare comparisons of them."""

    def write(number: int) -> str:
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "JPEG")
        Path(f"{number}.jpg").write_bytes(out.getvalue())
        return f"{number}.jpg"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = list(pool.map(write, range(images)))
    with open("images.jsonl", "w") as stream:
        for number in range(0, images, 2):
            row = {
                "user": f"u{number % 20}", "prompt": f"{number // 4}", "chosen": names[number],
                "rejected": names[number + 1],
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    return pipeline.prepare(settings("cache", small=False))


def settings(cache: str, small: bool) -> Config:
    own = {"model": "random:open-clip"} if small else {"model": "ViT-H-14", "pretrained": "random"}
    options = {
        "dataset": "images", "data.images": {"kind": "pairs", "source": "images.jsonl"},
        "encoder": "vit-h",
        "embed.vit-h": {"kind": "open-clip", **own, "compute_dtype": "bfloat16"},
        "embed.rows_per_shard": 10 if small else ROWS, "paths.cache": cache,
    }  # fmt: skip
    return load(None, (), options).config


def measured(
    dataset: Any, device: str, small: bool
) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield how fast images are encoded, by each road."""
    first = claimed_job(settings("cache", small), dataset)
    budget = 400 if small else 65_536
    encoder: Any = load_encoder(first.source, device, budget, first.layers, False)
    flops = encoder.towers.image_flops * encoder.towers.image_tokens
    side = 32 if small else 224
    pixels = torch.randn(BATCH if not small else 4, 3, side, side, device=device)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(8):
            encoder.towers.images(image=pixels.to(torch.bfloat16))

    forward()
    seconds = seconds_of(forward, device, 3)
    yield "forward alone", 8 * len(pixels), seconds, flops, 0.0

    def ours(label: str) -> tuple[str, float, float, float, float]:
        with tempfile.TemporaryDirectory() as cache:
            job = claimed_job(settings(cache, small), dataset)
            writers, tasks = job.open()
            runner = ShardRunner(encoder, job.items(), writers, device, {})
            receipts, spent = timed_shards(runner, images_alone(tasks, job))
        images = sum(receipt.rows for receipt in receipts)
        waited = sum(receipt.seconds.wait for receipt in receipts)
        return label, images, spent, flops, waited / spent

    yield ours("pal embed, from files")
    pool = [{"image": torch.randn(3, side, side)} for _ in range(16)]
    encoder._pixels = lambda place: pool[hash(place.file) % len(pool)]
    yield ours("pal embed, decoded before")
    for part in encoder.towers.parts:
        compile_blocks(part)
    yield ours("pal embed, decoded before, compiled")


def images_alone(tasks: Any, job: Any) -> list[Any]:
    """Return the shards without a prompt in them."""
    kinds = job.items().column("modality").to_pylist()
    return [t for t in tasks if set(kinds[t.start : t.start + len(t)]) == {"image"}]


if __name__ == "__main__":
    main()
