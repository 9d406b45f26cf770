"""The curvature of users' posteriors: the short form, for fewer answers than numbers, is the
long one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pal.train.adapt.curvature import Curvature
from pal.train.heads.users import (
    ReadyWeights,
    UserTable,
    UserVectors,
    UserWeights,
    blocks_alike,
    by_user,
)

COUNTS = [0, 1, 3, 0, 2]
"""answers of each user"""


def problem(size: int) -> tuple[Curvature, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a curvature, rows, whose they are, and the matrices H made one by one."""
    random = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=random, dtype=torch.float64)
    precision = root @ root.T + torch.eye(size)
    user = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    rows = torch.randn(len(user), size, generator=random, dtype=torch.float64)
    whole = torch.stack([precision + rows[user == u].T @ rows[user == u] for u in range(5)])
    return Curvature(precision, torch.linalg.inv(precision)), rows, user, whole


@pytest.mark.parametrize(("size", "is_short"), [(2, False), (3, False), (4, True), (50, True)])
def test_variance_and_volume_are_those_of_the_matrices(size: int, is_short: bool) -> None:
    curvature, rows, user, whole = problem(size)
    covariance = curvature.covariance(rows, user, len(COUNTS))
    assert (covariance.told is not None) == is_short
    torch.testing.assert_close(covariance.whole(), torch.linalg.inv(whole))
    torch.testing.assert_close(covariance.logdet(), -torch.logdet(whole))
    asked = torch.tensor([0, 0, 3, 3, 4])  # nothing is asked of users 1 and 2
    slope = torch.randn(5, size, dtype=torch.float64)
    one_by_one = torch.stack(
        [g @ torch.linalg.inv(whole[u]) @ g for g, u in zip(slope, asked.tolist(), strict=True)]
    )
    torch.testing.assert_close(covariance.variance(slope, asked), one_by_one)


@pytest.mark.parametrize("table", [UserVectors, UserWeights, ReadyWeights])
@pytest.mark.parametrize("size", [2, 3, 4, 50])
def test_steps_are_those_of_the_matrices(size: int, table: type[UserTable]) -> None:
    """H = Lambda + J^T S^T D S J, with J from automatic derivatives; 3 answers at most."""
    curvature, rows, user, _ = problem(size)
    users = table(1, size - (table is ReadyWeights))  # type: ignore[call-arg, arg-type]
    random = torch.Generator().manual_seed(1)
    raw, gradient = torch.randn(2, len(COUNTS), size, generator=random, dtype=torch.float64)
    slope, real = by_user(rows, user, len(COUNTS))
    bend = torch.rand(real.shape, generator=random, dtype=torch.float64)
    wanted = []
    for u in range(len(COUNTS)):
        jacobian = torch.func.jacrev(lambda one: users.soft(one.unsqueeze(0))[0])(raw[u])
        pulled = slope[u] @ jacobian
        whole = curvature.precision + pulled.T @ (bend[u].unsqueeze(1) * pulled)
        wanted.append(torch.linalg.solve(whole, gradient[u]))
    steps = curvature.steps(users, slope)
    torch.testing.assert_close(steps(users.soft(raw), bend, gradient), torch.stack(wanted))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 500))
def test_blocks_hold_every_row_once_and_little_that_is_padding(
    counts: list[int], numbers: int
) -> None:
    """Somebody with many rows is laid out alone, and not everybody like them."""
    user = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    seen_users, seen_rows = [], []
    for some, rows, own in blocks_alike(user, len(counts), 3, numbers):
        table, real = by_user(rows.unsqueeze(1).float(), own, len(some))
        assert len(some) == 1 or table.shape[0] * table.shape[1] * 3 <= numbers
        assert user[rows].tolist() == some[own].tolist()
        assert real.sum(dim=1).tolist() == [counts[one] for one in some.tolist()]
        seen_users += some.tolist()
        seen_rows += rows.tolist()
    assert sorted(seen_users) == list(range(len(counts)))
    assert sorted(seen_rows) == list(range(len(user)))


def test_nobody_has_answered() -> None:
    curvature, rows, user, _ = problem(4)
    none = curvature.covariance(rows[:0], user[:0], len(COUNTS))
    prior = curvature.prior.expand(len(COUNTS), -1, -1)
    torch.testing.assert_close(none.whole(), prior)
    torch.testing.assert_close(none.logdet(), torch.logdet(prior))


@pytest.mark.parametrize("variance", [1.0, 1e3, 1e4])
def test_sure_answers_under_a_weak_prior_leave_a_volume(variance: float) -> None:
    """In float32: what is left of the prior's volume is too small to be found by subtraction."""
    random = torch.Generator().manual_seed(0)
    rows, user = 5.0 * torch.randn(20, 40, generator=random), torch.arange(20) // 10
    curvature = Curvature(torch.eye(40) / variance, variance * torch.eye(40))
    found = curvature.covariance(rows, user, 2).logdet()
    of_prior = torch.eye(40, dtype=torch.float64) / variance
    whole = torch.stack([of_prior + (own := rows[user == u].double()).T @ own for u in range(2)])
    torch.testing.assert_close(found, -torch.logdet(whole).float(), atol=1e-2, rtol=0.0)
