"""Images among the values of rows: what looks like one, where it is, and its bytes within a
string."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

from pal.errors import disk_error
from pal.files import atomic_file
from pal.items import Image, Place, image_content_id

READ_ENDS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".avifs",
)  # fmt: skip
"""of files that ``embed/images.py`` decodes"""
OTHER_ENDS = (
    ".heic", ".heif", ".svg", ".jxl", ".jp2", ".psd", ".eps", ".ico", ".dng", ".cr2", ".nef",
)  # fmt: skip
"""of images that it does not decode"""
LONGEST_END = 300
"""letters at a string's end in which the end of its path is looked for"""
Look = Literal["data", "URL", "path", "spaced path"]
DATA_URI = re.compile(r"data:(?P<kind>image/[\w.+-]+)(?:;[\w=.-]+)*?(?P<coded>;base64)?,", re.I)


def look_of(value: str) -> Look | None:
    """Say what kind of image a string looks like, None for a text: an image within the string, a
    URL or a path that ends like an image's, or such a path with white space within it."""
    if value[:11].lower() == "data:image/":
        return "data"
    is_url = value[:8].lower().startswith(("http://", "https://"))
    end = value[-LONGEST_END:].lower()
    if is_url:
        end = re.split(r"[?#]", end, maxsplit=1)[0]
    if not end.endswith(READ_ENDS + OTHER_ENDS):
        return None
    has_space = re.search(r"\s", value) is not None
    if is_url:
        return None if has_space else "URL"
    return "spaced path" if has_space else "path"


def problem_of_end(value: str) -> str | None:
    """Say why an image of this name cannot be decoded, None where it can."""
    end = Path(value.partition("?")[0][-LONGEST_END:]).suffix.lower()
    if end in OTHER_ENDS:
        return f"{end} is a kind of image that is not decoded here; convert it to PNG or JPEG"
    return None


def places_of(value: str, *folders: Path) -> Iterator[Path]:
    """Yield where a path of a source may lead, also one written on Windows."""
    for path in dict.fromkeys((value, value.replace("\\", "/"))):
        for folder in dict.fromkeys(folders):
            yield folder / path


def is_file(path: Path) -> bool:
    """Say whether a path is a file: a pipe would wait, a device has no end."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # of a text so long, or so odd, that it can be no path
        return False


def image_within(uri: str, folder: Path | None, largest: int) -> Image | str:
    """Return the image that a ``data:`` URI holds, its bytes kept in ``folder``, or in memory alone
    where that is None; or why there is none. ``largest`` is in bytes."""
    found = DATA_URI.match(uri)
    if found is None:
        return f"{uri[:60]} is no data: URI of an image"
    body = uri[found.end() :]
    if found["kind"].lower() == "image/svg+xml":
        return "image/svg+xml is a kind of image that is not decoded here; convert it to PNG"
    try:
        raw = unquote_to_bytes(body)
        if found["coded"]:
            raw = base64.b64decode(b"".join(raw.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return f"{uri[:60]} cannot be decoded ({error})"
    if not raw or len(raw) > largest:
        return f"{uri[:60]} holds {len(raw):,} bytes, not 1 to {largest:,}"
    content = image_content_id(raw)
    if folder is None:
        return Image(Place(raw=raw), content)
    path = folder / content.hex()
    try:
        if not (path.is_file() and path.stat().st_size == len(raw)):
            with atomic_file(path) as temporary:
                temporary.write_bytes(raw)
    except OSError as error:  # no fault of the row
        raise disk_error(error) or error from error
    return Image(Place(str(path.resolve())), content)
