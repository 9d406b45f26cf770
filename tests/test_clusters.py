"""Sweeps and audits on a Ray cluster: the same rows as here, whatever is lost on the way.

The cluster of the quick tests is this process, which pickles what a real one would send.
"""

from __future__ import annotations

import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy.special import expit

from pal import pipeline
from pal.audit.answers import Answers, oriented
from pal.audit.cross_fit import CrossFit
from pal.audit.design import UNIT
from pal.audit.drawing import HERE, Here, OnRay, drawing_of
from pal.audit.ledger import Ledger
from pal.audit.nulls import Population, exchanged
from pal.audit.overlap_test import OverlapTest
from pal.audit.power import Instrument
from pal.cache import mapped
from pal.cache.reader import FeatureStore
from pal.cluster import Cluster, Share, joined, require_cluster
from pal.config import AuditConfig, Config
from pal.errors import ConfigError, EvaluationError, PalWarning
from pal.sweep.record import RESULTS, SweepSummary

pytestmark = pytest.mark.usefixtures("one_thread")

Configure = Callable[..., Config]
SWEEP = {
    "dataset": "simulated", "encoder": "identity", "train.head": "pal-a", "train.epochs": 2,
    "sweep.head": ["pal-a"], "sweep.k": [1, 2], "sweep.seed": [0, 1], "sweep.together": 2,
}  # fmt: skip
ON_RAY = {"sweep.executor": "ray", "sweep.workers": 2}
TWO = Share(at_once=2, cpus=1, gpus=0.0)


class Died(Exception):
    """A worker of the cluster is gone."""


class Raised(Exception):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reference(NamedTuple):
    number: int


class Task(NamedTuple):
    work: Callable[..., Any]
    sent: bytes

    @property
    def arguments(self) -> tuple[Any, ...]:
        given: tuple[Any, ...] = pickle.loads(self.sent)
        return given


@dataclass
class FakeRay:
    """As much of Ray as ``pal.cluster`` uses, in this process: tasks run when they are asked
    for."""

    resources: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 2.0}])
    dies: Callable[[tuple[Any, ...]], bool] = lambda arguments: False
    """whether whoever is given these arguments is lost, however often it is tried"""
    kept: dict[Reference, bytes | Task] = field(default_factory=dict)
    cancelled: list[Reference] = field(default_factory=list)

    class exceptions:
        RayTaskError = Raised
        WorkerCrashedError = NodeDiedError = LocalRayletDiedError = Died
        OutOfMemoryError = ObjectLostError = Died

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.resources]

    def put(self, value: object) -> Reference:
        return self._keep(pickle.dumps(value))

    def _keep(self, one: bytes | Task) -> Reference:
        reference = Reference(len(self.kept))
        self.kept[reference] = one
        return reference

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        class Remote:
            def __init__(self, ray: FakeRay, work: Callable[..., Any]) -> None:
                self.ray, self.work = ray, work

            def remote(self, *arguments: Any) -> Reference:
                return self.ray._keep(Task(self.work, pickle.dumps(arguments)))

        return lambda work: Remote(self, work)

    def wait(self, references: list[Reference]) -> tuple[list[Reference], list[Reference]]:
        return references[-1:], references[:-1]  # the first is never the first to be done

    def get(self, reference: Reference) -> Any:
        one = self.kept[reference]
        if isinstance(one, bytes):
            return pickle.loads(one)
        given = [self.get(a) if isinstance(a, Reference) else a for a in one.arguments]
        if self.dies(tuple(given)):
            raise Died
        try:
            return pickle.loads(pickle.dumps(one.work(*given)))
        except Exception as error:
            raise Raised(error) from error

    def cancel(self, reference: Reference, force: bool) -> None:
        self.cancelled.append(reference)


