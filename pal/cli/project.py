"""pal demo, pal init and pal config: the project as a whole."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pal.cli.app import (
    Dataset,
    Encoder,
    File,
    Json,
    Set,
    app,
    runs_table,
    say,
    settings_of,
    show,
    with_page,
)

if TYPE_CHECKING:
    from pal.evaluate.records import Metrics


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
        lambda: _demo_text(made.runs, seconds),
    )


def _demo_text(runs: Sequence[Metrics], seconds: float) -> str:
    """Return the table of the demo, what it shows, and what to do next."""
    one, many = runs[0], runs[1]
    gain = (
        ""
        if one.test_seen is None or many.test_seen is None
        else (
            f"One taste for all is right in {one.test_seen.macro_accuracy:.0%} of the answers, "
            f"{many.k} prototypes are in {many.test_seen.macro_accuracy:.0%}.\n"
        )
    )
    next_steps = (
        f"Next: pal evaluate {one.run} {many.run}   (is the difference sure?)\n"
        f"      pal adapt --run {many.run} --shots 0,5,20   (people it never saw)\n"
        "      pal init --source FILE   (your own answers)"
    )
    told = f"\n{runs_table(runs)}\n\n{gain}{seconds:.0f} s in all.\n\n{next_steps}"
    return with_page(told, one.dataset)


@app.command()
def init(
    source: Annotated[
        Path, typer.Option("--source", help="Your file of answers, or the folder of an export.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the dataset; default: the file's.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a pipeline.yaml that is there.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="What the file does not say: data.NAME.key=value; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at your file and write a commented pipeline.yaml for it."""
    from pal.data.proposal import propose
    from pal.data.settings_file import write_settings

    found = propose(source, name, set_ or ())
    file = write_settings(found, Path("pipeline.yaml"), force)

    def text() -> str:
        lines = [f"{file} is written: {source} is read as {found.kind}."]
        lines += [f"  {line}" for line in found.notes]
        lines.append(f"Next: pal doctor --dataset {found.name}, then pal embed, then pal train")
        return "\n".join(lines)

    show({"file": str(file), "dataset": found.name, "kind": found.kind}, as_json, text)


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
