"""The stages as functions: what the command line calls, and a notebook can.

Each takes a resolved Config, works on the folders it names and returns what ``--json`` prints.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pal.config import Config
from pal.dataset import PreparedDataset
from pal.errors import CacheError, DataError, PalWarning

if TYPE_CHECKING:
    from torch import Tensor

    from pal.cache.reader import FeatureStore
    from pal.reward.export import Choice
    from pal.train.run_record import TrainedHead

Progress = Callable[[int], None]
PRIOR_SHOTS = 20
"""answers for which the prior of users who come later, to an exported model, is tuned"""


def silent(steps: int) -> None:
    """Report progress to nobody."""


def prepare(config: Config, progress: Progress = silent) -> PreparedDataset:
    """Turn the dataset's raw source into ``data/<dataset>``, unless it is there already."""
    from pal.data.build import prepare as prepare_dataset
    from pal.data.sources import ADAPTERS

    settings = config.dataset_config()
    folder = config.paths.data / config.dataset
    return prepare_dataset(config.dataset, settings, folder, ADAPTERS[config.dataset], progress)


def embed(
    config: Config, progress: Progress = silent, retry_errors: bool = False
) -> dict[str, Any]:
    """Stage one: encode the dataset's unique items into the cache; prepares the dataset first if
    needed."""
    config.encoder_config()
    dataset = prepare(config)
    from pal.embed.run import embed as embed_dataset

    return embed_dataset(config, dataset, progress, retry_errors)


def forecast(config: Config) -> dict[str, Any]:
    """Say what stage one would cost; prepares the dataset if needed, loads no model."""
    config.encoder_config()
    from pal.embed.forecast import forecast as forecast_dataset

    return forecast_dataset(config, prepare(config))


def self_test(config: Config) -> dict[str, Any]:
    """Compare a sample of the cache with live forward passes."""
    dataset = open_dataset(config)
    from pal.embed.selftest import self_test as test_cache

    return test_cache(config, dataset)


