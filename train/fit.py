"""Stage two from start to end: join pairs to features, build a head, fit it, save it as a run.

Lightning is imported where it trains, and not before: heads that are solved, stacks, evaluation,
adaptation and audits do without the seconds that this takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.memory import quick_imports
from pal.records import JsonObject
from pal.train.build import has_priors, heads, kind_of
from pal.train.data import Fitted, TrainingData
from pal.train.diagnose import warn_about_labels, warn_about_loss
from pal.train.loggers import Logs, logs_of, require_logger
from pal.train.new_run import NewRun
from pal.train.probe import choose_device
from pal.train.run_record import TrainedHead
from pal.train.solve import solve

Progress = Callable[[int], None]
SMALL_STEP = 2_000_000
"""weights of maps times rows of a batch"""


def train(
    settings: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    store: FeatureStore,
    runs: Path,
    run: str,
    config: JsonObject,
    progress: Progress = lambda epochs: None,
) -> TrainedHead:
    """Train one head on the seen users' training pairs and save it as ``<runs>/<run>``.

    Validation pairs choose the epoch; test pairs are not read. ``config`` is saved beside the head,
    to be read by people; ``progress`` is called after each epoch. The same settings and seed give
    the same bytes on the same machine's CPU. A run of this name is replaced only if it was made
    with the same settings from the same data; what its settings gave by folds stays. Raises
    ConfigError where the package of ``train.logger`` is not installed.
    """
    require_logger(settings)
    device = choose_device(settings.device)
    new = NewRun.begin(settings, seed, dataset, store, runs, run, config, device)
    warn_about_labels(new.data.train, new.data.users)
    _load_trainer(new.settings)
    with logs_of(new.settings, new.folder) as logs:
        began = time.perf_counter()
        fitted = fit_head(new.data, new.settings, seed, progress, logs)
        seconds = time.perf_counter() - began
        if new.settings.loss == "logistic":
            losses = [row["val/loss"] for row in fitted.log if "val/loss" in row]
            warn_about_loss(min(losses, default=0.0))
        return new.save(fitted, seconds, None if logs is None else logs.folder)


def _load_trainer(settings: TrainConfig) -> None:
    """Import Lightning, where it will train, before time is taken."""
    if not kind_of(settings).is_solved:
        with quick_imports():
            import pal.train.by_lightning  # noqa: F401


def fit_head(
    data: TrainingData,
    settings: TrainConfig,
    seed: int,
    progress: Progress = lambda epochs: None,
    logs: Logs | None = None,
) -> Fitted:
    """Fit a head, from several starts if the settings say so; raises TrainError if none succeeds.

    Without ``logs`` nothing is logged, whatever the settings say. The result is the same whether or
    not other heads are fitted from this data.
    """
    if kind_of(settings).is_solved:
        head = data.new_head(settings, seed)
        solve(head, data.problem, settings)
        progress(settings.epochs * settings.starts)
        return Fitted(head, [{"epoch": 0}], 0)
    from pal.train.by_lightning import fit_in_steps

    return fit_in_steps(data, settings, seed, progress, logs)


def can_be_stacked(settings: TrainConfig) -> bool:
    """Say whether a stack can train a head: batch normalisation keeps running statistics, which a
    stack would mix; solved heads take no steps; of a head with several starts only one is a
    result; and priors know the things of their own fold."""
    has_batchnorm = "batchnorm" in (settings.mlp or "")
    takes_steps = not heads()[settings.head].is_solved and settings.starts == 1
    return takes_steps and not has_batchnorm and not has_priors(settings)


def load_each(
    settings: TrainConfig, datasets: Sequence[PreparedDataset], store: FeatureStore, device: str
) -> list[TrainingData]:
    """Join the training pairs of several datasets of one cache to its features, which they
    share."""
    found: list[TrainingData] = []
    for dataset in datasets:
        features = found[0].features if found else None
        found.append(TrainingData.load(settings, dataset, store, device, features))
    return found


def fit_each(
    data: Sequence[TrainingData], settings: TrainConfig, seed: int, wanted: Sequence[int]
) -> Iterator[tuple[Fitted, float]]:
    """Train the same settings on several training sets, as one stack where that is quicker, and
    yield the ``wanted`` ones, each as it is ready, with the seconds that it took.

    What is returned is what ``fit_head`` gives for each, but for rounding. A stack is trained as a
    whole, however few are wanted of it: a smaller one would round otherwise, and what was killed
    and run again would not be what an undisturbed run gives.
    """
    if len(data) > 1 and can_be_stacked(settings) and gains_by_stacking(data[0], settings, seed):
        from pal.train.together import Together

        began = time.perf_counter()
        found = [one for one in Together(data, [seed], [settings]).fit() if one is not None]
        share = (time.perf_counter() - began) / len(found)
        yield from ((found[place], share) for place in wanted)
        return
    _load_trainer(settings)
    for place in wanted:
        began = time.perf_counter()
        fitted = fit_head(data[place], settings, seed)
        yield fitted, time.perf_counter() - began


def gains_by_stacking(data: TrainingData, settings: TrainConfig, seed: int) -> bool:
    """Say whether a handful of heads is quicker as a stack: on a GPU, and on a CPU where a step is
    so little work that Python takes the time. By size, not by a clock, so that the same command
    gives the same bytes."""
    if data.features.device.type != "cpu":
        return True
    head = data.new_head(settings, seed)
    maps = sum(p.numel() for p in head.roles()["maps"])
    return maps * min(settings.batch_size, len(data.train)) <= SMALL_STEP
