"""The command line: resolve settings, call one function, print its result. No torch before a command runs."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pal import __version__
from pal.errors import PalError, PalWarning

if TYPE_CHECKING:
    from pal.config import Settings

app = typer.Typer(
    name="pal",
    help="Plural preferences from frozen features: encode once, train light PAL heads many times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="Look after caches of features.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Name of the dataset: demo, persona, simulated.")]
Encoder = Annotated[
    str | None, typer.Option("--encoder", "-e", help="Name of an encoder under embed: in pipeline.yaml.")
]
Source = Annotated[
    str | None, typer.Option("--source", help="Raw data: a path, or hf:REPO@REV for a dataset on the Hub.")
]
File = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: pipeline.yaml here, else the built-in one.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: dotted.key=value; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]


def _settings(file: Path | None, overrides: list[str] | None, **options: Any) -> Settings:
    """Resolve the configuration; keyword ``a__b`` stands for the dotted key ``a.b``."""
    from pal.config import load

    dotted = {name.replace("__", "."): value for name, value in options.items()}
    dataset = dotted.pop("source_of", None)
    settings = load(file, overrides or (), dotted)
    if dataset is not None:  # --source belongs to the dataset that the other layers have chosen
        settings = load(file, overrides or (), {**dotted, f"data.{settings.config.dataset}.source": dataset})
    return settings


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print(result: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    typer.echo(json.dumps(result) if as_json else text())


@contextmanager
def _progress(total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error once something takes longer than two seconds; nothing when not a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, delay=2, disable=not sys.stderr.isatty(), file=sys.stderr, leave=False) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance


@app.command()
def prepare(
    dataset: Dataset = None, source: Source = None, config: File = None, set_: Set = None, as_json: Json = False
) -> None:
    """Turn raw data into items and pairs under data/<dataset>."""
    from pal import pipeline

    settings = _settings(config, set_, dataset=dataset, source_of=source)
    prepared = pipeline.prepare(settings.config)
    counts = prepared.card["counts"]
    _print(
        {**prepared.card, "dir": str(prepared.folder)},
        as_json,
        lambda: (
            f"{prepared.folder}: {counts['pairs']:,} pairs of {counts['seen_users']} seen and {counts['unseen_users']} "
            f"unseen users over {counts['items']:,} items, {sum(prepared.card['rejects'].values())} rejects"
        ),
    )


@app.command()
def embed(
    dataset: Dataset = None,
    encoder: Encoder = None,
    source: Source = None,
    executor: Annotated[str | None, typer.Option("--executor", help="local, ray or slurm.")] = None,
    ray_address: Annotated[str | None, typer.Option("--ray-address", help="A running Ray cluster.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to take in one pass, e.g. --layers=-1,-2; a cache each.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    self_test: Annotated[bool, typer.Option("--self-test", help="Compare cached rows with the model.")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Try failed items again.")] = False,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Stage one: encode a dataset's unique items into the cache."""
    from pal import pipeline
    from pal.embed import messages

    settings = _settings(
        config, set_, dataset=dataset, encoder=encoder, source_of=source, embed__executor=executor,
        embed__ray_address=ray_address, embed__layers=None if layers is None else _numbers("--layers", layers),
    ).config  # fmt: skip
    if dry_run:
        planned = pipeline.forecast(settings)
        _print(planned, as_json, lambda: messages.of_forecast(planned))
        return
    if self_test:
        tested = pipeline.self_test(settings)
        _print(tested, as_json, lambda: messages.of_self_test(tested))
        return
    with _progress(None, "items") as progress, redirect_stdout(sys.stderr):  # Ray tells of its nodes on standard output
        result = pipeline.embed(settings, progress, retry_errors)
    _print(result, as_json, lambda: messages.of_embed(result))


