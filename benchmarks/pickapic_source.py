"""A generated source in the published schema of Pick-a-Pic: drawn images, users who prefer warm or
cool tones."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()), ("best_image_uid", pa.string()), ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")), ("has_label", pa.bool_()), ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()), ("image_1_uid", pa.string()), ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64()),
        ("label_1", pa.float64()), ("model_0", pa.string()), ("model_1", pa.string()),
        ("ranking_id", pa.int64()), ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()), ("__index_level_0__", pa.int64()),
    ]
)  # fmt: skip
Answer = Callable[[int, float, float], float]


def draw(random: np.random.Generator, size: int, tone: float) -> bytes:
    """Return a JPEG of some shapes; ``tone`` from -1 (cool) to 1 (warm) shifts red against blue."""
    base = random.integers(70, 150, 3)
    image = Image.new("RGB", (size, size), tuple(int(value) for value in base))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        corners = np.sort(random.integers(0, size, (2, 2)), axis=0)
        pen.rectangle(
            [*corners[0].tolist(), *corners[1].tolist()],
            fill=tuple(random.integers(60, 160, 3).tolist()),
        )
    pixels = np.asarray(image).astype(np.int16)
    pixels[..., 0] += int(55 * tone)
    pixels[..., 2] -= int(55 * tone)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def by_tone(user: int, first: float, second: float) -> float:
    """Answer as a user of the generated source: even ones like warm images, odd ones cool
    images."""
    return float((first > second) == (user % 2 == 0))


def make_row(
    number: int, user: int, caption: str, images: Sequence[bytes], label: float | None
) -> dict[str, Any]:
    """Return one row with published names and types; ``label`` is that of image 0, None for
    none."""
    uids = [f"uid-{number}-{side}" for side in (0, 1)]
    best = {1.0: uids[0], 0.0: uids[1], 0.5: "tie", None: None}[label]
    return {
        "are_different": True,
        "best_image_uid": best,
        "caption": caption,
        "created_at": datetime.datetime(2023, 3, 1) + datetime.timedelta(seconds=number),
        "has_label": label is not None,
        **{f"image_{side}_uid": uids[side] for side in (0, 1)},
        **{f"image_{side}_url": f"https://images.example/{uids[side]}.png" for side in (0, 1)},
        **{f"jpg_{side}": images[side] for side in (0, 1)},
        "label_0": label,
        "label_1": None if label is None else 1.0 - label,
        **{f"model_{side}": "drawn" for side in (0, 1)},
        "ranking_id": number,
        "user_id": user,
        "num_example_per_prompt": 1,
        "__index_level_0__": number,
    }


def rows(
    count: int, users: int, seed: int, size: int = 48, answer: Answer = by_tone
) -> Iterator[dict[str, Any]]:
    """Yield rows of users' choices between two drawn images; every fourth pair shares its caption
    with the next."""
    random = np.random.default_rng(seed)
    for number in range(count):
        user = int(random.integers(users))
        tones = random.uniform(-1, 1, 2)
        images = [draw(random, size, tone) for tone in tones]
        caption = f"a drawing of shape {seed}-{number - number % 4 // 3}"
        yield make_row(10_000_000 * seed + number, user, caption, images, answer(user, *tones))


def write(path: Path, written: Sequence[dict[str, Any]], rows_per_group: int = 100) -> None:
    """Write rows as a file of the published schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(written), SCHEMA), path, row_group_size=rows_per_group)


def write_source(
    folder: Path, counts: dict[str, int], users: int, size: int = 48, answer: Answer = by_tone
) -> None:
    """Write a file per split, e.g. ``{"train": 2000, "validation": 300, "test": 300}``."""
    for seed, (split, count) in enumerate(counts.items(), start=1):
        write(
            folder / "data" / f"{split}-00000-of-00001.parquet",
            list(rows(count, users, seed, size, answer)),
        )
