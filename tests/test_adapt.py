"""New users: the prior, the batched solve, what stays frozen, active questions, growing, and the
few-shot protocol."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.optimize import minimize

from pal import pipeline
from pal.cache.reader import FeatureStore
from pal.config import AdaptConfig, Config, TrainConfig
from pal.data.sources.simulated import Simulated
from pal.dataset import PAIRS, DatasetCard, PreparedDataset
from pal.errors import EvaluationError, PalWarning, TrainError
from pal.evaluate.few_shot import new_users
from pal.evaluate.hull import grow_run, outside_users
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import load_run
from pal.evaluate.report import write_report
from pal.records import write_table
from pal.train.adapt.active import ask_in_turn
from pal.train.adapt.answers import Answers
from pal.train.adapt.descent import adapt_sgd
from pal.train.adapt.grow import grow, outside, surprise
from pal.train.adapt.map import SMALLEST_STEP, adapt_map, margins_and_slopes, probability
from pal.train.adapt.prior import make_prior
from pal.train.build import build_head
from pal.train.diagnose import warn_about_labels, warn_about_loss
from pal.train.heads.head import Head
from pal.train.loss import logistic
from pal.train.pairs import Batch, Pairs
from pal.train.run_record import TrainedHead

Configure = Callable[..., Config]
DIM, USERS, K = 6, 7, 3
ADAPTABLE = [
    ("pal-a", "squared"),
    ("pal-a", "angle"),
    ("pal-b", "angle"),
    ("lore", None),
    ("per-user", None),
]
every_adaptable = pytest.mark.parametrize(("name", "score"), ADAPTABLE)
SIMULATION = {
    "dataset": "simulated", "encoder": "identity", "train.head": "pal-a", "train.k": 3,
    "train.epochs": 40, "train.user_lr": 2e-2, "data.simulated.users": 60,
    "data.simulated.unseen_users": 30, "data.simulated.groups": 3,
    "data.simulated.pairs_per_user": 80, "data.simulated.validation_pairs_per_user": 40,
    "data.simulated.test_pairs_per_user": 40, "data.simulated.validation_users": 15,
}  # fmt: skip


def make(name: str = "pal-a", score: str | None = "squared") -> Head:
    torch.manual_seed(0)
    return build_head(TrainConfig(head=name, k=K, score=score), DIM, USERS).eval()  # type: ignore[arg-type]


def answers_of(head: Head, count: int = 60, users: int = USERS) -> Answers:
    generator = torch.Generator().manual_seed(3)
    prompt, first, second = torch.randn(3, count, DIM, generator=generator)
    user = torch.arange(count) % users
    label = (torch.rand(count, generator=generator) > 0.4).float()
    with torch.no_grad():
        return Answers(head.prepare(prompt, first, second), label, user, users)


@every_adaptable
def test_batched_solution_is_that_of_each_user_alone_by_another_solver(
    name: str, score: str | None
) -> None:
    head = make(name, score)
    answers, prior = answers_of(head), make_prior(head, 0.5)
    together = adapt_map(head, answers, prior).logits
    for user in (0, USERS - 1):
        rows = answers.take((answers.user == user).nonzero().squeeze(1))
        rows.user = torch.zeros_like(rows.user)

        def objective(raw: np.ndarray, rows: Answers = rows) -> float:
            logits = torch.tensor(raw, dtype=torch.float32)[None]
            margin = head.prepared_margin(rows.prepared, head.users.of_logits(logits), rows.user)
            away = logits[0] - prior.mean
            return float(
                (logistic(margin, rows.label).sum() + 0.5 * away @ prior.precision @ away).detach()
            )

        best = minimize(
            objective, together[user].numpy(), method="Nelder-Mead", options={"maxfev": 2000}
        )
        assert objective(together[user].numpy()) <= best.fun + 1e-3


@every_adaptable
def test_a_user_is_adapted_the_same_alone_and_among_others(name: str, score: str | None) -> None:
    """But for the length of the first step that is not taken: rounding may decide which one."""
    head, many = make(name, score), 40
    answers, prior = answers_of(head, 6 * many, many), make_prior(head, 1.0)
    together = adapt_map(head, answers, prior).vectors
    for user in range(0, many, 3):
        rows = answers.take((answers.user == user).nonzero().squeeze(1))
        alone = adapt_map(head, Answers(rows.prepared, rows.label, rows.user * 0, 1), prior).vectors
        torch.testing.assert_close(alone[0], together[user], atol=SMALLEST_STEP, rtol=0.0)


@every_adaptable
def test_a_user_without_answers_stays_at_the_population(name: str, score: str | None) -> None:
    head = make(name, score)
    answers = answers_of(head, users=USERS)
    silent = answers.take((answers.user != 2).nonzero().squeeze(1))
    vectors = adapt_map(head, silent, make_prior(head, 1.0)).vectors
    torch.testing.assert_close(vectors[2], head.users.population(), rtol=1e-4, atol=1e-5)


def test_an_infinite_prior_leaves_everybody_at_the_mean() -> None:
    head = make()
    vectors = adapt_map(head, answers_of(head), make_prior(head, 1e8)).vectors
    torch.testing.assert_close(
        vectors, head.users.population().expand(USERS, -1), rtol=1e-3, atol=1e-4
    )


@every_adaptable
def test_slopes_are_the_derivatives_of_the_margins(name: str, score: str | None) -> None:
    head = make(name, score).double()
    answers = answers_of(make(name, score))
    answers = Answers(
        tuple(None if v is None else v.double() for v in answers.prepared),
        answers.label,
        answers.user,
        USERS,
    )
    logits = head.users.logits.detach()
    _, slopes = margins_and_slopes(head, answers, logits)
    moved = logits.clone()
    moved[:, 1] += 1e-6
    base, later = (
        head.prepared_margin(answers.prepared, head.users.of_logits(v), answers.user)
        for v in (logits, moved)
    )
    torch.testing.assert_close(
        slopes[:, 1].detach(), ((later - base) / 1e-6).detach(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("spread", ["isotropic", "community"])
@pytest.mark.parametrize(
    ("name", "score"), [("pal-a", "squared"), ("pal-a", "angle"), ("pal-b", "angle")]
)
def test_a_new_user_ends_no_worse_than_in_any_community(
    name: str, score: str | None, spread: str
) -> None:
    head = make(name, score)
    with torch.no_grad():
        head.users.logits.copy_(4.0 * torch.nn.functional.one_hot(torch.arange(USERS) % K, K))
    answers, prior = answers_of(head), make_prior(head, 0.5, spread)
    assert len(prior.centres) == K
    adapted = adapt_map(head, answers, prior)

    def misfit(logits: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        margin = head.prepared_margin(answers.prepared, head.users.of_logits(logits), answers.user)
        fit = torch.zeros(USERS).index_add_(0, answers.user, logistic(margin, answers.label))
        return fit + 0.25 * (logits - means).square().sum(dim=1)

    ends = []
    places = torch.cat([prior.mean[None], prior.centres])
    for centre in places:
        there = centre.expand(USERS, -1)
        ends.append(misfit(there, there if spread == "community" else prior.mean))
    own_mean = torch.stack([misfit(adapted.logits, centre) for centre in places]).amin(dim=0)
    reached = own_mean if spread == "community" else misfit(adapted.logits, prior.mean)
    assert bool((reached <= torch.stack(ends).amin(dim=0) + 1e-4).all())


def test_answers_that_follow_one_community_lead_into_it() -> None:
    head = make("pal-a", "squared")
    with torch.no_grad():
        head.users.logits.copy_(4.0 * torch.nn.functional.one_hot(torch.arange(USERS) % K, K))
    answers = answers_of(head, count=40 * USERS)
    with torch.no_grad():
        scale = 10.0  # sure answers: a little of another community's map explains them worse
        margin = scale * head.prepared_margin(
            answers.prepared, head.users.of_logits(head.users.logits), answers.user
        )
    answers.label = torch.sigmoid(margin)
    for spread in ("isotropic", "community"):
        vectors = adapt_map(head, answers, make_prior(head, 0.1, spread)).vectors
        assert vectors.argmax(dim=1).tolist() == (torch.arange(USERS) % K).tolist()


@pytest.mark.parametrize(
    "adapt", [adapt_sgd, lambda head, answers: adapt_map(head, answers, make_prior(head, 0.3))]
)
def test_adapting_changes_no_byte_of_the_head(adapt: Any) -> None:
    head = make()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    adapt(head, answers_of(head))
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_answers_leave_less_uncertainty_than_the_prior_and_uncertainty_pulls_towards_one_half() -> (
    None
):
    head = make()
    prior = make_prior(head, 0.3)
    few, many = (
        adapt_map(head, answers_of(head, count), prior, with_covariance=True) for count in (14, 140)
    )
    assert few.covariance is not None
    assert many.covariance is not None
    for adapted in (few, many):
        assert bool((adapted.covariance.logdet() < -torch.logdet(prior.precision)).all())
    answers = answers_of(head)
    margin, slope = (value.detach() for value in margins_and_slopes(head, answers, few.logits))
    p = probability(margin, few.covariance.variance(slope, answers.user))
    assert bool(((p - 0.5).abs() <= (torch.sigmoid(margin) - 0.5).abs() + 1e-6).all())


def test_a_network_that_infers_is_not_optimised() -> None:
    with pytest.raises(NotImplementedError):
        make().infer((), torch.empty(0), torch.empty(0), 1)


def test_everybody_is_the_same_where_vectors_are_empty() -> None:
    head = make("bt-linear", None)
    answers = answers_of(head)
    adapted = adapt_map(head, answers, make_prior(head, 0.3))
    assert adapted.vectors.shape == adapt_sgd(head, answers).vectors.shape == (USERS, 0)


def test_questions_are_asked_once_and_end_when_none_is_left() -> None:
    head = make()
    pool = answers_of(head, count=2 * USERS)
    order = ask_in_turn(head, pool, make_prior(head, 0.3), most=3)
    for user in range(USERS):
        own = (pool.user == user).nonzero().squeeze(1).tolist()
        assert sorted(order[:2, user].tolist()) == own
        assert int(order[2, user]) == -1
    assert ask_in_turn(head, pool, make_prior(head, 0.3), most=0).shape == (0, USERS)


def test_only_heads_with_prototypes_grow() -> None:
    head = make("lore", None)
    _, first, second = torch.randn(3, 4, DIM)
    answers = Batch(None, first, second, torch.zeros(4, dtype=torch.long), torch.ones(4))
    with pytest.raises(TrainError, match="head lore has no prototypes to add to; grow pal-a"):
        grow(head, TrainConfig(head="lore", k=K), ["a"], answers, ["b"], count=1, seed=0)


@pytest.fixture(scope="module")
def simulation(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, TrainedHead, PreparedDataset, FeatureStore]:
    from pal.config import load

    folder = tmp_path_factory.mktemp("simulation")
    paths = {f"paths.{name}": str(folder / name) for name in ("data", "cache", "runs")}
    config = load(None, (), {**SIMULATION, **paths}).config
    pipeline.embed(config)
    pipeline.train(config, "one")
    trained = load_run(config.paths.runs, "one")
    return config, trained, *inputs_of_run(config.paths, trained.metadata)


def accuracy(trained: TrainedHead, judged: Answers, vectors: torch.Tensor) -> float:
    with torch.no_grad():
        margin = trained.head.prepared_margin(judged.prepared, vectors, judged.user)
    return float(((margin > 0) == (judged.label > 0.5)).float().mean())


def test_answers_help_and_one_answer_does_no_harm(simulation: Any) -> None:
    config, *_ = simulation
    chosen = config.model_copy(
        update={"adapt": config.adapt.model_copy(update={"shots": (0, 1, 5, 20)})}
    )
    cells = pipeline.adapt(chosen, "one").test_unseen
    scores = [cells[f"{n}"].macro_accuracy for n in (0, 1, 5, 20)]
    assert scores[1] >= scores[0]
    assert scores[3] > scores[0] + 0.05
    assert {cell.n_pairs for cell in cells.values()} == {30 * 40}, (
        "one set of judged pairs for all shots"
    )


def test_true_weights_are_at_least_as_good_as_learned_ones(configure: Configure) -> None:
    sizes = {
        "unseen_users": 40,
        "pairs_per_user": 60,
        "test_pairs_per_user": 100,
        "noise": 0.2,
        "map": "identity",
    }
    options = {**SIMULATION, **{f"data.simulated.{key}": value for key, value in sizes.items()}}
    config = configure(
        {**options, "train.mlp": "identity", "train.learner": "Pw", "train.epochs": 1}
    )
    pipeline.embed(config)
    pipeline.train(config, "one")
    trained = load_run(config.paths.runs, "one")
    dataset, store = inputs_of_run(config.paths, trained.metadata)
    truth = Simulated(config.data.simulated).truth()
    head = trained.head
    head.item_scale.mean.zero_()  # type: ignore[operator, union-attr]
    head.item_scale.scale.fill_(1.0)  # type: ignore[operator, union-attr]
    head.prototypes_KD.data = torch.from_numpy(truth["prototypes"]).float()
    users = new_users(trained, dataset, store, "test")
    assert users is not None
    of = dict(zip(truth["users"].tolist(), truth["weights"], strict=True))
    oracle = torch.from_numpy(np.stack([of[name] for name in users.names])).float()
    learned = adapt_map(head, users.shots(20, 0), make_prior(head, 0.3)).vectors
    assert accuracy(trained, users.judged, oracle) >= accuracy(trained, users.judged, learned)
    assert accuracy(trained, users.judged, learned) > 0.7


def test_shots_are_nested_and_never_judged(simulation: Any) -> None:
    _, trained, dataset, store = simulation
    users = new_users(trained, dataset, store, "test")
    assert users is not None
    few, many, other = (users.shots(n, draw) for n, draw in ((5, 3), (10, 3), (10, 4)))
    rows = [set(map(tuple, shots.prepared[0].tolist())) for shots in (few, many, other)]
    assert rows[0] < rows[1] != rows[2]
    assert few.user.bincount().tolist() == [5] * 30
    assert len(users.shots(1000, 0).label) == len(users.pool.label), "who has fewer gives all"
    pool, judged = (set(dataset.pairs(s, "unseen")["pair_id"]) for s in ("train", "test"))
    assert not pool & judged
    own = dataset.pairs("train", "unseen").sort("user_id", "pair_id")
    own = own.filter(pl.col("user_id").is_in(users.names))
    assert own["pair_id"].to_list() == [bytes(name).ljust(16, b"\0") for name in users.pool_ids]
    assert own["label"].to_list() == users.pool.label.tolist()


def test_asking_what_tells_most_beats_asking_at_random(simulation: Any) -> None:
    config, *_ = simulation
    cells = {}
    for active in (False, True):
        settings = config.adapt.model_copy(update={"shots": (0, 2), "active": active})
        found = pipeline.adapt(config.model_copy(update={"adapt": settings}), "one")
        cells[active] = found.test_unseen
    assert cells[True]["0"].macro_accuracy == cells[False]["0"].macro_accuracy
    assert cells[True]["2"].nll < cells[False]["2"].nll


def test_released_protocol_is_labelled_and_leaves_the_metrics_file_alone(simulation: Any) -> None:
    config, *_ = simulation
    file = config.paths.runs / "one" / "metrics.json"
    before = file.read_text()
    settings = config.adapt.model_copy(update={"shots": (5,), "protocol": "released", "repeats": 2})
    result = pipeline.adapt(config.model_copy(update={"adapt": settings}), "one")
    assert result.protocol == "released"
    assert "test pairs" in result.method
    assert file.read_text() == before


def test_more_shots_than_answers_is_one_sentence(simulation: Any) -> None:
    config, *_ = simulation
    settings = config.adapt.model_copy(update={"shots": (5000,)})
    with pytest.raises(
        EvaluationError, match=r"5000 shots.*no unseen user.*--shots with at most 80"
    ):
        pipeline.adapt(config.model_copy(update={"adapt": settings}), "one")


def strangers(
    trained: TrainedHead, store: FeatureStore, dataset: PreparedDataset, users: int
) -> tuple[Batch, list[str]]:
    """Return answers of users who prefer what every prototype dislikes: the far end of a
    direction."""
    frame = dataset.pairs("train", "unseen").head(users * 60)
    pairs = Pairs.join(frame, store, [], False, "cpu")
    batch = pairs.batch(store.features().float(), slice(None))
    far = 6.0 * torch.nn.functional.normalize(torch.ones(1, store.dim))
    label = ((batch.first - far).square().sum(1) < (batch.second - far).square().sum(1)).float()
    user = torch.arange(len(label)) % users
    return Batch(None, batch.first, batch.second, user, label), [
        f"stranger {n}" for n in range(users)
    ]


def test_users_outside_the_hull_are_found_and_grown_for_without_touching_the_rest(
    simulation: Any,
) -> None:
    _, trained, dataset, store = simulation
    batch, names = strangers(trained, store, dataset, 6)
    with torch.no_grad():
        prepared = trained.head.prepare(None, batch.first, batch.second)
    answers = Answers(prepared, batch.label, batch.user, len(names))
    users = new_users(trained, dataset, store, "test")
    assert users is not None
    prior = make_prior(trained.head, 0.3)
    usual = surprise(trained.head, users.shots(60, 0), prior)
    assert float(outside(surprise(trained.head, answers, prior), usual).float().mean()) > 0.8
    assert float(outside(usual, usual).float().mean()) < 0.1
    train = trained.metadata.train
    grown, wider, members = grow(trained.head, train, trained.users, batch, names, count=1, seed=0)
    assert wider == train.model_copy(update={"k": train.k + 1})
    assert members == [*trained.users, *(f"new:{name}" for name in names)]
    old, new = trained.head.state_dict(), grown.state_dict()
    for name, value in old.items():
        kept = new[name][tuple(slice(0, size) for size in value.shape)]
        assert torch.equal(kept, value), name
    everyone = torch.arange(len(trained.users))
    torch.testing.assert_close(
        grown(None, batch.first, batch.second, everyone[batch.user]),
        trained.head(None, batch.first, batch.second, everyone[batch.user]), rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    own = torch.arange(len(trained.users), len(members))[batch.user]
    margin = grown(None, batch.first, batch.second, own).detach()
    before = float(surprise(trained.head, answers, prior).mean())
    assert float(logistic(margin, batch.label).mean()) < 0.5 * before


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ([1.0] * 6, "every training label prefers the first"),
        ([0.5] * 6, "all training labels are ties"),
        ([0.0] * 6, "every training label prefers the second"),
    ],
)
def test_one_sided_labels_are_named_with_the_loss_they_lead_to(
    label: list[float], text: str
) -> None:
    rows = torch.arange(6)
    with pytest.warns(PalWarning, match=text) as said:
        warn_about_labels(Pairs(None, rows, rows, rows % 2, torch.tensor(label)), ["a", "b"])
    assert "ln 2" in str(said[0].message)


def test_users_with_one_pair_or_only_ties_are_named() -> None:
    rows = torch.arange(6)
    pairs = Pairs(
        None,
        rows,
        rows,
        torch.tensor([0, 1, 1, 2, 2, 2]),
        torch.tensor([1.0, 0.5, 0.5, 1.0, 0.0, 1.0]),
    )
    with pytest.warns(PalWarning) as said:
        warn_about_labels(pairs, ["lonely", "undecided", "plain"])
    texts = " ".join(str(one.message) for one in said)
    assert "'lonely', have a single" in texts
    assert "'undecided', have nothing but ties" in texts


def test_a_loss_that_did_not_move_is_explained() -> None:
    with pytest.warns(PalWarning, match=r"ln 2 = 0.6931.*raise --k"):
        warn_about_loss(math.log(2.0))


def rewrite_pairs(folder: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change the comparisons of a prepared dataset as nobody should: under the digests it had."""
    card = DatasetCard.read(folder)
    changed = change(pl.read_parquet(folder / PAIRS))
    seal = write_table(folder / PAIRS, changed.to_arrow(), "pairs")
    card.model_copy(update={"files": {**card.files, PAIRS: seal}}).write(folder)


