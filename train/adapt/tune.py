"""The prior's strength and spread, chosen on validation users."""

from __future__ import annotations

import torch

from pal.train.adapt.answers import Answers
from pal.train.adapt.average import Belief, likelihood_of_seen
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior, Spread, make_prior
from pal.train.heads.head import Head
from pal.train.loss import logistic

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SPREADS: tuple[Spread, ...] = ("isotropic", "empirical", "community")


@torch.no_grad()
def tune_prior(head: Head, shots: Answers, judged: Answers) -> Prior:
    """Choose strength and spread by the likelihood of validation users' judged pairs after their
    shots, as they are predicted later: by an average over who each may be."""
    if head.users.has_prior:  # it is part of the head
        return make_prior(head, 1.0)
    likelihood_UN, as_seen_B = likelihood_of_seen(head, shots), None
    best: tuple[float, Prior] | None = None
    for spread in SPREADS:
        for strength in STRENGTHS:
            prior = make_prior(head, strength, spread)
            adapted = adapt_map(head, shots, prior, with_covariance=True)
            belief = Belief.of(head, shots, adapted, likelihood_UN)
            if as_seen_B is None:
                as_seen_B = belief.as_seen(head, judged)
            margin = belief.probability(head, judged, as_seen_B).logit(eps=1e-12)
            loss = float(logistic(margin, judged.label.double()).mean())
            if best is None or loss < best[0]:
                best = (loss, prior)
    assert best is not None
    return best[1]
