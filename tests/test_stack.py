"""Heads trained together on several training sets are those that would be trained alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pal.config import TrainConfig
from pal.train.build import heads, resolve
from pal.train.data import TrainingData
from pal.train.fit import can_be_stacked, fit_head
from pal.train.heads.head import Head
from pal.train.lanes import LaneBatches
from pal.train.pairs import Pairs
from pal.train.together import Together

DIM, ITEMS = 6, 60


class Exact(TrainingData):
    """Trains in double precision, where rounding cannot be taken for a fault."""

    def new_head(self, settings: TrainConfig, seed: int) -> Head:
        return super().new_head(settings, seed).double()


def fold_of(seed: int, pairs: int, users: int) -> Exact:
    """Return answers of users who follow a plane of their own, with statistics of their own."""
    features = torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(users, DIM, generator=generator).double()

    def answers(count: int) -> Pairs:
        user = torch.arange(count) % users
        prompt, first, second = torch.randint(0, ITEMS, (3, count), generator=generator)
        away = features[first] - features[second]
        label = (away * planes[user]).sum(dim=1).sigmoid().round()
        return Pairs(prompt, first, second, user, label)

    store = cast(Any, SimpleNamespace(dim=DIM))
    names = [f"u{number}" for number in range(users)]
    train, val = answers(pairs), answers(pairs // 3)
    return Exact(cast(Any, None), store, names, features, train, val)


FOLDS = [fold_of(1, 80, 4), fold_of(2, 65, 5), fold_of(3, 40, 3)]
"""in batches of 32: three steps an epoch, three of which the last has one pair, two"""


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_heads_of_all_folds_are_trained_as_each_would_be_alone(data: st.DataObject) -> None:
    stacked = [name for name in sorted(heads()) if can_be_stacked(TrainConfig(head=name))]
    name = data.draw(st.sampled_from(stacked))
    options: dict[str, Any] = {
        "head": name,
        "epochs": 2,
        "batch_size": 32,
        "user_lr": 0.1,
        "loss": data.draw(st.sampled_from(["logistic", "hinge"])),
        "loss_over": data.draw(st.sampled_from(["pairs", "users"])),
        "absent_users": data.draw(st.sampled_from(["move", "stay"])),
    }
    if name in ("pal-a", "pal-b"):
        options["mlp"] = data.draw(st.sampled_from(["identity", "mlp1-gelu-dropout0"]))
        options["score"] = data.draw(st.sampled_from(["squared", "normalised", "angle"]))
        options["bound"] = data.draw(st.sampled_from([None, 0.05]))
    seeds = [3, 4][: data.draw(st.integers(1, 2))]
    rates = [1e-3, 1e-2][: data.draw(st.integers(1, 2))]
    of_seed = [resolve(TrainConfig(**options, lr=rate)) for rate in rates]
    together = Together(FOLDS, seeds, of_seed * len(seeds))
    for (fold, seed, own), found in zip(together.places, together.fit(), strict=True):
        alone = fit_head(fold, own, seed)
        assert found is not None
        assert found.best_epoch == alone.best_epoch
        mine, other = found.head.state_dict(), alone.head.state_dict()
        assert mine.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_a_head_that_is_nothing_but_its_users_table_rests_too() -> None:
    options = {"mlp": "identity", "score": "squared", "absent_users": "stay", "epochs": 2}
    own = resolve(TrainConfig(head="pal-b", batch_size=32, **options))  # type: ignore[arg-type]
    for fold, found in zip(FOLDS, Together(FOLDS, [0], [own]).fit(), strict=True):
        assert found is not None
        alone = fit_head(fold, own, 0).head.users.logits
        torch.testing.assert_close(found.head.users.logits, alone)


def test_a_lane_that_is_through_rests_until_the_epoch_ends() -> None:
    pairs = [fold.train for fold in FOLDS]
    batches = LaneBatches(FOLDS[0].features, pairs, 32, [0, 0, 0])
    steps = list(batches)
    assert len(steps) == len(batches) == 3
    counts = [
        [len(b.label) if b.real is None else int(b.real.sum()) for b in step] for step in steps
    ]
    assert counts == [[32, 32, 32], [32, 32, 8], [16, 1, 0]]
    assert all(len({len(batch.label) for batch in step}) == 1 for step in steps)


def test_halving_keeps_the_settings_that_are_better_in_the_mean_of_the_folds() -> None:
    rates = [1e-6, 1e-2, 1e-3, 2e-2]
    own = [resolve(TrainConfig(head="pal-a", lr=r, epochs=4, batch_size=32)) for r in rates]

    def loss_after(epochs: int) -> list[float]:
        short = [one.model_copy(update={"epochs": epochs}) for one in own]
        found = [one.log[0]["val/loss"] for one in Together(FOLDS, [3], short).fit() if one]
        return [sum(found[place::4]) for place in range(4)]

    first, second = loss_after(1), loss_after(2)
    half = sorted(range(4), key=lambda place: first[place])[:2]
    best = min(half, key=lambda place: second[place])
    kept = [found is not None for found in Together(FOLDS, [3], own).fit(halving=2)]
    assert kept == [place == best for place in range(4)] * len(FOLDS)


def test_patience_ends_a_head_of_a_stack_where_it_ends_alone() -> None:
    """Also where a later epoch is better again, which alone it would not see."""
    rates = [1e-1, 3e-2, 1e-3]
    base = {"head": "pal-a", "epochs": 14, "batch_size": 32, "user_lr": 0.3}
    patient = [resolve(TrainConfig(**base, lr=rate)) for rate in rates]  # type: ignore[arg-type]
    own = [one.model_copy(update={"patience": 2}) for one in patient]
    alone = [fit_head(fold, one, 3) for fold in FOLDS for one in own]
    trained = [len(found.log) for found in alone]
    assert min(trained) < 14
    assert all(n == 14 or n == f.best_epoch + 2 for n, f in zip(trained, alone, strict=True))
    later = [fit_head(fold, one, 3).best_epoch for fold in FOLDS for one in patient]
    best = [found.best_epoch for found in alone]
    assert best != later, "an example in which patience chooses another epoch"
    epochs: list[int] = []
    stacked = Together(FOLDS, [3], own).fit(progress=epochs.append)
    assert [found.best_epoch for found in stacked if found is not None] == best
    assert epochs.count(1) == max(trained), "the stack ends with its last head"


def test_halving_drops_as_many_heads_where_patience_ends_a_stack_early() -> None:
    rates = [1e-1, 5e-2, 3e-2, 2e-1]
    base = {"head": "pal-a", "epochs": 24, "batch_size": 32, "user_lr": 0.3, "patience": 1}
    own = [resolve(TrainConfig(**base, lr=rate)) for rate in rates]  # type: ignore[arg-type]
    epochs: list[int] = []
    found = Together(FOLDS, [3], own).fit(halving=2, progress=epochs.append)
    assert len(epochs) < 12, "an example that ends before half of the epochs"
    assert sum(epochs) == 24, "who waits for the bar need not know why it ended"
    assert [one is not None for one in found].count(True) == len(FOLDS)


def test_a_stack_trains_where_its_caller_wants_no_gradients() -> None:
    own = [resolve(TrainConfig(head="pal-a", k=2, epochs=2, batch_size=32))]
    expected = Together(FOLDS, [3], own).fit()
    with torch.no_grad():
        found = Together(FOLDS, [3], own).fit()
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert one.log == other.log


@pytest.mark.parametrize("name", ["pal-a", "bt-mlp"])
def test_statistics_of_the_features_are_each_folds_own(name: str) -> None:
    together = Together(FOLDS, [0], [resolve(TrainConfig(head=name, epochs=1, batch_size=32))])
    means = [found.head.item_scale.mean for found in together.fit() if found is not None]  # type: ignore[union-attr]
    assert not torch.allclose(means[0], means[1])
    assert not together.training_of(together.new_heads()).stack.is_alike
