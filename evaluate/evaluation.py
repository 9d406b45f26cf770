"""Several runs side by side: what ``pal evaluate`` does."""

from __future__ import annotations

from collections.abc import Sequence

from pal.cache.reader import FeatureStore
from pal.config import EvaluateConfig, PathsConfig
from pal.dataset import PreparedDataset
from pal.evaluate.compare import Comparison, compare
from pal.evaluate.cross_fit import Progress, cross_fit
from pal.evaluate.folds import Fold, Over
from pal.evaluate.free import FreeBaseline, free_baselines
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import evaluate_run, load_run
from pal.evaluate.records import Metrics
from pal.records import Entry


class Evaluation(Entry):
    """What ``pal evaluate --json`` prints, and ``evaluation.json`` holds."""

    runs: list[Metrics]
    comparisons: list[Comparison]
    """of every further run with the first"""
    free_baselines: dict[str, list[FreeBaseline]]
    """by dataset"""


def evaluate_runs(
    settings: EvaluateConfig,
    paths: PathsConfig,
    names: Sequence[str],
    folds: int | None = None,
    progress: Progress = lambda folds: None,
    over: Over = "prompts",
) -> Evaluation:
    """Evaluate trained runs again, each on the dataset and cache that it was trained on.

    ``folds``: by cross-fitting over so many folds of prompts, or of answers. ``progress`` is called
    after each fold.
    """
    found = []
    stores: dict[str, dict[str, FeatureStore]] = {}
    for name in names:
        trained = load_run(paths.runs, name)
        dataset, store = inputs_of_run(paths, trained.metadata)
        if folds is None:
            found.append(evaluate_run(settings, trained, dataset, store, paths.runs / name))
        else:
            found.append(cross_fit(settings, paths, name, folds, progress, over))
        stores.setdefault(dataset.name, {})[trained.metadata.encoder] = store
    baselines = {}
    for name, used in stores.items():
        dataset = PreparedDataset.open(paths.data / name)
        tested = [dataset] if folds is None else Fold.all_of(dataset, folds, over)
        baselines[name] = free_baselines(settings, tested, used)
    comparisons = compare(settings, paths.runs, names, folds, over)
    return Evaluation(runs=found, comparisons=comparisons, free_baselines=baselines)
