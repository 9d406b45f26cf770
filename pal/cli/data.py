"""pal prepare: raw data to items and pairs."""

from __future__ import annotations

from pal.cli.app import Dataset, File, Json, Set, Source, app, settings_of, show


@app.command()
def prepare(
    dataset: Dataset = None, source: Source = None, config: File = None, set_: Set = None, as_json: Json = False
) -> None:
    """Turn raw data into items and pairs under data/<dataset>."""
    from pal import pipeline
    from pal.data.card import card_text

    settings = settings_of(config, set_, dataset=dataset, source_of=source)
    prepared = pipeline.prepare(settings.config)
    show(
        {**prepared.card, "dir": str(prepared.folder)},
        as_json,
        lambda: card_text(prepared.card, str(prepared.folder)),
    )
