"""``auto``: its equations, its fit, and what it must never do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.special import expit

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import predictive, seen_vectors, zero_shot
from pal.train.adapt.map import adapt_map, evidence
from pal.train.adapt.prior import make_prior
from pal.train.adapt.tune import SPREADS
from pal.train.build import build_head
from pal.train.heads.auto import Auto, OneTaste
from pal.train.heads.head import Head
from pal.train.loss import logistic
from pal.train.pairs import Pairs
from pal.train.solve import Problem, solve
from pal.train.solve.auto import find_answers
from pal.train.solve.choose import choose, dealt, gained, groups_of, scales
from pal.train.solve.mixture import (
    Judgements,
    Mixture,
    Parts,
    Priors,
    Strength,
    predicted,
    settled,
)
from pal.train.solve.posterior import _Problem, fit
from pal.train.solve.similar import Similarities

DIM, K, USERS = 5, 3, 6


def filled(reads: Any, seed: int = 0) -> Auto:
    """Return a head with numbers of every kind; of its five known things three are landmarks."""
    torch.manual_seed(seed)
    head = Auto(DIM, USERS, k=K, reads=reads)
    width = 2 * DIM if reads == "both" else DIM
    points = torch.randn(5, width) / math.sqrt(width)
    head.landmarks.points_LD, head.known.points_TD = points[:3], points
    head.landmarks.metric_RD = torch.randn(2, width)
    head.known.residuals_TC, head.known.sure_T = torch.randn(5, 1 + K), torch.rand(5)
    head.maps_LM.data, head.offsets_M.data = torch.randn(3, 1 + K), torch.randn(1 + K)
    head.users.logits.data = torch.randn(USERS, 1 + K)
    head.tau.fill_(0.7)
    head.side_item_D.copy_(torch.randn(DIM))
    head.side_prompt_D.copy_(torch.randn(DIM))
    head.side_base.fill_(0.1)
    return head


def by_hand(head: Auto, prompt: Any, item: Any, raw: Any) -> float:
    """Return r_u of one item, in NumPy."""
    item, prompt, raw = (np.asarray(value, float) for value in (item, prompt, raw))
    thing = {
        "items": item,
        "prompt": prompt,
        "both": np.concatenate([item, math.sqrt(DIM) * item * prompt]) / math.sqrt(2),
    }[head.reads]
    landmarks, known = head.landmarks.points_LD.numpy(), head.known.points_TD.numpy()
    apart = (thing - landmarks) @ head.landmarks.metric_RD.numpy().T
    similar = np.exp(-0.5 * np.square(apart).sum(axis=1))
    taste = similar @ head.maps_LM.detach().numpy() + head.offsets_M.detach().numpy()
    distance = np.square(thing - known).sum(axis=1)
    compared = 1.0 if head.reads == "prompt" else 2.0
    if distance.min() < 1e-4:
        nearest = distance.argmin()
        taste = taste + head.known.residuals_TC.numpy()[nearest]
        compared *= 1.0 - float(head.known.sure_T[nearest])
    w = np.exp(raw[1:]) / np.exp(raw[1:]).sum()
    variance = compared * (1.0 + 0.7**2 * (w**2).sum())
    value = taste[0] + w @ taste[1:]
    if head.reads == "prompt":
        side = item @ head.side_item_D.numpy() + prompt @ head.side_prompt_D.numpy() + 0.1
        value = np.clip(2.0 * side, -0.5, 0.5) * (raw[0] + value)
    return float(value / np.sqrt(1.0 + np.pi * variance / 8.0))


@pytest.mark.parametrize("reads", ["prompt", "items", "both"])
def test_rewards_are_the_equations_of_known_and_unknown_things(reads: str) -> None:
    head = filled(reads)
    prompts, items = torch.randn(4, DIM), torch.randn(4, DIM)
    if reads == "prompt":
        prompts[1] = head.known.points_TD[4]
        items *= 0.1
    if reads == "items":
        items[1] = head.known.points_TD[4]
    users = torch.tensor([0, 3, 5, 0])
    with torch.no_grad():
        found = head.reward(prompts, items, head.users(users))
        first, second = (head.reward(prompts, side, head.users(users)) for side in (items, -items))
        margin = head(prompts, items, -items, users)
    raw = head.users.logits.detach()[users]
    wanted = [by_hand(head, *row) for row in zip(prompts, items, raw, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert margin.tolist() == pytest.approx((first - second).tolist(), rel=1e-4, abs=1e-5)


def test_a_thing_of_few_answers_is_known_in_part_only() -> None:
    """p is 1/2 where nothing is fitted: n answers have a curvature of n / 4."""
    thing, counts = np.repeat(np.arange(3), [1, 4, 36]), np.array([1, 4, 36])
    rows = Judgements(thing, None, np.zeros(41, int), np.full(41, 0.5), 1)
    nothing = Mixture(
        0.0, np.zeros(2), np.zeros((2, 1)), np.zeros((4, 2)), np.zeros(1), np.zeros((1, 1)), 1.0
    )
    found = settled(nothing, np.zeros((4, 2)), rows)
    assert found.tolist() == pytest.approx([*(counts / 4 / (1 + counts / 4)), 0.0])


@pytest.mark.parametrize("reads", ["prompt", "items", "both"])
def test_prepared_pairs_have_the_same_margins_and_slopes(reads: str) -> None:
    head = filled(reads)
    prompts, first, second = torch.randn(3, 7, DIM).unbind()
    first[2] = head.known.points_TD[1, :DIM]
    vectors, users = head.users(torch.arange(USERS)).detach(), torch.randint(USERS, (7,)).sort()[0]
    prepared = head.prepare(prompts, first, second)
    margin, slope = head.margin_and_slope(prepared, vectors, users)
    plain, by_autograd = Head.margin_and_slope(head, prepared, vectors, users)
    torch.testing.assert_close(margin, plain)
    torch.testing.assert_close(slope, by_autograd)
    each = Head.margins_of_each(head, prepared, vectors)
    torch.testing.assert_close(head.margins_of_each(prepared, vectors), each)
    raw = head.users.logits.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(head(prompts, first, second, users).sum(), [head.users.logits])
    pulled = head.users.pull_back(vectors[users], slope)
    torch.testing.assert_close(torch.zeros_like(raw).index_add(0, users, pulled), wanted)


@pytest.mark.parametrize("reads", ["items", "prompt", "both"])
@torch.no_grad()
def test_the_mean_reward_is_the_mean_of_all_users_rewards(reads: str) -> None:
    head = filled(reads)
    prompt, item = torch.randn(2, 7, DIM)
    each = [head.reward(prompt, item, vector.expand(7, -1)) for vector in seen_vectors(head)]
    found = head.mean_reward(prompt, item, seen_vectors(head))
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), rtol=1e-5, atol=1e-6)


def test_a_head_takes_its_sizes_from_what_it_loads() -> None:
    head, other = filled("prompt"), Auto(DIM, USERS, k=K, reads="prompt")
    other.load_state_dict(head.state_dict())
    prompts, first = torch.randn(2, 3, DIM).unbind()
    for value in (0, 5):
        users = torch.full((3,), value)
        torch.testing.assert_close(
            other(prompts, first, -first, users), head(prompts, first, -first, users)
        )
    with pytest.raises(RuntimeError, match="size mismatch"):
        Auto(DIM + 1, USERS, k=K, reads="prompt").load_state_dict(head.state_dict())


@pytest.mark.parametrize("priors", [Priors(), Priors(maps=math.inf, residuals=3.0, logits=0.2)])
@pytest.mark.parametrize("compared", [False, True])
def test_the_slope_of_the_posterior_is_that_of_finite_differences(
    compared: bool, priors: Priors
) -> None:
    rng = np.random.default_rng(0)
    second = rng.integers(4, size=20) if compared else None
    rows = Judgements(rng.integers(4, size=20), second, rng.integers(3, size=20), rng.random(20), 3)
    problem = _Problem(rng.normal(size=(4, 2)), rows, 2, Strength(1.5, 0.5), priors)
    at = problem.start(rng) + 0.1 * rng.normal(size=problem.ends[-1])
    error = check_grad(
        lambda x: problem.value_and_slope(x)[0], lambda x: problem.value_and_slope(x)[1], at
    )
    assert error < 1e-5


@pytest.mark.parametrize("part", ["shared", "deviations", "residuals", "ready", "logits"])
def test_a_prior_pulls_by_one_over_its_variance_and_zero_takes_its_part_away(part: str) -> None:
    rng = np.random.default_rng(0)
    rows = Judgements(rng.integers(4, size=20), None, rng.integers(3, size=20), rng.random(20), 3)
    features, field = rng.normal(size=(4, 2)), "maps" if part in ("shared", "deviations") else part

    def slope(variance: float) -> np.ndarray:
        problem = _Problem(features, rows, 2, Strength(1.0, 1.0), Priors(**{field: variance}))
        return getattr(problem.split(problem.value_and_slope(at)[1]), part)

    problem = _Problem(features, rows, 2, Strength(1.0, 1.0))
    at = rng.normal(size=problem.ends[-1])
    values = getattr(problem.split(at), part)
    np.testing.assert_allclose(slope(1.0) - slope(math.inf), values)
    np.testing.assert_allclose(slope(4.0) - slope(math.inf), values / 4.0)
    assert not slope(0.0).any()
    found = fit(features, rows, 2, Strength(1.0, 1.0), rng, 50, Priors(**{field: 0.0}))
    assert not getattr(found, part).any()


def test_margins_are_moderated_by_what_is_dropped_and_by_nothing_else() -> None:
    rng = np.random.default_rng(0)
    rows = Judgements(rng.integers(4, size=20), None, rng.integers(3, size=20), rng.random(20), 3)
    features = rng.normal(size=(4, 2))
    found = fit(features, rows, 2, Strength(1.0, 0.5), rng, 50)
    square = np.square(found.weights).sum(axis=1)[rows.user]
    for priors, variance in [
        (Priors(), 1.0 + 0.25 * square),
        (Priors(residuals=4.0), 4.0 * (1.0 + 0.25 * square)),
        (Priors(residuals=0.0), 0.0),
        (Priors(moderates=False), 0.0),
    ]:
        size = np.sqrt(1.0 + np.pi * variance / 8.0)
        parts = predicted(replace(found, dropped=priors.dropped), features, rows)
        np.testing.assert_allclose(parts.ready * size, found.base + found.ready[rows.user])
        np.testing.assert_allclose(parts.shared * size, (features @ found.shared)[rows.first])


# --- fits -------------------------------------------------------------------------------------


def survey(groups: int, things: int, users: int, seed: int = 0, noise: float = 1.0) -> Problem:
    """Return votes of users in opposed groups on half of some statements, each of which everybody
    likes more or less for reasons that its features do not tell; validation: the other half."""
    torch.manual_seed(seed)
    statements = torch.randn(things, 8)
    tastes = torch.randn(8) * torch.linspace(-1, 1, groups)[:, None] if groups > 1 else None
    liked = torch.randn(things)
    thing, user = (value.flatten() for value in torch.meshgrid(
        torch.arange(things), torch.arange(users), indexing="ij"))  # fmt: skip
    margin = noise * liked[thing]
    if tastes is not None:
        margin = margin + 2.0 * (statements[thing] * tastes[user % groups]).sum(dim=1)
    agrees = torch.bernoulli(margin.sigmoid())
    features = torch.cat([statements, torch.eye(2, 8) * 3])
    is_left = torch.rand(len(thing)) < 0.5
    first = torch.where(is_left, things, things + 1)
    label = torch.where(is_left, agrees, 1.0 - agrees)
    known = thing < things // 2

    def pairs(rows: torch.Tensor) -> Pairs:
        other = 2 * things + 1 - first
        return Pairs(thing[rows], first[rows], other[rows], user[rows], label[rows])

    return Problem(features, pairs(known), pairs(~known), users)


def unsolved(problem: Problem, reads: Any = "prompt", k: int = 8, seed: int = 0) -> Auto:
    torch.manual_seed(seed)
    head = Auto(problem.features.shape[1], problem.users, k=k, reads=reads)
    head.item_scale.fit(problem.features, problem.train.item_rows())
    if head.uses_prompt:
        assert problem.train.prompt is not None
        head.prompt_scale.fit(problem.features, problem.train.prompt.unique())
    return head


def solved(problem: Problem, reads: Any = "prompt", k: int = 8, seed: int = 0) -> Auto:
    head = unsolved(problem, reads, k, seed)
    solve(head, problem, TrainConfig(head="auto"))
    return head.eval()


@torch.no_grad()
def judged(head: Head, problem: Problem, pairs: Pairs) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy."""
    batch = pairs.batch(problem.features, slice(None))
    margin = head(batch.prompt, batch.first, batch.second, batch.user)
    right = torch.where(margin > 0, batch.label, 1.0 - batch.label)
    return float(right.mean()), float(logistic(margin, batch.label).mean())