def train(config: Config, run: str | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Stage two: train a head from cached features, then evaluate it; returns its metrics."""
    dataset, store = open_data(config)
    from pal.evaluate.predict import evaluate as evaluate_head
    from pal.train.fit import train as train_head

    trained = train_head(config, dataset, store, run or default_run(config), progress)
    return evaluate_head(config, trained, dataset, store)


def evaluate(config: Config, runs: Sequence[str]) -> dict[str, Any]:
    """Evaluate trained runs again, each on the dataset and encoder it was trained on."""
    from pal.evaluate.free import free_baselines
    from pal.evaluate.predict import evaluate as evaluate_head
    from pal.evaluate.predict import load_run

    results = []
    stores: dict[str, dict[str, FeatureStore]] = {}
    for run in runs:
        trained = load_run(config, run)
        dataset, store = open_data_of(config, trained.facts)
        results.append(evaluate_head(config, trained, dataset, store))
        stores.setdefault(dataset.name, {})[trained.facts["encoder"]] = store
    baselines = {}
    for name, used in stores.items():
        baselines[name] = free_baselines(
            config, PreparedDataset.open(config.paths.data / name), used
        )
    return {"runs": results, "comparisons": compare(config, runs), "free_baselines": baselines}


def compare(config: Config, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Compare every further run with the first, on the predictions both have; same dataset and
    split only."""
    import polars as pl

    from pal.evaluate.compare import compare_runs
    from pal.evaluate.predict import load_run

    digests = {load_run(config, run).facts["split_digest"] for run in runs}
    if len(digests) > 1:
        return []
    tables = [
        (run, pl.read_parquet(config.paths.runs / run / "predictions.parquet")) for run in runs
    ]
    return compare_runs(tables[0], tables[1:], config.evaluate.bootstrap)


def adapt(config: Config, run: str) -> dict[str, Any]:
    """Adapt a run to unseen users, head frozen; under the strict protocol its metrics file then has
    their cells."""
    from pal.evaluate.few_shot import few_shot
    from pal.evaluate.hull import outside_users
    from pal.evaluate.predict import load_run, require_same_data
    from pal.files import write_json

    trained = load_run(config, run)
    dataset, store = open_data_of(config, trained.facts)
    require_same_data(trained, dataset, store)
    result = few_shot(config, trained, dataset, store)
    result["outside_hull"] = outside_users(trained, dataset, store)
    path = config.paths.runs / run / "metrics.json"
    if path.is_file() and config.adapt.protocol == "strict":
        metrics = json.loads(path.read_text(encoding="utf-8"))
        everybody = {key: cell for key, cell in metrics["test_unseen"].items() if key == "0"}
        if result["n_users_left_out"]:  # the file's zero-shot cell is that of all unseen users
            metrics["test_unseen"] = {**result["test_unseen"], **everybody}
        else:
            metrics["test_unseen"] = {**everybody, **result["test_unseen"]}
        metrics["adapted_by"] = result["method"]  # cells of two methods never stand in one row
        metrics["n_users_left_out"] = result["n_users_left_out"]
        write_json(path, metrics)
    return {"run": run, **result}


def export(
    config: Config, run: str, choice: Choice, name: str | None = None, merge: bool = False
) -> dict[str, Any]:
    """Write a run as a reward model for one choice of user; one outside the run is adapted from the
    own answers."""
    from pal.evaluate.few_shot import choose_prior, new_users
    from pal.evaluate.predict import load_run, require_same_data
    from pal.evaluate.report import as_markdown, table_of_runs
    from pal.reward.export import export as export_run

    trained = load_run(config, run)
    adapted = prior = None
    is_stranger = choice.kind == "user" and choice.user not in trained.users
    try:
        if is_stranger or (choice.kind != "user" and not merge):
            dataset, store = open_data_of(config, trained.facts)
            require_same_data(trained, dataset, store)
            if is_stranger:
                assert choice.user is not None
                adapted = adapt_one(config, trained, dataset, store, choice.user)
            else:
                prior = choose_prior(
                    trained, new_users(trained, dataset, store, "val"), PRIOR_SHOTS
                )
    except (DataError, CacheError) as error:
        if is_stranger:
            raise
        warnings.warn(
            f"the prior of new users keeps its default strength: {error}", PalWarning, stacklevel=2
        )
    metrics = config.paths.runs / run / "metrics.json"
    table = ""
    if metrics.is_file():
        table = as_markdown(table_of_runs([json.loads(metrics.read_text(encoding="utf-8"))]))
    return export_run(
        config, trained, choice, name, merge=merge, adapted=adapted, prior=prior, table=table
    )


def adapt_one(
    config: Config, trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, user: str
) -> Tensor | None:
    """Return the code of one unseen user from all the user's adaptation pairs, or None where there
    are none."""
    import polars as pl

    from pal.evaluate.few_shot import adapt_users, choose_prior, new_users, prepare_answers
    from pal.train.pairs import drop_without_feature

    pairs = drop_without_feature(dataset.pairs("train", "unseen"), store).filter(
        pl.col("user_id") == user
    )
    if pairs.is_empty():
        return None
    answers = prepare_answers(trained, pairs.sort("pair_id"), store, [user])
    prior = choose_prior(trained, new_users(trained, dataset, store, "val"), len(pairs))
    by_map = config.model_copy(update={"adapt": type(config.adapt)()})
    return adapt_users(by_map, trained.head, answers, answers, prior, 0).codes[0].detach()


def grow(config: Config, run: str, count: int) -> dict[str, Any] | None:
    """Add prototypes for unseen users outside the hull, as a new run ``<run>-grown``; None if there
    are none."""
    from pal.evaluate.hull import grow_for_outside
    from pal.evaluate.predict import evaluate as evaluate_head
    from pal.evaluate.predict import load_run, require_same_data
    from pal.train.fit import save_run

    trained = load_run(config, run)
    dataset, store = open_data_of(config, trained.facts)
    require_same_data(trained, dataset, store)
    grown = grow_for_outside(trained, dataset, store, count, config.seed)
    if grown is None:
        return None
    settings = type(config.train).model_validate(grown.facts["train"])
    save_run(config.paths.runs / grown.facts["run"], grown, config, settings, [{"epoch": 0}])
    return evaluate_head(config, grown, dataset, store)


def heads_of_sweep(config: Config) -> int:
    """Return how many heads a sweep asks for, those that are trained already included."""
    axes = config.sweep.axes.values()
    return (
        math.prod(len(values) for values in axes)
        if config.sweep.sampler == "grid"
        else config.sweep.samples
    )


def sweep(
    config: Config,
    name: str | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train every head of the sweep that is missing; the best by validation becomes the run
    ``<name>-best``."""
    import shutil

    from pal.evaluate.plot import plot_accuracy_against_k
    from pal.evaluate.predict import evaluate as evaluate_head
    from pal.evaluate.predict import judge
    from pal.files import atomic_directory
    from pal.sweep.fit import Sweep
    from pal.train.run_record import TrainedHead

    name = name or f"{config.dataset}-{config.encoder}"
    open_data(config)  # what is wrong with the data is said before anything is planned
    made = Sweep(config, name, open_data, judge, report)
    summary = made.run(progress)
    if summary["best"] is not None:
        trained = TrainedHead.load(made.folder / "best")
        evaluate_head(config, trained, *open_data_of(config, trained.facts), made.folder / "best")
        with atomic_directory(config.paths.runs / summary["best"]["run"]) as folder:
            shutil.copytree(made.folder / "best", folder, dirs_exist_ok=True)
    plot_accuracy_against_k(made.folder / "results.parquet", made.folder / "accuracy_by_k.png")
    return summary


def open_data(config: Config) -> tuple[PreparedDataset, FeatureStore]:
    """Open the dataset in the view of the head, and the cache that the settings ask for."""
    from pal.train.heads.head import resolve

    dataset = open_dataset(config)
    view = resolve(config.train).view
    assert view is not None, "resolve fills it in"
    return dataset.viewed(view), open_cache(config, dataset)


def open_data_of(config: Config, facts: dict[str, Any]) -> tuple[PreparedDataset, FeatureStore]:
    """Open the dataset and the very cache that a run was trained on, whatever the settings say
    now."""
    from pal.cache.reader import FeatureStore

    dataset = PreparedDataset.open(config.paths.data / facts["dataset"]).viewed(facts["view"])
    folder = (
        config.paths.cache
        / facts["dataset"]
        / f"{facts['encoder']}-{facts['cache_fingerprint'][:12]}"
    )
    return dataset, FeatureStore.open(folder)


def open_dataset(config: Config) -> PreparedDataset:
    """Open the prepared dataset and make sure that it was prepared with the present settings."""
    settings = config.dataset_config().model_dump(mode="json", exclude={"source"})
    dataset = PreparedDataset.open(config.paths.data / config.dataset)
    prepared: dict[str, Any] = dataset.card["settings"]
    changed = [
        f"data.{config.dataset}.{key}" for key in settings if settings[key] != prepared.get(key)
    ]
    if changed:
        listed = ", ".join(f"{key} = {settings[key.rpartition('.')[2]]!r}" for key in changed)
        raise DataError(
            f"{dataset.folder} was prepared with other settings than {listed}; "
            f"run pal embed --dataset {config.dataset} with the same settings first"
        )
    return dataset


def open_cache(config: Config, dataset: PreparedDataset) -> FeatureStore:
    """Open the cache that the settings ask for; raises CacheError naming the command that makes
    it."""
    from pal.cache.reader import FeatureStore
    from pal.embed.run import locate_cache

    _, spec, folder = locate_cache(config, dataset)
    if not (folder / "manifest.json").is_file():
        raise CacheError(
            f"no complete cache in {folder}; run: pal embed --dataset {config.dataset} --encoder "
            f"{config.encoder}"
        )
    return FeatureStore.open(folder, spec)


def default_run(config: Config) -> str:
    """Name a run by what distinguishes it."""
    return f"{config.dataset}-{config.encoder}-{config.train.head}-k{config.train.k}-s{config.seed}"


def demo(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Run both stages on the built-in data: one head for everyone, then one for K* groups."""
    config = config.model_copy(update={"dataset": "demo"})
    groups = config.data.demo.groups
    report(f"1/3  data: {groups} groups of users who answer statements on {groups} interests")
    report(f"2/3  embed: features of the unique texts under {config.encoder}")
    cache = embed(config)
    report(f"     {cache['encoded']} encoded, {cache['reused']} already there, in {cache['dir']}")
    runs = []
    for head in ("pal-a", "pal-b"):
        for k in (1, groups):
            report(f"3/3  train: {head} with K = {k}")
            chosen = config.train.model_copy(
                update={"head": head, "k": k, "mlp": None, "score": None}
            )
            runs.append(train(config.model_copy(update={"train": chosen})))
    return {"cache": cache, "runs": runs}
