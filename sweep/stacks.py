"""Stacks of one sweep on one device: trained, evaluated and recorded one by one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pal.config import Config
from pal.evaluate.predict import evaluate_head
from pal.sweep.fit import Result, Worlds, train_alone, train_together
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

    def train(self, stack: Stack) -> list[str]:
        """Train a stack and record its heads; returns what is worth a word.

        A failure is a row, not a crash; in a stack, each head is then tried alone.
        """
        members = stack.members
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
        if trained is None:
            return row_of(one, "dropped", together, seconds=result.seconds)
        cells = evaluate_head(one.config.evaluate, trained, self.worlds.of(one).seen)
        return row_of(
            one,
            "ok",
            together,
            best_epoch=trained.metadata.best_epoch,
            params=trained.metadata.params,
            seconds=result.seconds,
            val=cells["val"],
            test=cells["test"],
        )

    def _record(self, rows: dict[str, SweepRow], results: list[Result]) -> list[str]:
        """Add rows to the results; a new best head is saved before its row is there."""
        leader = best_of(rows)
        with open_results(self.folder) as recorded:
            leads = leader is not None
            before = best_of(recorded)
            if leader is not None and before is not None:
                leads = leader.rank > before.rank
            lines = []
            if leader is not None and leads:
                result = next(r for r in results if r.candidate.id == leader.head_id)
                save_best(self.folder, result)
                assert leader.val is not None
                accuracy = leader.val.macro_accuracy
                lines.append(f"leading: {result.candidate}; validation {accuracy:.3f}")
            recorded.update(rows)
        return lines