def test_opposed_groups_are_found_and_both_are_predicted() -> None:
    problem = survey(2, 100, 24)
    accuracy, loss = judged(solved(problem, k=4), problem, problem.val)
    assert accuracy > 0.7
    assert loss < 0.55
    accuracy, loss = judged(solved(problem, k=1), problem, problem.val)
    assert accuracy < 0.6  # one taste cannot


def test_one_taste_differs_in_nothing_but_how_readily_users_agree() -> None:
    problem = survey(2, 60, 12)
    torch.manual_seed(0)
    head = OneTaste(problem.features.shape[1], problem.users, reads="prompt")
    head.item_scale.fit(problem.features, problem.train.item_rows())
    assert problem.train.prompt is not None
    head.prompt_scale.fit(problem.features, problem.train.prompt.unique())
    solve(head, problem, TrainConfig(head="one-taste"))
    batch = problem.val.batch(problem.features, slice(0, 30))
    each = head.margins_of_each(head.prepare(*batch[:3]), head.users(torch.arange(12))).detach()
    side = torch.where(batch.first[:, 1] == 0, 1.0, -1.0)  # the first answer is (3, 0, ...)
    apart = (each - each[:, :1]) * side.unsqueeze(1)
    torch.testing.assert_close(apart, apart[:1].expand_as(apart), atol=1e-4, rtol=1e-3)
    assert float(apart.abs().max()) > 0.05


