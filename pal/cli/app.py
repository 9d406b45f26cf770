"""The application, and what its commands share: options, settings, output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pal.cli import complete
from pal.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from tqdm import tqdm

    from pal.config import Settings
    from pal.evaluate.records import Metrics

app = typer.Typer(
    name="pal",
    help="Plural preferences from frozen features: encode once, train light PAL heads many times.",
    epilog="Begin with pal demo, or with a file of your own: pal init --source FILE",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="Name of the dataset: a key of data: in pipeline.yaml.",
        autocompletion=complete.datasets,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        "-e",
        help="Name of an encoder under embed: in pipeline.yaml.",
        autocompletion=complete.encoders,
    ),
]
Source = Annotated[
    str | None,
    typer.Option("--source", help="Raw data: a path, or hf:REPO@REV for a dataset on the Hub."),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings file; default: pipeline.yaml here, else the built-in one."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: dotted.key=value; repeatable."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")
]


def settings_of(file: Path | None, overrides: list[str] | None, **options: Any) -> Settings:
    """Resolve the configuration; keyword ``a__b`` stands for the dotted key ``a.b``."""
    from pal.config import load

    dotted = {name.replace("__", "."): value for name, value in options.items()}
    dataset = dotted.pop("source_of", None)
    settings = load(file, overrides or (), dotted)
    if dataset is not None:  # --source belongs to the dataset that the other layers have chosen
        settings = load(
            file, overrides or (), {**dotted, f"data.{settings.config.dataset}.source": dataset}
        )
    for stage in ("embed", "sweep", "audit"):
        address = options.get(f"{stage}__ray_address")
        if address is not None and getattr(settings.config, stage).executor != "ray":
            raise ConfigError(
                f"--ray-address {address} is for a Ray cluster only; add --executor ray"
            )
    return settings


def say(text: str) -> None:
    typer.echo(text, err=True)


def show(result: BaseModel | dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print what a command found: one JSON object, or a text for people."""
    if as_json:
        plain = result if isinstance(result, dict) else result.model_dump(mode="json")
        typer.echo(json.dumps(plain, allow_nan=False))
    else:
        typer.echo(text())


def with_page(text: str, *names: str) -> str:
    """Return what a command tells, and the command that makes a page of what it made."""
    return f"{text}\n\nTo look at it: pal report {' '.join(names)}"


def is_agreed(question: str, yes: bool) -> bool:
    """Ask whether something is to be removed; raises ConfigError where nobody can answer."""
    if yes:
        return True
    if not sys.stdin.isatty():
        from pal.errors import ConfigError

        raise ConfigError(f"{question.rstrip('?')}: nobody can be asked here, so add --yes")
    return typer.confirm(question, err=True)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} bytes"


RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="A running Ray cluster, e.g. auto.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Progress:
    """What moves a bar: it is called with the steps done since the last call."""

    def __init__(self, bar: tqdm[NoReturn]) -> None:
        self.bar = bar

    def __call__(self, steps: int) -> None:
        self.bar.update(steps)

    def expect(self, total: int) -> None:
        """Say how many steps there will be, where that is known late."""
        self.bar.total = total


@contextmanager
def progress_bar(total: int | None, unit: str) -> Iterator[Progress]:
    """Show a bar on standard error once something takes longer than two seconds; nothing when not a
    terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total,
        unit=unit,
        delay=2,
        disable=not sys.stderr.isatty(),
        file=sys.stderr,
        leave=False,
    ) as bar:
        yield Progress(bar)


def numbers_of(option: str, text: str) -> list[int]:
    from pal.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} takes whole numbers with commas between them, not {text!r}"
        ) from error


def runs_table(metrics: Sequence[Metrics]) -> str:
    from pal.evaluate.report import as_markdown, table_of_runs

    return as_markdown(table_of_runs(metrics))
