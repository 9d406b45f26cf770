"""The prior's strength and spread, chosen on validation users."""

from __future__ import annotations

import torch

from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior, Spread, make_prior
from pal.train.heads.head import Head
from pal.train.loss import logistic

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SPREADS: tuple[Spread, ...] = ("isotropic", "empirical", "community")


@torch.no_grad()
def tune_prior(head: Head, shots: Answers, judged: Answers) -> Prior:
    """Choose strength and spread by the likelihood of validation users' judged pairs after their
    shots."""
    if head.users.has_prior:  # it is part of the head
        return make_prior(head, 1.0)
    best: tuple[float, Prior] | None = None
    for spread in SPREADS:
        for strength in STRENGTHS:
            prior = make_prior(head, strength, spread)
            vectors = adapt_map(head, shots, prior).vectors
            margin = head.prepared_margin(judged.prepared, vectors, judged.user)
            loss = float(logistic(margin, judged.label).mean())
            if best is None or loss < best[0]:
                best = (loss, prior)
    assert best is not None
    return best[1]
