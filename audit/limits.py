"""What an audit does not say, in sentences."""

from __future__ import annotations

import numpy as np

from pal.audit.answers import Answers
from pal.audit.power import LEVEL
from pal.audit.record import Verdict
from pal.audit.run import FEWEST_GROUPS, FEWEST_USERS, Findings
from pal.cache.reader import FeatureStore
from pal.config import AuditConfig
from pal.dataset import FEWEST, PreparedDataset

FEW_GROUPS, FEW_ANSWERS = 20, 10
"""prompt groups below which intervals hang on single prompts, and answers of the median user below
which little is known of anybody"""


def why_not(answers: Answers, settings: AuditConfig, is_missing: bool) -> str:
    """Return why the test that decides cannot be done."""
    if answers.users < FEWEST_USERS:
        return f"{answers.users} person alone cannot differ from others"
    if bool((answers.label == 0.5).all()):
        return f"all {len(answers):,} answers are ties"
    if not settings.features:
        return "too few people judged the same pairs; without --no-features none need to"
    if answers.groups < FEWEST_GROUPS:
        return (
            f"all answers are about {answers.groups} prompt group, so none can be held out that is "
            "about something else"
        )
    return "no part of the prompts can be held out" if is_missing else ""


def limits_of(
    settings: AuditConfig,
    dataset: PreparedDataset,
    store: FeatureStore | None,
    found: Findings,
    verdict: Verdict,
) -> list[str]:
    """Return what limits the verdict, a sentence each."""
    loaded, a, b = found.loaded, found.overlap, found.features
    answers = loaded.answers
    lines = [
        f"It speaks of these {answers.users:,} people and of prompts like these "
        f"{answers.groups:,} groups."
    ]
    if store is not None and store.manifest.untrained:
        lines.append(f"The encoder {store.manifest.encoder} has random weights (untrained).")
    lines += _of_people(answers, loaded.copies, loaded.left_out)
    if b is not None:
        lines.append(
            f"p cannot be below {1 / (1 + settings.permutations):.3f}: more --permutations would "
            "show more."
        )
        if b.features.variance < 0.985:
            lines.append(
                f"Of the features {b.features.variance:.0%} of the variance is read, in "
                f"{b.features.z.shape[1]} directions."
            )
        missed = len(answers.decided()) - len(b.held)
        if missed:
            lines.append(
                f"{missed:,} answers compare items of different parts and were not held out."
            )
    elif settings.features:
        lines.append("The test that reads features could not be done.")
    if a is None:
        lines.append(
            "Too few people judged the same pairs for the test of overlap; what a majority would "
            "say of a pair that one person judged is what one taste prefers."
        )
    if a is not None and b is not None and (a.p <= LEVEL) != (b.p <= LEVEL):
        lines.append(
            "On common pairs people agree beyond one taste (test A), but these features do not "
            "carry it to other prompts: it is the encoder, or the number of prompts, that lacks "
            "plurality, not the people."
            if a.p <= LEVEL
            else "Test A alone, on common pairs, would not have seen it."
        )
    if settings.by is not None and not settings.features:
        lines.append("Sources (--by) are compared by the test that reads features alone.")
    if found.power is None and not settings.power and verdict != "plural":
        lines.append("Which minority would have been found is not known; use --power.")
    return lines


def _of_people(answers: Answers, copies: int, left_out: int) -> list[str]:
    lines = []
    median = float(np.median(np.bincount(answers.user)))
    if answers.users < FEWEST:
        lines.append(f"{answers.users} people are too few for groups.")
    if answers.groups < FEW_GROUPS:
        lines.append(f"{answers.groups} prompt groups are few: the intervals hang on single ones.")
    if median < FEW_ANSWERS:
        lines.append(
            f"The median person gave {median:.0f} answers: who is careless can hardly be told, so "
            "the share of careless people is a lower bound."
        )
    ties = float((answers.label == 0.5).mean())
    if ties > 0:
        lines.append(f"{ties:.1%} of the answers are ties: they say nothing and are not tested.")
    if copies:
        lines.append(
            f"{copies:,} people were left out, as all their answers, ten or more, are another's."
        )
    if left_out:
        lines.append(
            f"{left_out:,} answers were left out, as an item has no feature or there is no prompt."
        )
    return lines
