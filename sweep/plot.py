"""A picture of a sweep's results."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pal.files import atomic_file
from pal.sweep.record import axes_of, table_of
from pal.sweep.table import ok_rows

PICTURE = "accuracy_by_k.png"
APART = 0.06
"""of a step of K: between the bars of two lines, which would hide each other"""
TOLD = (
    "Bars overlap even where one K is surely better, since all answer the same questions:\n"
    "pal evaluate RUN RUN compares runs answer by answer."
)
WIDTH, HEIGHT, ROOM, LINE = 6.4, 4.0, 1.5, 0.25
"""in inches: of the picture, its least height, and what the plane and a line of the legend take"""


def plot_accuracy_against_k(folder: Path) -> None:
    """Draw accuracy per user against K for each head of a sweep, validation and test, into a PNG
    file.

    For every K the settings with the best mean validation accuracy over their seeds are shown; bars
    are the 95 % intervals over users and prompts, from the lowest to the highest of the seeds.
    """
    frame = table_of(ok_rows(folder))
    if frame.is_empty():
        (folder / PICTURE).unlink(missing_ok=True)  # of an earlier sweep
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    best = best_by_k(frame)
    lines = 2 * best["head"].n_unique()
    size = WIDTH, max(HEIGHT, ROOM + LINE * lines)  # a higher legend would leave no plane
    figure, plane = pyplot.subplots(figsize=size, layout="constrained")
    left = -APART * (lines - 1) / 2
    for (head,), rows in best.sort("k").group_by("head", maintain_order=True):
        for split, line in (("val", "--"), ("test", "-")):
            middle = rows[f"{split}_macro_accuracy"]
            ends = middle - rows[f"{split}_ci95_low"], rows[f"{split}_ci95_high"] - middle
            # a mean over seeds may be beyond the end of an interval by its rounding
            reach = [end.fill_null(0.0).clip(0.0).to_list() for end in ends]
            name = "validation" if split == "val" else split
            label = f"{head}, {name}"
            plane.errorbar(
                rows["k"] + left, middle, reach, linestyle=line, marker="o", capsize=3, label=label
            )
            left += APART
    plane.set_xlabel("number of prototypes K")
    plane.set_xticks(sorted(best["k"].unique()))
    plane.set_ylabel("accuracy, mean over users")
    plane.set_title(TOLD, fontsize="small", loc="left")
    plane.grid(alpha=0.3)
    plane.legend()
    with atomic_file(folder / PICTURE) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)


def best_by_k(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the best settings of each head and K by validation, averaged over seeds."""
    means = frame.group_by(axes_of(frame)).agg(
        *(pl.col(f"{s}_macro_accuracy").mean() for s in ("val", "test")),
        *(pl.col(f"{s}_ci95_low").min() for s in ("val", "test")),
        *(pl.col(f"{s}_ci95_high").max() for s in ("val", "test")),
    )
    ranked = means.sort("val_macro_accuracy", descending=True)
    return ranked.group_by("head", "k", maintain_order=True).first()
