"""People of whom little is known: one average over who they may be, on every road."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pal import pipeline
from pal.config import AdaptConfig, Config, TrainConfig
from pal.errors import TrainError
from pal.evaluate import few_shot
from pal.evaluate.crossed import Crossing
from pal.evaluate.few_shot import NewUsers, Trial
from pal.evaluate.hull import grow_run
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.panel import few_shot as judge_few_shot
from pal.evaluate.panel import share_harmed
from pal.evaluate.predict import load_run, metrics_of, predict_cells
from pal.train.adapt import average
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import Belief, predictive, seen_vectors
from pal.train.adapt.map import adapt_map, evidence
from pal.train.adapt.prior import make_prior
from pal.train.build import build_head, resolve
from pal.train.heads.head import Head
from pal.train.loss import logistic
from pal.train.run_record import TrainedHead

Configure = Callable[..., Config]
DIM, USERS, K = 4, 6, 3


def head_of(name: str, **settings: Any) -> Head:
    torch.manual_seed(0)
    head = build_head(TrainConfig(head=name, k=K, **settings), DIM, USERS).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return head.requires_grad_(False)


def answers_of(head: Head, users: int, each: int, seed: int = 1) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    prompt, first, second = torch.randn(3, users * each, DIM, generator=generator)
    label = torch.randint(0, 2, (users * each,), generator=generator).float()
    with torch.no_grad():
        prepared = head.prepare(prompt, first, second)
    return Answers(prepared, label, torch.arange(users).repeat_interleave(each), users)


@pytest.mark.parametrize(
    ("name", "settings"), [("pal-b", {}), ("lore", {}), ("pal-a", {"priors": "auto"})]
)
def test_a_belief_is_the_equation(name: str, settings: dict[str, Any]) -> None:
    """Pair by pair, the derivative by autograd and nothing shared with the code but the margin."""
    head = head_of(name, **settings)
    shots, pairs = answers_of(head, 3, 4), answers_of(head, 3, 5, seed=2)
    adapted = adapt_map(head, shots, make_prior(head, 0.5), with_covariance=True)
    belief = Belief.of(head, shots, adapted)
    found = belief.probability(head, pairs)
    assert adapted.covariance is not None

    def margin(answers: Answers, row: int, vector: torch.Tensor) -> torch.Tensor:
        one = answers.take(torch.tensor([row])).prepared
        return head.prepared_margin(one, vector[None], torch.zeros(1, dtype=torch.long))[0]

    for row, user in enumerate(pairs.user.tolist()):
        own = (shots.user == user).nonzero().squeeze(1).tolist()
        fits = []
        for vector in seen_vectors(head):
            misfit = [logistic(margin(shots, r, vector), shots.label[r]) for r in own]
            fits.append(-torch.stack(misfit).sum().double())
        fit_N = torch.stack(fits).detach()
        of_seen = float(fit_N.logsumexp(dim=0)) - math.log(USERS)
        share = 1.0 / (1.0 + math.exp(float(evidence(head, shots, adapted)[user]) - of_seen))
        likes = torch.stack([margin(pairs, row, v).sigmoid() for v in seen_vectors(head)])
        as_seen = float((fit_N.softmax(dim=0) * likes.detach()).sum())
        logits = adapted.logits[user].clone().requires_grad_()
        middle = margin(pairs, row, head.users.of_logits(logits[None])[0])
        (slope,) = torch.autograd.grad(middle, logits)
        variance = float(slope @ adapted.covariance.whole()[user] @ slope)
        as_other = torch.sigmoid(middle.detach() / math.sqrt(1.0 + math.pi * variance / 8.0))
        wanted = share * as_seen + (1.0 - share) * float(as_other)
        assert float(found[row]) == pytest.approx(wanted, abs=1e-4)


def test_a_belief_does_not_depend_on_how_many_rows_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = head_of("pal-b")
    shots, pairs = answers_of(head, 3, 4), answers_of(head, 3, 5, seed=2)
    adapted = adapt_map(head, shots, make_prior(head, 0.5), with_covariance=True)
    whole = Belief.of(head, shots, adapted).probability(head, pairs)
    monkeypatch.setattr(average, "ROWS_AT_ONCE", 2)
    parts = Belief.of(head, shots, adapted).probability(head, pairs)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(predictive(head, shots, pairs, adapted).sigmoid(), whole)


@pytest.fixture
def trial(configure: Configure) -> tuple[Config, Trial]:
    config = configure({"dataset": "simulated", "encoder": "identity", "train.head": "lore"})
    pipeline.embed(config, tell=lambda line: None)
    pipeline.train(config, "one", tell=lambda line: None)
    trained = load_run(config.paths.runs, "one")
    return config, Trial(trained, *inputs_of_run(config.paths, trained.metadata))


def with_head(trial: Trial, name: str, **settings: Any) -> Trial:
    """Put a random head with large numbers in the place of the trained one."""
    was = trial.trained
    train = resolve(TrainConfig(head=name, **settings))
    torch.manual_seed(0)
    head = build_head(train, was.metadata.dim, len(was.users)).eval()
    head.users.logits.data = torch.randn_like(head.users.logits)
    for parameter in head.parameters():
        parameter.data *= 4.0
    return trial._replace(
        trained=TrainedHead(head, was.metadata.model_copy(update={"train": train}))
    )


@pytest.mark.parametrize("name", ["vpl", "mrm", "lore", "bt-mlp"])
def test_strangers_are_told_the_same_by_evaluation_and_by_adaptation(
    trial: tuple[Config, Trial], name: str
) -> None:
    config, one = trial[0], with_head(trial[1], name)
    predictions = predict_cells(*one)
    tested = one.dataset.pairs("test")
    metrics = metrics_of(config.evaluate, one.trained.metadata, predictions, tested, one.store)
    settings = AdaptConfig(shots=(0, 1), repeats=1)
    cell = judge_few_shot(settings, config.evaluate, [one]).cells["0"]
    assert cell.n_pairs == metrics.test_unseen["0"].n_pairs
    assert cell.nll == pytest.approx(metrics.test_unseen["0"].nll, abs=1e-5)


def test_the_released_protocol_adapts_by_the_loss_of_the_training(
    trial: tuple[Config, Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, one = trial[0], with_head(trial[1], "pal-a", loss="hinge")
    seen: list[str] = []
    original = few_shot.adapt_sgd

    def watched(head: Any, shots: Any, seed: int, judged: Any, loss: str) -> Any:
        seen.append(loss)
        return original(head, shots, seed, judged, loss)

    monkeypatch.setattr(few_shot, "adapt_sgd", watched)
    settings = AdaptConfig(shots=(1,), repeats=1, protocol="released")
    judge_few_shot(settings, config.evaluate, [one])
    assert seen == ["hinge"]


def test_rounding_harms_nobody() -> None:
    """Ten draws that change no answer, labels that are shares of annotators."""
    generator = np.random.default_rng(0)
    credits = generator.choice([0.3, 0.7, 1 / 3, 0.9], 1400)
    answers = Crossing(np.repeat(np.arange(200), 7), np.arange(1400) % 5)
    before = answers.user_means(credits)
    after = answers.repeated(10).user_means(np.tile(credits, 10))
    assert (after < before).any(), "there is something to be misled by"
    assert share_harmed(after, before) == 0.0
    assert share_harmed(before - np.array([0.1] + [0.0] * 199), before) == 1 / 200


def test_one_seen_user_has_no_spread_and_no_nan() -> None:
    head = build_head(TrainConfig(head="lore", k=2), DIM, 1).eval()
    prior = make_prior(head, 0.3, "empirical")
    torch.testing.assert_close(prior.precision, 0.3 * torch.eye(2))


def test_who_has_no_question_left_is_not_given_the_answer_of_another() -> None:
    head = head_of("pal-a")
    pool = answers_of(head, 2, 2).take(torch.tensor([0, 2, 3]))
    asked = torch.tensor([[0, 1], [-1, 2]])
    users = NewUsers(["a", "b"], pool, pool, np.zeros((2, 3)), np.zeros(3), "v1", asked)
    assert users.shots(2, 0).user.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("pal-a", {"priors": "auto"}, "pal-a was trained under train.priors = 'auto', where no"),
        ("lore", {}, "head lore has no prototypes to add to; grow pal-a or pal-b"),
    ],
)
def test_heads_that_cannot_grow_say_so(
    trial: tuple[Config, Trial], name: str, settings: dict[str, Any], words: str
) -> None:
    config, one = trial[0], with_head(trial[1], name, **settings)
    with pytest.raises(TrainError, match=words):
        grow_run(*one, config.paths.runs, 1, 0, {})
