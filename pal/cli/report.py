"""pal report: one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pal.cli.app import Dataset, File, Json, Set, app, settings_of, show


@app.command()
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of datasets, runs, sweeps or audits; run:NAME where several share a name."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default: reports/NAME.html.")
    ] = None,
    dataset: Dataset = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page of a dataset, run, sweep or audit, or of several side by side.

    Without a name it is of the dataset and all that was made of it.
    """
    from pal import pipeline

    settings = settings_of(config, set_, dataset=dataset).config
    made = pipeline.report(settings, names or [], out)
    show(made, as_json, lambda: f"{made.file}: {', '.join(made.names)}; open it in a browser")
