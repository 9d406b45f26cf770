"""Images by the items' places: bytes from memory, a file or a Parquet column, then decoded."""

from __future__ import annotations

import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pal.data.arrow import read_group
from pal.data.filters import render
from pal.items import Place

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""what is opened; other formats of Pillow's start programs (EPS) or are no pictures"""
AS_SEEN = "upright, on white, in sRGB"
"""how images are decoded; part of the specification of every encoder that reads them, so that
caches of images that were decoded otherwise are others"""
WHITES = {"I": (65_535.0,), "F": (1.0, 255.0, 65_535.0)}
"""what white may be in pixels of 32 bits: of floats the first that no pixel exceeds"""
LARGEST_PIXELS = 100_000_000
GROUPS_KEPT = 4


class ImageReader:
    """Reads bytes; the row groups read last stay in memory: neighbours are asked for together."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def bytes_of(self, place: Place) -> bytes:
        """Return an image's bytes; raises OSError, ValueError or an Arrow error without any."""
        if place.raw is not None:
            return place.raw
        assert place.file is not None
        if place.column is None:
            return Path(place.file).read_bytes()
        assert place.group is not None
        assert place.row is not None
        with self._lock:
            key = (place.file, place.column, place.group)
            if key not in self._groups:
                self._groups[key] = read_group(Path(place.file), place.column, place.group)
                while len(self._groups) > GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            value = self._groups[key][place.row].as_py()
        if isinstance(value, dict):  # the image feature of Hugging Face datasets
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ValueError(
                f"{place.column} holds no bytes at row {place.row} of row group {place.group}"
            )
        return value


def decode_filtered(raw: bytes, place: Place, how: str = "as-seen") -> Any:
    """Return the decoded PIL image as its place wants it; ``how`` is one of ``AS``."""
    image = AS[how](raw)
    return image if place.filter is None else render(image, place.filter)


def decode(raw: bytes) -> Any:
    """Return a PIL image in RGB or grey with its pixels decoded as people see it: upright, in sRGB,
    on white where it is transparent, of several frames the first.

    Raises ValueError, OSError or a PIL error.
    """
    from PIL import ImageOps

    image = _opened(raw)
    upright: Any = image
    with suppress(Exception):  # damaged metadata says nothing about how to hold the picture
        upright = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    return _on_white(_in_srgb(_in_eight_bits(upright), profile))


def as_library(raw: bytes) -> Any:
    """Return a PIL image as libraries read it: Pillow's own conversion to RGB, and nothing else."""
    return _opened(raw).convert("RGB")


AS: dict[str, Callable[[bytes], Any]] = {"as-seen": decode, "as-library": as_library}
"""what ``embed.<encoder>.images`` names"""


def _opened(raw: bytes) -> Any:
    from PIL import Image

    if not raw:
        raise ValueError("the image has zero bytes")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF only where it is compiled in
    image = Image.open(io.BytesIO(raw), formats=formats)
    if image.width * image.height > LARGEST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {LARGEST_PIXELS:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata beside sound pixels
        image.load()
    return image


def _in_eight_bits(image: Any) -> Any:
    """Scale grey of more bits to 8, which Pillow would cut off at white; raises ValueError for
    pixels without a known white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode not in {"I", "F"}:
        return image
    pixels = np.asarray(image).astype(np.float64)
    white = next((white for white in WHITES[image.mode] if pixels.max(initial=0) <= white), None)
    if white is None or pixels.min(initial=0) < 0 or not np.isfinite(pixels).all():
        raise ValueError(
            f"pixels of mode {image.mode} from {pixels.min():.4g} to {pixels.max():.4g} have no "
            "known white; give 8 or 16 bits, or floats from 0 to 1"
        )
    if image.mode == "I":
        return Image.fromarray((pixels // 256).astype(np.uint8))
    return Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8))


def _in_srgb(image: Any, profile: bytes | None) -> Any:
    """Return an image in the colours that screens show; a damaged profile says nothing."""
    if not profile or image.mode not in {"RGB", "RGBA", "CMYK"}:
        return image
    with suppress(Exception):  # of as many kinds as there are ways to damage a profile
        from PIL import ImageCms

        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        screen = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, own, screen, outputMode=mode)
    return image


def _on_white(image: Any) -> Any:
    """Lay what is transparent on white, as a page shows it; what lies behind is no part of the
    picture."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    page = Image.new("RGBA", seen.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, seen).convert("RGB")


def in_source_order(items: pa.Table) -> pa.Table:
    """Sort rows of items by place and id: neighbours in the source are encoded together.

    In the order of ids, which are hashes, each image would cost the reading of a whole row group.
    """
    if items.column("image_file").null_count == len(items):
        return items
    keys: Sequence[tuple[str, str]] = [
        (name, "ascending") for name in ("image_file", "image_group", "image_row")
    ]
    return items.sort_by([*keys, ("item_id", "ascending")])
