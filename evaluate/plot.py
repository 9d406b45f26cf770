"""Pictures of results."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pal.files import atomic_file


def plot_accuracy_against_k(results: Path, picture: Path) -> None:
    """Draw accuracy per user against K for each head of a sweep, validation and test, into a PNG
    file.

    For every K the settings with the best mean validation accuracy over their seeds are shown; bars
    are the 95 % intervals over users, from the lowest to the highest of the seeds.
    """
    frame = pl.read_parquet(results).filter(pl.col("status") == "ok")
    if frame.is_empty():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = [name for name in frame.columns if name.startswith(("val_", "test_"))]
    facts = {
        "head_id",
        "seed",
        "status",
        "error",
        "together",
        "best_epoch",
        "params",
        "seconds",
        *metrics,
    }
    axes = [name for name in frame.columns if name not in facts]
    means = frame.group_by(axes).agg(
        *(pl.col(f"{s}_macro_accuracy").mean() for s in ("val", "test")),
        *(pl.col(f"{s}_ci95_low").min() for s in ("val", "test")),
        *(pl.col(f"{s}_ci95_high").max() for s in ("val", "test")),
    )
    best = (
        means.sort("val_macro_accuracy", descending=True)
        .group_by("head", "k", maintain_order=True)
        .first()
    )
    figure, plane = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (head,), rows in best.sort("k").group_by("head", maintain_order=True):
        for split, line in (("val", "--"), ("test", "-")):
            middle = rows[f"{split}_macro_accuracy"]
            reach = [
                (middle - rows[f"{split}_ci95_low"]).to_list(),
                (rows[f"{split}_ci95_high"] - middle).to_list(),
            ]
            name = "validation" if split == "val" else split
            plane.errorbar(
                rows["k"],
                middle,
                reach,
                linestyle=line,
                marker="o",
                capsize=3,
                label=f"{head}, {name}",
            )
    plane.set_xlabel("number of prototypes K")
    plane.set_xticks(sorted(best["k"].unique()))
    plane.set_ylabel("accuracy, mean over users")
    plane.grid(alpha=0.3)
    plane.legend()
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)
