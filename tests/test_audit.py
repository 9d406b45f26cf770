"""The audit: its models, its nulls, its verdicts, and the traps that it must not fall into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit
from typer.testing import CliRunner

from pal.audit import cross_fit
from pal.audit.answers import Answers, oriented
from pal.audit.content import Judged
from pal.audit.cross_fit import CrossFit, design_of
from pal.audit.descent import minimise
from pal.audit.describe import disagreement, krippendorff_alpha, majority_labels, overruled
from pal.audit.design import Cells, Table
from pal.audit.drawing import Here
from pal.audit.features import features_of
from pal.audit.groups import Division, agreement, clear_groups, divided
from pal.audit.ledger import DRAWS, Ledger
from pal.audit.load import Loaded
from pal.audit.model import Model
from pal.audit.nulls import (
    Population,
    are_pairs,
    bootstrap,
    drawn_labels,
    exchanged,
    exchanged_labels,
    strata,
)
from pal.audit.overlap import OneTaste, Overlap
from pal.audit.page import border
from pal.audit.power import SHARES, p_of, smallest_share, with_more
from pal.audit.record import AuditRecord, Group, Planting
from pal.audit.run import Audit, Findings
from pal.audit.verdict import Evidence, judged
from pal.cli.app import app
from pal.config import AuditConfig
from pal.errors import EvaluationError
from pal.train.solve.mixture import Strength


class Made(NamedTuple):
    """Answers of people whose tastes are known."""

    answers: Answers
    points: torch.Tensor
    opposed: np.ndarray


def made(
    seed: int = 0,
    users: int = 30,
    per: int = 30,
    things: int = 60,
    share: float = 0.0,
    careless: float = 0.0,
    ready: float = 1.0,
    compared: bool = False,
) -> Made:
    """Return votes, or comparisons, by a taste that is linear in 6 features; a share of the users
    have the opposite one, a share answer at random."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((things, 6))
    taste = 2.0 * points[:, 0] + 0.3 * rng.standard_normal(things)
    opposed = np.arange(users) < round(share * users)
    sign = np.where(opposed, -1.0, 1.0)
    sign[users - round(careless * users) :] = 0.0
    user = np.repeat(np.arange(users), per)
    first = np.concatenate([rng.permutation(things)[:per] for _ in range(users)])
    second = None
    margin = taste[first]
    if compared:
        second = (first + rng.integers(1, things, size=len(first))) % things
        margin = margin - taste[second]
    readiness = 0.0 if compared else ready * rng.standard_normal(users)[user]
    label = (rng.random(len(user)) < expit(sign[user] * margin + readiness)).astype(float)
    answers = oriented(first, second, user, label, first, first, things)
    scaled = (points - points.mean(axis=0)) / (points.std(axis=0) * np.sqrt(6))
    return Made(answers, torch.from_numpy(scaled).float(), opposed)


def examined(tmp_path: Path, one: Made, **settings: Any) -> Findings:
    """Return what an audit finds, with few draws."""
    chosen = AuditConfig(**{"permutations": 19, "overlap_draws": 39, **settings})
    shown = [f"thing {number}" for number in range(one.answers.things)]
    points = one.points if chosen.features else None
    loaded = Loaded(one.answers, [], shown, None, points, 0, 0)
    ledger = Ledger(tmp_path / DRAWS, "test")
    return Audit(loaded, chosen, 0, ledger, lambda steps: None, Here(1)).run()


def sentence_of(found: Findings) -> str:
    b = found.features
    assert b is not None
    gain = b.gain.default
    return judged(
        Evidence(
            "B", b.p, len(b.null), gain.ci95, gain.value, gain.ci95, b.gain.points.value, "",
            found.power,
        )
    )[0]  # fmt: skip


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("exchanges", [False, True])
def test_slopes_are_those_of_finite_differences(compared: bool, k: int, exchanges: bool) -> None:
    answers = made(users=4, per=6, things=8, compared=compared).answers
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 2, generator=generator).double()
    design = design_of(answers, z)
    if exchanges:
        who = torch.randint(4, (len(answers), 2), generator=generator)
        design = replace(design, user=who)
    model = Model(design, k, Strength(2.0, 0.5))
    theta = 0.3 * torch.randn(sum(model.sizes), 2, generator=generator).double()
    label = torch.rand(len(answers), 2, generator=generator).double()
    _, slope = model.value_and_slope(theta, label)
    for place in range(0, len(theta), 3):
        away = torch.zeros_like(theta)
        away[place] = 1e-6
        up, down = (model.value_and_slope(theta + s * away, label)[0] for s in (1, -1))
        torch.testing.assert_close(slope[place], (up - down) / 2e-6, rtol=1e-4, atol=1e-6)


