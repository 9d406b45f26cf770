"""Pick-a-Pic v1 and v2 (Kirstain et al. 2023, arXiv 2305.01569), as published: Parquet with the
images inside.

Images are read once, to name them by their bytes, and stay where they are: an item points at file,
row group and row.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pal.chance import bucket
from pal.config import PickafilterConfig, PickapicConfig
from pal.data.build import Adapter, Part
from pal.data.comparisons import (
    Chunk,
    Comparison,
    Image,
    Recorder,
    Reject,
    image_content_id,
    question,
)
from pal.data.fetch import fetched_image
from pal.data.filters import filter_name
from pal.data.locate import resolve_source
from pal.data.rows import files_of
from pal.data.splits import Arranged, arrange
from pal.dataset import Split
from pal.errors import DataError

NEEDED = ("caption", "label_0", "label_1", "user_id")
COLUMNS = (
    *NEEDED, "ranking_id", "are_different", "has_label", "best_image_uid", "image_0_uid", "image_1_uid",
    "image_0_url", "image_1_url", "jpg_0", "jpg_1",
)  # fmt: skip
SPLITS: dict[str, tuple[Split, str]] = {
    "train": ("train", "both"),
    "validation": ("val", "full"),
    "test": ("test", "full"),
    "validation_unique": ("val", "unique"),
    "test_unique": ("test", "unique"),
}
"""the source's splits by file name: ours, and which of the source's two evaluation sets they are
of"""
ROWS_IN_MEMORY, ROWS_PER_PART = 64, 4096


class PickAPic(Adapter):
    """One comparison per row: a user's choice between two images under a caption."""

    name: ClassVar[str] = "pickapic"
    licence = "as the source's card states"

    def __init__(self, config: PickapicConfig) -> None:
        self.config = config
        source = config.source or "hf:yuvalkirstain/pickapic_v2"
        place, self.origin = resolve_source(self.name, source, ["*.parquet"])
        self.folder = (place if place.is_dir() else place.parent).resolve()
        files = {file.resolve(): split_of_file(file) for file in files_of(place, ("*.parquet",))}
        if not files:
            raise DataError(
                f"{place} holds no *.parquet file; point data.{self.name}.source at the folder "
                "that does"
            )
        unknown = [file for file, split in files.items() if split is None]
        if unknown and len(unknown) < len(files):
            raise DataError(
                f"{unknown[0]} names no split; begin its name with one of {', '.join(SPLITS)}, as "
                "the other files do"
            )
        self.files: dict[Path, Split | None] = {}
        for file, split in files.items():
            if split is None:
                self.files[file] = None
            elif SPLITS[split][1] in ("both", config.judged_on):
                self.files[file] = SPLITS[split][0]
        self.leaking = (
            read_ranking_ids(config.leaking_rankings) if config.leaking_rankings else frozenset()
        )
        for file in self.files:
            missing = set(NEEDED) - set(_opened(file).schema_arrow.names)
            if missing:
                raise DataError(
                    f"{file} has no column {', '.join(sorted(missing))}; is it a Pick-a-Pic file?"
                )

    def inputs(self) -> dict[str, str]:
        """Return the digest of each file's footer, which tells of every column's place and size.

        The files themselves are hundreds of gigabytes, and are read in one stream.
        """
        return {
            file.relative_to(self.folder).as_posix(): footer_digest(file) for file in self.files
        }

    def parts(self) -> Sequence[Part]:
        left = self.config.limit
        parts: list[Part] = []
        for file, split in self.files.items():
            metadata = _opened(file).metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            for groups in _runs(sizes, ROWS_PER_PART):
                rows = sum(sizes[group] for group in groups)
                take = rows if left is None else min(rows, left)
                if take:
                    parts.append(self._reader(file, split, groups, take))
                left = None if left is None else left - take
        return parts

    def _reader(self, file: Path, split: Split | None, groups: list[int], rows: int) -> Part:
        return lambda: self.read(file, split, groups, rows)

    def read(self, file: Path, split: Split | None, groups: list[int], rows: int) -> Chunk:
        """Read the first rows of some row groups, a few rows of images in memory at a time."""
        recorder = Recorder(self.config.views)
        for place, row in itertools.islice(self._rows(file, groups), rows):
            recorder.add(self.comparison(row, place, file, split))
        return recorder.chunk()

    def _rows(
        self, file: Path, groups: list[int]
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Yield rows with their place: row group, and row within it."""
        with _opened(file) as opened:
            columns = [name for name in COLUMNS if name in opened.schema_arrow.names]
            for group in groups:
                number = 0
                for batch in opened.iter_batches(
                    ROWS_IN_MEMORY, row_groups=[group], columns=columns
                ):
                    for row in batch.to_pylist():
                        yield (group, number), row
                        number += 1

    def comparison(
        self, row: dict[str, Any], place: tuple[int, int], file: Path, split: Split | None
    ) -> Comparison | Reject:
        """Return the comparison of a row, or why it is none."""
        source_row = f"{file.relative_to(self.folder).as_posix()}:{place[0]:05d}:{place[1]:06d}"
        problem = self._problem(row, split)
        if problem is not None:
            return Reject(source_row, *problem)
        images = []
        for side in (0, 1):
            image = self._image(row, side, place, file)
            if isinstance(image, str):
                return Reject(source_row, "no-image", f"image {side}: {image}")
            images.append(image)
        user, ranking = row["user_id"], row.get("ranking_id")
        return Comparison(
            source_row,
            None if user is None else str(user),
            question(row["caption"]),
            images[0],
            images[1],
            float(row["label_0"]),
            split,
            {} if ranking is None else {"ranking_id": ranking},
        )

    def _problem(self, row: dict[str, Any], split: Split | None) -> tuple[str, str] | None:
        """Return reason and message for a row whose answer cannot be used."""
        labels = row["label_0"], row["label_1"]
        if row.get("has_label") is False or any(
            label is None or np.isnan(label) for label in labels
        ):
            return "no-label", f"label_0 is {labels[0]}, label_1 is {labels[1]}"
        if abs(sum(labels) - 1.0) > 1e-6:
            return "bad-label", f"label_0 + label_1 = {sum(labels):g}, not 1"
        if row.get("are_different") is False:
            return "identical-items", "are_different is false"
        best = row.get("best_image_uid")
        for side in (0, 1):
            if best is not None and best == row.get(f"image_{side}_uid") and labels[side] < 0.5:
                return (
                    "bad-label",
                    f"image {side} is the best one, but its label is {labels[side]:g}",
                )
        if split == "test" and row.get("ranking_id") in self.leaking:
            return "leaking", f"ranking {row['ranking_id']} is in {self.config.leaking_rankings}"
        if self.config.ties == "drop" and labels[0] == 0.5:
            return "tie", f"data.{self.name}.ties is drop"
        return None

    def _image(
        self, row: dict[str, Any], side: int, place: tuple[int, int], file: Path
    ) -> Image | str:
        """Return the image of a side, or why there is none."""
        raw = row.get(f"jpg_{side}")
        if raw:
            return Image(image_content_id(raw), str(file), f"jpg_{side}", *place)
        url = row.get(f"image_{side}_url")
        return fetched_image(url, self.config) if url else "neither bytes nor URL"

    def arrange(self, pairs: pl.DataFrame) -> Arranged:
        """Keep the source's splits and the users that train has; then leave out ties where they do
        not belong."""
        arranged = arrange(pairs, self.config)
        unwanted = {"half": pl.col("split") == "train", "soft": pl.col("split") != "train"}.get(
            self.config.ties
        )
        if unwanted is None or arranged.pairs.is_empty():
            return arranged
        is_unwanted = unwanted & (pl.col("label") == 0.5)
        message = pl.lit(f"data.{self.name}.ties is {self.config.ties}")
        ties = arranged.pairs.filter(is_unwanted).select(
            "source_row", reason=pl.lit("tie"), message=message
        )
        return Arranged(
            arranged.pairs.filter(~is_unwanted), pl.concat([arranged.rejects, ties]), arranged.facts
        )


class PickAFilter(PickAPic):
    """Pick-a-Pic whose users like, by halves, images in cool or in warm tones (method.md 3.5).

    A share beta of the pairs is picked. In one half of those the winner carries the filter that its
    user likes, in the other the loser carries the one that its user dislikes, so that being
    filtered says nothing by itself.
    """

    name: ClassVar[str] = "pickafilter"

    def comparison(
        self, row: dict[str, Any], place: tuple[int, int], file: Path, split: Split | None
    ) -> Comparison | Reject:
        found = super().comparison(row, place, file, split)
        if isinstance(found, Reject) or found.user_id is None:
            return found
        if found.label not in (0.0, 1.0):
            return Reject(found.source_row, "tie", "no image won, so none can be filtered for it")
        return self.filtered(found)

    def filtered(self, pair: Comparison) -> Comparison:
        """Return the comparison with the filter that hash, user and answer give it, and its group
        as a column."""
        config = self.config
        assert isinstance(config, PickafilterConfig)
        likes = GROUPS[bucket("filter-group", config.salt, str(pair.user_id)) < 0.5]
        ids = sorted((pair.first.id, pair.second.id))
        name = f"{pair.user_id}\x1f{pair.columns.get('ranking_id')}\x1f{ids[0].hex()}{ids[1].hex()}"
        images: list[Any] = [pair.first, pair.second]
        if bucket("filter-pick", config.salt, name) < config.beta:
            winner = 0 if pair.label == 1.0 else 1
            on_winner = bucket("filter-side", config.salt, name) < 0.5
            tone = likes if on_winner else GROUPS[likes == "warm"]
            side = winner if on_winner else 1 - winner
            images[side] = replace(images[side], filter=filter_name(tone, config.strength))
        columns = pair.columns | {"group": likes}
        return replace(pair, first=images[0], second=images[1], columns=columns)


GROUPS = {True: "cool", False: "warm"}
"""the tone that a user likes, by whether a hash falls into the lower half"""


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} is no whole Parquet file ({error}); fetch it again") from error


def split_of_file(file: Path) -> str | None:
    """Return the source's split that a file belongs to, by the beginning of its name; None if it
    names none."""
    for name in sorted(SPLITS, key=len, reverse=True):
        if re.match(rf"{name}(?![a-z_])", file.name):
            return name
    return None


def footer_digest(file: Path) -> str:
    """Return the SHA-256 of a Parquet file's footer, and its size."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return f"footer {hashlib.sha256(stream.read(length)).hexdigest()} of {size} bytes"


def _runs(sizes: list[int], rows: int) -> Iterator[list[int]]:
    """Cut row groups into runs of about so many rows."""
    run: list[int] = []
    for group in range(len(sizes)):
        run.append(group)
        if sum(sizes[g] for g in run) >= rows:
            yield run
            run = []
    if run:
        yield run


def read_ranking_ids(path: Path) -> frozenset[int]:
    """Read ranking ids from a tensor or list (.pt), a JSON list, or a text file with one a line."""
    try:
        if path.suffix == ".pt":
            import torch

            found = torch.load(path, weights_only=True)
            values: Any = found.tolist() if hasattr(found, "tolist") else found
        elif path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            with open(path, newline="", encoding="utf-8") as stream:
                values = [
                    line[0]
                    for line in csv.reader(stream)
                    if line and line[0].strip() != "ranking_id"
                ]
        return frozenset(int(value) for value in values)
    except Exception as error:  # torch and json have many ways of refusing a file
        raise DataError(
            f"cannot read ranking ids from {path} ({type(error).__name__}: {error}); give a .pt "
            "or .json list, or "
            f"one id a line"
        ) from error
