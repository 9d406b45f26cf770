"""The command line: resolve settings, call one function, print its result. No torch before a
command runs."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import warnings
from collections.abc import MutableMapping
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from pal.cli import audit, data, features, heads, project, report, reward, runs  # noqa: F401, importing a file adds its commands
from pal.cli.app import app, say
from pal.cli.examples import epilog
from pal.errors import PalError, PalWarning, disk_error

INTERRUPTED, UNWRITTEN = 130, 120
"""exit codes: of Ctrl-C, and, as Python has it, where output could not be written"""
SPINS = "10000"
"""turns that a thread of OpenMP waits for work before it sleeps. As it comes it spins for
milliseconds: free on a machine of one's own, but where others work on the same cores it makes a
training seven times slower. So few turns cost neither (docs/log.md)."""

KEPT = "128"
"""products that oneDNN keeps its code for: a megabyte each, one for each number of rows and shape,
and as many as come make half a gigabyte (docs/design/015)"""


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        from pal.cli.version import version_text

        typer.echo(version_text())
        raise typer.Exit


def _add_examples(commands: typer.Typer, before: str = "") -> None:
    for command in commands.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        command.epilog = epilog(f"{before}{name}")
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _add_examples(group.typer_instance, f"{group.name} ")


_add_examples(app)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Show what concerns the user as one sentence; other libraries' warnings are not the user's."""
    if issubclass(category, PalWarning):
        say(f"pal: warning: {message}")


class _Interrupts:
    """Remembers Ctrl-C: Lightning, for one, ends the process in a way of its own for it."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def _set_libraries(environment: MutableMapping[str, str]) -> None:
    """Say how other libraries shall behave, where the user has not."""
    environment.setdefault("TOKENIZERS_PARALLELISM", "true")
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environment.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its reports are not the user's
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT)
    environment.setdefault("LRU_CACHE_CAPACITY", KEPT)  # what torch keeps of oneDNN's
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> None:
    """Run the command line; an error that the user can fix becomes one sentence and exit code 1,
    Ctrl-C a word and 130."""
    _set_libraries(os.environ)
    warnings.showwarning = _show_warning
    interrupts = _Interrupts()
    try:
        app()
    except BaseException as error:
        if interrupts.came or isinstance(error, KeyboardInterrupt):
            say("pal: interrupted")
            sys.exit(INTERRUPTED)
        told = error if isinstance(error, PalError) else None
        if told is None and isinstance(error, Exception):
            told = disk_error(error)
        if told is None:
            raise
        say(f"pal: {told}")
        sys.exit(1)


def run() -> NoReturn:
    """``main``, and then the end of the process without freeing every object, which takes a second
    or two once torch was imported.

    What others registered by ``atexit`` is done, and output is written out, as at any end. Where
    threads are left that Python would wait for, it ends as Python does.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    own = threading.current_thread()
    if any(not thread.daemon and thread is not own for thread in threading.enumerate()):
        sys.exit(code)
    try:
        atexit._run_exitfuncs()  # private, and the same in every Python so far
        if isinstance(code, str):
            say(code)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:  # None: closed from the start
                stream.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # that is: who read the output is gone
            say(f"pal: {disk_error(error)}")
        code = code or UNWRITTEN
    os._exit(1 if isinstance(code, str) else code or 0)
