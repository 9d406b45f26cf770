"""Stacks of one sweep on one device: trained, evaluated and recorded one by one."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import NamedTuple

import polars as pl

from pal.config import Config
from pal.evaluate.seen import cells_of_seen, predict_seen
from pal.evaluate.ties import of_folds
from pal.sweep.fit import Result, Worlds, train_alone, train_together
from pal.sweep.folds import save_leaders
from pal.sweep.plan import Candidate
from pal.sweep.publish import save_best
from pal.sweep.record import SweepRow, best_of, open_results, row_of


class Stack(NamedTuple):
    """Heads that are trained together, or one that is trained alone."""

    members: list[Candidate]
    together: bool
    """whether they were planned as a stack; of one that is left over, the rest is finished"""


class StackTrainer:
    """Trains stacks on one device; whoever else works on the sweep meets it in the results."""

    def __init__(self, config: Config, folder: Path, device: str) -> None:
        self.config = config
        self.folder = folder
        self.worlds = Worlds(device)
        self._predictions: dict[str, list[pl.DataFrame]] = {}
        """of heads that are not recorded yet, by fold"""

    def train(self, stack: Stack) -> list[str]:
        """Train a stack and record its heads; returns what is worth a word.

        A failure is a row, not a crash; in a stack, each head is then tried alone.
        """
        members = stack.members
        self._predictions.clear()
        try:
            if stack.together:
                world, halving = self.worlds.of(members[0]), self.config.sweep.halving
                results = train_together(world, members, halving, self._run)
            else:
                world = self.worlds.of(members[0])
                results = [train_alone(world, members[0], self._run)]
            rows = {r.candidate.id: self._row(r, len(members)) for r in results}
        except Exception as error:
            if stack.together:  # find out which head it was
                return [line for one in members for line in self.train(Stack([one], False))]
            told = f"{type(error).__name__}: {error}"
            rows, results = {members[0].id: row_of(members[0], "failed", 1, error=told)}, []
        return self._record(rows, results)

    @property
    def _run(self) -> str:
        return f"{self.folder.name}-best"

    def _row(self, result: Result, together: int) -> SweepRow:
        one, trained = result.candidate, result.trained
        if not trained:
            return row_of(one, "dropped", together, seconds=result.seconds)
        predictions = [
            predict_seen(head, seen)
            for head, seen in zip(trained, self.worlds.of(one).seen, strict=True)
        ]
        evaluate = one.config.evaluate
        cells, found = cells_of_seen(evaluate, of_folds(predictions)), {}
        if one.config.sweep.folds is not None:
            self._predictions[one.id] = predictions
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

    def _record(self, rows: dict[str, SweepRow], results: list[Result]) -> list[str]:
        """Add rows to the results; what a new best head leaves behind is saved before its row is
        there: the head itself, or with folds its predictions in those where it is the best."""
        leader, folds = best_of(rows), self.config.sweep.folds
        with open_results(self.folder) as recorded:
            comparable = {head: row for head, row in recorded.items() if row.folds == folds}
            before = best_of(comparable)
            lines = []
            if leader is not None and (before is None or leader.rank > before.rank):
                result = next(r for r in results if r.candidate.id == leader.head_id)
                if folds is None:
                    save_best(self.folder, result)
                assert leader.val is not None
                accuracy = leader.val.macro_accuracy
                lines.append(f"leading: {result.candidate}; validation {accuracy:.3f}")
            save_leaders(self.folder, rows, comparable, self._predictions)
            self._predictions.clear()
            recorded.update(rows)
        return lines