def with_few_answers(config: Config, folder: Path, answers: dict[int, int]) -> Config:
    """Copy a world in which the first users ``n`` keep only ``answers[n]`` adaptation pairs."""
    shutil.copytree(config.paths.data.parent, folder)

    def keep_few(frame: pl.DataFrame) -> pl.DataFrame:
        new = frame.filter((pl.col("population") == "unseen") & (pl.col("split") == "test"))
        names = new["user_id"].unique().sort()
        for number, count in answers.items():
            own = (pl.col("user_id") == names[number]) & (pl.col("split") == "train")
            frame = frame.filter(~own | (own.cum_sum() <= count))
        return frame

    rewrite_pairs(folder / "data" / "simulated", keep_few)
    paths = {name: folder / name for name in ("data", "cache", "runs")}
    return config.model_copy(update={"paths": config.paths.model_copy(update=paths)})


def with_shots(config: Config, *shots: int) -> Config:
    return config.model_copy(
        update={"adapt": config.adapt.model_copy(update={"shots": shots, "repeats": 2})}
    )


def test_users_with_too_few_answers_are_counted_not_judged(simulation: Any, tmp_path: Path) -> None:
    config = with_few_answers(simulation[0], tmp_path / "ragged", {0: 0, 1: 1, 2: 9})
    result = pipeline.adapt(with_shots(config, 0, 1, 10), "one")
    assert (result.n_users, result.n_users_left_out) == (27, 3)
    assert {cell.n_users for cell in result.test_unseen.values()} == {27}, (
        "one panel for the whole curve"
    )
    metrics = json.loads((config.paths.runs / "one" / "metrics.json").read_text())
    assert metrics["n_users_left_out"] == 3
    assert {n: cell["n_users"] for n, cell in metrics["test_unseen"].items()} == {
        "1": 27,
        "10": 27,
        "0": 30,
    }
    report = write_report(tmp_path, pipeline.evaluate(config, ["one"]))
    assert "one (3 with too few answers left out)" in report


