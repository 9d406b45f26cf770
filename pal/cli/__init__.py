"""The command line: resolve settings, call one function, print its result. No torch before a
command runs."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from pal import __version__
from pal.cli import audit, data, features, heads, project, report, reward  # noqa: F401, importing a file adds its commands
from pal.cli.app import app, say
from pal.errors import PalError, PalWarning, disk_error


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Show what concerns the user as one sentence; other libraries' warnings are not the user's."""
    if issubclass(category, PalWarning):
        say(f"pal: warning: {message}")


def main() -> None:
    """Run the command line; an error that the user can fix becomes one sentence and exit code 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its reports are not the user's
    warnings.showwarning = _show_warning
    try:
        app()
    except KeyboardInterrupt:
        say("pal: interrupted")
        sys.exit(130)
    except Exception as error:
        told = error if isinstance(error, PalError) else disk_error(error)
        if told is None:
            raise
        say(f"pal: {told}")
        sys.exit(1)
