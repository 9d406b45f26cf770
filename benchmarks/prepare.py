"""Preparing a long source of images: rows/s, memory and output, against reading and hashing its
bytes alone.

python benchmarks/prepare.py [rows]
python benchmarks/prepare.py users [count]    # simulated users of 20 pairs each instead
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pickapic_source import make_row, write
from PIL import Image

ROWS, USERS, POOL, PIXELS, ROWS_PER_FILE = 200_000, 4000, 400, 112, 10_000
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def write_long_source(folder: Path, rows: int) -> int:
    """Write a source of so many rows and return its bytes.

    Making each image would take hours: a pool of noise is used, each copy made unique behind the
    end of its JPEG.
    """
    random = np.random.default_rng(0)
    pool = [noise(random) for _ in range(POOL)]

    def image(number: int) -> bytes:
        return pool[number % POOL] + number.to_bytes(8, "little")

    number = 0
    for split, share in SHARES.items():
        left = round(rows * share)
        for file in range(-(-left // ROWS_PER_FILE)):
            size = min(ROWS_PER_FILE, left - file * ROWS_PER_FILE)
            own = [
                make_row(
                    n,
                    n % USERS,
                    f"{split} caption {n // 8}",
                    (image(2 * n), image(2 * n + 1)),
                    float(n % 2),
                )
                for n in range(number, number + size)
            ]
            write(folder / "data" / f"{split}-{file:05d}.parquet", own)
            number += size
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def noise(random: np.random.Generator) -> bytes:
    """Return a JPEG that does not compress away."""
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)).save(
        out, "JPEG", quality=85
    )
    return out.getvalue()


def image_bytes(folder: Path) -> Iterator[bytes]:
    """Yield all images of a source."""
    for file in sorted(folder.rglob("*.parquet")):
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            for batch in opened.iter_batches(64, columns=["jpg_0", "jpg_1"]):
                for column in batch.columns:
                    yield from column.to_pylist()


def floor_seconds(folder: Path) -> float:
    """Return the time of reading every image and hashing it, which any naming by content must
    do."""
    began = time.perf_counter()
    for raw in image_bytes(folder):
        hashlib.blake2b(raw, digest_size=16).digest()
    return time.perf_counter() - began


def prepare_seconds(folder: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Return the time of ``pal prepare``, start of the program included, and its card."""
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "pal",
        "prepare",
        "-d",
        "pickapic",
        "--source",
        str(folder),
        "--json",
    ]
    done = subprocess.run(
        [*command, "--set", f"paths.data={out}"], stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout)


def of_users(count: int) -> None:
    """Print what preparing so many simulated users takes."""
    sizes = {"users": count, "pairs_per_user": 10}
    sizes |= {"unseen_users": 10, "validation_users": 10}
    sizes |= {"validation_pairs_per_user": 5, "test_pairs_per_user": 5}
    chosen = [f"data.simulated.{name}={size}" for name, size in sizes.items()]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pal", "prepare", "-d", "simulated", "--json"]
        for one in (*chosen, f"paths.data={place}"):
            command += ["--set", one]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    pairs, peak = json.loads(done.stdout)["counts"]["pairs"], used.ru_maxrss * 1024
    print("| users | pairs | s | processor, s | pairs a processor second | peak MB | kB a pair |")
    print("|---|---|---|---|---|---|---|")
    own = used.ru_utime + used.ru_stime
    print(
        f"| {count:,} | {pairs:,} | {seconds:.1f} | {own:.1f} | {pairs / own:,.0f} | "
        f"{peak / 1e6:,.0f} | {peak / pairs / 1e3:.1f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["users"]:
        of_users(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place) / "source", Path(place) / "data"
        size = write_long_source(source, rows)
        floors, times, card = [], [], {}
        for _ in range(2):
            floors.append(floor_seconds(source))
            shutil.rmtree(out, ignore_errors=True)
            seconds, card = prepare_seconds(source, out)
            times.append(seconds)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    best, floor = min(times), min(floors)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, page cache "
        "warm\n"
    )
    print(
        "| rows | source GB | images | rows/s | s | reading and hashing alone, s | ratio | peak "
        "MB | output / source |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {rows:,} | {size / 1e9:.2f} | {card['counts']['items_by_modality']['image']:,} | "
        f"{rows / best:,.0f} | "
        f"{best:.1f} | {floor:.1f} | {best / floor:.2f} | {peak / 1e6:,.0f} | "
        f"{written / size:.2%} |"
    )


if __name__ == "__main__":
    main()