def test_both_ways_to_mix_tastes_are_the_same() -> None:
    answers = made(users=5, per=8, things=9).answers
    again = np.arange(len(answers)).repeat(2)  # some answers are given twice
    answers = oriented(
        answers.first[again], None, answers.user[again], answers.label[again],
        answers.group[again], answers.other[again], 9,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(9, 2, generator=generator)
    design = design_of(answers, z)
    weights, own = torch.rand(5, 3, 4, generator=generator), torch.rand(9, 3, 4)
    off = torch.randn(len(answers), 4, generator=generator)
    by_cells, by_table = (kind(design, weights, own) for kind in (Cells, Table))
    torch.testing.assert_close(by_cells.margin, by_table.margin)
    for one, other in zip(by_cells.back(off), by_table.back(off), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("exchanges", [False, True])
def test_slopes_of_users_are_the_same_without_a_table(
    exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = made(users=5, per=8, things=9).answers
    generator = torch.Generator().manual_seed(0)
    design = design_of(answers, torch.randn(9, 2, generator=generator))
    if exchanges:
        who = torch.randint(5, (len(answers), 3), generator=generator)
        design = replace(design, user=who)
    residual = torch.randn(len(answers), 3, generator=generator)
    by_table = cross_fit.slopes_of_users(design, residual)
    monkeypatch.setattr(cross_fit, "LARGEST", 0)
    monkeypatch.setattr(cross_fit, "BLOCK", 7)
    torch.testing.assert_close(cross_fit.slopes_of_users(design, residual), by_table)


def test_problems_of_a_batch_end_where_each_ends_alone() -> None:
    scales = torch.tensor([[1.0, 30.0, 0.1], [5.0, 1.0, 2.0]]).double()
    wanted = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]).double()

    def function(x: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        off, size = x - wanted[:, which], scales[:, which]
        return (size * off**4 / 4 + off**2).sum(dim=0), size * off**3 + 2 * off

    one = torch.ones(2, 1).double()
    together = minimise(function, torch.zeros(2, 3).double(), one, 100, 1e-14)
    torch.testing.assert_close(together, wanted, atol=1e-4, rtol=0.0)
    for column in range(3):

        def alone(x: torch.Tensor, which: torch.Tensor, column: int = column) -> Any:
            return function(x, which + column)

        found = minimise(alone, torch.zeros(2, 1).double(), one, 100, 1e-14)
        torch.testing.assert_close(found, together[:, column : column + 1], atol=1e-6, rtol=0.0)


def test_gains_do_not_depend_on_the_batch() -> None:
    one = made(users=16, per=20, things=40, share=0.4)
    z = features_of(one.points, 0).z
    population = Population.fitted(one.answers, z)
    folds = CrossFit(one.answers, z, 0, population.spreads)
    drawn = [bootstrap(one.answers, population, 0, number) for number in range(11)]
    labels = torch.from_numpy(np.stack([one.answers.label, *drawn], axis=1)).float()
    together = torch.cat(list(folds.gains(labels)), dim=1)
    alone = torch.cat([next(folds.gains(each)) for each in labels.split(1, dim=1)], dim=1)
    found, wanted = folds.of_users(together), folds.of_users(alone)
    # how numbers round decides where a fit ends: that must not matter beside what chance does
    assert float((found - wanted).abs().max()) < 0.2 * float(wanted[1:].std())
    assert float(found[0]) > 0.01


def test_reliability_of_people_who_answer_at_random_or_against_all_is_small() -> None:
    one = made(users=40, share=0.1, careless=0.2)
    z = features_of(one.points, 0).z
    found = Population.fitted(one.answers, z).reliability
    assert found.min() >= 0.0
    others = np.median(found[4:32])
    assert np.median(found[:4]) < 0.1 * others
    assert np.median(found[32:]) < 0.4 * others


def test_a_minority_is_plurality_and_careless_people_are_none(tmp_path: Path) -> None:
    found = examined(tmp_path / "opposed", made(users=20, per=20, things=40, share=0.3))
    assert sentence_of(found) == "plural"
    assert found.features is not None
    assert found.overlap is not None
    assert found.overlap.p <= 0.05
    careless = examined(
        tmp_path / "careless", made(seed=1, users=20, per=20, things=40, careless=0.3)
    )
    assert careless.features is not None
    assert careless.overlap is not None
    assert careless.features.p > 0.05
    assert careless.overlap.p > 0.05
    assert careless.careless is not None
    assert 0.1 <= careless.careless <= 0.45
    assert found.careless is not None
    assert found.careless < 0.1  # the opposed are not careless


def test_the_groups_are_those_that_were_planted(tmp_path: Path) -> None:
    one = made(users=24, share=0.4, ready=0.3)
    shown = examined(tmp_path, one).shown
    assert shown is not None
    assert shown.division.groups == 2
    assert agreement(shown.division.group, one.opposed.astype(np.int64)) > 0.8
    liked = shown.judged.ranked(shown.judged.apart(1), 10)
    assert float(one.points[liked, 0].mean()) < 0.0  # the smaller group likes what others do not


def test_a_killed_audit_goes_on_where_it_was(tmp_path: Path) -> None:
    one = made(users=12, per=12, things=30)
    first = examined(tmp_path, one)
    asked: list[int] = []

    def compute(wanted: Any) -> Any:
        asked.extend(wanted)
        yield wanted, np.full((len(wanted), 1), 7.0)

    ledger = Ledger(tmp_path / DRAWS, "test")
    values = ledger.take("bootstrap", 21, compute, lambda steps: None)
    assert asked == [19, 20]
    assert first.features is not None
    assert values[:19, 0].tolist() == first.features.null.tolist()
    assert not Ledger(tmp_path / DRAWS, "another").values
    raw = bytearray((tmp_path / DRAWS).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / DRAWS).write_bytes(raw)
    assert not Ledger(tmp_path / DRAWS, "test").values


def test_power_finds_the_share_and_more_answers_make_it_smaller() -> None:
    tried: list[float] = []

    def detected(share: float) -> float:
        tried.append(share)
        return 1.0 if share >= 0.15 else 0.0

    assert smallest_share(detected, 1000) == 0.15
    assert len(tried) <= 4
    assert smallest_share(lambda share: 0.0, 1000) is None
    assert smallest_share(lambda share: 1.0, 3) == pytest.approx(1 / 3)
    assert set(tried) <= set(SHARES)
    answers = made(users=5, per=4, things=10, compared=True).answers
    more = with_more(answers, 4, 0)
    assert np.bincount(more.user).tolist() == [16] * 5
    assert more.second is not None
    assert bool((more.first < more.second).all())


def test_power_of_both_tests(tmp_path: Path) -> None:
    one = made(users=20, per=30, things=40)
    found = examined(tmp_path / "b", one, power=True)
    assert found.power is not None
    opposite, unrelated = found.power[:2]
    assert opposite.other == "opposite"
    assert opposite.share is not None
    assert opposite.share <= 0.25
    assert unrelated.answers_per_user == 30
    alone = examined(tmp_path / "a", one, features=False, power=True)
    assert alone.features is None
    assert alone.power is not None
    assert alone.power[0].share is not None


@pytest.mark.parametrize(
    ("p", "interval", "shares", "wanted"),
    [
        (0.01, (0.001, 0.02), None, "plural"),
        (0.01, (-0.001, 0.02), None, "cannot tell"),
        (0.01, None, None, "cannot tell"),
        (0.2, (0.001, 0.02), None, "cannot tell"),
        (0.2, (0.001, 0.02), (0.1,), "none seen"),
        (0.2, (0.001, 0.02), (0.35,), "cannot tell"),
        (0.2, (0.001, 0.02), (None, 0.2), "cannot tell"),
        (None, None, None, "cannot tell"),
    ],
)
def test_the_verdict_follows_the_rule(p: Any, interval: Any, shares: Any, wanted: str) -> None:
    power = None
    if shares is not None:
        power = [
            Planting(other="opposite", answers_per_user=10.0 * 2**n, share=share)
            for n, share in enumerate(shares)
        ]
    verdict, sentence = judged(
        Evidence("B", p, 99, interval, 0.01, interval, 2.0, "there is no one", power)
    )
    assert verdict == wanted
    assert sentence.endswith((".", "--power."))
    if verdict == "plural":
        assert "+2.0 points of accuracy" in sentence
    if shares == (None, 0.2):
        assert "about 20 answers per user would do" in sentence


@pytest.mark.parametrize(
    ("p", "draws", "wanted"),
    [
        (0.01, 99, "p = 0.010, the smallest that 99 draws allow, by B"),
        (0.02, 99, "p = 0.020 by B"),
        (0.001, 999, "p = 0.001, the smallest that 999 draws allow, by B"),
        (0.0001, 9999, "p < 0.001, the smallest that 9,999 draws allow, by B"),
        (0.0003, 9999, "p < 0.001 by B"),
    ],
)
def test_no_p_is_said_to_be_nothing(p: float, draws: int, wanted: str) -> None:
    _, sentence = judged(Evidence("B", p, draws, None, None, None, None, "", None))
    assert wanted in sentence


def test_users_are_exchanged_within_strata_alone() -> None:
    one = made(users=10, per=8, things=20)
    z = features_of(one.points, 0).z
    stratum, name = strata(one.answers, z, 0)
    assert name == "prompt groups"
    found = exchanged(one.answers, stratum, 0, 1)
    assert sorted(found) == sorted(one.answers.user)
    for number in np.unique(stratum):
        here = stratum == number
        assert sorted(found[here]) == sorted(one.answers.user[here])
    assert are_pairs(one.answers, stratum)
    labels = exchanged_labels(one.answers, stratum, 0, 1)
    key = one.answers.user * 20 + one.answers.first
    answer_of = {int(k): label for k, label in zip(key, labels, strict=True)}
    given = found * 20 + one.answers.first  # who has which answer after the exchange of users
    wanted = {int(k): label for k, label in zip(given, one.answers.label, strict=True)}
    assert answer_of == wanted
    alone = oriented(
        np.arange(40), None, np.arange(40) % 4, np.ones(40), np.arange(40), np.arange(40), 40
    )
    _, name = strata(alone, torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), 0)
    assert name.endswith("clusters of prompts or items")


def test_ties_are_not_tested() -> None:
    answers = made(users=6, per=10, things=20).answers
    label = answers.label.copy()
    label[answers.user == 2] = 0.5
    tied = answers.with_labels(label)
    assert len(tied.decided()) == 50
    assert tied.decided().users == 5
    nothing = answers.with_labels(np.full(60, 0.5))
    assert nothing.decided() is nothing


def test_draws_keep_ties_and_depend_on_their_number_alone() -> None:
    one = made(users=6, per=10, things=20)
    label = one.answers.label.copy()
    label[::3] = 0.5
    tied = one.answers.with_labels(label)
    population = Population.fitted(tied, features_of(one.points, 0).z)
    drawn = [bootstrap(tied, population, 0, number) for number in (3, 3, 4)]
    assert bool((drawn[0][::3] == 0.5).all())
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[0].tolist() != drawn[2].tolist()
    far = np.array([9.0, -9.0])
    soft = drawn_labels(far, np.array([0.3, 0.3]), np.random.default_rng(0))
    assert soft.tolist() == pytest.approx([0.7, 0.3])


def test_alpha_and_disagreement_are_those_of_published_and_counted_examples() -> None:
    # two raters of ten units, Krippendorff (2011), "Computing Krippendorff's alpha", binary data
    one, two = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    thing, user = np.tile(np.arange(10), 2), np.repeat([0, 1], 10)
    label = np.array([*one, *two], float)
    answers = oriented(thing, None, user, label, thing, thing, 10)
    assert krippendorff_alpha(answers) == pytest.approx(0.095, abs=5e-4)
    assert disagreement(answers) == pytest.approx(0.4)
    alone = answers.only(user == 0)
    assert krippendorff_alpha(alone) is None
    assert disagreement(alone) is None


def test_a_majority_label_overrules_the_minority() -> None:
    thing, user = np.tile(np.arange(4), 3), np.repeat([0, 1, 2], 4)
    label = np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], float)
    answers = oriented(thing, None, user, label, thing, thing, 4)
    majority = majority_labels(answers, None)
    assert majority.tolist() == [1, 1, 0, 0] * 3
    lost = overruled(answers, majority, np.array([0, 0, 1]))
    assert lost.answers == pytest.approx(1 / 3)
    assert lost.groups == [0.0, 1.0]
    assert lost.users == pytest.approx(1 / 3)


