"""Pick-a-Pic v1 and v2 (Kirstain et al. 2023, arXiv 2305.01569), as published: Parquet with the
images inside.

Images are read once, to name them by their bytes, and stay where they are: an item points at file,
row group and row.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl

from pal.config import Fraction, ImageSourceConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.fetch import fetched_image
from pal.data.locate import files_of, resolve_source
from pal.data.rows import number_of
from pal.data.sources.pickapic_files import (
    SPLITS,
    footer_digest,
    opened,
    read_batches,
    read_ranking_ids,
    runs,
    split_of_file,
)
from pal.data.splits import SplitPairs, assign_splits
from pal.dataset import Split
from pal.errors import DataError, shown
from pal.items import Image, Place, image_content_id, question, storable
from pal.rows import BadRow, Row, rows_of_batch
from pal.users import user_name

NEEDED = ("caption", "label_0", "label_1", "user_id")
COLUMNS = (
    *NEEDED,
    "ranking_id",
    "are_different",
    "has_label",
    "best_image_uid",
    "image_0_uid",
    "image_1_uid",
    "image_0_url",
    "image_1_url",
    "jpg_0",
    "jpg_1",
)
ROWS_IN_MEMORY, ROWS_PER_PART = 64, 4096


class PickapicConfig(ImageSourceConfig):
    """Pick-a-Pic v1 and v2 (method.md 3.4), whose own splits are kept."""

    validation_user_share: Fraction = 0.0
    """Share of the users kept apart for tuning few-shot settings; none in the published
    protocol."""
    test_user_share: Fraction = 0.0
    """Share of the users that no head is trained on; none in the published protocol."""
    ties: Literal["keep", "drop", "half", "soft"] = "keep"
    """Pairs labelled 0.5: keep them everywhere; drop them; half: evaluate on them (one half is
    earned) but do not train on them; soft: train on them (as a target of one half) but do not
    evaluate on them."""
    judged_on: Literal["full", "unique"] = "full"
    """The source's validation and test splits, or its validation_unique and test_unique, which
    repeat rows of those."""
    leaking_rankings: Path | None = None
    """File of the ranking ids to leave out of the test split (.pt, .json, .txt or .csv), for the
    part of the v2 test that PickScore's training did not see; null: leave out none."""


