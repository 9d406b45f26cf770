"""Many heads from one cache in one process, resumable: stacks are trained, judged and recorded one
by one.

sweeps/<name>/plan.json         which heads are trained together, fixed when first seen
sweeps/<name>/results.parquet   one row per finished head, rewritten whole after every stack
sweeps/<name>/summary.json      what ``pal sweep --json`` prints
sweeps/<name>/best/             the best head by validation, an ordinary run
"""

from __future__ import annotations

import fcntl
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from pal.config import Config
from pal.errors import PalError, TrainError
from pal.files import atomic_file, write_json
from pal.sweep.plan import Candidate, grid, in_stacks, random, split_stack
from pal.sweep.workers import Workers, devices_of
from pal.train.fit import Progress, TrainingData, choose_device, fit, fit_head, save_run
from pal.train.heads.head import Head
from pal.train.module import HeadTraining
from pal.train.pairs import PairsDataModule, SeedBatches
from pal.train.run_record import TrainedHead
from pal.train.stack import StackTraining, widen

Judge = Callable[[Config, TrainedHead, TrainingData], dict[str, Any]]
Open = Callable[[Config], tuple[Any, Any]]
PROBE_STEPS = 4


@dataclass
class Fitted:
    """What training made of one candidate."""

    candidate: Candidate
    head: Head | None
    """None if it was dropped on the way"""
    best_epoch: int
    seconds: float
    """its share of the stack's time"""