def silent(steps: int) -> None:
    """Show no progress."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr("pal.cluster.library", lambda: fake)
    return fake


def swept(configure: Configure, name: str, **options: Any) -> SweepSummary:
    config = configure(SWEEP | options)
    pipeline.embed(config)
    return pipeline.sweep(config, name, report=lambda line: None)


def rows_of(name: str) -> pl.DataFrame:
    return pl.read_parquet(Path("sweeps") / name / RESULTS).drop("seconds")


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("folds", [None, 2])
def test_a_sweep_on_a_cluster_is_that_of_this_machine_to_the_bit(
    configure: Configure, folds: int | None
) -> None:
    here = swept(configure, "here", **{"sweep.folds": folds})
    there = swept(configure, "there", **{"sweep.folds": folds}, **ON_RAY)
    assert_frame_equal(rows_of("there"), rows_of("here"), check_exact=True)
    assert (there.trained, there.failed) == (here.trained, 0) == (4, 0)
    assert here.best is not None
    assert there.best is not None
    assert there.best.head_id == here.best.head_id
    one, other = (Path(f"sweeps/{name}/best/head.safetensors") for name in ("here", "there"))
    assert one.read_bytes() == other.read_bytes()
    assert there.cross_fitted == here.cross_fitted
    assert swept(configure, "there", **{"sweep.folds": folds}, **ON_RAY).trained == 0


def test_features_that_do_not_fit_memory_are_not_sent_to_a_cluster(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, ray: FakeRay
) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("the whole cache was read")

    here = swept(configure, "here")
    monkeypatch.setattr(mapped, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(FeatureStore, "features", refuse)
    there = swept(configure, "there", **ON_RAY)
    assert (there.trained, there.failed) == (here.trained, 0)
    assert_frame_equal(rows_of("there"), rows_of("here"), check_exact=True)


def votes(things: int = 12, users: int = 10) -> Answers:
    """Return votes of all users on all things."""
    thing, user = np.tile(np.arange(things), users), np.repeat(np.arange(users), things)
    label = (np.random.default_rng(0).random(len(user)) < expit(thing - things / 2)).astype(float)
    return oriented(thing, None, user, label, thing, thing, things)


def test_draws_on_a_cluster_are_those_of_this_machine_to_the_bit(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, z = votes(), torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    cross_fit = CrossFit(answers, z, 0, UNIT)
    monkeypatch.setattr(cross_fit, "at_once", 8)  # several tasks
    population, found = Population.fitted(answers, z), []
    users = partial(exchanged, answers, np.zeros(len(answers), np.int64), 0)
    for drawing in (HERE, OnRay(Cluster(ray), TWO)):
        ledger = Ledger(tmp_path / f"{len(found)}", "test")
        b = Instrument(cross_fit, population, ledger, 0, silent, drawing=drawing)
        b.null(19)
        b.exchanged(19, users)
        b.detections(0.25, "unrelated", np.zeros(19))
        a = OverlapTest.of(answers, ledger, 0, silent, drawing)
        assert a is not None
        a.run(19)
        a.detections(0.25, "opposite", np.zeros(19))
        found.append(ledger.values)
    assert [len(drawn) for drawn in found[0].values()] == [19, 19, 20, 19, 19, 20]
    assert found[1] == found[0]


def test_draws_that_kill_their_workers_cost_no_other(ray: FakeRay, tmp_path: Path) -> None:
    def test_of(place: Path) -> OverlapTest:
        on_ray = OnRay(Cluster(ray), TWO)
        found = OverlapTest.of(votes(), Ledger(place, "test"), 0, silent, on_ray)
        assert found is not None
        return found

    ray.dies = lambda arguments: list(arguments[-1])[:1] == [10]
    test = test_of(tmp_path / "draws")
    labels = partial(test.one.bootstrap, 0)
    with pytest.raises(EvaluationError, match=r"lost their worker 4 times \(Died\).*is kept"):
        test.statistics("bootstrap", 25, labels)
    ray.dies = lambda arguments: list(arguments[-1]) != [*range(10, 20)]
    whole = test_of(tmp_path / "draws").statistics("bootstrap", 25, labels)
    ray.dies = lambda arguments: False
    assert whole.tolist() == test_of(tmp_path / "none").statistics("bootstrap", 25, labels).tolist()


def test_an_audit_asks_the_cluster_that_its_settings_name(ray: FakeRay) -> None:
    settings = AuditConfig(executor="ray", workers=3)
    with drawing_of(settings) as drawing:
        assert isinstance(drawing, OnRay)
        assert drawing.share == Share(at_once=3, cpus=1, gpus=0.0)
    with drawing_of(AuditConfig(workers=3)) as drawing:
        assert drawing == Here(3)


@pytest.mark.usefixtures("ray")
def test_how_many_heads_train_together_is_measured_where_they_train(configure: Configure) -> None:
    told: list[str] = []
    options = {"sweep.together": "auto"}
    config = configure(SWEEP | options | ON_RAY)
    pipeline.embed(config)
    assert pipeline.sweep(config, "s", report=told.append).trained == 4
    assert any(line.startswith("ms per head and step") for line in told)


def test_a_head_that_kills_its_workers_is_a_row_and_costs_no_other(
    configure: Configure, ray: FakeRay
) -> None:
    def is_deadly(arguments: tuple[Any, ...]) -> bool:
        members = getattr(arguments[-1], "members", ())
        return any(one.values == {"head": "pal-a", "k": 2, "seed": 1} for one in members)

    ray.dies = is_deadly
    assert swept(configure, "s", **ON_RAY).failed == 1
    rows = rows_of("s")
    failed = rows.filter(pl.col("status") == "failed")
    assert failed.select("k", "seed").rows() == [(2, 1)]
    assert failed["error"][0] == "its worker was lost 4 times (Died)"
    assert len(rows) == 4
    ray.dies = lambda arguments: False
    again = swept(configure, "s", **ON_RAY)
    assert (again.trained, again.failed, again.reused) == (2, 0, 2)  # its stack rounds as planned


def test_a_node_without_the_folder_is_one_sentence(
    configure: Configure, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Cluster.run
    elsewhere = Path("elsewhere").absolute()

    def moved(self: Cluster, share: Share, work: Any, calls: Any, folder: Path) -> Any:
        return run(self, share, work, calls, elsewhere)

    monkeypatch.setattr(Cluster, "run", moved)
    with pytest.raises(ConfigError, match=r"of the Ray cluster cannot open .*elsewhere"):
        swept(configure, "s", **ON_RAY)
    elsewhere.mkdir()
    with pytest.raises(ConfigError, match=r"does not see .*elsewhere/data/simulated; a sweep"):
        swept(configure, "s", **ON_RAY)


def warned(number: int) -> int:
    warnings.warn(f"{number} is odd", PalWarning, stacklevel=1)
    warnings.warn("a library's own", DeprecationWarning, stacklevel=1)
    return number


def test_what_a_task_warns_of_is_told_here(ray: FakeRay) -> None:
    with pytest.warns(PalWarning, match="3 is odd"):
        assert list(Cluster(ray).run(TWO, warned, [(3,)])) == [(0, 3)]


def test_tasks_end_with_who_waits_for_them(ray: FakeRay) -> None:
    running = Cluster(ray).run(TWO, abs, ((-number,) for number in range(9)))
    assert next(running) == (1, 1)
    running.close()
    assert ray.cancelled == [Reference(0)]
    assert len(ray.kept) == 2, "calls are read as there is room"


GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "for_gpus", "for_nodes", "expected"),
    [
        ([{"CPU": 2.0}], 2, True, True, (2, 1, 0.0)),
        ([{"CPU": 16.0}, {"CPU": 4.0}], None, True, True, (2, 4, 0.0)),
        ([{"CPU": 16.0}, {"CPU": 4.0}], None, False, False, (20, 1, 0.0)),
        ([GPUS, GPUS, {"CPU": 64.0}, {"memory": 1.0}], None, True, True, (4, 4, 1.0)),
        ([GPUS], 3, True, True, (3, 2, 0.5)),
        ([GPUS], None, False, True, (1, 8, 0.0)),
        ([], None, True, True, (1, 1, 0.0)),
    ],
)
def test_a_cluster_is_shared_so_that_every_task_fits_somewhere(
    nodes: list[dict[str, float]], workers: int | None, for_gpus: bool, for_nodes: bool,
    expected: tuple[int, int, float],
) -> None:  # fmt: skip
    assert Cluster(FakeRay(nodes)).share(workers, for_gpus, for_nodes) == expected


def test_without_ray_there_is_one_sentence(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = r"--executor ray needs Ray; install the extra: pip"
    with pytest.raises(ConfigError, match=told):
        swept(configure, "s", **ON_RAY)
    with pytest.raises(ConfigError, match=told), drawing_of(AuditConfig(executor="ray")):
        pass


def test_an_address_where_no_cluster_answers_is_one_sentence(
    configure: Configure, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken, socket.socket() as silent:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        told = rf"nothing answers at --ray-address {closed}"
        with pytest.raises(ConfigError, match=told):
            swept(configure, "s", **ON_RAY, **{"sweep.ray_address": closed})
        audit = AuditConfig(executor="ray", ray_address=closed)
        with pytest.raises(ConfigError, match=told), drawing_of(audit):
            pass
        monkeypatch.setenv("RAY_ADDRESS", closed)
        with pytest.raises(ConfigError, match=told), joined(None, 1):
            pass
        here = configure(SWEEP)  # all is done, and done again without a cluster
        pipeline.embed(here)
        pipeline.sweep(here, "t", report=lambda line: None)
        away = configure(SWEEP | ON_RAY | {"sweep.ray_address": closed,
                         "embed.executor": "ray", "embed.ray_address": closed})  # fmt: skip
        assert pipeline.embed(away).encoded == 0
        assert pipeline.sweep(away, "t", report=lambda line: None).trained == 0
        # before the dataset is prepared
        missing = away.paths.model_copy(update={"data": Path("elsewhere")})
        with pytest.raises(ConfigError, match=told):
            pipeline.embed(away.model_copy(update={"paths": missing}))
        assert not Path("elsewhere").exists()
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr("pal.cluster.JOIN_SECONDS", 1.0)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{address} is no Ray cluster, or too slow"):
            require_cluster(address)
    monkeypatch.setattr("pal.cluster.JOIN", "import sys; sys.exit('ValueError: odd')")
    with pytest.raises(ConfigError, match=r"cannot join the Ray cluster at auto \(ValueError: odd"):
        require_cluster("auto")
