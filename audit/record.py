"""What an audit leaves on disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pal.errors import EvaluationError
from pal.names import FolderName, InnerPath
from pal.records import Entry, Record

Verdict = Literal["plural", "none seen", "cannot tell"]
Interval = tuple[float, float]
REMEDY = "run pal audit --name {name} again"


class AuditPlan(
    Record,
    kind="audit-plan",
    file="plan.json",
    beside="audit.json",
    error=EvaluationError,
    remedy=REMEDY,
):
    """``plan.json``: what an audit is made from."""

    dataset: FolderName
    encoder: FolderName | None
    identity: str
    """digest of everything that its draws depend on"""


class Part(Entry):
    """What test B finds in the answers of one source."""

    part: str
    answers: int
    users: int
    """who have answers there that were held out"""
    gain_nats: float | None
    """null where none was held out"""
    gain_ci95: Interval | None
    p: float
    p_holm: float
    """corrected for the number of parts"""


class Group(Entry):
    """Users who are alike."""

    users: int
    overruled: float | None
    """share of its answers that one label for each pair would contradict"""


class Planting(Entry):
    """The smallest share of users with another taste that would have been found four times in
    five."""

    other: Literal["opposite", "unrelated"]
    answers_per_user: float
    """median"""
    share: float | None
    """null: not even half of the users"""


class AuditRecord(
    Record, kind="audit", file="audit.json", version=2, error=EvaluationError, remedy=REMEDY
):
    """``audit.json``: the verdict and its numbers."""

    name: FolderName
    dataset: FolderName
    encoder: FolderName | None
    untrained: bool = False
    verdict: Verdict
    sentence: str
    limits: list[str]
    """what the verdict does not say, and what could not be done"""

    gain_nats: float | None
    """what the plural model gains on held-out answers, mean over users"""
    gain_ci95: Interval | None
    gain_points: float | None
    """the same in points of accuracy: 2.0 where 70 % right become 72 %"""
    gain_points_ci95: Interval | None
    users_who_gain: float | None
    strength: tuple[float, float] | None
    """(sigma, tau) of the gain that is told: chosen by cross-fitting; the null has (1, 1)"""
    gain_default: float | None
    """nats at (1, 1), which is what the null is compared with"""
    p_overlap: float | None
    """test A; null without overlap"""
    p_overlap_permutation: float | None
    overlap_users: int
    overlap_pairs: int
    directions: int | None
    """eigenvalues above 95 % of the null's largest"""
    p_features: float | None
    """test B by parametric bootstrap, which decides; null with --no-features"""
    p_permutation: float | None
    """the same by users exchanged within strata"""
    strata: str | None
    permutations: int
    """draws of each null of test B"""
    overlap_draws: int
    groups: int | None
    """that the fitted weights show; 1: none are clear, for users pass into each other, or other
    starts of the fit divide them otherwise"""
    silhouette: float | None
    group_stability: float | None
    """adjusted Rand index with divisions from other starts"""
    groups_shown: list[Group] = Field(default_factory=list)
    smallest_share: float | None
    """of users with the opposite taste; null without --power"""
    power: list[Planting] | None = None
    """null without --power"""
    power_asked: bool = False
    users: int
    copies: int
    """users left out, as their ten or more answers are exactly another's"""
    answers: int
    answers_left_out: int
    answers_per_user: float
    """median"""
    things: int
    prompt_groups: int
    disagreement: float | None
    """chance that two people differ about the same pair"""
    krippendorff_alpha: float | None
    median_reliability: float | None
    careless_share: float | None
    """users of less than half of the median's reliability whom no other taste tells either"""
    between_users: float | None
    """share of the variance of margins that lies between users"""
    overruled: float | None
    """share of the answers that one label for each pair would contradict"""
    overruled_users: float | None
    """share of the users for whom those are a third or more"""
    parts: list[Part] = Field(default_factory=list)
    seconds: float
    files: dict[InnerPath, str] = Field(default_factory=dict)
    """SHA-256 of the page, the pictures and the thumbnails"""