def test_people_far_apart_are_groups_and_a_cloud_is_none() -> None:
    rng = np.random.default_rng(0)
    planted = np.arange(60) % 3
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    found = divided(centres[planted] + 0.3 * rng.standard_normal((60, 2)), 0)
    assert found.groups == 3
    assert agreement(found.group, planted) == 1.0
    cloud = divided(rng.standard_normal((60, 3)), 0)
    assert cloud.groups == 1
    assert 2 <= cloud.shown <= 4
    assert divided(np.zeros((60, 2)), 0).shown == 1
    assert abs(agreement(planted, rng.permutation(planted))) < 0.15


def test_a_number_of_groups_is_stated_only_where_other_starts_find_them_too() -> None:
    group = np.arange(60) % 4
    division = Division(group, 4, 0.7)
    assert clear_groups(division, 0.65) == 4
    assert clear_groups(division, 0.35) == 1
    assert clear_groups(Division(group, 1, 0.3), 0.9) == 1
    parts = [Group(users=15, overruled=None)] * 4

    def said(groups: int, silhouette: float, stability: float) -> str:
        return border(
            AuditRecord.model_construct(
                groups=groups, silhouette=silhouette, group_stability=stability, groups_shown=parts
            )
        )

    assert said(4, 0.7, 0.9).startswith("The weights show 4 groups; other starts")
    assert "(stability 0.90;" in said(4, 0.7, 0.9)
    unstable = said(1, 0.7, 0.35)
    assert unstable.startswith("There are no clear groups: other starts of the fit divide people")
    assert "(stability 0.35;" in unstable
    assert "4 groups" not in unstable
    assert said(1, 0.3, 0.35).startswith("There is no sharp border")


