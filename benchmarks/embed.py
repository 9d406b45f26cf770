"""Stage one against sentence-transformers: the same weights, the same texts, alternating in one
run.

    python benchmarks/embed.py --source ../shared/persona [--statements 1500]

The raw list holds every text as often as the pairs mention it; the unique list holds it once. The
figure is items of the list per second; loading the model is not in it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import torch

from pal import pipeline
from pal.cache.records import Provenance
from pal.cache.writer import CacheWriter
from pal.config import Config, load
from pal.embed.devices import token_budget
from pal.embed.encoder import load as load_encoder
from pal.embed.run import Job, locate_job
from pal.embed.runner import ShardRunner
from pal.evaluate.report import as_markdown

ROUNDS = 3


def texts_of(config: Config) -> tuple[list[str], list[str]]:
    """Return the raw list, in the order of the pairs, and the unique list."""
    dataset = pipeline.prepare(config)
    items = dict(pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"]))).iter_rows())
    pairs = dataset.pairs()
    names = pl.concat(
        [pairs[column] for column in ("prompt_id", "first_id", "second_id")]
    ).to_list()
    return [items[name] for name in names], list(items.values())


def ours(job: Job, device: str) -> Callable[[], dict[str, float]]:
    """Return what fills an empty cache: dedup is done, shards are written, synced and hashed."""
    encoder = load_encoder(job.source, device, token_budget(device), job.layers, False)
    items = job.items()
    provenance = Provenance(
        dataset=job.dataset.name,
        encoder=job.source.name,
        revision=job.source.revision,
        untrained=job.source.untrained,
        dedup_ratio=1.0,
        seconds=0.0,
    )

    def once() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            writer = CacheWriter(Path(folder), job.specs[0])
            tasks = writer.plan(np.array(items.column("item_id").to_pylist(), "S16"), 8192)
            receipts = list(ShardRunner(encoder, items, [writer], device, {}).run(tasks))
            writer.finalize(tasks, provenance)
            seconds = time.perf_counter() - began
        real = sum(receipt.tokens_real for receipt in receipts)
        padded = sum(receipt.tokens_padded for receipt in receipts)
        return {"seconds": seconds, "padding": 1.0 - real / padded}

    return once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument(
        "--statements", type=int, default=500, help="statements of each persona that are read"
    )
    parser.add_argument(
        "--users", type=int, default=20, help="users, on whom the number of duplicates depends"
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="batch size of sentence-transformers (its default)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    from sentence_transformers import SentenceTransformer, __version__

    with tempfile.TemporaryDirectory() as folder:
        paths = {f"paths.{name}": f"{folder}/{name}" for name in ("data", "cache")}
        options = {
            "dataset": "persona",
            "encoder": "minilm",
            "data.persona.source": arguments.source,
        }
        limit = {"data.persona.limit": arguments.statements, "data.persona.users": arguments.users}
        limit |= {"data.persona.unseen_users": 0, "data.persona.validation_users": 0}
        config = load(None, (), {**paths, **options, **limit}).config
        raw, unique = texts_of(config)
        job = locate_job(config, pipeline.prepare(config))
        run = ours(job, arguments.device)
        theirs = SentenceTransformer(str(job.source.folder), device=arguments.device)
        theirs.max_seq_length = job.source.config.max_length
        theirs.encode(unique[:200])
        run()
        measured: dict[str, list[float]] = {"ours": [], "st unique": [], "st raw": []}
        padding = 0.0
        for _ in range(ROUNDS):
            result = run()
            measured["ours"].append(result["seconds"])
            padding = result["padding"]
            for name, texts in (("st unique", unique), ("st raw", raw)):
                began = time.perf_counter()
                theirs.encode(texts, batch_size=arguments.batch, convert_to_numpy=True)
                measured[name].append(time.perf_counter() - began)
    seconds = {name: median(values) for name, values in measured.items()}
    rows = [["list", "items", "pal embed, items/s", "sentence-transformers, items/s", "ratio"]]
    for name, texts, key in (
        ("raw, with duplicates", raw, "st raw"),
        ("unique", unique, "st unique"),
    ):
        rate, peer = len(texts) / seconds["ours"], len(texts) / seconds[key]
        rows.append([name, f"{len(texts):,}", f"{rate:,.0f}", f"{peer:,.0f}", f"{rate / peer:.2f}"])
    table = as_markdown(rows)
    text = (
        f"# Stage one against sentence-transformers {__version__}\n\n{date.today()}, `python "
        "benchmarks/embed.py "
        f"--statements {arguments.statements} --users {arguments.users}`, MiniLM in float32 on "
        f"{arguments.device}, "
        f"persona texts, {torch.get_num_threads()} threads, {platform.machine()}, median of "
        f"{ROUNDS} alternating "
        f"rounds; peer batch size {arguments.batch}. Ours includes writing, syncing and hashing "
        "the shards. "
        f"Padding: {100 * padding:.1f} % of the tokens computed.\n\n{table}\n"
    )
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "embed.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
