"""pal embed and pal cache: stage one and its caches."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from pal.cli.app import (
    Dataset,
    Encoder,
    File,
    Json,
    Set,
    Source,
    Yes,
    app,
    is_agreed,
    numbers_of,
    progress_bar,
    say,
    settings_of,
    show,
    size,
    with_page,
)

cache_app = typer.Typer(help="Look after caches of features.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@app.command()
def embed(
    dataset: Dataset = None,
    encoder: Encoder = None,
    source: Source = None,
    executor: Annotated[str | None, typer.Option("--executor", help="local, ray or slurm.")] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="A running Ray cluster.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="Layers to take in one pass, e.g. --layers=-1,-2; a cache each."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost.")
    ] = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Compare cached rows with the model.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try failed items again.")
    ] = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Stage one: encode a dataset's unique items into the cache."""
    from pal import pipeline
    from pal.embed import messages

    settings = settings_of(
        config,
        set_,
        dataset=dataset,
        encoder=encoder,
        source_of=source,
        embed__executor=executor,
        embed__ray_address=ray_address,
        embed__layers=None if layers is None else numbers_of("--layers", layers),
    ).config
    if dry_run:
        planned = pipeline.forecast(settings)
        show(planned, as_json, lambda: messages.of_forecast(planned))
        return
    if self_test:
        tested = pipeline.self_test(settings)
        show(tested, as_json, lambda: messages.of_self_test(tested))
        return
    with (
        progress_bar(None, "items") as progress,
        redirect_stdout(sys.stderr),
    ):  # Ray tells of its nodes on standard output
        result = pipeline.embed(settings, progress, retry_errors, expect=progress.expect)
    show(result, as_json, lambda: with_page(messages.of_embed(result), result.dataset))


@cache_app.command("ls")
def cache_ls(config: File = None, set_: Set = None, as_json: Json = False) -> None:
    """List the caches with their state."""
    from pal.cache.inspect import list_caches

    caches = list_caches(settings_of(config, set_).config.paths.cache)

    def text() -> str:
        return (
            "\n".join(f"{c.dir}  {c.state}  {c.rows:,} x {c.dim} {c.dtype}" for c in caches)
            or "no caches"
        )

    show({"caches": [c.model_dump(mode="json") for c in caches]}, as_json, text)


@cache_app.command("verify")
def cache_verify(
    folder: Annotated[Path, typer.Argument(help="A cache folder, as pal cache ls prints it.")],
    as_json: Json = False,
) -> None:
    """Hash every shard and check every value; exit code 1 if anything is wrong."""
    from pal.cache.inspect import verify

    result = verify(folder)
    show(
        result,
        as_json,
        lambda: f"{folder}: {result.rows:,} rows in {result.shards} shards, all sound",
    )


@cache_app.command("stats")
def cache_stats(
    folder: Annotated[Path, typer.Argument(help="A cache folder, as pal cache ls prints it.")],
    as_json: Json = False,
) -> None:
    """What a cache holds and what it cost: rows, bytes, distribution of the values, tokens,
    seconds."""
    from pal.cache.inspect import stats
    from pal.embed import messages

    found = stats(folder)
    show(found, as_json, lambda: messages.of_stats(found))


@cache_app.command("export")
def cache_export(
    folder: Annotated[Path, typer.Argument(help="A cache folder, as pal cache ls prints it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the copy.")],
    kind: Annotated[
        str, typer.Option("--format", help="fsl (Parquet lists), npy or safetensors.")
    ] = "npy",
    as_json: Json = False,
) -> None:
    """Copy a cache's features and item ids into a format that other tools read."""
    from pal.cache.export import export

    made = export(folder, output, kind)
    show(
        made,
        as_json,
        lambda: f"{made.rows:,} x {made.dim} in {made.dir}: {', '.join(made.files)}",
    )


@cache_app.command("rm")
def cache_rm(
    dataset: Annotated[
        str | None, typer.Argument(help="Whose caches; all of them without an encoder.")
    ] = None,
    encoder: Annotated[str | None, typer.Argument(help="Of this encoder alone.")] = None,
    unused: Annotated[
        bool,
        typer.Option("--unused", help="Those that no present dataset, encoder or run needs."),
    ] = False,
    yes: Yes = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Remove caches; only folders whose own record says that they are caches.

    Features are taken over from any cache of the same encoder, so it is said which are the only
    ones that hold theirs: these would have to be encoded anew.
    """
    from pal.cache.removal import caches_of, removable, remove, unused_caches
    from pal.embed.needed import is_needed
    from pal.errors import ConfigError
    from pal.evaluate.keeping import list_runs

    if unused == (dataset is not None):
        raise ConfigError("name a dataset, pal cache rm DATASET [ENCODER], or say --unused")
    settings = settings_of(config, set_).config
    runs, root = list_runs(settings.paths.runs), settings.paths.cache
    if dataset is None:
        trained_on = {run.cache_fingerprint for run in runs}
        for run in runs:
            if run.state == "damaged":
                say(f"{run.dir} is damaged, so the cache it was trained on may be among these:")
        folders = unused_caches(root, lambda one: is_needed(settings, one, trained_on))
    else:
        folders = caches_of(root, dataset, encoder)
    found = removable(
        root, folders, lambda mark: [run.run for run in runs if run.cache_fingerprint == mark]
    )
    for one in found:
        lost = "; no other cache has these features" if one.sole else ""
        used = f"; {', '.join(one.runs)} can then not be evaluated" if one.runs else ""
        say(f"{one.dir}: {size(one.bytes)}{lost}{used}")
    total, many = sum(one.bytes for one in found), "s" * (len(found) != 1)
    if found and not is_agreed(f"Remove {len(found)} cache{many}, {size(total)}?", yes):
        raise typer.Exit(1)
    removed = remove(found)
    show(removed, as_json, lambda: f"{len(removed.removed)} removed, {size(removed.bytes)} freed")
