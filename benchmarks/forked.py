"""``pal`` in forked children of a process that has imported it: hundreds of commands in minutes.

The parent only imports. A child runs one command exactly as the command line does, with its own
working directory and standard streams, and cannot leave anything behind in memory.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import lightning.pytorch
import torch
import transformers

import pal.cli
import pal.pipeline
import pal.reward.model
import pal.reward.score_file
import pal.sweep.run
import pal.train.by_lightning

# as the command line sets it, which here was imported after transformers
transformers.logging.set_verbosity_error()

PRELOADED = (lightning.pytorch, torch, transformers, pal.pipeline, pal.reward.model, pal.sweep.run)
"""slow to import, and they start no thread that a fork would lose"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    """exit code; minus the signal if it was killed"""
    out: str
    err: str
    seconds: float

    @property
    def is_sentence(self) -> bool:
        """Whether it was refused as users should be refused: one sentence, nothing else."""
        lines = self.err.strip().splitlines()
        told = [line for line in lines if not line.startswith("pal: warning: ")]
        is_one = len(told) == 1 and told[0].startswith("pal: ")
        return self.code == 1 and is_one and not self.out


def start(
    arguments: Sequence[str], folder: Path, streams: Path, before: Callable[[], None] | None = None
) -> int:
    """Start ``pal`` with these arguments in a folder; returns the process.

    ``before`` is called in the child, to change how the system behaves.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            stream = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, number)
        sys.argv = ["pal", *arguments]
        if before is not None:
            before()
        try:
            pal.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()  # as an ending process does: semaphores in the frames of an error go back
    finally:
        os._exit(code)


def finish(child: int, streams: Path, began: float) -> Done:
    """Wait for a process and return how it ended."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    out, err = ((streams / name).read_text(errors="replace") for name in ("out", "err"))
    return Done(code, out, err, time.perf_counter() - began)


def run(arguments: Sequence[str], folder: Path, before: Callable[[], None] | None = None) -> Done:
    """Run one command to its end."""
    with TemporaryDirectory() as streams:
        began = time.perf_counter()
        return finish(start(arguments, folder, Path(streams), before), Path(streams), began)
