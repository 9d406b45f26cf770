"""Reading a cache into a torch tensor, page cache warm, against memcpy and what others do;
alternating, in one run.

    python benchmarks/read_cache.py [--rows 200000] [--dim 1024]

Every figure is the median of the rounds; only the ratios mean anything on another machine.
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
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pal.cache.plan import make_plan
from pal.cache.reader import FeatureStore
from pal.cache.records import Provenance, Statistics
from pal.cache.spec import make_spec
from pal.cache.writer import CacheWriter, EncodedShard
from pal.evaluate.report import as_markdown

MEMCPY = "memcpy into an array in use"


def write_cache(folder: Path, features: np.ndarray) -> FeatureStore:
    """Write float16 features through the real writer."""
    rows, dim = features.shape
    names = np.sort(np.frombuffer(np.random.default_rng(0).bytes(16 * rows), "S16"))
    writer = CacheWriter(
        folder, make_spec("benchmark", "items", {"kind": "made", "store_dtype": "float16"})
    )
    tasks = writer.plan(names, 65_536)
    assert tasks == make_plan(names, 65_536)
    for task in tasks:
        part = slice(task.start, task.stop)
        size = len(task)
        shard = EncodedShard(
            item_ids=names[part],
            n_tokens=np.ones(size, np.int32),
            truncated=np.zeros(size, bool),
            features=features[part].view(np.uint8),
            dtype="float16",
            statistics=Statistics(count=size * dim, sum=0.0, sum_of_squares=0.0, absmax=1.0),
        )
        writer.commit(task, shard, {})
    provenance = Provenance(
        dataset="benchmark",
        encoder="made",
        revision="made",
        untrained=True,
        dedup_ratio=1.0,
        seconds=0.0,
    )
    writer.finalize(tasks, provenance)
    return FeatureStore.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/read_cache.md"))
    arguments = parser.parse_args()
    features = (
        np.random.default_rng(0)
        .standard_normal((arguments.rows, arguments.dim), np.float32)
        .astype(np.float16)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = write_cache(Path(folder) / "cache", features)
        assert np.array_equal(store.features().numpy(), features)
        lists = Path(folder) / "lists.parquet"
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), arguments.dim)
        pq.write_table(
            pa.table({"feature": fixed}), lists, compression="none", use_dictionary=False
        )
        np.save(Path(folder) / "array.npy", features)

        def read_lists() -> torch.Tensor:
            column = pq.read_table(lists).column(0).combine_chunks()
            return torch.from_numpy(column.flatten().to_numpy().reshape(-1, arguments.dim))

        target = np.empty_like(features)
        target.fill(0)
        ways: dict[str, Callable[[], object]] = {
            MEMCPY: lambda: np.copyto(target, features),
            "memcpy into a new array": features.copy,
            "FeatureStore.features() into an array in use": lambda: store.features(
                out=target.view(np.uint8)
            ),
            "FeatureStore.open + features() into a new array": lambda: FeatureStore.open(
                store.folder
            ).features(),
            "numpy.load of .npy": lambda: torch.from_numpy(np.load(Path(folder) / "array.npy")),
            "pyarrow, FixedSizeList<float16>": read_lists,
            "polars scan of our shards": lambda: store.scan().select("feature").collect(),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, read in ways.items():
                began = time.perf_counter()
                read()
                times[name].append(time.perf_counter() - began)
    size, reference = features.nbytes / 1e9, median(times[MEMCPY])
    rows = [["way", "GB/s", "share of memcpy"]]
    rows += [
        [n, f"{size / median(t):.2f}", f"{reference / median(t):.3f}"] for n, t in times.items()
    ]
    text = (
        f"# Reading a cache\n\n{date.today()}, "
        f"`python benchmarks/read_cache.py --rows {arguments.rows} --dim {arguments.dim}`, "
        f"{size:.2f} GB of float16 in "
        f"the page cache, {torch.get_num_threads()} threads, {platform.machine()}, median of "
        f"{arguments.rounds} alternating rounds.\n\n{as_markdown(rows)}\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
