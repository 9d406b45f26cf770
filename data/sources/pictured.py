"""Texts and images among the items of the user's own rows: which of them a value is, and where an
image's bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pal.config import ImageSourceConfig
from pal.data.arrow import row_in_group
from pal.data.fetch import fetched_image
from pal.data.pictures import image_within, is_file, look_of, places_of, problem_of_end
from pal.data.survey import Survey
from pal.items import Image, Item, Place, Text, image_content_id, storable


class Unusable(Exception):
    """A row that is no comparison: reason and message of its reject."""


@dataclass(frozen=True)
class ItemReader:
    """Makes items of values."""

    survey: Survey
    config: ImageSourceConfig
    kind: Literal["auto", "text", "image"]
    """what strings are"""
    folder: Path
    """of the source, which paths may begin at"""
    keeps_images: bool
    """whether images within strings are written to the image folder"""

    def item(self, value: Any, column: str, place: str, file: Path) -> Item:
        """Return a text or an image by what the value is."""
        is_image = isinstance(value, dict) and bool({"bytes", "path"} & set(value))
        if is_image:  # the image feature of Hugging Face datasets
            value = value["bytes"] if value.get("bytes") else value.get("path")
        if isinstance(value, bytes):
            where = row_in_group(file, row_number(place))
            return Image(Place(str(file.resolve()), column, *where), image_content_id(value))
        if not isinstance(value, str):
            raise Unusable(
                "bad-item", f"{column} is a {type(value).__name__}, neither text nor image"
            )
        if is_image or self._is_image(value, column, file):
            return self._image(value, column, file)
        return Text(value)

    def _is_image(self, value: str, column: str, file: Path) -> bool:
        """Say whether a string is an image, which the whole column has a say in: among sentences a
        file's name is an image only if the file, or another image, is there."""
        if self.kind != "auto":
            return self.kind == "image"
        look, whole = look_of(value), self.survey.column(column)
        if look in ("data", "URL") or (whole.is_of_images and value.strip()):
            return True
        if look is None:
            return False
        is_there = any(map(is_file, places_of(value, self.folder, file.parent)))
        return is_there or (look == "path" and whole.has_images)

    def _image(self, value: str, column: str, file: Path) -> Image:
        """Return the image that a string holds or leads to; raises Unusable."""
        look = look_of(value)
        if look == "data":
            folder = self.config.image_folder if self.keeps_images else None
            found = image_within(value, folder, self.config.largest_image)
        elif value.startswith(("http://", "https://")):
            found = problem_of_end(value) or fetched_image(value, self.config)
        else:
            found = problem_of_end(value) or self._file(value, column, file)
        if isinstance(found, str):
            raise Unusable("no-image", found)
        return found

    def _file(self, value: str, column: str, file: Path) -> Image | str:
        path = next(filter(is_file, places_of(value, self.folder, file.parent)), None)
        try:
            if path is not None:
                return Image(Place(str(path.resolve())), image_content_id(path.read_bytes()))
        except OSError as error:
            return f"{column} names {storable(value[:200])}, which cannot be read: {error.strerror}"
        return f"{column} names {storable(value[:200])}, which is no file under {self.folder}"


def row_number(place: str) -> int:
    """Return the number of a row in its file, from its place."""
    return int(place.rpartition(":")[2])
