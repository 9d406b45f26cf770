"""Audits of images: their pages show what people like and dislike as thumbnails."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pal import pipeline
from pal.audit.record import AuditRecord
from pal.config import Config
from pal.errors import EvaluationError
from pal.report.audit import parts_of
from pal.report.page import Table, Thumbnail

IMAGES, PEOPLE = 16, 14
NAME = "{:02d}](thing-1.jpg) <b>.png"
"""of files: as hostile as a name can be"""


def write_images(folder: Path) -> list[str]:
    """Write images from cool to warm, and return their names."""
    folder.mkdir()
    names = [NAME.format(number) for number in range(IMAGES)]
    for number, name in enumerate(names):
        colour = (16 * number, 100, 255 - 16 * number)
        Image.new("RGB", (300, 200), colour).save(folder / name)
    return names


@pytest.fixture(name="pictured")
def fixture_pictured(tmp_path: Path, configure: Callable[..., Config]) -> Config:
    """Return the settings of an audit of images that half of the people like warm, half cool."""
    names = write_images(tmp_path / "images")
    rng = np.random.default_rng(0)
    pairs = [rng.choice(IMAGES, 2, replace=False) for _ in range(30)]
    lines = []
    for person in range(PEOPLE):
        for cool, warm in map(sorted, pairs):
            likes = (warm, cool) if (person % 2 == 0) ^ (rng.random() < 0.1) else (cool, warm)
            chosen, rejected = (f"images/{names[side]}" for side in likes)
            row = {"user_id": f"p{person}", "prompt": "A sky", "chosen": chosen,
                   "rejected": rejected}  # fmt: skip
            lines.append(json.dumps(row))
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    options: dict[str, Any] = {
        "dataset": "pairs", "data.pairs.source": str(tmp_path / "answers.jsonl"),
        "audit.features": False, "audit.overlap_draws": 39, "audit.workers": 1,
    }  # fmt: skip
    return configure(options)


def opened(raw: bytes) -> Image.Image:
    with Image.open(io.BytesIO(raw)) as image:
        return image.convert("RGB")


def thumbnails_in(page: str, files: dict[str, str]) -> list[Thumbnail]:
    blocks = [block for part in parts_of(page, files) for block in part.blocks]
    rows = [row for block in blocks if isinstance(block, Table) for row in block.rows]
    return [cell for row in rows for cell in row if isinstance(cell, Thumbnail)]


def test_the_page_of_images_shows_them(pictured: Config) -> None:
    record = pipeline.audit(pictured, "seen", tell=lambda line: None)
    assert record.verdict == "plural"
    folder = pictured.paths.audits / "seen"
    small = [name for name in record.files if name.endswith(".jpg")]
    assert small
    assert all(opened((folder / name).read_bytes()).size == (112, 75) for name in small)
    html = Path(pipeline.report(pictured, ["seen"]).file).read_text(encoding="utf-8")
    sources = [part.split('"')[0] for part in html.split('src="data:image/jpeg;base64,')[1:]]
    assert len(sources) >= len(small)
    reds, _, blues = np.array(
        [opened(base64.b64decode(one)).getpixel((50, 40)) for one in sources]
    ).T
    lists = reds.astype(int) - blues
    # what the first part likes more than the other is all warm, or all cool
    assert abs(np.sign(lists[:3]).sum()) == 3
    assert 'alt="images/15](thing-1.jpg) &lt;b&gt;.png"' in html
    assert str(folder.resolve().parent.parent) not in html.split("Where every number")[0]
    assert "<b>" not in html


def test_the_page_of_a_dataset_of_images_shows_them(pictured: Config) -> None:
    pipeline.prepare(pictured, tell=lambda line: None)
    html = Path(pipeline.report(pictured, ["dataset:pairs"]).file).read_text(encoding="utf-8")
    # what divides people most, and what they agree on
    assert html.count('<img class="thumbnail"') == 2 * 12


def test_an_image_that_is_gone_has_a_name_alone(pictured: Config, tmp_path: Path) -> None:
    pipeline.prepare(pictured, tell=lambda line: None)
    for path in (tmp_path / "images").iterdir():
        if path.name > "03":
            path.write_bytes(b"no image")
    (tmp_path / "images" / NAME.format(2)).unlink()
    record = pipeline.audit(pictured, "gone", tell=lambda line: None)
    assert 0 < len([name for name in record.files if name.endswith(".jpg")]) <= 3
    page = (pictured.paths.audits / "gone" / "audit.md").read_text(encoding="utf-8")
    assert "images/15\\](thing-1.jpg) \\<b\\>.png" in page
    assert Path(pipeline.report(pictured, ["gone"]).file).is_file()


def test_a_thumbnail_that_was_changed_is_refused(pictured: Config) -> None:
    record = pipeline.audit(pictured, "seen", tell=lambda line: None)
    name = next(name for name in record.files if name.endswith(".jpg"))
    (pictured.paths.audits / "seen" / name).write_bytes(b"another")
    with pytest.raises(EvaluationError, match=f"{name} is damaged"):
        pipeline.report(pictured, ["seen"])
    pipeline.audit(pictured, "seen", tell=lambda line: None)  # makes it again
    assert AuditRecord.read(pictured.paths.audits / "seen").files == record.files


def test_only_pictures_of_the_audit_are_shown() -> None:
    rows = "| a | ![one \\] two](thing-1.jpg) |\n| b | ![x](elsewhere.jpg) |\n"
    rows += "| c | ![x](thing-1.jpg) and a text |\n| d | !\\[x\\](thing-1.jpg) |\n"
    page = f"# Audit\n\n## Part\n\n| share | image |\n|--|--|\n{rows}"
    assert thumbnails_in(page, {"thing-1.jpg": "QUJD"}) == [Thumbnail("one ] two", "QUJD")]