class PickAPic(Adapter):
    """One comparison per row: a user's choice between two images under a caption."""

    name: ClassVar[str] = "pickapic"
    Settings: ClassVar[type[ImageSourceConfig]] = PickapicConfig
    licence = "as the source's card states"
    config: PickapicConfig

    def __init__(self, config: PickapicConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        source = config.source or "hf:yuvalkirstain/pickapic_v2"
        place, self.origin = resolve_source(self.dataset, source, ["*.parquet"])
        self.folder = (place if place.is_dir() else place.parent).resolve()
        files = {file.resolve(): split_of_file(file) for file in files_of(place, ("*.parquet",))}
        if not files:
            raise DataError(
                f"{place} holds no *.parquet file; point data.{self.dataset}.source at the folder "
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
            missing = set(NEEDED) - set(opened(file).schema_arrow.names)
            if missing:
                raise DataError(
                    f"{file} has no column {', '.join(sorted(missing))}; is it a Pick-a-Pic file?"
                )

    def inputs(self) -> dict[str, str]:
        """Return the digest of each file's footer, which tells of every column's place and size.

        The files themselves are hundreds of gigabytes, and are read in one stream.
        """
        return {
            storable(file.relative_to(self.folder).as_posix()): footer_digest(file)
            for file in self.files
        }

    def parts(self) -> Sequence[Part]:
        left = self.config.limit
        parts: list[Part] = []
        for file, split in self.files.items():
            metadata = opened(file).metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            for groups in runs(sizes, ROWS_PER_PART):
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
            recorder.add(self._found(row, place, file, split))
        return recorder.chunk()

    def _rows(
        self, file: Path, groups: list[int]
    ) -> Iterator[tuple[tuple[int, int], Row | BadRow]]:
        """Yield rows with their place: row group, and row within it."""
        with opened(file) as parquet:
            columns = [name for name in COLUMNS if name in parquet.schema_arrow.names]
            for group in groups:
                number = 0
                for batch in read_batches(parquet, file, group, columns, ROWS_IN_MEMORY):
                    for row in rows_of_batch(batch, number):
                        yield (group, number), row
                        number += 1

    def _found(
        self, row: Row | BadRow, place: tuple[int, int], file: Path, split: Split | None
    ) -> Comparison | Reject:
        source_row = self._name_of(place, file)
        if isinstance(row, BadRow):
            return Reject(source_row, "malformed", row.reason)
        try:
            return self.comparison(row, place, file, split)
        except Exception as problem:  # an odd row costs only itself, whatever was forgotten
            return Reject.of(source_row, problem)

    def _name_of(self, place: tuple[int, int], file: Path) -> str:
        name = storable(file.relative_to(self.folder).as_posix())
        return f"{name}:{place[0]:05d}:{place[1]:06d}"

    def comparison(
        self, row: Row, place: tuple[int, int], file: Path, split: Split | None
    ) -> Comparison | Reject:
        """Return the comparison of a row, or why it is none."""
        source_row = self._name_of(place, file)
        problem = self._problem(row, split)
        if problem is not None:
            return Reject(source_row, *problem)
        images = []
        for side in (0, 1):
            image = self._image(row, side, place, file)
            if isinstance(image, str):
                return Reject(source_row, "no-image", f"image {side}: {image}")
            images.append(image)
        caption, ranking = row["caption"], row.get("ranking_id")
        if caption is not None and not isinstance(caption, str):
            return Reject(source_row, "malformed", f"the caption is {shown(caption)}, not a text")
        return Comparison(
            source_row,
            user_name(row["user_id"]),
            question(caption),
            images[0],
            images[1],
            float(row["label_0"]),
            split,
            {} if ranking is None else {"ranking_id": ranking},
        )

    def _problem(self, row: Row, split: Split | None) -> tuple[str, str] | None:
        """Return reason and message for a row whose answer cannot be used."""
        given = row["label_0"], row["label_1"]
        labels = [label for label in map(number_of, given) if label is not None]
        if row.get("has_label") is False or len(labels) < 2:
            return "no-label", f"label_0 is {shown(given[0])}, label_1 is {shown(given[1])}"
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
        ranking = row.get("ranking_id")
        if split == "test" and isinstance(ranking, Hashable) and ranking in self.leaking:
            return "leaking", f"ranking {row['ranking_id']} is in {self.config.leaking_rankings}"
        if self.config.ties == "drop" and labels[0] == 0.5:
            return "tie", f"data.{self.dataset}.ties is drop"
        return None

    def _image(self, row: Row, side: int, place: tuple[int, int], file: Path) -> Image | str:
        """Return the image of a side, or why there is none."""
        raw = row.get(f"jpg_{side}")
        if isinstance(raw, bytes) and raw:
            return Image(Place(str(file), f"jpg_{side}", *place), image_content_id(raw))
        url = row.get(f"image_{side}_url")
        if isinstance(url, str) and url:
            return fetched_image(url, self.config)
        return "neither bytes nor URL"

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """Keep the source's splits and the users that train has; then leave out ties where they do
        not belong."""
        split = assign_splits(pairs, self.config)
        unwanted = {"half": pl.col("split") == "train", "soft": pl.col("split") != "train"}.get(
            self.config.ties
        )
        if unwanted is None or split.pairs.is_empty():
            return split
        is_unwanted = unwanted & (pl.col("label") == 0.5)
        message = pl.lit(f"data.{self.dataset}.ties is {self.config.ties}")
        ties = split.pairs.filter(is_unwanted).select(
            "source_row", reason=pl.lit("tie"), message=message
        )
        rejects = pl.concat([split.rejects, ties])
        return SplitPairs(split.pairs.filter(~is_unwanted), rejects, split.details)