def test_two_camps_on_common_pairs_are_found_and_one_taste_is_not() -> None:
    for share, wanted in ((0.5, True), (0.0, False)):
        overlap = Overlap.of(made(share=share, per=20).answers)
        assert overlap is not None
        one = OneTaste.fitted(overlap)
        value = overlap.statistic(overlap.label)
        for null in (
            [overlap.statistic(one.bootstrap(0, n)) for n in range(39)],
            [overlap.statistic(overlap.permuted(0, n)) for n in range(39)],
        ):
            assert (p_of(value, np.array(null)) <= 0.05) == wanted


def test_eigenvalues_of_many_users_are_those_of_the_whole_matrix() -> None:
    overlap = Overlap.of(made(users=60, per=10).answers)
    assert overlap is not None
    residual = overlap.residuals(overlap.label)
    values, axis = overlap.eigen(residual, 3)
    table = np.zeros(overlap.size)
    table[overlap.user, overlap.pair] = residual
    matrix = table @ table.T
    np.fill_diagonal(matrix, 0.0)
    wanted, vectors = np.linalg.eigh(matrix)
    assert values.tolist() == pytest.approx(wanted[::-1][:3].tolist(), rel=5e-3)
    assert abs(axis @ vectors[:, -1]) > 0.99


def test_sides_on_which_things_are_shown_mean_nothing() -> None:
    first, second = np.array([0, 3, 2]), np.array([1, 1, 0])
    user, group = np.array([0, 0, 1]), np.zeros(3, int)
    one = oriented(first, second, user, np.array([1.0, 0.25, 0.0]), group, group, 4)
    other = oriented(second, first, user, np.array([0.0, 0.75, 1.0]), group, group, 4)
    assert one.first.tolist() == other.first.tolist() == [0, 1, 0]
    assert one.label.tolist() == other.label.tolist() == [1.0, 0.75, 1.0]
    assert one.place.tolist() == [-p for p in other.place.tolist()]


