"""Small copies of the images that a page of an audit shows, in the audit's own folder."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path

from pal.items import Place

SIDE, QUALITY = 112, 80
"""pixels of the longer side, and of JPEG"""
NAME = "thing-{}.jpg"


def write_thumbnails(
    folder: Path, places: Sequence[Place | None], wanted: Collection[int]
) -> dict[int, str]:
    """Write a thumbnail of each wanted thing that is an image, and return their names by thing.

    An image that can no longer be read where the dataset says it is has none.
    """
    from pal.embed.images import ImageReader, decode_filtered

    reader, written = ImageReader(), {}
    found = [(thing, place) for thing in wanted if (place := places[thing]) is not None]
    # neighbours in the source come together, for a whole row group is read for each
    for thing, place in sorted(found, key=lambda one: (_order(one[1]), one[0])):
        try:
            image = decode_filtered(reader.bytes_of(place), place).convert("RGB")
        except Exception:  # a source that moved or changed says so in as many ways as there are
            continue
        image.thumbnail((SIDE, SIDE))
        raw = io.BytesIO()
        image.save(raw, "JPEG", quality=QUALITY)
        name = NAME.format(thing)
        (folder / name).write_bytes(raw.getvalue())
        written[thing] = name
    return written


def _order(place: Place) -> tuple[str, int, int]:
    return place.file or "", place.group or 0, place.row or 0