def test_where_text_tells_nothing_predictions_are_no_worse_than_none() -> None:
    losses = []
    for seed in range(3):
        problem = survey(1, 100, 15, seed)
        head = solved(problem, k=4, seed=seed)
        losses.append(judged(head, problem, problem.val)[1])
        # what is known of known statements is kept
        assert judged(head, problem, problem.train)[0] > judged(head, problem, problem.val)[0]
    assert np.mean(losses) < math.log(2.0) + 0.01  # how many agree is estimated, too


def test_comparisons_of_items_and_of_items_under_prompts_are_learned() -> None:
    torch.manual_seed(0)
    features = torch.randn(60, 6)
    first, second = torch.randint(40, (2, 800))
    prompt, user = 40 + torch.randint(20, (800,)), torch.randint(6, (800,))
    sign = torch.where(user % 2 == 0, 1.0, -1.0)
    alone = sign * 2.0 * (features[first, 0] - features[second, 0])
    fits = sign * ((features[first] - features[second]) * features[prompt]).sum(dim=1)
    for reads, margin in (("items", alone), ("both", fits)):
        label = torch.bernoulli((2.0 * margin).sigmoid())
        halves = [slice(0, 640), slice(640, None)]
        train, val = (
            Pairs(prompt[h], first[h], second[h], user[h], label[h]) for h in halves
        )  # fmt: skip
        problem = Problem(features, train, val, 6)
        accuracy, _ = judged(solved(problem, reads, k=4), problem, problem.val)
        assert accuracy > 0.7, reads