def test_users_with_the_same_ten_answers_are_one() -> None:
    base = made(users=3, per=12, things=12).answers
    user = np.concatenate([base.user, np.full(12, 3), np.full(4, 4)])
    again = np.flatnonzero(base.user == 1)
    picked = np.concatenate([np.arange(len(base)), again, again[:4]])
    every = oriented(
        base.first[picked], None, user, base.label[picked], base.group[picked],
        base.group[picked], 12,
    )  # fmt: skip
    assert every.copies().tolist() == [3]


def test_shares_of_a_page_are_counted() -> None:
    thing, user = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])
    answers = oriented(thing, None, user, np.array([1.0, 1.0, 0.0, 0.5]), thing, thing, 2)
    judged_by = Judged.of(answers, np.array([0, 0, 1]), None)
    assert judged_by.share(0, 0) == (1.0, 2)
    assert judged_by.share_of_others(0, 0) == (0.0, 1)
    assert judged_by.share(1, 1) == (None, 0)


TRAPS: dict[str, Any] = {
    "one person": "1 person alone cannot differ",
    "all ties": "answers are ties",
    "one prompt": "1 prompt group",
}


def trapped(trap: str) -> Made:
    one = made(users=4, per=10, things=12)
    a = one.answers
    if trap == "one person":
        return one._replace(answers=a.only(a.user == 0))
    if trap == "all ties":
        return one._replace(answers=a.with_labels(np.full(len(a), 0.5)))
    nothing = np.zeros(len(a), np.int64)
    return one._replace(
        answers=oriented(a.first, None, a.user, a.label, nothing, nothing, a.things)
    )


