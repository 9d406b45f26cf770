"""Colour filters that an image may carry by name, rendered when it is encoded: ``warm-0.3``,
``cool-0.3``."""

from __future__ import annotations

from typing import Any

GAINS = {"warm": (1.0, 0.0, -1.0), "cool": (-1.0, 0.0, 1.0)}
"""direction in which red, green and blue are scaled"""


def filter_name(tone: str, strength: float) -> str:
    """Return the name that says everything about a filter; it is part of the filtered image's
    id."""
    return f"{tone}-{strength:g}"


def render(image: Any, name: str) -> Any:
    """Return a filtered RGB copy of a PIL image; each channel is scaled by 1 + strength times its
    direction."""
    tone, _, strength = name.partition("-")
    if tone not in GAINS:
        raise ValueError(
            f"unknown image filter {name!r}; known: {', '.join(GAINS)}, each with a strength"
        )
    from PIL import Image

    factors = [1.0 + float(strength) * direction for direction in GAINS[tone]]
    bands = image.convert("RGB").split()
    scaled = [
        band.point([min(255, round(value * factor)) for value in range(256)])
        for band, factor in zip(bands, factors, strict=True)
    ]
    return Image.merge("RGB", scaled)