def behind_their_prompts(problem: Problem, spread: float) -> Problem:
    """Return the same votes, each answer an item of its own that its prompt has part in."""
    things = len(problem.features) - 2
    answers = problem.features[things:]
    each = 0.3 * problem.features[:things].repeat(2, 1) + answers.repeat_interleave(things, dim=0)
    each = each + spread * torch.randn(each.shape)
    features = torch.cat([problem.features[:things], each])

    def moved(pairs: Pairs) -> Pairs:
        assert pairs.prompt is not None
        sides = (
            (side - things + 1) * things + pairs.prompt for side in (pairs.first, pairs.second)
        )
        return Pairs(pairs.prompt, *sides, pairs.user, pairs.label)

    return Problem(features, moved(problem.train), moved(problem.val), problem.users)


def test_answers_behind_their_prompts_are_found_without_their_names() -> None:
    problem = survey(2, 100, 24)
    behind = behind_their_prompts(problem, 0.05)
    head = solved(behind, k=4)
    batch = behind.val.batch(behind.features, slice(None))
    assert batch.prompt is not None
    sides = [head.sides(batch.prompt, item) for item in (batch.first, batch.second)]
    assert float((sides[0] - sides[1]).abs().min()) > 0.9
    accuracy, _ = judged(head, behind, behind.val)
    assert accuracy == pytest.approx(
        judged(solved(problem, k=4), problem, problem.val)[0], abs=0.05
    )


