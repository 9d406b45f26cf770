"""The audit of odd data: few features, soft labels, people who were asked twice, odd columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from pal import pipeline
from pal.audit.answers import Answers, oriented
from pal.audit.describe import disagreement, krippendorff_alpha, majority_labels
from pal.audit.drawing import Here
from pal.audit.ledger import DRAWS, Ledger
from pal.audit.load import Loaded
from pal.audit.nulls import drawn_labels
from pal.audit.power import p_of
from pal.audit.record import AuditPlan
from pal.audit.run import Audit
from pal.cache.reader import FeatureStore
from pal.config import AuditConfig, Config
from pal.errors import EvaluationError


def votes(things: int, users: int = 10) -> Answers:
    """Return votes of all users on all things."""
    thing, user = np.tile(np.arange(things), users), np.repeat(np.arange(users), things)
    label = (np.random.default_rng(0).random(len(user)) < expit(thing - things / 2)).astype(float)
    return oriented(thing, None, user, label, thing, thing, things)


@pytest.mark.parametrize(
    "points",
    [torch.zeros(6, 4), torch.ones(6, 1), torch.arange(6.0).view(6, 1), torch.eye(2)],
    ids=["none", "all alike", "one number", "two things"],
)
def test_features_of_few_directions_are_audited(points: torch.Tensor, tmp_path: Path) -> None:
    answers = votes(len(points))
    settings = AuditConfig(permutations=19, overlap_draws=19)
    loaded = Loaded(answers, [], [""] * answers.things, None, points, 0, 0)
    ledger = Ledger(tmp_path / DRAWS, "test")
    found = Audit(loaded, settings, 0, ledger, lambda steps: None, Here(1)).run().features
    assert found is not None
    assert np.isfinite([found.gain.default.value, *found.null]).all()
    assert found.p > 0.05


def test_draws_of_soft_labels_are_on_average_what_their_margins_say() -> None:
    soft = np.tile([0.2, 0.8, 0.35, 1.0], 10_000)
    for margin in (-0.8, 0.3):
        drawn = drawn_labels(np.full(len(soft), margin), soft, np.random.default_rng(0))
        half = np.abs(soft[:4] - 0.5)  # as far as such a label can be from one half
        wanted = np.clip(expit(margin), 0.5 - half, 0.5 + half)
        assert drawn.reshape(-1, 4).mean(axis=0) == pytest.approx(wanted, abs=0.02)


def test_what_is_no_number_is_never_more_than_chance() -> None:
    assert p_of(float("nan"), np.zeros(19)) == 1.0
    assert p_of(1.0, np.full(19, np.nan)) == 1.0


def test_what_somebody_said_twice_is_not_what_two_people_said() -> None:
    thing = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    user = np.array([0, 0, 1, 1, 0, 0, 0, 1])
    label = np.array([1, 0, 1, 1, 1, 1, 1, 0], float)
    answers = oriented(thing, None, user, label, thing, thing, 3)
    assert disagreement(answers) == 1.0  # both judged the last thing alone, and differ
    expected = np.array([-1.0, -1.0, 1.0])
    assert majority_labels(answers, expected).tolist() == [0.0] * 4 + [0.5] * 4
    apart = answers.only(thing < 2)
    assert disagreement(apart) is None
    assert krippendorff_alpha(apart) is None


@pytest.fixture
def asked(configure: Any, tmp_path: Path) -> Config:
    """Return settings for a small file of answers that is prepared and embedded."""
    lines, rng = ["prompt,chosen,rejected,user_id"], np.random.default_rng(0)
    for user in range(8):
        for n in range(12):
            sides = [f"tea {n}", f"coffee {n}"][:: 1 if rng.random() < 0.6 else -1]
            lines.append(f"Drink {n}?,{sides[0]},{sides[1]},u{user}")
    source = tmp_path / "answers.csv"
    source.write_text("\n".join(lines))
    config: Config = configure(
        {"dataset": "pairs", "data.pairs.source": str(source), "encoder": "tiny-text",
         "audit.permutations": 19, "audit.overlap_draws": 19, "audit.workers": 1}
    )  # fmt: skip
    pipeline.embed(config, tell=lambda line: None)
    return config


@pytest.mark.parametrize(
    ("column", "wanted"), [("prompt_id", "ids or lists"), ("user_id", "8 different values")]
)
def test_a_column_that_names_no_sources_is_one_sentence(
    asked: Config, column: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pal.audit.load.MOST_PARTS", 7)
    by = asked.model_copy(update={"audit": asked.audit.model_copy(update={"by": column})})
    with pytest.raises(EvaluationError, match=wanted):
        pipeline.audit(by, tell=lambda line: None)


def test_an_audit_is_made_anew_when_other_items_have_features(
    asked: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = asked.paths.audits / "pairs-tiny-text" / AuditPlan.file
    pipeline.audit(asked, tell=lambda line: None)
    before = plan.read_bytes()
    pipeline.audit(asked, tell=lambda line: None)
    assert plan.read_bytes() == before
    names, order = FeatureStore.open(asked.paths.cache / "pairs" / "tiny-text")._sorted
    monkeypatch.setattr(FeatureStore, "_sorted", (names[1:], order[1:]))  # one of them failed
    pipeline.audit(asked, tell=lambda line: None)
    assert AuditPlan.read(plan.parent).identity not in before.decode()
