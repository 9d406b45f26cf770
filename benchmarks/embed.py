"""Stage one against what a user would take in its place: the same weights and texts, in one run.

    python benchmarks/embed.py --source ../shared/persona [--texts 6000] [--rounds 3]

Two lists: distinct statements of persona, and texts of 1 to 14 of them, so of mixed lengths. The
engines take turns, and each has the median of its rounds; the figure is texts per second, without
loading. Ours writes, syncs and hashes the shards of a cache. What is not installed is named.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from embed_peers import BASE, OPENVINO, OPENVINO_EXACT, PEERS, Encode, load_peer

from pal import pipeline
from pal.cache.reader import FeatureStore
from pal.cache.records import Provenance
from pal.cache.spec import make_spec
from pal.cache.writer import CacheWriter
from pal.config import Config, load
from pal.embed.arithmetic import in_arithmetic, settled
from pal.embed.devices import token_budget
from pal.embed.encoder import EncoderSource, locate
from pal.embed.encoder import load as load_encoder
from pal.embed.runner import ShardRunner
from pal.evaluate.report import as_markdown
from pal.files import digest
from pal.items import ITEM_COLUMNS, Text, item_row, items_schema
from pal.probe import gain

OWN = {"auto": "pal embed, as auto has it", "float32": "pal embed, float32"}
LENGTHS = (1, 1, 1, 2, 3, 5, 8, 14)
"""statements in a text of mixed length"""
GOALS = (
    (OWN["auto"], BASE, 3.5),
    (OWN["auto"], OPENVINO, 1.2),
    (OWN["float32"], OPENVINO_EXACT, 1.0),
)
"""ours, theirs, and how many times as fast ours is to be on distinct statements"""


def statements(config: Config) -> list[str]:
    """Return the distinct texts of a prepared dataset, in an order of our own."""
    items = pipeline.prepare(config, tell=lambda line: None).items(["text"])
    texts = sorted(set(pl.Series(items.column("text")).to_list()))
    random.Random(0).shuffle(texts)
    return texts


def of_mixed_lengths(texts: Sequence[str], count: int) -> list[str]:
    """Return texts that are each some statements in a row."""
    draw = random.Random(1)
    return [" ".join(draw.choices(texts, k=draw.choice(LENGTHS))) for _ in range(count)]


def ours(source: EncoderSource, device: str) -> Encode:
    """Return what fills an empty cache and reads it back; the reading is not in the time."""
    encoder = load_encoder(source, device, token_budget(device), [source.config.layer], False)

    def encode(texts: list[str]) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        items = [Text(text) for text in texts]
        columns = zip(*map(item_row, items), strict=True)
        schema = items_schema()
        table = pa.table(
            {
                name: pa.array(values, schema.field(name).type)
                for name, values in zip(ITEM_COLUMNS, columns, strict=True)
            }
        )
        provenance = Provenance(
            dataset="made", encoder=source.name, revision=source.revision,
            untrained=source.untrained, dedup_ratio=1.0, seconds=0.0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            ids = np.array([item.id for item in items], "S16")
            writer = CacheWriter(Path(folder), make_spec("made", digest(texts), source.spec))
            tasks = writer.plan(ids, 8192)
            list(ShardRunner(encoder, table, [writer], device, {}).run(tasks))
            writer.finalize(tasks, provenance)
            seconds = time.perf_counter() - began
            store = FeatureStore.open(Path(folder), writer.spec)
            place = {bytes(name): row for row, name in enumerate(store.item_ids)}
            rows = [place[bytes(name)] for name in ids]
            return store.features().float().numpy()[rows], seconds

    return encode


def engines_of(config: Config, device: str, batch: int) -> dict[str, Encode | str]:
    """Return all engines, loaded, or why one is not."""
    settings, digests = config.encoder_config(), config.paths.cache / ".digests.json"
    digests.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Encode | str] = {}
    auto = settled(in_arithmetic(settings, "auto"), device)
    for name, own in ((OWN["auto"], auto), (OWN["float32"], in_arithmetic(settings, "float32"))):
        source = locate(config.encoder, own, digests)
        found[name] = ours(source, device)
    assert source.folder is not None, "a model with files"
    length = source.config.max_length
    return found | {name: load_peer(name, source.folder, length, device, batch) for name in PEERS}


def measured(
    engines: dict[str, Encode | str], texts: list[str], rounds: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return texts per second and features of each engine that is there."""
    there = {name: encode for name, encode in engines.items() if not isinstance(encode, str)}
    seconds: dict[str, list[float]] = {name: [] for name in there}
    features = {}
    for encode in there.values():
        encode(texts[: len(texts) // 10])
    for _ in range(rounds):
        for name, encode in there.items():
            features[name], spent = encode(texts)
            seconds[name].append(spent)
    return {name: len(texts) / median(each) for name, each in seconds.items()}, features


def lowest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    left, right = (torch.from_numpy(values).double() for values in (one, other))
    return float(torch.nn.functional.cosine_similarity(left, right, dim=1).min())


def table_of(
    engines: dict[str, Encode | str], rates: dict[str, float], features: dict[str, np.ndarray]
) -> Iterable[list[str]]:
    """Yield a row for each engine."""
    for name, engine in engines.items():
        if isinstance(engine, str):
            yield [name, engine, "", ""]
            continue
        base = f"{rates[name] / rates[BASE]:.2f}" if BASE in rates else ""
        cosine = f"{lowest_cosine(features[BASE], features[name]):.7f}" if BASE in rates else ""
        yield [name, f"{rates[name]:,.0f}", base, cosine]


def goals_of(rates: dict[str, float]) -> str:
    """Say which goals are reached."""
    lines = []
    for name, peer, least in GOALS:
        found = f"{rates[name] / rates[peer]:.2f}" if peer in rates else "not measured"
        lines.append(f"- {name} against {peer}: {found}; goal {least}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--texts", type=int, default=6000, help="distinct statements")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="of the peers; theirs is 32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embed.md"))
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        options = {f"paths.{name}": f"{folder}/{name}" for name in ("data", "cache")}
        options |= {"dataset": "persona", "encoder": "minilm"}
        options |= {"data.persona.source": arguments.source}
        config = load(None, (), options).config
        unique = statements(config)[: arguments.texts]
        lists = {
            "Distinct statements": unique,
            "Texts of mixed lengths": of_mixed_lengths(unique, len(unique) // 3),
        }
        engines = engines_of(config, arguments.device, arguments.batch)
        parts, first = [], None
        for title, texts in lists.items():
            rates, features = measured(engines, texts, arguments.rounds)
            first = first or rates
            header = ["engine", "texts/s", "times torch float32", "lowest cosine"]
            rows = as_markdown([header, *table_of(engines, rates, features)])
            parts.append(f"## {title}: {len(texts):,}\n\n{rows}\n")
    assert first is not None
    text = (
        f"# Stage one against its peers\n\n{date.today()}, `python benchmarks/embed.py --texts "
        f"{arguments.texts} --rounds {arguments.rounds}`, MiniLM on {arguments.device}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"products in bfloat16 {gain(arguments.device):.1f} times as fast as in float32, load "
        f"average {before:.1f} before and {os.getloadavg()[0]:.1f} after; median of alternating "
        f"rounds; peers' batch size {arguments.batch}; cosines are with the peer's torch float32."
        f"\n\n{goals_of(first)}\n\n" + "\n".join(parts)
    )
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
