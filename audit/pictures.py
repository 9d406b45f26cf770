"""The pictures of an audit: its users, and its statistics beside their nulls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal.files import atomic_file
from pal.train.sharing import Array, Numbers

WIDTH, HEIGHT = 6.4, 4.0
"""in inches"""


def draw_users(path: Path, positions: Array, group: Numbers, word: str) -> None:
    """Draw users at the first two axes of their own tastes, groups in colours; ``word``: what a
    group is called."""
    figure, plane, pyplot = _figure(1)
    two = np.pad(positions[:, :2], ((0, 0), (0, max(0, 2 - positions.shape[1]))))
    for number in range(int(group.max()) + 1):
        here = two[group == number]
        plane[0].plot(*here.T, "o", markersize=4, alpha=0.6, label=f"{word} {number + 1}")
    plane[0].set_xlabel("first axis of own tastes")
    plane[0].set_ylabel("second axis")
    plane[0].grid(alpha=0.3)
    plane[0].legend()
    _save(figure, path, pyplot)


def draw_nulls(path: Path, tests: Sequence[tuple[str, float, Array]]) -> None:
    """Draw the statistic of each test as a line in the histogram of its null."""
    figure, planes, pyplot = _figure(len(tests))
    for plane, (name, value, null) in zip(planes, tests, strict=True):
        plane.hist(null, bins=30, color="0.6", label="one taste")
        plane.axvline(value, color="C3", label="this dataset")
        plane.set_xlabel(name)
        plane.legend()
    planes[0].set_ylabel("draws")
    _save(figure, path, pyplot)


def _figure(planes: int) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, drawn = pyplot.subplots(
        1, planes, figsize=(WIDTH * max(1.0, 0.75 * planes), HEIGHT), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    return figure, drawn[0], pyplot


def _save(figure: Any, path: Path, pyplot: Any) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
