"""Heads whose parameters are found from all training pairs at once, instead of steps on batches
that a loader hands out.

Such a head says ``is_solved = True``; the function that solves it is named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pal.config import TrainConfig
from pal.train.heads.auto import Auto, OneTaste
from pal.train.heads.head import Head
from pal.train.heads.linear import BradleyTerry, Directions, LowRank, PerUser
from pal.train.heads.meta import MetaLearned
from pal.train.heads.variational import Variational
from pal.train.solve.auto import solve_auto
from pal.train.solve.linear import (
    solve_bradley_terry,
    solve_directions,
    solve_low_rank,
    solve_per_user,
)
from pal.train.solve.meta import solve_meta
from pal.train.solve.problem import Problem
from pal.train.solve.variational import solve_variational

__all__ = ["SOLVERS", "Problem", "is_solved", "solve"]

SOLVERS: dict[type[Head], Callable[[Any, Problem, TrainConfig], None]] = {
    BradleyTerry: solve_bradley_terry,
    LowRank: solve_low_rank,
    PerUser: solve_per_user,
    Directions: solve_directions,
    Variational: solve_variational,
    MetaLearned: solve_meta,
    Auto: solve_auto,
    OneTaste: solve_auto,
}


def is_solved(head: Head | type[Head]) -> bool:
    """Return whether a head is solved, and not trained step by step."""
    return head.is_solved


def solve(head: Head, problem: Problem, settings: TrainConfig) -> None:
    """Find the parameters of a head that ``is_solved``, in place.

    Of the settings are read ``ridge``, by heads on linear features; ``lr``, ``weight_decay``,
    ``epochs`` and ``batch_size`` by vpl and mrm, and ``loss`` by vpl.
    """
    SOLVERS[type(head)](head, problem, settings)