@pytest.mark.parametrize("trap", TRAPS)
def test_what_cannot_be_audited_is_said(trap: str, tmp_path: Path) -> None:
    from pal.audit.limits import why_not

    one = trapped(trap)
    found = examined(tmp_path, one)
    assert found.features is None
    assert TRAPS[trap] in why_not(one.answers, AuditConfig(), True)


def test_people_with_nothing_in_common_are_audited_by_features_alone(tmp_path: Path) -> None:
    one = made(users=6, per=10, things=60, compared=True)
    first = np.arange(60)
    a = oriented(first, None, first % 6, one.answers.label, first, first, 60)
    found = examined(tmp_path, one._replace(answers=a))
    assert found.overlap is None
    assert found.features is not None


@pytest.fixture
def simulated(configure: Any) -> Any:
    """Return a function that prepares and caches planted groups and gives the command's options."""
    from pal import pipeline

    def prepare(groups: int) -> list[str]:
        sizes = {
            "dim": 4, "groups": groups, "users": 8, "unseen_users": 1, "validation_users": 1,
            "pairs_per_user": 30,
        }  # fmt: skip
        options = {f"data.simulated.{key}": value for key, value in sizes.items()}
        options |= {"dataset": "simulated", "encoder": "identity"}
        pipeline.embed(configure(options), tell=lambda line: None)
        told = {**options, "audit.overlap_draws": 19}
        told |= {
            f"data.simulated.{key}": 5
            for key in ("validation_pairs_per_user", "test_pairs_per_user")
        }
        return [part for key, value in told.items() for part in ("--set", f"{key}={value}")]

    return prepare