@app.command()
def train(
    dataset: Dataset = None,
    encoder: Encoder = None,
    head: Annotated[str | None, typer.Option("--head", help="pal-a, pal-b, a baseline or a preset.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Number of prototypes; 1 is one reward for everybody.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of initial weights and batch order.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run; default: made of the settings.")] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Stage two: train a head from cached features and evaluate it."""
    from pal import pipeline

    settings = _settings(config, set_, dataset=dataset, encoder=encoder, train__head=head, train__k=k, seed=seed)
    with _progress(settings.config.train.epochs, "epochs") as progress:
        metrics = pipeline.train(settings.config, run, progress)
    _print(metrics, as_json, lambda: _runs_table([metrics]))


@app.command()
def sweep(
    dataset: Dataset = None,
    encoder: Encoder = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the sweep; default: dataset and encoder.")] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Many heads from one cache in one process; a rerun trains only what is missing."""
    from pal import pipeline

    settings = _settings(config, set_, dataset=dataset, encoder=encoder)
    with _progress(None, "heads") as progress:
        summary = pipeline.sweep(settings.config, name, progress, _say)

    def text() -> str:
        from pal.evaluate.report import as_markdown, table_of_sweep

        folder = settings.config.paths.sweeps / summary["name"]
        return (
            f"{as_markdown(table_of_sweep(folder / 'results.parquet'))}\n\n"
            f"{summary['heads']} heads, {summary['trained']} trained now in {summary['seconds']:.1f} s "
            f"({summary['mode']}), {summary['failed']} failed; {folder}"
        )

    _print(summary, as_json, text)


@app.command()
def adapt(
    run: Annotated[str, typer.Option("--run", help="Name of a run.")],
    shots: Annotated[str | None, typer.Option("--shots", help="Answers per new user, e.g. 0,5,20.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="map or sgd.")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="strict, or released: tuned on test.")] = None,
    active: Annotated[bool | None, typer.Option("--active", help="Ask what tells most, not at random.")] = None,
    grow: Annotated[
        int | None, typer.Option("--grow", min=1, help="Add prototypes for users outside the hull.")
    ] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Few-shot weights for new users, everything else frozen."""
    from pal import pipeline

    counts = None if shots is None else _numbers("--shots", shots)
    settings = _settings(
        config, set_, adapt__shots=counts, adapt__method=method, adapt__protocol=protocol, adapt__active=active
    )
    result = pipeline.adapt(settings.config, run)
    if grow is not None:
        result["grown"] = pipeline.grow(settings.config, run, grow)

    def text() -> str:
        from pal.evaluate.report import as_markdown, table_of_shots

        far = result["outside_hull"]
        lines = [as_markdown(table_of_shots(result["test_unseen"])), ""]
        lines.append(f"{result['n_users']} users, {result['method']}; {len(far)} outside the prototypes' hull")
        if far:
            lines.append("  " + ", ".join(f"{user['user_id']} ({user['surprise']:.2f} nats)" for user in far[:5]))
        if grow is not None:
            made = result["grown"]
            lines.append("nothing to grow for" if made is None else f"run {made['run']} has K = {made['k']}")
        return "\n".join(lines)

    _print(result, as_json, text)


@app.command()
def evaluate(
    runs: Annotated[list[str] | None, typer.Argument(help="Names of runs; the first is the baseline.")] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help="Name of a run; repeatable.")] = None,
    config: File = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Metrics of trained runs, with error bars, and each run compared with the first."""
    from pal import pipeline
    from pal.errors import ConfigError

    names = [*(runs or []), *(run or [])]
    if not names:
        raise ConfigError("name at least one run: pal evaluate RUN [RUN ...]")
    settings = _settings(config, set_)
    result = pipeline.evaluate(settings.config, names)

    from pal.evaluate.report import write_report

    report = write_report(settings.config.paths.runs, result)
    _print(result, as_json, lambda: report)


@app.command()
def demo(encoder: Encoder = None, config: File = None, set_: Set = None, as_json: Json = False) -> None:
    """Both stages on built-in data: what plurality buys."""
    from pal import pipeline

    began = time.perf_counter()
    result = pipeline.demo(_settings(config, set_, encoder=encoder).config, _say)
    result["seconds"] = round(time.perf_counter() - began, 1)
    _print(result, as_json, lambda: f"\n{_runs_table(result['runs'])}\n\n{result['seconds']:.0f} s in all")


@app.command("config")
def show_config(
    dataset: Dataset = None, encoder: Encoder = None, config: File = None, set_: Set = None, as_json: Json = False
) -> None:
    """The resolved settings, and where each value came from."""
    from pal.config import flatten

    settings = _settings(config, set_, dataset=dataset, encoder=encoder)
    rows = {key: (value, settings.origins.get(key, "default")) for key, value in flatten(settings.config).items()}

    def text() -> str:
        width = max(len(f"{key}: {value}") for key, (value, _) in rows.items())
        return "\n".join(
            f"{f'{key}: {json.dumps(value)}':<{width + 4}}# {origin}" for key, (value, origin) in rows.items()
        )

    _print({key: {"value": value, "origin": origin} for key, (value, origin) in rows.items()}, as_json, text)


@cache_app.command("ls")
def cache_ls(config: File = None, set_: Set = None, as_json: Json = False) -> None:
    """List the caches with their state."""
    from pal.cache.inspect import list_caches

    caches = list_caches(_settings(config, set_).config.paths.cache)

    def text() -> str:
        return (
            "\n".join(f"{c['dir']}  {c['state']}  {c['rows']:,} x {c['dim']} {c['dtype']}" for c in caches)
            or "no caches"
        )

    _print({"caches": caches}, as_json, text)


@cache_app.command("verify")
def cache_verify(
    folder: Annotated[Path, typer.Argument(help="A cache folder, as pal cache ls prints it.")], as_json: Json = False
) -> None:
    """Hash every shard and check every value; exit code 1 if anything is wrong."""
    from pal.cache.inspect import verify

    result = verify(folder)
    _print(result, as_json, lambda: f"{folder}: {result['rows']:,} rows in {result['shards']} shards, all sound")


def _numbers(option: str, text: str) -> list[int]:
    from pal.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers with commas between them, not {text!r}") from error


def _runs_table(metrics: list[dict[str, Any]]) -> str:
    from pal.evaluate.report import as_markdown, table_of_runs

    return as_markdown(table_of_runs(metrics))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Show what concerns the user as one sentence; other libraries' warnings are not the user's."""
    if issubclass(category, PalWarning):
        _say(f"pal: warning: {message}")


def main() -> None:
    """Run the command line; a PalError becomes one sentence and exit code 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.showwarning = _show_warning
    try:
        app()
    except PalError as error:
        _say(f"pal: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("pal: interrupted")
        sys.exit(130)
