"""pal prepare: raw data to items and pairs."""

from __future__ import annotations

from pal.cli.app import Dataset, File, Json, Set, Source, app, settings_of, show


@app.command()
def prepare(
    dataset: Dataset = None, source: Source = None, config: File = None, set_: Set = None, as_json: Json = False
) -> None:
    """Turn raw data into items and pairs under data/<dataset>."""
    from pal import pipeline

    settings = settings_of(config, set_, dataset=dataset, source_of=source)
    prepared = pipeline.prepare(settings.config)
    counts = prepared.card["counts"]
    show(
        {**prepared.card, "dir": str(prepared.folder)},
        as_json,
        lambda: (
            f"{prepared.folder}: {counts['pairs']:,} pairs of {counts['seen_users']} seen and {counts['unseen_users']} "
            f"unseen users over {counts['items']:,} items, {sum(prepared.card['rejects'].values())} rejects"
        ),
    )
