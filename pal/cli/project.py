"""pal demo and pal config: the project as a whole."""

from __future__ import annotations

import json
import time

from pal.cli.app import Dataset, Encoder, File, Json, Set, app, runs_table, say, settings_of, show


@app.command()
def demo(
    encoder: Encoder = None, config: File = None, set_: Set = None, as_json: Json = False
) -> None:
    """Both stages on built-in data: what plurality buys."""
    from pal import pipeline

    began = time.perf_counter()
    made = pipeline.demo(settings_of(config, set_, encoder=encoder).config, say)
    seconds = round(time.perf_counter() - began, 1)
    runs = [run.model_dump(mode="json") for run in made.runs]
    show(
        {"cache": made.cache.model_dump(mode="json"), "runs": runs, "seconds": seconds},
        as_json,
        lambda: f"\n{runs_table(made.runs)}\n\n{seconds:.0f} s in all",
    )


@app.command("config")
def show_config(
    dataset: Dataset = None,
    encoder: Encoder = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """The resolved settings, and where each value came from."""
    from pal.config import flatten

    settings = settings_of(config, set_, dataset=dataset, encoder=encoder)
    rows = {
        key: (value, settings.origins.get(key, "default"))
        for key, value in flatten(settings.config).items()
    }

    def text() -> str:
        width = max(len(f"{key}: {value}") for key, (value, _) in rows.items())
        return "\n".join(
            f"{f'{key}: {json.dumps(value)}':<{width + 4}}# {origin}"
            for key, (value, origin) in rows.items()
        )

    show(
        {key: {"value": value, "origin": origin} for key, (value, origin) in rows.items()},
        as_json,
        text,
    )
