"""Small copies of images: a page of an audit shows those in the audit's own folder."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pal.items import Place

SIDE, QUALITY = 112, 80
"""pixels of the longer side, and of JPEG"""
NAME = "thing-{}.jpg"


def place_name(place: Place) -> str:
    """Return where an image is, for people: the last two parts of its path, as the others are the
    same for all, and where in the file."""
    file = "/".join(re.split(r"[/\\]", place.file or "the source")[-2:])
    return file if place.row is None else f"{file}, row {place.row} of row group {place.group}"


def thumbnails_of(places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the JPEG bytes of each image, in the order of the source.

    An image that can no longer be read where the dataset says it is has none.
    """
    from pal.embed.images import ImageReader, decode_filtered

    reader = ImageReader()
    # neighbours in the source come together, for a whole row group is read for each
    for number, place in sorted(places.items(), key=lambda one: (_order(one[1]), one[0])):
        try:
            image = decode_filtered(reader.bytes_of(place), place).convert("RGB")
        except Exception:  # a source that moved or changed says so in as many ways as there are
            continue
        image.thumbnail((SIDE, SIDE))
        raw = io.BytesIO()
        image.save(raw, "JPEG", quality=QUALITY)
        yield number, raw.getvalue()


def write_thumbnails(
    folder: Path, places: Sequence[Place | None], wanted: Iterable[int]
) -> dict[int, str]:
    """Write a thumbnail of each wanted thing that is an image, and return their names by thing."""
    found = {thing: place for thing in wanted if (place := places[thing]) is not None}
    written = {}
    for thing, raw in thumbnails_of(found):
        written[thing] = NAME.format(thing)
        (folder / written[thing]).write_bytes(raw)
    return written


def _order(place: Place) -> tuple[str, int, int]:
    return place.file or "", place.group or 0, place.row or 0
