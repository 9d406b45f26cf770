"""A sweep from start to end: plan, train what is missing, publish the best."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pal.config import Config
from pal.names import require_name
from pal.sweep.fit import choose_width
from pal.sweep.folds import best_head, cross_fitted
from pal.sweep.plan import Candidate, Planner, SweepPlan, in_stacks, split_stack
from pal.sweep.plot import plot_accuracy_against_k
from pal.sweep.publish import best_run, publish_best, require_publishable, withdraw_best
from pal.sweep.record import (
    CrossFitted,
    SweepRow,
    SweepSummary,
    best_of,
    labelled,
    read_results,
)
from pal.sweep.stacks import Outcome, Stack, StackTrainer, record
from pal.sweep.study import Study
from pal.sweep.table import write_csv
from pal.sweep.workers import Workers, devices_of
from pal.train.probe import choose_device

if TYPE_CHECKING:
    from pal.sweep.on_ray import RayWorkers

Progress = Callable[[int], None]
Report = Callable[[str], None]


def run_sweep(config: Config, name: str, progress: Progress, report: Report) -> SweepSummary:
    """Train every head of the sweep that is missing; the best by validation becomes the run
    ``<name>-best``.

    ``progress`` is called with finished heads, ``report`` with lines for people.
    """
    began = time.perf_counter()
    folder = config.paths.sweeps / require_name("sweep", name)
    require_name("run", best_run(name))
    require_publishable(config.paths.runs / best_run(name))
    SweepPlan.require_replaceable(folder)
    # of a cluster the device is that of its nodes; this machine only looks at the best head
    is_local = config.sweep.executor == "local"
    device = choose_device(config.train.device if is_local else "auto")
    planner = Planner(config)
    with Trainers(config, folder, device, progress, report) as trainers:
        if config.sweep.sampler == "optuna":
            candidates = propose(planner, trainers)
        else:
            drawn = planner.grid() if config.sweep.sampler == "grid" else planner.random()
            candidates = list(drawn)
            train_planned(candidates, trainers)
    if config.sweep.halving is not None and trainers.without_rivals:
        report(
            f"sweep.halving = {config.sweep.halving} was not applied to {trainers.without_rivals} "
            "heads: they are solved at once, are trained alone, or are the only ones of their seed "
            "in a stack"
        )
    asked = by_id(candidates)
    rows = labelled(folder, asked)
    best = best_of(rows)
    if best is None:
        withdraw_best(config, folder, report)
    else:
        publish_best(config, folder, asked[best.head_id], device)
    tested = cross_fitted(config, folder, asked, rows, device, report)
    seconds = time.perf_counter() - began
    summary = summary_of(name, config.dataset, rows, trainers.trained, seconds, tested)
    summary.write(folder)
    write_csv(folder)
    plot_accuracy_against_k(folder)
    return summary


class Trainers:
    """Who trains: this process, a process for each of several devices, or the tasks of a Ray
    cluster. All give what comes of a stack to this process, which records it."""

    def __init__(
        self, config: Config, folder: Path, device: str, progress: Progress, report: Report
    ) -> None:
        self.config, self.folder = config, folder
        self.progress, self.report = progress, report
        self.devices = devices_of(config.sweep.workers, device)
        self.here = StackTrainer(config, folder.name, device)
        self.workers: Workers | RayWorkers | None = None
        self.trained = 0
        """heads so far"""
        self.without_rivals = 0
        """heads so far that halving could not drop"""

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.workers is not None:
            self.workers.close()
        self.here.worlds.clear()

    def width_of(self, group: Sequence[Candidate]) -> int:
        """Return how many heads of a group to train together, found where they are trained."""
        if self.config.sweep.executor == "ray":
            width, lines = self._ray().choose_width(group)
            for line in lines:
                self.report(line)
            return width
        return choose_width(self.here.worlds, group, self.report)

    def missing(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return those that no one has finished yet."""
        rows = read_results(self.folder)
        return [one for one in candidates if one.id not in rows or not rows[one.id].is_finished]

    def skip(self, heads: int) -> None:
        """Tell of heads that need no training."""
        if heads:
            self.progress(heads)

    def train(self, stacks: Sequence[Stack]) -> None:
        """Train stacks and record their heads; those of a stack that failed are tried alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = list(stacks)
        while waiting:
            alone = [stack for stack in waiting if not stack.has_rivals]
            self.without_rivals += sum(len(stack.members) for stack in alone)
            again: list[Stack] = []
            for outcome in self._outcomes(waiting):
                self._done(outcome)
                again += outcome.again
            waiting = again

    def _outcomes(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        """Have stacks trained by whom the settings name; yields what comes of each."""
        if self.config.sweep.executor == "ray":
            return self._ray().train(stacks)
        if len(self.devices) == 1 or len(stacks) < 2:
            return map(self.here.train, stacks)
        if self.workers is None:
            self.here.worlds.clear()
            self.workers = Workers(self.config, self.folder.name, self.devices)
        return self.workers.train(stacks)

    def _ray(self) -> RayWorkers:
        """Return the cluster, which is joined once there is something to do."""
        from pal.sweep.on_ray import RayWorkers

        if not isinstance(self.workers, RayWorkers):
            self.workers = RayWorkers(self.config, self.folder.name)
        return self.workers

    def _done(self, outcome: Outcome) -> None:
        for line in record(self.folder, self.config.sweep.folds, outcome):
            self.report(line)
        self.trained += sum(row.is_finished for row in outcome.rows.values())
        self.progress(len(outcome.rows))


def train_planned(candidates: Sequence[Candidate], trainers: Trainers) -> None:
    """Train the stacks of a fixed list of candidates, as far as they are not finished."""
    asked = by_id(candidates)
    missing = by_id(trainers.missing(list(asked.values())))
    stacks = []
    for ids in plan_stacks(list(asked.values()), trainers):
        members = [asked[head] for head in ids if head in asked]
        if any(one.id in missing for one in members):
            # of what was planned a part may be asked for: not as many heads of every seed
            stacks += [Stack(group, len(ids) > 1) for group in in_stacks(members)]
    trainers.skip(len(candidates) - sum(len(stack.members) for stack in stacks))
    trainers.train(stacks)


def by_id(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return candidates by id; of those that cannot differ, the first."""
    found: dict[str, Candidate] = {}
    for one in candidates:
        found.setdefault(one.id, one)
    return found


