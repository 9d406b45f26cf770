"""The stages as functions: what the command line calls, and a notebook can.

Each takes a resolved Config, works on the folders it names and returns what ``--json`` prints, as a
typed object. ``tell`` is called with lines for people: who and what of a dataset is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from pal.cluster import require_ahead
from pal.config import Config, PlantedGroupsConfig, reference
from pal.dataset import DatasetCard, PreparedDataset
from pal.errors import CacheError, DataError, PalWarning
from pal.files import digest
from pal.memory import kept, quick_imports
from pal.names import require_name
from pal.outline import say, short_lines, summary_lines
from pal.records import JsonObject

if TYPE_CHECKING:
    from pal.audit.record import AuditRecord
    from pal.embed.forecast import Forecast
    from pal.embed.run import EmbedResult
    from pal.embed.selftest import SelfTest
    from pal.evaluate.adaptation import Adaptation
    from pal.evaluate.evaluation import Evaluation
    from pal.evaluate.folds import Over
    from pal.evaluate.records import Metrics
    from pal.report.write import Report
    from pal.reward.export import Choice, ExportSummary
    from pal.sweep.record import SweepSummary
    from pal.train.own_trainer import OwnTraining

Progress = Callable[[int], None]
Tell = Callable[[str], None]
READS_AS_AUTO = {"head": "auto", "view": None, "reads": None, "mlp": None, "score": None,
                 "learner": None, "bound": None}  # fmt: skip
"""settings of train with which a dataset is opened for an audit"""


def silent(steps: int) -> None:
    """Report progress to nobody."""


def prepare(config: Config, progress: Progress = silent, tell: Tell = say) -> PreparedDataset:
    """Turn the dataset's raw source into ``data/<dataset>``, unless it is there already; tells what
    was used and left out where it was made anew."""
    from pal.data.build import prepare as prepare_dataset
    from pal.data.sources import adapter_for

    settings = config.dataset_config()
    folder = config.paths.data / config.dataset
    build = adapter_for(config.dataset, settings)
    before = DatasetCard.find(folder)
    prepared = prepare_dataset(config.dataset, settings, folder, build, progress)
    if before is None or before.files != prepared.card.files:
        _tell_all(tell, summary_lines(prepared.card))
    return prepared


@kept()
def embed(
    config: Config,
    progress: Progress = silent,
    retry_errors: bool = False,
    tell: Tell = say,
    expect: Progress = silent,
) -> EmbedResult:
    """Stage one: encode the dataset's unique items into the cache; prepares it first if needed.
    ``expect`` is called with how many items there are, before the first is encoded."""
    config.encoder_config()
    if DatasetCard.find(config.paths.data / config.dataset) is None:
        require_ahead(config.embed.executor, config.embed.ray_address)
    dataset = prepare(config, tell=tell)
    from pal.embed.run import embed as embed_dataset

    return embed_dataset(config, dataset, progress, retry_errors, tell, expect)


def forecast(config: Config, tell: Tell = say) -> Forecast:
    """Say what stage one would cost; prepares the dataset if needed, loads no model."""
    config.encoder_config()
    from pal.embed.forecast import forecast as forecast_dataset

    return forecast_dataset(config, prepare(config, tell=tell))


def self_test(config: Config) -> SelfTest:
    """Compare a sample of the cache with live forward passes."""
    from pal.embed.selftest import self_test as test_cache
    from pal.evaluate.inputs import open_dataset

    return test_cache(config, open_dataset(config))


@kept()
def train(
    config: Config, run: str | None = None, progress: Progress = silent, tell: Tell = say
) -> Metrics:
    """Stage two: train a head from cached features, then evaluate it; returns its metrics."""
    name = require_name("run", run or default_run(config))
    with quick_imports():
        from pal.evaluate.inputs import open_inputs
        from pal.evaluate.limits import require_prototypes, unread_lines
        from pal.evaluate.predict import evaluate_run
        from pal.train.build import settled
        from pal.train.fit import train as train_head
        from pal.train.loggers import where_to_watch

    dataset, store = open_inputs(config)
    settings = settled(config.train, dataset)
    few = require_prototypes(dataset, [settings.head], [settings.k], settings.users)
    unread = unread_lines(settings, dataset, store, with_prompts=False)
    _tell_all(tell, where_to_watch(settings, config.paths.runs / name))
    trained = train_head(
        config.train, config.seed, dataset, store, config.paths.runs, name, saved(config), progress
    )
    metrics = evaluate_run(config.evaluate, trained, dataset, store, config.paths.runs / name)
    _tell_all(tell, [*short_lines(dataset.card), *few, *unread])
    return metrics


def open_training(config: Config, run: str) -> OwnTraining:
    """Return a head and its batches for a Trainer of your own, and what makes a run of it
    (train/own_trainer.py)."""
    from pal.evaluate.inputs import open_inputs
    from pal.train.own_trainer import open_training as open_head

    dataset, store = open_inputs(config)
    return open_head(
        config.train, config.seed, dataset, store, config.paths.runs, run, saved(config)
    )


@kept()
def evaluate(
    config: Config,
    runs: Sequence[str],
    folds: int | None = None,
    progress: Progress = silent,
    tell: Tell = say,
    over: Over = "prompts",
) -> Evaluation:
    """Evaluate trained runs again, each on its own dataset and cache, and compare them.

    ``folds``: every prompt is tested once, by a head that never saw it, trained with the run's own
    settings on the other folds. ``over`` answers every answer is, by a head that may know the
    prompt from other people.
    """
    from pal.evaluate.evaluation import evaluate_runs

    found = evaluate_runs(config.evaluate, config.paths, runs, folds, progress, over)
    _tell_of_runs(config, runs, tell)
    return found


@kept()
def adapt(config: Config, run: str, grow: int | None = None, tell: Tell = say) -> Adaptation:
    """Adapt a run to unseen users, head frozen; ``grow`` adds prototypes for those outside.

    Under the strict protocol the run's metrics file then has their cells. Growing makes a new run
    ``<run>-grown``.
    """
    from pal.evaluate.adaptation import adapt_run, shots_line
    from pal.evaluate.hull import grow_run
    from pal.evaluate.inputs import inputs_of_run
    from pal.evaluate.predict import evaluate_run, load_run

    runs = config.paths.runs
    trained = load_run(runs, run)
    dataset, store = inputs_of_run(config.paths, trained.metadata)
    found = adapt_run(config.adapt, config.evaluate, trained, dataset, store, runs / run)
    _tell_of_runs(config, [run], tell)
    _tell_all(tell, shots_line(config.adapt, found))
    if grow is None:
        return found
    grown = grow_run(trained, dataset, store, runs, grow, config.seed, saved(config))
    if grown is None:
        return found.model_copy(update={"grown": None})
    folder = runs / grown.metadata.run
    metrics = evaluate_run(config.evaluate, grown, dataset, store, folder)
    return found.model_copy(update={"grown": metrics})


@kept()
def sweep(
    config: Config,
    name: str | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = print,
) -> SweepSummary:
    """Train every head of a sweep that is missing; the best one becomes the run ``<name>-best``."""
    name = require_name("sweep", name or f"{config.dataset}-{config.encoder}")
    with quick_imports():
        from pal.evaluate.inputs import open_dataset
        from pal.evaluate.limits import require_prototypes
        from pal.sweep.run import run_sweep

    if config.train.logger is not None:
        report(f"train.logger = {config.train.logger!r} is for pal train; a sweep logs no training")
        train = config.train.model_copy(update={"logger": None})
        config = config.model_copy(update={"train": train})
    axes, dataset = config.sweep.axes, open_dataset(config)
    heads, ks = axes.get("head", [config.train.head]), axes.get("k", [config.train.k])
    few = require_prototypes(dataset, heads, ks, config.train.users)
    summary = run_sweep(config, name, progress, report)
    _tell_all(report, [*short_lines(dataset.card), *few])
    return summary


@kept()
def audit(
    config: Config, name: str | None = None, progress: Progress = silent, tell: Tell = say
) -> AuditRecord:
    """Say whether the dataset holds plurality, and whether it would have been seen.

    All its answers are tested, of every split and population; ``audit.features`` False needs no
    cache, and prepares the dataset first if needed.
    """
    suffix = config.encoder if config.audit.features else "no-features"
    name = require_name("audit", name or f"{config.dataset}-{suffix}")
    with quick_imports():
        from pal.audit.report import audit as audit_dataset
        from pal.evaluate.inputs import open_dataset, open_inputs

    if config.audit.features:
        chosen = config.train.model_copy(update=READS_AS_AUTO)
        dataset, store = open_inputs(config.model_copy(update={"train": chosen}))
    else:
        if not (config.paths.data / config.dataset / DatasetCard.file).is_file():
            prepare(config, tell=_told_already)  # what is told of it is told at the end
        dataset, store = open_dataset(config), None
    folder = config.paths.audits / name
    record = audit_dataset(config.audit, config.seed, dataset, store, folder, progress)
    _tell_all(tell, short_lines(dataset.card))
    return record


def report(config: Config, names: Sequence[str] = (), out: Path | None = None) -> Report:
    """Write one HTML page of datasets, runs, sweeps or audits, side by side where they are several;
    without a name of the chosen dataset and all that was made of it."""
    from pal.report.write import write_report

    return write_report(config, names, out)


@kept()
def export(
    config: Config, run: str, choice: Choice, name: str | None = None, merge: bool = False
) -> ExportSummary:
    """Write a run as a reward model for one choice of user.

    A user outside the run is adapted from the own answers.
    """
    from pal.evaluate.few_shot import adapt_one, choose_priors, new_users
    from pal.evaluate.inputs import inputs_of_run
    from pal.evaluate.predict import load_run, require_same_data
    from pal.evaluate.records import Metrics
    from pal.evaluate.report import as_markdown, table_of_runs
    from pal.reward.export import export as export_run
    from pal.reward.export import export_folder
    from pal.reward.model import RewardModel

    folder = export_folder(config.paths.exports, run, choice, name)
    trained = load_run(config.paths.runs, run)
    adapted = prior = None
    is_stranger = choice.kind == "user" and choice.user not in trained.users
    try:
        if is_stranger or (choice.kind != "user" and not merge):
            dataset, store = inputs_of_run(config.paths, trained.metadata)
            require_same_data(trained, dataset, store)
            if is_stranger:
                assert choice.user is not None
                adapted = adapt_one(trained, dataset, store, choice.user)
            else:
                others = new_users(trained, dataset, store, "val")
                prior = choose_priors(trained, others)
    except (DataError, CacheError) as error:
        if is_stranger:
            raise
        warnings.warn(
            f"the prior of new users keeps its default strength: {error}", PalWarning, stacklevel=2
        )
    metrics = Metrics.find(config.paths.runs / run)
    is_of_head = metrics is not None and metrics.head_seal == trained.metadata.seal
    table = as_markdown(table_of_runs([metrics])) if metrics is not None and is_of_head else ""
    model = RewardModel.from_run(config, run)
    return export_run(model, choice, folder, merge=merge, adapted=adapted, prior=prior, table=table)


def _tell_all(tell: Tell, lines: Sequence[str]) -> None:
    for line in lines:
        tell(line)


def _tell_of_runs(config: Config, runs: Sequence[str], tell: Tell) -> None:
    """Tell what the datasets of some runs leave out, each once, and what their heads cannot
    read."""
    from pal.evaluate.inputs import inputs_of_run
    from pal.evaluate.limits import unread_lines
    from pal.evaluate.predict import load_run

    told: set[str] = set()
    for run in runs:
        record = load_run(config.paths.runs, run).metadata
        dataset, store = inputs_of_run(config.paths, record)
        lines = unread_lines(record.train, dataset, store)
        new = [line for line in (*short_lines(dataset.card), *lines) if line not in told]
        _tell_all(tell, new)
        told.update(new)


def default_run(config: Config) -> str:
    """Name a run by what distinguishes it.

    Settings of dataset, encoder and head that are not those of the reference run add a digest, so
    that ``train.lr=1e-3`` has a name of its own. A head without prototypes has no K.
    """
    from pal.train.build import has_prototypes

    head = config.train
    k = f"-k{head.prototypes}" if has_prototypes(head.head) else ""
    name = f"{config.dataset}-{config.encoder}-{head.head}{k}-s{config.seed}"
    usual = reference()
    usual_data = usual.data.datasets.get(config.dataset)
    usual_encoder = usual.embed.encoders.get(config.encoder)
    changed = [
        _differences(config.dataset_config(), usual_data, {"source"}),
        _differences(config.encoder_config(), usual_encoder, set()),
        _differences(config.train, usual.train, {"head", "k", "device", "features", "logger"}),
    ]
    return f"{name}-{digest(changed, 3)}" if any(changed) else name


def _differences(now: BaseModel, before: BaseModel | None, left_out: set[str]) -> JsonObject:
    """Return the settings that are not as before; none where nothing was before, for the own name
    of a dataset or an encoder says it."""
    if before is None:
        return {}
    usual = before.model_dump(mode="json")
    found: JsonObject = now.model_dump(mode="json", exclude=left_out)
    return {key: value for key, value in found.items() if usual.get(key) != value}


def saved(config: Config) -> JsonObject:
    """Return the resolved configuration as it is kept beside a run, to be read by people."""
    found: JsonObject = config.model_dump(mode="json")
    return found


def _told_already(line: str) -> None:
    """Say nothing: another stage does."""


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    cache: EmbedResult
    runs: list[Metrics]


def demo(config: Config, report: Callable[[str], None]) -> Demo:
    """Run both stages on the built-in data: one head for everyone, then one for K* groups."""
    config = config.model_copy(update={"dataset": "demo"})
    planted = config.dataset_config()
    assert isinstance(planted, PlantedGroupsConfig)
    groups = planted.groups
    report(f"1/3  data: {groups} groups of users who answer statements on {groups} interests")
    report(f"2/3  embed: features of the unique texts under {config.encoder}")
    cache = embed(config, tell=report)
    report(f"     {cache.encoded} encoded, {cache.reused} already there, in {cache.dir}")
    runs = []
    for head in ("pal-a", "pal-b"):
        for k in (1, groups):
            report(f"3/3  train: {head} with K = {k}")
            update = {"head": head, "k": k, "mlp": None, "score": None}
            chosen = config.train.model_copy(update=update)
            runs.append(train(config.model_copy(update={"train": chosen}), tell=_told_already))
    return Demo(cache, runs)