@pytest.mark.parametrize("behind", [False, True])
def test_sides_are_told_from_each_distinct_answer_once(behind: bool) -> None:
    problem = survey(2, 100, 24)
    problem = behind_their_prompts(problem, 0.05) if behind else problem
    pairs = problem.train
    thrice = Problem(
        problem.features, pairs.take(torch.arange(len(pairs)).repeat(3)), problem.val, 24
    )
    sides, read = [], []
    for one in (problem, thrice):
        head = unsolved(one, k=4)
        for scale in (head.item_scale, head.prompt_scale):
            scale.register_forward_hook(lambda _, rows, __: read.append(len(rows[0])))
        sides.append(torch.from_numpy(find_answers(head, one)))
        sides.append(torch.cat([head.side_item_D, head.side_prompt_D, head.side_base[None]]))
    assert torch.equal(sides[0].repeat(3), sides[2])
    torch.testing.assert_close(sides[1], sides[3])
    items = len(torch.cat([pairs.first, pairs.second]).unique())
    assert pairs.prompt is not None
    assert max(read) <= 2 * max(items, len(pairs.prompt.unique()))


def test_items_that_are_no_answers_are_no_votes() -> None:
    problem = behind_their_prompts(survey(2, 100, 4), 0.05)
    torch.manual_seed(0)
    problem = Problem(torch.randn_like(problem.features), problem.train, problem.val, 4)
    with pytest.raises(TrainError, match=r"train.reads = 'prompt' .* items .* leave it null"):
        solved(problem)


# --- choices ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flat:
    """Features that nothing sharpens."""

    features: Any

    def features_of(self, things: Any) -> Any:
        assert len(things) <= 2 * len(self.features) / 3, "those of a part alone"
        return self.features[things]

    def sharpened(self, fitted: Mixture) -> Flat:
        return self


def test_a_weaker_prior_needs_evidence() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)) / 2.0
    first, user = (a.ravel() for a in np.meshgrid(np.arange(60), np.arange(30), indexing="ij"))
    for planted, is_default in ((0.0, True), (16.0, False)):
        margin = planted * features[first, 0] * np.where(user % 2, 1.0, -1.0)
        label = (rng.random(len(margin)) < expit(margin)).astype(float)
        rows = Judgements(first, None, user, label, 30)
        choice = choose(lambda things: Flat(features), rows, 60, 4, 0)
        assert (choice.strength == Strength(1.0, 1.0)) == is_default
        assert 0.0 <= choice.of_shared <= 1.0
        assert (choice.gain > 2.0 * choice.error) != is_default


