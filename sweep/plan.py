"""Which heads a sweep trains: axes to configurations, configurations to stacks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from pal.cache.reader import FeatureStore
from pal.config import Config, SweepConfig, TrainConfig, load_overrides
from pal.config.base import unknown
from pal.dataset import PreparedDataset
from pal.errors import ConfigError, TrainError
from pal.evaluate.inputs import open_dataset, open_inputs
from pal.files import digest
from pal.records import Record
from pal.train.build import reads_prompt, settled
from pal.train.fit import can_be_stacked
from pal.train.relevant import relevant_settings

OTHER_AXES = {"seed": "seed", "encoder": "encoder", "layer": "embed.{encoder}.layer"}
VALUES = {"lr", "user_lr", "prototype_lr", "scale_lr", "weight_decay"}
"""settings in which the heads of a stack may differ, because they are values and not shapes"""


class Digests(NamedTuple):
    """Of all that a head is made from, apart from its settings."""

    split: str
    """of pairs, users, splits and populations"""
    pairs: str
    """of pairs and labels"""
    cache: str
    """fingerprint of the features"""


@dataclass(frozen=True)
class Candidate:
    """One head of a sweep."""

    values: dict[str, JsonValue]
    """by axis"""
    config: Config
    """with the head's own defaults filled in"""
    digests: Digests

    @cached_property
    def id(self) -> str:
        """A name made of all that decides the result, and of nothing else: 12 hex digits.

        Candidates that can only become the same head have the same name: other labels or features
        are another head, a setting that the head does not read is none.
        """
        settings = relevant_settings(self.config.train)
        decides = [self.digests, self.config.seed, settings, self.config.sweep.halving]
        folds = self.config.sweep.folds
        evaluate = self.config.evaluate
        judged_by = evaluate.model_dump(include=evaluate.OF_CELLS, exclude_defaults=True)
        if folds is not None:
            decides += ["folds", folds]
        if judged_by:
            decides += ["evaluate", judged_by]
        return digest(decides, 6)

    @cached_property
    def world(self) -> str:
        """What must be equal for two heads to read the same features and pairs."""
        train = self.config.train
        read = [train.users, train.pairs_per_user, train.view, reads_prompt(train)]
        return digest([self.digests, *read, self.config.sweep.folds], 6)

    @cached_property
    def shape(self) -> str:
        """What must be equal for two heads to be trained in one stack.

        PAL-A's prototypes are so small that heads of different K are padded to the largest; PAL-B
        has a whole map per prototype, which padding would compute in vain. A head that no stack can
        train is like no other.
        """
        train = self.config.train
        if not can_be_stacked(train):
            return self.id
        free = VALUES | ({"k"} if train.head == "pal-a" else set())
        return digest([self.world, train.model_dump(mode="json", exclude=free)], 6)

    @property
    def without_folds(self) -> Candidate:
        """The same settings on the dataset's own splits."""
        sweep = self.config.sweep.model_copy(update={"folds": None})
        return replace(self, config=self.config.model_copy(update={"sweep": sweep}))

    def __str__(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())


class Planner:
    """Makes candidates of axis values; each dataset and cache is opened once, to know its
    digests."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._digests: dict[str, Digests] = {}
        self._dataset: PreparedDataset | None = None

    def candidate(self, values: Mapping[str, JsonValue]) -> Candidate:
        """Return the head with these axis values; raises ConfigError in the words of the
        settings."""
        flat: dict[str, JsonValue] = {}
        encoder = values.get("encoder", self.config.encoder)
        for axis, value in values.items():
            if axis in OTHER_AXES:
                flat[OTHER_AXES[axis].format(encoder=encoder)] = value
            elif axis in TrainConfig.model_fields:
                flat[f"train.{axis}"] = value
            else:
                axes = sorted([*OTHER_AXES, *TrainConfig.model_fields])
                valid = [*SweepConfig.model_fields, *axes]
                raise ConfigError(unknown("setting or axis of sweep", axis, valid))
        chosen = load_overrides(self.config, flat)
        if self._dataset is None:
            self._dataset = open_dataset(self.config)
        chosen = chosen.model_copy(update={"train": settled(chosen.train, self._dataset)})
        return Candidate(dict(values), chosen, self._digests_of(chosen))

    def grid(self) -> Iterator[Candidate]:
        """Yield all combinations of the axes' values."""
        axes = self.config.sweep.axes
        for values in itertools.product(*axes.values()):
            yield self.candidate(dict(zip(axes, values, strict=True)))

    def random(self) -> Iterator[Candidate]:
        """Yield ``sweep.samples`` independent draws of one value per axis, by ``seed``; repeats are
        left out."""
        axes = self.config.sweep.axes
        generator = np.random.default_rng(self.config.seed)
        seen = set()
        for _ in range(self.config.sweep.samples):
            one = self.candidate({a: v[generator.integers(len(v))] for a, v in axes.items()})
            if one.id not in seen:
                seen.add(one.id)
                yield one

    def _digests_of(self, config: Config) -> Digests:
        key = f"{config.encoder} {config.encoder_config().layer}"  # all that axes can change
        if key not in self._digests:
            self._digests[key] = digests_of(*open_inputs(config))
        return self._digests[key]


def heads_of_sweep(settings: SweepConfig) -> int:
    """Return how many heads a sweep asks for, those that are trained already included."""
    if settings.sampler != "grid":
        return settings.samples
    return math.prod(len(values) for values in settings.axes.values())


def digests_of(dataset: PreparedDataset, store: FeatureStore) -> Digests:
    return Digests(dataset.split_digest, dataset.pairs_digest, store.fingerprint)


class SweepPlan(
    Record,
    kind="sweep",
    file="plan.json",
    error=TrainError,
    remedy="run the sweep again, which plans anew",
):
    """``plan.json``: written before anything is trained, so a folder with one is a sweep."""

    stacks: list[list[str]]
    """ids of the heads that are trained together"""


def in_stacks(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group heads of one shape; in each group, by seed, and equally many heads for every seed.

    Heads that fit no such rectangle form groups of one seed each.
    """
    shapes: dict[str, list[Candidate]] = {}
    for one in candidates:
        shapes.setdefault(one.shape, []).append(one)
    groups: list[list[Candidate]] = []
    for members in shapes.values():
        by_seed: dict[int, list[Candidate]] = {}
        for one in members:
            by_seed.setdefault(one.config.seed, []).append(one)
        if len({len(own) for own in by_seed.values()}) == 1:
            groups.append([one for seed in sorted(by_seed) for one in by_seed[seed]])
        else:
            groups += [by_seed[seed] for seed in sorted(by_seed)]
    worlds = list(dict.fromkeys(one.world for one in candidates))
    # each world is loaded once
    return sorted(groups, key=lambda group: worlds.index(group[0].world))


def split_stack(group: Sequence[Candidate], width: int) -> list[list[Candidate]]:
    """Cut a group into stacks of at most ``width`` heads that keep whole columns of seeds
    together."""
    seeds = sorted({one.config.seed for one in group})
    rows = [[one for one in group if one.config.seed == seed] for seed in seeds]
    if width < len(seeds):
        return [own[start : start + width] for own in rows for start in range(0, len(own), width)]
    columns = width // len(seeds)
    return [
        [one for own in rows for one in own[start : start + columns]]
        for start in range(0, len(rows[0]), columns)
    ]
