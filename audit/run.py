"""An audit from end to end: test A, test B, what people disagree about, test C, the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from pal.audit.answers import Answers
from pal.audit.content import Judged
from pal.audit.cross_fit import CrossFit
from pal.audit.describe import careless_share, majority_labels, overruled
from pal.audit.drawing import Drawing
from pal.audit.features import Features, features_of
from pal.audit.groups import STARTS, Division, Tastes, agreement, divided
from pal.audit.ledger import Ledger
from pal.audit.load import Loaded
from pal.audit.measure import Gain, measured
from pal.audit.nulls import Population, are_pairs, exchanged, exchanged_labels, strata
from pal.audit.overlap_test import OverlapFound, OverlapTest
from pal.audit.power import PLANTINGS, Instrument, p_of
from pal.audit.record import Planting
from pal.audit.search import answers_per_user, search_overlap, search_power
from pal.config import AuditConfig
from pal.train.sharing import Array, Numbers

Progress = Callable[[int], None]
FEWEST_USERS, FEWEST_GROUPS = 2, 2
"""for test B"""
OF_OVERLAP = 0.02
"""of a draw of test B: what a draw of test A counts in the progress"""


def steps_of(settings: AuditConfig) -> int:
    """Return how many steps of progress an audit reports, about."""
    overlap = round(2 * OF_OVERLAP * settings.overlap_draws)
    power = 2 * 3 * PLANTINGS if settings.power else 0
    return overlap + power + (2 * settings.permutations if settings.features else 0)


@dataclass(frozen=True)
class FeaturesFound:
    """What test B says."""

    gain: Gain
    null: Array
    """(draws,) gains at the default strength under one taste"""
    p: float
    p_permutation: float
    strata: str
    p_parts: list[float]
    population: Population
    features: Features
    held: Numbers
    """(m,) answers that were held out"""


@dataclass(frozen=True)
class Shown:
    """Who is alike, and how they judge things."""

    division: Division
    stability: float | None
    tastes: Tastes | None
    judged: Judged
    overruled: list[float]
    """share of each group's answers that one label for each pair would contradict"""
    axis: Array
    """(N, A) where users are drawn"""


@dataclass(frozen=True)
class Findings:
    """Everything that the tests found; what could not be done is None."""

    loaded: Loaded
    overlap: OverlapFound | None
    features: FeaturesFound | None
    tastes: Tastes | None
    shown: Shown | None
    power: list[Planting] | None
    careless: float | None
    overruled: float
    overruled_users: float
    seconds: float