def test_fewer_shots_keep_more_users_and_none_keep_all(simulation: Any, tmp_path: Path) -> None:
    config = with_few_answers(simulation[0], tmp_path / "ragged", {0: 0, 1: 1, 2: 9})
    found = [pipeline.adapt(with_shots(config, *shots), "one") for shots in ((0, 5), (1,), (0,))]
    assert [result.n_users_left_out for result in found] == [2, 1, 0]
    assert found[1].test_unseen["1"].harmed_vs_0 is not None


def test_shots_that_nobody_asked_for_are_those_that_half_of_the_users_can_give(
    simulation: Any, tmp_path: Path
) -> None:
    config = with_few_answers(simulation[0], tmp_path / "few", dict.fromkeys(range(20), 3))
    usual = {"adapt": AdaptConfig(repeats=1)}
    told: list[str] = []
    found = pipeline.adapt(config.model_copy(update=usual), "one", tell=told.append)
    assert (list(found.test_unseen), found.n_users_left_out) == (["0", "1", "2"], 0)
    assert any("shots: up to 2, the most of 0, 1, 2, 5" in line for line in told)


def test_users_with_few_answers_do_not_hide_those_outside_the_hull(
    simulation: Any, tmp_path: Path
) -> None:
    config = with_few_answers(simulation[0], tmp_path / "ragged", {0: 0, 1: 1})
    trained = load_run(config.paths.runs, "one")
    dataset, _ = inputs_of_run(config.paths, trained.metadata)
    contrary = dataset.pairs("test", "unseen")["user_id"].unique().sort()[5]
    label, flip = pl.col("label"), pl.col("user_id") == contrary
    flipped = pl.when(flip).then(1.0 - label).otherwise(label)
    rewrite_pairs(dataset.folder, lambda frame: frame.with_columns(label=flipped))
    dataset, store = inputs_of_run(config.paths, trained.metadata)
    far = [user.user_id for user in outside_users(trained, dataset, store)]
    assert far[0] == contrary
    assert len(far) <= 3, "of 28 others a twentieth may be outside by chance"


