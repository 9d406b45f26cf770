"""The encoding of a text file: recognised where it is certain, asked for where it is not."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from pal.errors import DataError
from pal.items import is_unicode

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""byte-order marks and the encoding that each is certain of"""
FEWEST_FOREIGN = 3
"""lines that are no UTF-8 from which a file may be in another encoding; fewer are damaged rows"""


def known_encoding(name: str) -> str:
    """Return the name of an encoding; raises ValueError for one that nobody knows."""
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except LookupError:
        pass
    raise ValueError(f"{name!r} is no encoding; name one such as utf-8, cp1252 or latin-1")


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def encoding_of(start: bytes) -> str | None:
    """Return the encoding that the beginning of a file is certain of, None where it is of none."""
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    even, odd = start[0:256:2], start[1:256:2]
    if len(odd) > 1 and b"\0" not in even and odd.count(0) > 0.9 * len(odd):
        return "utf-16-le"
    if len(odd) > 1 and b"\0" not in odd and even.count(0) > 0.9 * len(even):
        return "utf-16-be"
    return None


class Foreign:
    """Counts the lines of a file read as UTF-8 that are none."""

    def __init__(self, file: Path, settings: str | None = None) -> None:
        """``settings`` is where the user can name an encoding, e.g. ``data.pairs``."""
        self.file, self.settings = file, settings
        self.sound, self.foreign = 0, 0
        self.example = b""

    def watched(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield lines as they are."""
        for line in lines:
            if not line.isascii():
                try:
                    line.decode("utf-8")
                    self.sound += 1
                except UnicodeDecodeError as error:
                    self._count(line[max(0, error.start - 12) : error.end + 12])
            yield line

    def watched_text(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield lines as they are; bytes that are no UTF-8 are halves of surrogate pairs there."""
        for line in lines:
            if not line.isascii():
                if is_unicode(line):
                    self.sound += 1
                else:
                    at = next(place for place, letter in enumerate(line) if not is_unicode(letter))
                    near = line[max(0, at - 12) : at + 12]
                    self._count(near.encode("utf-8", "surrogateescape"))
            yield line

    def _count(self, near: bytes) -> None:
        self.example = self.example or near
        self.foreign += 1

    def require_few(self) -> None:
        """Raise DataError where most lines with other letters than ASCII's are no UTF-8: the file
        is in another encoding, and which one only its owner knows."""
        if self.foreign < FEWEST_FOREIGN or self.foreign <= self.sound:
            return
        where = f"set {self.settings}.encoding: cp1252" if self.settings else "save it as UTF-8"
        try:
            guess = f"as cp1252, Windows' own, it would read {self.example.decode('cp1252')!r}"
            remedy = f"if that is right, {where}; if not, save the file as UTF-8"
        except UnicodeDecodeError:
            guess, remedy = "it is not cp1252, Windows' own, either", "save the file as UTF-8"
        raise DataError(
            f"{self.file} is not UTF-8: {self.foreign} of its {self.foreign + self.sound} lines "
            f"with other letters than a to z cannot be read; {guess}; {remedy}"
        )