class Sweep:
    """One named sweep. ``open_data`` gives the dataset and the cache of a configuration, ``judge``
    its metrics."""

    def __init__(
        self, config: Config, name: str, open_data: Open, judge: Judge, report: Callable[[str], None],
        device: str | None = None,
    ) -> None:  # fmt: skip
        """``device``: where to train, in place of ``train.device``."""
        self.config = config
        self.name = name
        self.folder = config.paths.sweeps / name
        self.open_data, self.judge, self.report = open_data, judge, report
        self.rows = read_results(self.folder)
        self._unwritten: dict[str, dict[str, Any]] = {}
        self.device = device or choose_device(config.train.device)
        self.devices = devices_of(config.sweep.workers, self.device)
        self._worlds: dict[str, TrainingData] = {}
        self._workers: Workers | None = None
        self._leader: tuple[Candidate, TrainedHead] | None = None

    def run(self, progress: Progress) -> dict[str, Any]:
        """Train what is missing and return the summary; ``progress`` is called with finished
        heads."""
        began = time.perf_counter()
        try:
            if self.config.sweep.sampler == "optuna":
                from pal.sweep.study import asked

                candidates, trained = self._learned(asked(self), progress)
            else:
                candidates = list(
                    grid(self.config)
                    if self.config.sweep.sampler == "grid"
                    else random(self.config)
                )
                trained = self._planned(candidates, progress)
        finally:
            if self._workers is not None:
                self._workers.close()
        wanted = [one.id for one in candidates]
        rows = [self.rows[head] for head in wanted]
        best = max((r for r in rows if r["status"] == "ok"), key=_rank, default=None)
        modes = {r["together"] for r in rows if r["status"] != "failed"}
        summary = {
            "name": self.name,
            "heads": len(rows),
            "trained": trained,
            "reused": len(rows) - trained,
            "failed": sum(r["status"] == "failed" for r in rows),
            "dropped": sum(r["status"] == "dropped" for r in rows),
            "seconds": round(time.perf_counter() - began, 3),
            "mode": "stacked" if max(modes, default=1) > 1 else "loop",
            "together": max(modes, default=1),
            "best": best
            and {
                "run": f"{self.name}-best",
                **{k: best[k] for k in ("head", "k", "val_macro_accuracy", "head_id")},
            },
        }
        if best is not None:
            self._publish_best(next(one for one in candidates if one.id == best["head_id"]))
        write_json(self.folder / "summary.json", summary)
        self._forget()
        return summary

    def _forget(self) -> None:
        """Drop the features: they are large, and Lightning's loops hold them in cycles."""
        self._worlds.clear()
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _planned(self, candidates: list[Candidate], progress: Progress) -> int:
        """Train the stacks of a fixed list; returns how many heads were trained."""
        by_id = {one.id: one for one in candidates}
        missing = []
        for stack in self._plan(list(by_id.values())):
            members = [by_id[head] for head in stack if head in by_id]
            if all(self._is_finished(one.id) for one in members):
                progress(len(members))
            else:
                missing.append((members, len(stack) > 1))
        self._train_all(missing, progress)
        return sum(len(members) for members, _ in missing)

    def _train_all(self, stacks: list[tuple[list[Candidate], bool]], progress: Progress) -> None:
        """Train stacks here, or where there are several devices, in a process for each."""
        if len(self.devices) == 1 or len(stacks) < 2:
            for members, stacked in stacks:
                self.train_stack(members, stacked)
                progress(len(members))
            return
        if self._workers is None:
            self._forget()
            make = partial(_sweep_of_worker, self.config, self.name, self.open_data, self.judge)
            self._workers = Workers(make, self.devices, self.report)
        for count in self._workers.train(stacks):
            progress(count)
        self.rows = read_results(self.folder)

    def _learned(self, rounds: Any, progress: Progress) -> tuple[list[Candidate], int]:
        """Train the rounds of a sampler that learns from results."""
        candidates: dict[str, Candidate] = {}
        trained = 0
        for asked, tell in rounds:
            candidates.update((one.id, one) for one in asked)
            missing = {one.id: one for one in asked if not self._is_finished(one.id)}
            stacks = [(group, len(group) > 1) for group in in_stacks(list(missing.values()))]
            self._train_all(stacks, lambda heads: None)
            trained += len(missing)
            progress(len(asked))
            tell([self.rows[one.id] for one in asked])
        return list(candidates.values()), trained

    def _is_finished(self, head: str) -> bool:
        return head in self.rows and self.rows[head]["status"] != "failed"

    def _plan(self, candidates: list[Candidate]) -> list[list[str]]:
        """Return the stacks; those planned earlier stay as they are, so that a rerun rounds as the
        first run."""
        path = self.folder / "plan.json"
        plan: list[list[str]] = json.loads(path.read_text()) if path.is_file() else []
        planned = {head for stack in plan for head in stack}
        for group in in_stacks([one for one in candidates if one.id not in planned]):
            width = self.config.sweep.together
            try:
                chosen = self._measure(group) if width == "auto" else width
            except PalError:
                chosen = 1  # each head then fails or succeeds by itself
            plan += [[one.id for one in stack] for stack in split_stack(group, chosen)]
        write_json(path, plan)
        return plan

    def _measure(self, group: list[Candidate]) -> int:
        """Time a few steps one after another and in stacks of several widths; return the fastest
        width."""
        if len(group) == 1:
            return 1
        seeds = len({one.config.seed for one in group})
        widths = sorted(
            {
                1,
                *(
                    w
                    for w in (seeds, 4 * seeds, len(group))
                    if 1 < w <= len(group) and w % seeds == 0
                ),
            }
        )
        seconds = {}
        for width in widths:
            stack = split_stack(group, width)[0]
            seconds[width] = self._step_seconds(stack) / len(stack)
        fastest = min(seconds, key=lambda width: seconds[width])
        listed = ", ".join(f"{width} at {1e3 * value:.2f}" for width, value in seconds.items())
        self.report(f"ms per head and step, by heads trained together: {listed}; taking {fastest}")
        return fastest

    def _step_seconds(self, stack: list[Candidate]) -> float:
        """Return the time of one training step of a stack, or of a single head; the fastest of a
        few."""
        data, heads = self._data(stack[0]), self._heads(stack)
        seeds = list(dict.fromkeys(one.config.seed for one in stack))
        settings = stack[0].config.train
        batches = iter(SeedBatches(data.features, data.train, settings.batch_size, seeds))
        if len(stack) == 1:
            single = HeadTraining(heads[0], settings)
            optimiser = single.configure_optimizers()

            def step(batch: Any) -> None:
                optimiser.zero_grad()
                single.loss(single.margin(batch[0]), batch[0].label).mean().backward()
                optimiser.step()
        else:
            many = StackTraining(heads, [one.config.train for one in stack], len(seeds))
            many.configure_optimizers()

            def step(batch: Any) -> None:
                many.training_step(batch, 0)

        times = []
        for _, batch in zip(range(PROBE_STEPS), batches, strict=False):
            began = time.perf_counter()
            step(batch)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    def _data(self, one: Candidate) -> TrainingData:
        """Return features and pairs, read once; only the last world is kept, since stacks come
        world by world."""
        if one.world not in self._worlds:
            self._worlds.clear()
            dataset, store = self.open_data(one.config)
            self._worlds[one.world] = TrainingData.load(
                one.config.train, dataset, store, self.device
            )
        return self._worlds[one.world]

    def _heads(self, stack: list[Candidate]) -> list[Head]:
        """Build each head as ``pal train`` would, then bring all to the largest K."""
        data = self._data(stack[0])
        heads = [data.new_head(one.config.train, one.config.seed) for one in stack]
        largest = max(one.config.train.k for one in stack)
        return [widen(head, largest) for head in heads] if len(stack) > 1 else heads

    def train_stack(self, members: list[Candidate], stacked: bool) -> None:
        """Train one stack, judge its heads and write the results; a failure is a row, not a
        crash."""
        try:
            fitted = self._fit_stack(members) if stacked else self._fit_one(members[0])
            for result in fitted:
                self._record(result, len(members))
        except Exception as error:
            if stacked:  # find out which head it was
                for member in members:
                    self.train_stack([member], stacked=False)
                return
            self._unwritten[members[0].id] = self._row(
                members[0], 1, status="failed", error=f"{type(error).__name__}: {error}"
            )
        self._write()

    def _fit_one(self, one: Candidate) -> Iterator[Fitted]:
        began = time.perf_counter()
        head, _, best_epoch = fit_head(self._data(one), one.config.train, one.config.seed)
        yield Fitted(one, head, best_epoch, time.perf_counter() - began)

    def _fit_stack(self, stack: list[Candidate]) -> Iterator[Fitted]:
        data, heads = self._data(stack[0]), self._heads(stack)
        seeds = list(dict.fromkeys(one.config.seed for one in stack))
        module = StackTraining(
            heads, [one.config.train for one in stack], len(seeds), self.config.sweep.halving
        )
        began = time.perf_counter()
        batch_size = stack[0].config.train.batch_size
        fit(
            module,
            PairsDataModule(data.features, data.train, data.val, batch_size, seeds),
            self.device,
            lambda epochs: None,
        )
        seconds = (time.perf_counter() - began) / len(stack)
        for place, one in enumerate(stack):
            if place not in module.alive:
                yield Fitted(one, None, module.best_epoch[place], seconds)
                continue
            if not module.best_state[place]:
                raise TrainError("the validation loss was never finite; use a lower learning rate")
            heads[place].load_state_dict(
                module.best_state[place], strict=False
            )  # statistics are there already
            yield Fitted(
                one, widen(heads[place], one.config.train.k), module.best_epoch[place], seconds
            )

    def _record(self, fitted: Fitted, together: int) -> None:
        one = fitted.candidate
        if fitted.head is None:
            self._unwritten[one.id] = self._row(
                one, together, status="dropped", seconds=fitted.seconds
            )
            return
        trained = self._wrap(fitted)
        metrics = self.judge(one.config, trained, self._data(one))
        row = self._row(
            one, together, status="ok", best_epoch=fitted.best_epoch, params=trained.facts["params"],
            seconds=fitted.seconds, **metrics,
        )  # fmt: skip
        self._unwritten[one.id] = row
        if self._leader is None or _rank(row) > _rank(self._unwritten[self._leader[0].id]):
            self._leader = one, trained

    def _wrap(self, fitted: Fitted) -> TrainedHead:
        one = fitted.candidate
        assert fitted.head is not None
        run = f"{self.name}-best"
        data = self._data(one)
        return data.trained(
            fitted.head, one.config, one.config.train, run, fitted.seconds, fitted.best_epoch
        )

    def _save_best(self, one: Candidate, trained: TrainedHead) -> None:
        trained.facts["head_id"] = one.id
        log = [{"epoch": trained.facts["best_epoch"]}]
        save_run(self.folder / "best", trained, one.config, one.config.train, log)

    def _row(self, one: Candidate, together: int, **facts: Any) -> dict[str, Any]:
        train = one.config.train
        return {
            "head_id": one.id,
            "head": train.head,
            "k": train.k,
            "seed": one.config.seed,
            "lr": train.lr,
            "encoder": one.config.encoder,
            **{
                axis: value
                for axis, value in one.values.items()
                if axis not in {"head", "k", "seed", "lr", "encoder"}
            },
            "status": facts.pop("status"),
            "error": facts.pop("error", None),
            "together": together,
            **facts,
        }

    def _write(self) -> None:
        """Rewrite the results, which are small and never seen half written, as they are now with
        what was trained here.

        A new best head is saved first, so that whoever is on record as the best is there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "results.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            recorded = read_results(self.folder)
            if self._leader is not None:
                one, trained = self._leader
                row, self._leader = self._unwritten[one.id], None
                if all(
                    _rank(row) > _rank(other)
                    for other in recorded.values()
                    if other["status"] == "ok"
                ):
                    settings = ", ".join(f"{axis} {value}" for axis, value in one.values.items())
                    self.report(f"leading: {settings}; validation {row['val_macro_accuracy']:.3f}")
                    self._save_best(one, trained)
            self.rows = {**recorded, **self._unwritten}
            self._unwritten = {}
            self._write_rows()

    def _write_rows(self) -> None:
        rows = sorted(self.rows.values(), key=lambda row: row["head_id"])
        with atomic_file(self.folder / "results.parquet") as temporary:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)

    def _publish_best(self, one: Candidate) -> None:
        """Make the best head an ordinary run, training it again only if a kill lost it."""
        facts = self.folder / "best" / "head.json"
        if facts.is_file() and json.loads(facts.read_text(encoding="utf-8"))["head_id"] == one.id:
            return
        for fitted in self._fit_one(one):
            assert fitted.head is not None
            self._save_best(one, self._wrap(fitted))


def _sweep_of_worker(
    config: Config,
    name: str,
    open_data: Open,
    judge: Judge,
    device: str,
    report: Callable[[str], None],
) -> Sweep:
    alone = config.model_copy(update={"sweep": config.sweep.model_copy(update={"workers": 1})})
    return Sweep(alone, name, open_data, judge, report, device)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the finished heads of a sweep by their id."""
    file = folder / "results.parquet"
    return (
        {row["head_id"]: row for row in pl.read_parquet(file).to_dicts()} if file.is_file() else {}
    )


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    """Order results by validation alone: accuracy, then likelihood."""
    return row["val_macro_accuracy"], -row["val_nll"]