def test_nobody_with_an_answer_leaves_the_zero_shot_cell(simulation: Any, tmp_path: Path) -> None:
    config = with_few_answers(simulation[0], tmp_path / "mute", dict.fromkeys(range(30), 0))
    with pytest.raises(
        EvaluationError, match=r"1 shots.*more than 0 adaptation pairs; use --shots with at most 0"
    ):
        pipeline.adapt(with_shots(config, 0, 1), "one")
    result = pipeline.adapt(with_shots(config, 0), "one")
    assert list(result.test_unseen) == ["0"]
    assert (result.n_users, result.outside_hull) == (30, [])


def test_a_dataset_without_unseen_users_trains_and_evaluates(configure: Configure) -> None:
    sizes = {f"data.simulated.{name}": 0 for name in ("unseen_users", "validation_users")}
    config = configure(
        {"dataset": "simulated", "encoder": "identity", "train.head": "pal-a", **sizes}
    )
    pipeline.embed(config)
    metrics = pipeline.train(config, "one")
    assert metrics.test_unseen == {}
    assert metrics.test_seen.n_users == 6
    result = pipeline.evaluate(config, ["one", "one"])
    assert "| - " in write_report(config.paths.runs, result)
    with pytest.raises(EvaluationError, match="no unseen users with test pairs"):
        pipeline.adapt(config, "one")
    trained = load_run(config.paths.runs, "one")
    inputs = inputs_of_run(config.paths, trained.metadata)
    with pytest.raises(EvaluationError, match="no unseen users to grow for"):
        grow_run(trained, *inputs, config.paths.runs, 1, 0, {})