def test_the_metric_is_the_mean_outer_product_of_the_slopes_of_all_users() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(7, 4)))
    basis = Similarities.of(points, np.arange(7))
    for _ in range(2):  # of features as they are, and of those under a metric
        width = basis.features_of().shape[1]
        fitted = Mixture(
            0.3, rng.normal(size=width), rng.normal(size=(width, 2)), np.zeros((7, 3)), np.zeros(5),
            rng.normal(size=(5, 2)), 0.0,
        )  # fmt: skip
        maps, _ = basis.folded(fitted.maps)
        users = np.column_stack([np.ones(5), fitted.weights])

        def margins(x: Any, maps: Any = maps, users: Any = users, basis: Any = basis) -> Any:
            return (basis.landmarks(torch.from_numpy(x)).numpy() @ maps) @ users.T

        step, x = 1e-5, points.numpy()
        slopes = np.stack(
            [(margins(x + step * e) - margins(x - step * e)) / (2.0 * step) for e in np.eye(4)], -1
        ).reshape(-1, 4)
        wanted = slopes.T @ slopes
        basis = basis.sharpened(fitted)
        root = basis.landmarks.metric_RD.numpy()
        found = root.T @ root
        assert found / np.trace(found) == pytest.approx(wanted / np.trace(wanted), abs=1e-5)
        seen = x @ root.T
        assert np.square(seen - seen.mean(axis=0)).sum(axis=1).mean() == pytest.approx(1.0)
    width = basis.features_of().shape[1]
    flat = replace(fitted, shared=np.zeros(width), deviations=np.zeros((width, 2)))
    assert basis.sharpened(flat) is basis


def test_a_metric_needs_evidence() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(150, 20)) / math.sqrt(20))
    first, user = (a.ravel() for a in np.meshgrid(np.arange(150), np.arange(20), indexing="ij"))
    x = points.numpy()[first] * math.sqrt(20)
    product = 3.0 * x[:, 0] * x[:, 1] * np.where(user % 2, 1.0, -1.0)
    for margin, is_learned in ((product, True), (np.zeros(len(product)), False)):
        label = (rng.random(len(margin)) < expit(margin)).astype(float)
        rows = Judgements(first, None, user, label, 20)
        choice = choose(lambda things: Similarities.of(points, things), rows, 150, 4, 0)
        assert (choice.rounds > 0) == is_learned


def test_errors_are_taken_over_things_and_scales_stay_between_none_and_all() -> None:
    values, things = np.repeat([1.0, 3.0], 50), np.repeat([4, 9], 50)
    assert gained(values, [things]) == (2.0, pytest.approx(1.0))  # not sqrt(1 / 100)
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(2, 4000))
    label = (rng.random(4000) < expit(0.4 * shared)).astype(float)
    found = scales(Parts(np.zeros(4000), shared, own), label)
    assert found == (pytest.approx(0.4, abs=0.1), pytest.approx(0.0, abs=0.1))
    assert scales(Parts(np.zeros(4000), 0.1 * shared, own), label)[0] == 1.0


def test_no_gain_is_taken_for_one_where_comparisons_share_items() -> None:
    rng = np.random.default_rng(0)
    beyond = []
    for _ in range(400):
        first, second = rng.integers(60, size=(2, 600))
        effect = rng.normal(size=60)
        values = effect[first] + effect[second] + rng.normal(size=600)
        mean, error = gained(values, [first, second])
        beyond.append(mean > 2.0 * error)
    assert np.mean(beyond) < 0.05  # with one of the two items it is 0.15


def test_things_that_are_compared_share_a_fold_unless_that_is_most_of_them() -> None:
    none = np.zeros(4, np.int64)
    rows = Judgements(np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7]), none, np.ones(4), 1)
    group = groups_of(rows, 8)
    assert (group[::2] == group[1::2]).all()
    fold = dealt(group, 0)
    assert (fold[::2] == fold[1::2]).all()
    chain = Judgements(np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4]), none, np.ones(4), 1)
    assert len(set(groups_of(chain, 5))) == 5


def test_what_is_dropped_makes_predictions_modest() -> None:
    rng = np.random.default_rng(0)
    rows = Judgements(np.arange(50) % 10, None, np.arange(50) % 5, rng.random(50).round(), 5)
    features = rng.normal(size=(10, 3))
    found = fit(features, rows, 2, Strength(1.0, 1.0), rng, 50)
    parts = predicted(found, features, rows)
    taste = features @ found.maps
    plain = taste[rows.first, 0] + (found.weights[rows.user] * taste[rows.first, 1:]).sum(axis=1)
    variance = 1.0 + np.square(found.weights[rows.user]).sum(axis=1)
    modest = plain / np.sqrt(1.0 + np.pi / 8.0 * variance)
    assert parts.shared + parts.own == pytest.approx(modest)


