"""Which heads a sweep trains: axes to configurations, configurations to stacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pal.config import Config, TrainConfig, load_overrides
from pal.errors import ConfigError
from pal.files import digest
from pal.train.heads.head import heads, resolve

OTHER_AXES = {"seed": "seed", "encoder": "encoder", "layer": "embed.{encoder}.layer"}
# Settings in which the heads of a stack may differ, because they are values and not shapes.
VALUES = {"lr", "user_lr", "prototype_lr", "scale_lr", "weight_decay"}


@dataclass(frozen=True)
class Candidate:
    """One head of a sweep."""

    values: dict[str, Any]
    """axis -> value"""
    config: Config
    """with the head's own defaults filled in"""

    @property
    def id(self) -> str:
        """A name made of everything that decides the result: 12 hex digits."""
        c = self.config
        encoder = c.embed.encoders.get(c.encoder)
        decides = {
            "dataset": c.dataset,
            "data": c.dataset_config().model_dump(mode="json", exclude={"source"}),
            "encoder": [c.encoder, encoder.model_dump(mode="json") if encoder else None],
            "seed": c.seed,
            "train": c.train.model_dump(mode="json", exclude={"device"}),
            "halving": c.sweep.halving,
        }
        return digest(decides, 6)

    @property
    def world(self) -> str:
        """What must be equal for two heads to read the same features and pairs."""
        c = self.config
        layer = c.encoder_config().model_dump(mode="json")
        return digest(
            [c.dataset, c.encoder, layer, c.train.users, c.train.pairs_per_user, c.train.view], 6
        )

    @property
    def shape(self) -> str:
        """What must be equal for two heads to be trained in one stack.

        PAL-A's prototypes are so small that heads of different K are padded to the largest; PAL-B
        has a whole map per prototype, which padding would compute in vain. A head that no stack can
        train is like no other: batch normalisation keeps running statistics, which a stack would
        mix; solved heads take no steps; and of a head with several starts only one is a result.
        """
        train = self.config.train
        build, _ = heads()[train.head]
        if (
            getattr(build, "is_solved", False)
            or "batchnorm" in (train.mlp or "")
            or train.starts > 1
        ):
            return self.id
        free = VALUES | ({"k"} if train.head == "pal-a" else set())
        return digest([self.world, train.model_dump(mode="json", exclude=free)], 6)


def candidate(config: Config, values: Mapping[str, Any]) -> Candidate:
    """Return the head with these axis values; raises ConfigError in the words of the settings."""
    flat: dict[str, Any] = {}
    encoder = values.get("encoder", config.encoder)
    for axis, value in values.items():
        if axis in OTHER_AXES:
            flat[OTHER_AXES[axis].format(encoder=encoder)] = value
        elif axis in TrainConfig.model_fields:
            flat[f"train.{axis}"] = value
        else:
            valid = sorted([*OTHER_AXES, *TrainConfig.model_fields])
            raise ConfigError(f"unknown axis of sweep {axis!r}; valid: {', '.join(valid)}")
    chosen = load_overrides(config, flat)
    return Candidate(dict(values), chosen.model_copy(update={"train": resolve(chosen.train)}))


def grid(config: Config) -> Iterator[Candidate]:
    """Yield all combinations of the axes' values."""
    axes = config.sweep.axes
    for values in itertools.product(*axes.values()):
        yield candidate(config, dict(zip(axes, values, strict=True)))


def random(config: Config) -> Iterator[Candidate]:
    """Yield ``sweep.samples`` independent draws of one value per axis, by ``seed``; repeats are
    left out."""
    generator = np.random.default_rng(config.seed)
    seen = set()
    for _ in range(config.sweep.samples):
        one = candidate(
            config, {a: v[generator.integers(len(v))] for a, v in config.sweep.axes.items()}
        )
        if one.id not in seen:
            seen.add(one.id)
            yield one


def in_stacks(candidates: list[Candidate]) -> list[list[Candidate]]:
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
    return sorted(
        groups, key=lambda group: worlds.index(group[0].world)
    )  # each world is loaded once


def split_stack(group: list[Candidate], width: int) -> list[list[Candidate]]:
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