@dataclass
class Audit:
    """The tests of one dataset, each from what the ledger has of it."""

    loaded: Loaded
    settings: AuditConfig
    seed: int
    ledger: Ledger
    progress: Progress
    drawing: Drawing

    @cached_property
    def answers(self) -> Answers:
        """Those that are no ties."""
        return self.loaded.answers.decided()

    def run(self) -> Findings:
        began = time.perf_counter()
        test = self._overlap_test()
        overlap = None if test is None else test.run(self.settings.overlap_draws)
        cross_fit = instrument = features = tastes = None
        if self.loaded.points is not None and self._is_enough():
            cross_fit, instrument, z = self._instrument(self.loaded.points)
            features = self._features(cross_fit, instrument, z)
            tastes = self._tastes(features, None)
        power = None
        if self.settings.power and instrument is not None and features is not None:
            power = search_power(instrument, features.null)
        elif self.settings.power and not self.settings.features and test and overlap:
            power = search_overlap(test, overlap, answers_per_user(self.answers))
        label = majority_labels(self.answers, self._expected(features))
        lost = overruled(self.answers, label, np.zeros(self.answers.users, np.int64))
        careless = None
        if features is not None and tastes is not None:
            careless = careless_share(features.population, tastes.told)
        shown = self._shown(features, tastes, test, overlap, label)
        return Findings(
            self.loaded, overlap, features, tastes, shown, power, careless, lost.answers,
            lost.users, time.perf_counter() - began,
        )  # fmt: skip

    def _is_enough(self) -> bool:
        a = self.answers
        is_tied = bool((a.label == 0.5).all())
        return a.users >= FEWEST_USERS and a.groups >= FEWEST_GROUPS and not is_tied

    def _overlap_test(self) -> OverlapTest | None:
        if bool((self.answers.label == 0.5).all()):
            return None
        owed = 0.0

        def advance(draws: int) -> None:
            nonlocal owed
            owed += OF_OVERLAP * draws
            if owed >= 1.0:
                self.progress(int(owed))
                owed -= int(owed)

        return OverlapTest.of(self.answers, self.ledger, self.seed, advance, self.drawing)

    def _instrument(self, points: torch.Tensor) -> tuple[CrossFit, Instrument, Features]:
        features = features_of(points, self.seed)
        population = Population.fitted(self.answers, features.z)
        cross_fit = CrossFit(
            self.answers, features.z, self.seed, population.spreads, self.settings.folds
        )
        return (
            cross_fit,
            Instrument(
                cross_fit, population, self.ledger, self.seed, self.progress, drawing=self.drawing
            ),
            features,
        )

    def _features(
        self, cross_fit: CrossFit, instrument: Instrument, features: Features
    ) -> FeaturesFound | None:
        if not cross_fit.folds:
            return None
        draws = self.settings.permutations
        gain = measured(cross_fit)
        null = instrument.null(draws)
        stratum, name = strata(self.answers, features.z, self.seed)
        other = self._exchanged(instrument, stratum)
        value = gain.default.value
        parts = [
            1.0 if part.nats is None else p_of(part.nats.value, null[:, 1 + number])
            for number, part in enumerate(gain.parts)
        ]
        return FeaturesFound(
            gain, null[:, 0], p_of(value, null[:, 0]), p_of(value, other), name, parts,
            instrument.population, features, cross_fit.rows,
        )  # fmt: skip

    def _exchanged(self, instrument: Instrument, stratum: Numbers) -> Array:
        """Return the gains where users are exchanged within strata, (draws,)."""
        answers, seed, draws = self.answers, self.seed, self.settings.permutations
        if not are_pairs(answers, stratum):
            return instrument.exchanged(draws, partial(exchanged, answers, stratum, seed))
        found = instrument.measured(
            "permutation", draws, partial(exchanged_labels, answers, stratum, seed)
        )
        gains: Array = found[:, 0]
        return gains

    def _tastes(self, found: FeaturesFound | None, start: int | None) -> Tastes | None:
        if found is None:
            return None
        return Tastes.fitted(
            self.answers, found.features.z, found.gain.strength, found.population.spreads, start
        )

    def _expected(self, found: FeaturesFound | None) -> Array | None:
        return None if found is None else found.population.expected(self.answers)

    def _shown(
        self,
        features: FeaturesFound | None,
        tastes: Tastes | None,
        test: OverlapTest | None,
        overlap: OverlapFound | None,
        label: Array,
    ) -> Shown | None:
        """Return who is alike; without features, the two ends of the first direction of test A."""
        answers = self.answers
        if tastes is not None:
            division = divided(tastes.positions, self.seed)
            if division.shown < 2:
                return None
            others = [self._tastes(features, start) for start in STARTS[1:]]
            groups = [divided(one.positions, self.seed).group for one in others if one is not None]
            stability = float(np.mean([agreement(division.group, group) for group in groups]))
            judged = Judged.of(answers, division.group, tastes)
            lost = overruled(answers, label, division.group).groups
            return Shown(division, stability, tastes, judged, lost, tastes.positions)
        if test is None or overlap is None or self.settings.features:
            return None
        known = np.isin(answers.user, test.overlap.users)
        group = (overlap.axis > 0).astype(np.int64)
        if len(np.unique(group)) < 2:
            return None
        some = answers.only(known)
        judged = Judged.of(some, group, None)
        lost = overruled(some, label[known], group).groups
        division = Division(group, 1, 0.0)
        return Shown(division, None, None, judged, lost, overlap.axis.reshape(-1, 1))


def sizes(group: Numbers) -> list[int]:
    return [int(count) for count in np.bincount(group)]