# --- people of whom little is known -----------------------------------------------------------


def new_people(head: Auto, users: int, each: int) -> tuple[Answers, Answers]:
    """Return answers of people like the first seen ones: shots, and pairs to judge."""
    made = []
    for count in (each, 40):
        user = torch.arange(users).repeat_interleave(count)
        prompt, first = torch.randn(2, len(user), DIM).unbind()
        margin = head(prompt, first, -first, user).detach()
        prepared = tuple(
            None if p is None else p.detach() for p in head.prepare(prompt, first, -first)
        )
        made.append(Answers(prepared, torch.bernoulli(margin.sigmoid()), user, users))
    return made[0], made[1]


def test_nobody_known_is_the_mean_of_all_probabilities() -> None:
    head = filled("items")
    head.maps_LM.data *= 5.0
    _, pairs = new_people(head, 2, 1)
    margins = head.margins_of_each(pairs.prepared, head.users(torch.arange(USERS))).detach()
    wanted = torch.logit(margins.sigmoid().mean(dim=1))
    torch.testing.assert_close(zero_shot(head, pairs.prepared).float(), wanted)
    nobody = pairs.take(torch.zeros(0, dtype=torch.long))
    prior = make_prior(head, 1.0)
    adapted = adapt_map(head, nobody, prior, with_covariance=True)
    found = predictive(head, nobody, pairs, adapted)
    torch.testing.assert_close(found.float(), wanted)
    assert len(seen_vectors(head)) == USERS


def test_evidence_is_the_integral_over_the_prior() -> None:
    head = filled("items", seed=1)
    shots, _ = new_people(head, 3, 4)
    prior = make_prior(head, 1.0)
    adapted = adapt_map(head, shots, prior, with_covariance=True)
    torch.manual_seed(0)
    vectors = head.users.of_logits(torch.randn(20_000, 1 + K))
    fit_BC = -logistic(head.margins_of_each(shots.prepared, vectors), shots.label.unsqueeze(1))
    total = torch.zeros(3, 20_000).index_add(0, shots.user, fit_BC.detach())
    wanted = total.logsumexp(dim=1) - math.log(20_000)
    torch.testing.assert_close(evidence(head, shots, adapted), wanted, atol=0.1, rtol=0.0)


def test_the_evidence_of_communities_is_measured_from_their_own_means() -> None:
    torch.manual_seed(0)
    head = build_head(TrainConfig(head="pal-b", k=2, latent_dim=4), DIM, 40).eval()
    head.users.logits.data = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).repeat(20, 1)
    prompt, first, second = torch.randn(3, 10, DIM).unbind()
    with torch.no_grad():
        prepared = head.prepare(prompt, first, second)
        margin = head.prepared_margin(
            prepared, head.users(torch.tensor([0])), torch.zeros(10).long()
        )
    shots = Answers(prepared, (margin > 0).float(), torch.zeros(10, dtype=torch.long), 1)
    found = [
        evidence(head, shots, adapt_map(head, shots, make_prior(head, 3.0, spread), True)).item()
        for spread in SPREADS
    ]
    assert max(found) - min(found) < 4.0  # from the mean of all it was e^-20


def test_few_answers_of_people_like_the_seen_ones_are_honest_and_help() -> None:
    head = filled("items")
    head.maps_LM.data *= 6.0
    torch.manual_seed(2)
    losses = []
    for count in (0, 1, 20):
        shots, pairs = new_people(head, USERS, max(count, 1))
        shots = shots if count else shots.take(torch.zeros(0, dtype=torch.long))
        prior = make_prior(head, 1.0)
        adapted = adapt_map(head, shots, prior, with_covariance=True)
        margin = predictive(head, shots, pairs, adapted)
        losses.append(float(logistic(margin, pairs.label).mean()))
    assert losses[1] < losses[0] + 0.02
    assert losses[2] < losses[0]
    assert max(losses) < math.log(2.0)
