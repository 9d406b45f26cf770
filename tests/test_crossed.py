"""Intervals over users and prompts; the campaign is benchmarks/coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import t as student

from pal.evaluate.crossed import Crossing, Estimate
from pal.train.sharing import Sharing


def held(users: int, prompts: int, mean: float, times: int) -> tuple[float, float]:
    """Return how often an accuracy's interval holds the truth, and how often the plain one does,
    where users differ."""
    generator = np.random.default_rng(0)
    crossing = Crossing(*np.divmod(np.arange(users * prompts), prompts))
    truth = float(ndtr(mean / np.sqrt(1.25)))
    counts = np.zeros(2)
    for _ in range(times):
        own = 0.5 * generator.standard_normal(users)
        right = generator.random(users * prompts) < ndtr(mean + own[crossing.users])
        found = crossing.macro(right.astype(np.float64))
        for place, interval in enumerate((found.ci95_of_share, found.ci95)):
            assert interval is not None
            counts[place] += interval[0] <= truth <= interval[1]
    of_share, plain = counts / times
    return float(of_share), float(plain)


def test_an_accuracy_near_one_of_few_users_is_held_at_its_rate() -> None:
    """1,200 simulations have a standard error of 0.006."""
    of_share, plain = held(5, 100, 1.2, 1200)
    assert of_share >= 0.93
    assert plain < 0.93, "which is why shares have an interval of their own"


def test_an_interval_of_a_share_stays_within_zero_and_one_and_is_never_a_point() -> None:
    crossing = Crossing(*np.divmod(np.arange(40), 4))
    low, high = crossing.macro(np.ones(40)).ci95_of_share or (0.0, 0.0)
    assert 0.0 < low < 0.9
    assert high == 1.0
    low, high = crossing.macro(np.zeros(40)).ci95_of_share or (0.0, 0.0)
    assert low == 0.0
    assert 0.1 < high < 1.0
    assert crossing.macro(np.full(40, 0.5)).ci95_of_share == (0.5, 0.5), "ties, all of them"
    assert Crossing(np.zeros(4, np.int64), np.arange(4)).macro(np.ones(4)).ci95_of_share is None


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_an_interval_of_a_share_holds_the_share(mean: float) -> None:
    """Not but for rounding: a picture's bars have no negative length."""
    for tenths in range(10, 1000):
        low, high = Estimate(mean, 0.0, tenths / 10, "users").ci95_of_share or (2.0, -1.0)
        assert low <= mean <= high


def test_an_interval_of_a_share_is_wilsons() -> None:
    """Of plain counts with a known number of answers: 45 of 50, by the closed formula."""
    found = Estimate(0.9, float(np.sqrt(0.9 * 0.1 / 50)), 1e6, "users").ci95_of_share
    assert found == pytest.approx((0.7864, 0.9565), abs=1e-4)


def test_degrees_of_freedom_are_those_of_both_sides_together() -> None:
    generator = np.random.default_rng(0)
    users, prompts = np.divmod(np.arange(30 * 8), 8)
    crossing = Crossing(users, prompts)
    own, shared = generator.standard_normal(30), generator.standard_normal(8)
    of_users = crossing.macro(own[users])
    of_prompts = crossing.macro(shared[prompts])
    assert of_users.freedom == pytest.approx(29, abs=0.11)
    assert of_prompts.freedom == pytest.approx(7, abs=0.11)
    both = crossing.macro(own[users] + np.sqrt(8 / 30) * shared[prompts])
    assert 7 < both.freedom <= 7 + 29
    assert both.p == pytest.approx(2 * student.sf(abs(both.value) / both.error, both.freedom))


@pytest.mark.parametrize(("users", "items"), [(100, 30), (60, 100), (50, 5)])
def test_answers_that_share_either_of_two_items_vary_together(users: int, items: int) -> None:
    """400 simulations of users, items and noise of equal variance, and no effect."""
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    user = np.repeat(np.arange(users), 10)
    for _ in range(400):
        first = generator.integers(items, size=len(user))
        second = (first + generator.integers(1, items, size=len(user))) % items
        of_item, of_user = generator.standard_normal(items), generator.standard_normal(users)
        values = of_item[first] + of_item[second] + of_user[user]
        values = values + generator.standard_normal(len(user))
        for place, crossing in enumerate(
            (Crossing.of_names(user, first, second), Crossing.of_names(user, first))
        ):
            low, high = crossing.macro(values).ci95 or (0.0, 0.0)
            held[place] += low <= 0.0 <= high
    both, one = held / 400
    assert both >= 0.92
    assert one < 0.90, "which is why both items count"


def test_products_of_shared_things_are_counted_once() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.integers(5, size=(2, 40))
    influence = generator.standard_normal(40)
    share = (one[:, None] == one) | (one[:, None] == other)
    share |= (other[:, None] == one) | (other[:, None] == other)
    wanted = float((np.outer(influence, influence) * share).sum())
    assert Sharing.of(one, other).products(influence) == pytest.approx(wanted)
    plain = float((np.outer(influence, influence) * (one[:, None] == one)).sum())
    assert Sharing.of(one, None).products(influence) == pytest.approx(plain)
    assert Sharing.of(one, one).products(influence) == pytest.approx(plain)


def test_what_things_add_is_not_underestimated_where_they_are_few() -> None:
    """Simulated: things vary, nothing else; of a mean the products are too small by shortfall."""
    generator = np.random.default_rng(0)
    first, second = np.triu_indices(5, 1)
    uneven = generator.integers(5, size=20), generator.integers(5, size=20)
    for one, other in ((np.arange(8), None), (first, second), uneven):
        sharing, weights = Sharing.of(one, other), np.full(len(one), 1.0 / len(one))
        effects = generator.standard_normal((20_000, 8))
        values = effects[:, one]
        if other is not None:
            values = values + np.where(one != other, effects[:, other], 0.0)
        mean = values @ weights
        found = np.mean([sharing.products(row) for row in (values - mean[:, None]) * weights])
        assert sharing.shortfall(weights) == pytest.approx(mean.var() / found, rel=0.06)
    assert Sharing.of(np.arange(8), None).shortfall(np.full(8, 1 / 8)) == pytest.approx(8 / 7)
    complete = Sharing.of(first, second).shortfall(np.full(10, 0.1))
    assert complete == pytest.approx(20 / 6)
    assert Sharing.of(*np.triu_indices(3, 1)).shortfall(np.full(3, 1 / 3)) == np.inf
    of_three = Crossing.of_names(np.arange(3), *np.triu_indices(3, 1)).macro(np.arange(3.0))
    assert of_three.ci95 is None, "products of three comparisons say nothing about three items"


@pytest.mark.parametrize("value", [0.5, 0.1, 1 / 3])
@pytest.mark.parametrize(("count", "p"), [(2, 0.5), (5, 1 / 16)])
def test_differences_that_are_all_alike_are_as_sure_as_their_number_of_coins(
    count: int, p: float, value: float
) -> None:
    crossing = Crossing(*np.divmod(np.arange(count * 2 * count), 2 * count))
    found = crossing.macro(np.full(2 * count * count, value))
    assert found.p == pytest.approx(p)
    assert found.ci95_of_difference is None
    nothing = crossing.macro(np.zeros(2 * count * count))
    assert nothing.p == 1.0
    assert nothing.ci95_of_difference == (0.0, 0.0)
