"""Predictions of a run on the splits it may be judged by, and their metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch

from pal.cache.reader import FeatureStore
from pal.cache.shard import ITEM_BYTES
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.metrics import sigmoid, summarize
from pal.evaluate.ties import TieRule
from pal.evaluate.votes import by_division, with_votes
from pal.files import atomic_file, write_json
from pal.train.fit import TrainingData
from pal.train.pairs import NO_USER, Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

ROWS_AT_ONCE = 1024
ZERO_SHOT = "0"


def evaluate(
    config: Config,
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Predict validation and test pairs, write ``predictions.parquet`` and ``metrics.json``, return
    the latter.

    Unseen users are judged zero-shot, with the mean weights of the seen users; ``test_unseen`` is
    empty where a dataset has none. Raises EvaluationError if the dataset was split otherwise than
    the one the run was trained on, or the features differ.
    """
    require_same_data(trained, dataset, store)
    features = store.features()
    frames = []
    for split, population in (("val", "seen"), ("test", "seen"), ("test", "unseen")):
        frame = drop_without_feature(dataset.pairs(split, population), store)  # type: ignore[arg-type]
        if not frame.is_empty():
            frames.append(predict(trained, frame, store, features))
    predictions = pl.concat(frames)
    ties = TieRule.choose(config.evaluate.ties, predictions.filter(pl.col("split") == "val"))
    votes = with_votes(dataset.pairs("test")).select("pair_id", "votes", "vote_share")

    def cell(population: str) -> dict[str, Any]:
        rows = predictions.filter(
            (pl.col("split") == "test") & (pl.col("population") == population)
        )
        if rows.is_empty():
            return {}
        return cell_of(config, rows, ties) | by_division(rows, votes, config.evaluate.votes)

    facts = trained.facts
    unseen = cell("unseen")
    metrics = {
        **{key: facts[key] for key in ("run", "dataset", "encoder")},
        "untrained": facts["untrained"],
        "head": facts["train"]["head"],
        "k": facts["train"]["k"],
        **{
            key: facts[key]
            for key in ("seed", "params", "params_per_user", "seconds", "best_epoch")
        },
        **{key: facts[key] for key in ("split_digest", "cache_fingerprint")},
        "cache_bytes": store.rows * store.dim * ITEM_BYTES[store.dtype],
        "test_seen": cell("seen"),
        "test_unseen": {ZERO_SHOT: unseen} if unseen else {},
    }
    folder = folder or config.paths.runs / facts["run"]
    with atomic_file(folder / "predictions.parquet") as temporary:
        pq.write_table(predictions.to_arrow(), temporary, compression="zstd")
    path = folder / "metrics.json"
    if path.is_file():  # cells of adaptation stay, for the head is the same
        before = json.loads(path.read_text(encoding="utf-8"))
        metrics["test_unseen"] = {**before["test_unseen"], **metrics["test_unseen"]}
        metrics |= {key: before[key] for key in ("adapted_by", "n_users_left_out") if key in before}
    write_json(path, metrics)
    return metrics


def judge(config: Config, trained: TrainedHead, data: TrainingData) -> dict[str, Any]:
    """Return the flat metrics of one head of a sweep: ``val_*`` to select by, ``test_*`` to
    report."""
    flat: dict[str, Any] = {}
    ties: TieRule | None = None
    for split in ("val", "test"):
        if split not in data.judged:
            frame = drop_without_feature(data.dataset.pairs(split, "seen"), data.store)
            frame = frame.filter(pl.col("user_id").is_in(data.users))
            data.judged[split] = (
                frame,
                Pairs.join(frame, data.store, data.users, data.train.prompt is not None, "cpu"),
            )
        predictions = predict_joined(trained, *data.judged[split], data.features.cpu())
        ties = ties or TieRule.choose(config.evaluate.ties, predictions)
        cell = cell_of(config, predictions, ties)
        low, high = cell.pop("macro_ci95")
        flat |= {f"{split}_{name}": value for name, value in cell.items()}
        flat |= {f"{split}_ci95_low": low, f"{split}_ci95_high": high}
    return flat


def cell_of(config: Config, predictions: pl.DataFrame, ties: TieRule) -> dict[str, Any]:
    """Return the metrics of one cell of the protocol; raises EvaluationError if it holds nothing
    but ties to drop."""
    every_label = predictions["label"].to_numpy()
    counted = predictions.filter(pl.Series(ties.keeps(every_label)))
    if counted.is_empty():
        raise EvaluationError(
            "all pairs to be judged are ties, and evaluate.ties = 'drop' leaves none; use half"
        )
    margin, label = counted["margin"].to_numpy(), counted["label"].to_numpy()
    users = np.unique(counted["user_id"].to_numpy(), return_inverse=True)[1]
    settings = config.evaluate
    cell = summarize(
        margin, label, users, settings.bootstrap, settings.ece_bins, ties.credit(margin, label)
    )
    return cell | ties.facts(every_label)


def require_same_data(trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore) -> None:
    """Raise EvaluationError unless split and features are those of the training."""
    run = trained.facts["run"]
    for what, trained_on, present in (
        ("split digest", trained.facts["split_digest"], dataset.split_digest),
        ("cache fingerprint", trained.facts["cache_fingerprint"], store.fingerprint),
    ):
        if trained_on != present:
            raise EvaluationError(
                f"run {run} was trained on {dataset.name} with {what} {trained_on[:12]}, but the "
                "present one is "
                f"{present[:12]}; train it again or prepare the dataset as it was "
                f"(runs/{run}/config.yaml says how)"
            )


def predict(
    trained: TrainedHead, frame: pl.DataFrame, store: FeatureStore, features: torch.Tensor
) -> pl.DataFrame:
    """Return ``pair_id, user_id, split, population, margin, p, label`` for rows of
    ``pairs.parquet``."""
    pairs = Pairs.join(frame, store, trained.users, trained.head.uses_prompt, "cpu")
    return predict_joined(trained, frame, pairs, features)


@torch.inference_mode()
def predict_joined(
    trained: TrainedHead, frame: pl.DataFrame, pairs: Pairs, features: torch.Tensor
) -> pl.DataFrame:
    """Return what ``predict`` does for rows whose features are known already."""
    head = trained.head
    population = head.users.population()
    margin_B = torch.empty(
        len(pairs)
    )  # filled in place: results kept between blocks would fragment the heap
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        batch = pairs.batch(features, rows)
        weights = head.users(batch.user.clamp(min=0))
        weights = torch.where((batch.user == NO_USER).unsqueeze(1), population, weights)
        margin_B[rows] = head.margin(batch.prompt, batch.first, batch.second, weights)
    margin = margin_B.double().numpy()
    if not np.isfinite(margin).all():
        raise EvaluationError(
            f"run {trained.facts['run']} gives NaN or infinite margins; train it with a lower "
            "--set train.lr"
        )
    return frame.select("pair_id", "user_id", "split", "population").with_columns(
        pl.Series("margin", margin), pl.Series("p", sigmoid(margin)), frame["label"]
    )


def load_run(config: Config, run: str) -> TrainedHead:
    """Read a run by its name; raises EvaluationError."""
    folder: Path = config.paths.runs / run
    return TrainedHead.load(folder)
