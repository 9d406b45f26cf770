"""pal prepare and pal doctor: raw data to items and pairs, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from pal.cli.app import (
    Dataset,
    File,
    Json,
    Set,
    Source,
    app,
    progress_bar,
    say,
    settings_of,
    show,
    with_page,
)


@app.command()
def prepare(
    dataset: Dataset = None,
    source: Source = None,
    fetch_images: Annotated[
        bool, typer.Option("--fetch-images", help="Download images that the source names by URL.")
    ] = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Turn raw data into items and pairs under data/<dataset>."""
    from pal import pipeline
    from pal.outline import card_text, summary_lines

    settings = settings_of(config, set_, dataset=dataset, source_of=source)
    if fetch_images:
        name = settings.config.dataset
        settings = settings_of(
            config,
            [*(set_ or []), f"data.{name}.fetch_images=true"],
            dataset=name,
            source_of=source,
        )
    with progress_bar(None, "parts") as progress:
        prepared = pipeline.prepare(settings.config, progress, tell=lambda line: None)
    if as_json:
        say("\n".join(summary_lines(prepared.card)))
    show(
        {**prepared.card.model_dump(mode="json"), "dir": str(prepared.folder)},
        as_json,
        lambda: with_page(card_text(prepared.card, prepared.folder), prepared.card.name),
    )


@app.command()
def doctor(
    dataset: Dataset = None,
    source: Source = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Problems of machine, caches and, with --dataset, of a source row by row, each with its fix;
    writes nothing."""
    from pal import doctor as examiner

    settings = settings_of(config, set_, dataset=dataset, source_of=source)
    report = examiner.examine(settings.config, with_dataset=dataset is not None)
    show(report, as_json, lambda: examiner.text_of(report))
    if report.problems:
        raise typer.Exit(1)