def test_the_command_prints_what_the_contract_says_and_goes_on(simulated: Any) -> None:
    options = ["audit", "--permutations", "19", "--json", *simulated(2)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    names = (
        "name dataset encoder verdict gain_nats gain_ci95 gain_points gain_points_ci95 p_overlap "
        "p_features permutations groups smallest_share users answers careless_share "
        "krippendorff_alpha seconds"
    )
    assert set(names.split()) <= set(told)
    assert told["verdict"] == "plural"
    assert told["p_overlap"] is None
    assert told["smallest_share"] is None
    folder = Path("audits/simulated-identity")
    page = (folder / "audit.md").read_text()
    assert page.startswith("# Audit of simulated\n\n**Plural")
    before = (folder / "audit.json").read_bytes()
    assert CliRunner().invoke(app, options).exit_code == 0
    assert (folder / "audit.json").read_bytes() == before
    (folder / "audit.md").write_text("changed")
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 0
    assert (folder / "audit.md").read_text() == page
    record = AuditRecord.read(folder)
    assert record.gain_nats == told["gain_nats"]
    assert f"{told['gain_points']:+.1f} points of accuracy" in told["sentence"]
    assert "--power" not in " ".join(told["limits"])  # it was seen
    assert told["gain_points"] > 1.0  # hundredths, as its name says
    low, high = told["gain_points_ci95"]
    assert low < told["gain_points"] < high


def counting_draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every draw that is computed from now on adds its number."""
    drawn: list[int] = []
    usual = Ledger.take

    def take(self: Ledger, kind: str, count: int, compute: Any, progress: Any) -> Any:
        def counted(missing: Any) -> Any:
            drawn.extend(missing)
            return compute(missing)

        return usual(self, kind, count, counted, progress)

    monkeypatch.setattr(Ledger, "take", take)
    return drawn


def test_an_audit_of_an_earlier_version_is_made_again_from_its_draws(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["audit", "--permutations", "19", "--json", *simulated(2)]
    folder = Path("audits/simulated-identity")
    with monkeypatch.context() as patched:
        patched.setattr(AuditRecord, "version", 1)
        assert CliRunner().invoke(app, options).exit_code == 0
    with pytest.raises(EvaluationError, match="has version 1"):
        AuditRecord.read(folder)
    drawn = counting_draws(monkeypatch)
    assert CliRunner().invoke(app, options).exit_code == 0
    assert drawn == []
    assert AuditRecord.read(folder).verdict == "plural"


def test_what_was_there_stays_until_the_new_audit_is_whole(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["audit", "--permutations", "19", "--json", *simulated(2)]
    assert CliRunner().invoke(app, options).exit_code == 0
    folder = Path("audits/simulated-identity")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop(*rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pal.audit.report._record", stop)
        assert CliRunner().invoke(app, [*options, "--set", "seed=1"]).exit_code != 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    unfinished = folder.parent / f".{folder.name}.draws.unfinished"
    assert unfinished.is_file()

    drawn = counting_draws(monkeypatch)
    assert CliRunner().invoke(app, [*options, "--set", "seed=1"]).exit_code == 0
    assert drawn == []
    assert not unfinished.exists()
    assert (folder / "audit.json").read_bytes() != before["audit.json"]


def test_errors_are_one_sentence(simulated: Any) -> None:
    options = ["audit", "--permutations", "19", *simulated(1)]
    for extra, wanted in (
        (["--by", "nowhere"], "no such column"),
        (["--name", "a/b"], "cannot be the name of an audit"),
    ):
        failed = CliRunner().invoke(app, [*options, *extra])
        assert wanted in str(failed.exception)
    Path("audits/taken").mkdir(parents=True)
    Path("audits/taken/mine.txt").write_text("mine")
    failed = CliRunner().invoke(app, [*options, "--name", "taken"])
    assert isinstance(failed.exception, EvaluationError)
    assert Path("audits/taken/mine.txt").read_text() == "mine"


def test_without_features_a_file_is_all_that_is_needed(configure: Any) -> None:
    from pal import pipeline

    options = {
        "dataset": "demo", "data.demo.groups": 2, "data.demo.users": 12, "data.demo.limit": 40,
        "data.demo.pairs_per_user": 20, "audit.features": False, "audit.overlap_draws": 39,
        "audit.workers": 1,
    }  # fmt: skip
    config = configure({**options, "data.demo.limit": None})
    record = pipeline.audit(config, tell=lambda line: None)  # nor is anything prepared
    assert Path("data/demo/items.parquet").is_file()
    assert record.encoder is None
    assert record.p_features is None
    assert record.name == "demo-no-features"


def test_which_source_holds_the_plurality(tmp_path: Path) -> None:
    one = made(users=20, per=20, things=40)
    other = made(seed=5, users=20, per=20, things=40, share=0.4)
    a, b = one.answers, other.answers
    joined = oriented(
        np.concatenate([a.first, b.first + a.things]), None, np.concatenate([a.user, b.user + 20]),
        np.concatenate([a.label, b.label]), np.concatenate([a.group, b.group + a.things]),
        np.concatenate([a.other, b.other + a.things]), 2 * a.things,
        ["calm"] * len(a) + ["torn"] * len(b),
    )  # fmt: skip
    both = Made(joined, torch.cat([one.points, other.points]), one.opposed)
    found = examined(tmp_path, both).features
    assert found is not None
    calm, torn = found.p_parts
    assert torn <= 0.05 < calm
    assert found.gain.parts[1].nats is not None
    assert found.gain.parts[1].nats.value > 0.0