def plan_stacks(candidates: Sequence[Candidate], trainers: Trainers) -> list[list[str]]:
    """Return the stacks; those planned earlier stay as they are, so that a rerun rounds as the
    first run."""
    folder, width = trainers.folder, trainers.config.sweep.together
    plan = SweepPlan.find(folder)
    if plan is None and SweepPlan.is_ours(folder):
        trainers.report(f"{folder / SweepPlan.file} was damaged; heads not yet trained are planned")
    stacks = [] if plan is None else list(plan.stacks)
    planned = {head for stack in stacks for head in stack}
    for group in in_stacks([one for one in candidates if one.id not in planned]):
        chosen = trainers.width_of(group) if width == "auto" else width
        stacks += [[one.id for one in stack] for stack in split_stack(group, chosen)]
    SweepPlan(stacks=stacks).write(folder)
    return stacks


def propose(planner: Planner, trainers: Trainers) -> list[Candidate]:
    """Train the rounds of a sampler that learns from results; returns all that were asked."""
    axes = planner.config.sweep.axes
    first = {axis: values[0] for axis, values in axes.items()}
    for axis, values in axes.items():
        for value in values:
            planner.candidate({**first, axis: value})  # a mistake is said before any work
    SweepPlan(stacks=[]).write(trainers.folder)
    study = Study(planner, trainers.folder)
    candidates = study.known()
    train_missing(candidates, trainers)
    while asked := study.ask():
        candidates += asked
        train_missing(asked, trainers)
        study.tell(asked, read_results(trainers.folder))
    return candidates


def train_missing(asked: Sequence[Candidate], trainers: Trainers) -> None:
    """Train those of a round that no one has finished yet."""
    missing = by_id(trainers.missing(asked))
    trainers.skip(len(asked) - len(missing))
    groups = in_stacks(list(missing.values()))
    trainers.train([Stack(group, len(group) > 1) for group in groups])


def summary_of(
    name: str,
    dataset: str,
    rows: dict[str, SweepRow],
    trained: int,
    seconds: float,
    tested: CrossFitted | None,
) -> SweepSummary:
    """Return the summary of the heads that a sweep was asked for."""
    widths = [row.together for row in rows.values() if row.status != "failed"]
    together = max(widths, default=1)
    why = Counter(row.error or "" for row in rows.values() if row.status == "failed")
    best, winner = best_of(rows), None
    if best is not None:
        assert best.val is not None
        winner = best_head(best, best_run(name), best.val.macro_accuracy)
    return SweepSummary(
        name=name,
        dataset=dataset,
        asked=sorted(rows),
        heads=len(rows),
        trained=trained,
        reused=len(rows) - trained - why.total(),
        failed=why.total(),
        why_failed=dict(why.most_common()),
        dropped=sum(row.status == "dropped" for row in rows.values()),
        seconds=round(seconds, 3),
        mode="stacked" if together > 1 else "loop",
        together=together,
        best=winner,
        cross_fitted=tested,
    )
