"""Stacks of one sweep: trained and evaluated by whoever does it, recorded by who asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import polars as pl

from pal.config import Config
from pal.errors import in_a_line
from pal.evaluate.seen import cells_of_seen, predict_seen
from pal.evaluate.ties import of_folds
from pal.sweep.fit import Result, Worlds, seeds_of, train_alone, train_together
from pal.sweep.folds import save_leaders
from pal.sweep.plan import Candidate
from pal.sweep.publish import best_run, save_best
from pal.sweep.record import SweepRow, best_in_fold, best_of, open_results, row_of


class Stack(NamedTuple):
    """Heads that are trained together, or one that is trained alone."""

    members: list[Candidate]
    together: bool
    """whether they were planned as a stack; of one that is left over, the rest is finished"""

    @property
    def has_rivals(self) -> bool:
        """Whether halving could drop heads: those of a seed are compared."""
        return self.together and len(self.members) > len(seeds_of(self.members))


@dataclass
class Outcome:
    """What came of a stack: all that its record is made from."""

    rows: dict[str, SweepRow] = field(default_factory=dict)
    """by head"""
    leader: Result | None = None
    """the best of them; None where none succeeded"""
    predictions: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    """by fold, of heads that are the best of them in a fold"""
    again: list[Stack] = field(default_factory=list)
    """of a stack that failed: its heads, each alone, to find out which it was"""

    @classmethod
    def failed(cls, stack: Stack, why: str) -> Outcome:
        """Return what comes of a stack that failed: rows, or heads that are to be tried alone."""
        if stack.together:
            return cls(again=[Stack([one], False) for one in stack.members])
        return cls({one.id: row_of(one, "failed", 1, error=why) for one in stack.members})


class StackTrainer:
    """Trains stacks of a sweep on one device."""

    def __init__(self, config: Config, name: str, device: str) -> None:
        self.config = config
        self.name = name
        self.worlds = Worlds(device)

    def train(self, stack: Stack) -> Outcome:
        """Train a stack; a failure is a row, not a crash."""
        members, halving = stack.members, self.config.sweep.halving
        try:
            world = self.worlds.of(members[0])
            if stack.together:
                results = train_together(world, members, halving, best_run(self.name))
            else:
                results = [train_alone(world, members[0], best_run(self.name))]
            return self._outcome(results)
        except Exception as error:
            return Outcome.failed(stack, in_a_line(error))
        finally:
            self.worlds.release()

    def _outcome(self, results: list[Result]) -> Outcome:
        folds = self.config.sweep.folds
        rows: dict[str, SweepRow] = {}
        predictions: dict[str, list[pl.DataFrame]] = {}
        for result in results:
            one = result.candidate
            seen = self.worlds.of(one).seen if result.trained else []
            found = [predict_seen(*both) for both in zip(result.trained, seen, strict=True)]
            rows[one.id] = self._row(result, len(results), found)
            if folds is not None:  # else they are only measured
                predictions[one.id] = found
        best = best_of(rows)
        leader = next((r for r in results if best and r.candidate.id == best.head_id), None)
        leaders = [best_in_fold(rows, fold, folds) for fold in range(folds)] if folds else []
        wanted = {row.head_id for row in leaders if row is not None}
        return Outcome(rows, leader, {head: predictions[head] for head in sorted(wanted)})

    def _row(self, result: Result, together: int, predictions: list[pl.DataFrame]) -> SweepRow:
        one, trained = result.candidate, result.trained
        if not trained:
            return row_of(one, "dropped", together, seconds=result.seconds)
        evaluate = one.config.evaluate
        cells, found = cells_of_seen(evaluate, of_folds(predictions)), {}
        if one.config.sweep.folds is not None:
            inner = [cells_of_seen(evaluate, rows)["val"] for rows in predictions]
            found["inner_accuracies"] = [cell.macro_accuracy for cell in inner]
            found["inner_nlls"] = [cell.nll for cell in inner]
        return row_of(
            one,
            "ok",
            together,
            best_epoch=int(median(head.metadata.best_epoch for head in trained)),
            params=max(head.metadata.params for head in trained),
            seconds=result.seconds,
            val=cells["val"],
            test=cells["test"],
            **found,
        )


def record(folder: Path, folds: int | None, outcome: Outcome) -> list[str]:
    """Add the rows of a stack to the results of a sweep; returns what is worth a word.

    What a new best head leaves behind is saved before its row is there: the head itself, or with
    folds its predictions in those where it is the best.
    """
    lines: list[str] = []
    if not outcome.rows:
        return lines
    leader = best_of(outcome.rows)
    with open_results(folder) as recorded:
        comparable = {head: row for head, row in recorded.items() if row.folds == folds}
        before = best_of(comparable)
        if leader is not None and (before is None or leader.rank > before.rank):
            assert outcome.leader is not None, "the best row has its head beside it"
            if folds is None:
                save_best(folder, outcome.leader)
            assert leader.val is not None
            accuracy = leader.val.macro_accuracy
            lines.append(f"leading: {outcome.leader.candidate}; validation {accuracy:.3f}")
        save_leaders(folder, outcome.rows, comparable, outcome.predictions)
        recorded.update(outcome.rows)
    return lines
