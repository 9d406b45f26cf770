"""Heads that are solved: what the answers say, and not how they were written down, decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pal.config import TrainConfig
from pal.train.build import build_head, resolve
from pal.train.heads.head import Head
from pal.train.loss import logistic
from pal.train.pairs import Pairs
from pal.train.solve import Problem, solve
from pal.train.two_answers import Apart

DIM, ITEMS, USERS = 8, 40, 30


def answers(each: int, seed: int) -> tuple[Tensor, Pairs]:
    """Return features and ``each`` answers of every user, of one noisy linear taste."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(0))
    count = USERS * each
    first = torch.randint(ITEMS, (count,), generator=generator)
    second = (first + 1 + torch.randint(ITEMS - 1, (count,), generator=generator)) % ITEMS
    sure = torch.sigmoid(1.5 * (features[first] - features[second])[:, 0])
    label = (sure > torch.rand(count, generator=generator)).float()
    return features, Pairs(None, first, second, torch.arange(USERS).repeat_interleave(each), label)


def chosen_first(pairs: Pairs) -> Pairs:
    swap = pairs.label < 0.5
    first, second = (
        torch.where(swap, a, b)
        for a, b in ((pairs.second, pairs.first), (pairs.first, pairs.second))
    )
    return Pairs(None, first, second, pairs.user, torch.ones_like(pairs.label))


def solved(name: str, features: Tensor, train: Pairs, val: Pairs, **settings: Any) -> Head:
    torch.manual_seed(0)
    resolved = resolve(TrainConfig(head=name, epochs=2, **settings))
    head = build_head(resolved, DIM, USERS)
    head.item_scale.fit(features, torch.arange(ITEMS))
    solve(head, Problem(features, train, val, USERS), resolved)
    return head.eval()


@torch.no_grad()
def margins(head: Head, features: Tensor, pairs: Pairs) -> Tensor:
    return head.margin(None, features[pairs.first], features[pairs.second], head.users(pairs.user))


@pytest.mark.parametrize("name", ["bt-linear", "per-user", "drm", "mrm", "vpl"])
def test_the_side_that_was_shown_first_changes_nothing(name: str) -> None:
    features, train = answers(20, 1)
    _, val = answers(6, 2)
    as_shown = margins(solved(name, features, train, val), features, val)
    turned = margins(solved(name, features, chosen_first(train), val), features, val)
    torch.testing.assert_close(as_shown, turned, atol=2e-4, rtol=1e-3)


def test_a_valley_that_is_flat_is_as_low_whichever_side_was_shown_first() -> None:
    """lore's, in which rounding decides where descent ends."""
    features, train = answers(20, 1)
    _, val = answers(6, 2)
    losses = [
        float(
            logistic(margins(solved("lore", features, one, val), features, val), val.label).mean()
        )
        for one in (train, chosen_first(train))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_directions_in_which_no_pair_differs_are_none() -> None:
    features, pairs = answers(2, 1)
    same = Pairs(
        None, *(pairs.first[:1].expand(60), pairs.second[:1].expand(60)), pairs.user, pairs.label
    )
    head = solved("drm", features, same, same, k=4)
    found = margins(head, features, pairs)
    assert found.isfinite().all()
    assert found.abs().max() < 50.0


def test_the_axis_of_two_answers_is_that_of_their_pairs_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 0.1 * torch.randn(ITEMS, DIM, generator=generator)
    points[:20, 0] += 1.0
    first, second = torch.randint(20, (2, 500), generator=generator)
    first, second = (
        torch.where(torch.rand(500, generator=generator) < 0.5, first, first + 20),
        second,
    )
    found = Apart.of(points, first, second)
    assert len(found.apart_RD) < len(first), "each distinct pair once"
    each = (points[first] - points[second]).double()
    axis = torch.linalg.eigh(each.T @ each).eigenvectors[:, -1]
    axis = axis / (each @ axis).abs().mean() * torch.sign(axis @ found.axis())
    torch.testing.assert_close(found.axis(), axis)
    assert torch.equal(found.first_agrees(), each @ axis > 0.0)
