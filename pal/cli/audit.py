"""pal audit: does a dataset hold plurality, and would we have seen it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Literal

import typer

from pal.cli.app import (
    Dataset,
    Encoder,
    File,
    Json,
    RayAddress,
    Set,
    app,
    progress_bar,
    settings_of,
    show,
    with_page,
)


@app.command()
def audit(
    dataset: Dataset = None,
    encoder: Encoder = None,
    permutations: Annotated[
        int | None,
        typer.Option(
            "--permutations", help="Draws of each null of the test that reads features; default 99."
        ),
    ] = None,
    power: Annotated[
        bool | None,
        typer.Option(
            "--power/--no-power",
            help="Plant other tastes: which minority would have been found? Doubles the time.",
        ),
    ] = None,
    features: Annotated[
        bool | None,
        typer.Option(
            "--features/--no-features",
            help="Without: only pairs that several people judged are compared, in seconds.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help="Column of pairs.parquet: which source holds the plurality, e.g. group."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the audit; default: dataset and encoder.")
    ] = None,
    executor: Annotated[
        Literal["local", "ray"] | None,
        typer.Option("--executor", help="local, or ray: draws are tasks of a Ray cluster."),
    ] = None,
    ray_address: RayAddress = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Threads, or tasks of Ray at once; default: one for each core."
        ),
    ] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Does a dataset hold plurality, and would we have seen it? Plural, none seen or cannot tell.

    Compares one taste for all, each person with a reliability and a readiness to agree, with many
    tastes, on answers held out, against what chance gives under one taste. Writes audits/NAME/
    audit.md, with what people disagree about; a killed audit goes on where it was.

    On a cluster: pal audit --executor ray --ray-address auto
    """
    from pal import pipeline
    from pal.audit.run import steps_of

    settings = settings_of(
        config, set_, dataset=dataset, encoder=encoder, audit__permutations=permutations,
        audit__power=power, audit__features=features, audit__by=by, audit__executor=executor,
        audit__ray_address=ray_address, audit__workers=workers,
    )  # fmt: skip
    with (
        progress_bar(steps_of(settings.config.audit), "draws") as progress,
        redirect_stdout(sys.stderr),
    ):  # Ray tells of its nodes on standard output
        record = pipeline.audit(settings.config, name, progress)
    folder = settings.config.paths.audits / record.name

    def text() -> str:
        lines = [record.sentence, *(f"  {line}" for line in record.limits)]
        lines.append(f"{record.seconds:.0f} s; read {folder / 'audit.md'}")
        return with_page("\n".join(lines), record.name)

    show(record, as_json, text)
