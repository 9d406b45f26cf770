"""A trained head on disk.

runs/<run>/head.json          RunRecord: what it is; written last
runs/<run>/head.safetensors   its numbers; the same command gives the same bytes
runs/<run>/config.yaml        the resolved configuration
runs/<run>/log.csv            one row per epoch
runs/<run>/logs/              what train.logger wrote, to be looked at; nobody reads it again

Evaluation adds metrics.json and predictions.parquet, which name the seal of the head, and under
folds/ what the run's settings give by cross-fitting.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import Field

from pal.config import TrainConfig
from pal.errors import EvaluationError, TrainError
from pal.files import INFLIGHT, file_sha256, recover
from pal.items import ItemText, View
from pal.names import Fingerprint, FolderName, InnerPath, did_you_mean_folder
from pal.records import Damaged, JsonObject, Record, read_tensors, write_tensors, write_text
from pal.train.build import rebuild_head
from pal.train.heads.head import Head
from pal.train.relevant import relevant_settings

HEAD, CONFIG, LOG = "head.safetensors", "config.yaml", "log.csv"
LOGS = "logs"
FOLDS = "folds"
HEAD_NAME = "train.head"
Log = Sequence[Mapping[str, float]]
"""one row per epoch"""


class RunRecord(
    Record,
    kind="run",
    file="head.json",
    beside="head.safetensors",
    error=EvaluationError,
    remedy="train it again: pal train --run {name}",
):
    """``head.json``."""

    run: FolderName
    dataset: FolderName
    view: View
    item_text: ItemText
    encoder: FolderName
    untrained: bool
    """whether the encoder has random weights"""
    seed: int
    dim: int
    """of the features"""
    params: int
    params_per_user: int
    seconds: float
    best_epoch: int
    """0 for heads that are solved at once"""
    split_digest: str
    pairs_digest: str
    cache_fingerprint: Fingerprint
    encoder_spec: JsonObject
    train: TrainConfig
    """with the head's own defaults filled in"""
    users: list[str]
    """ids in the order of the head's user table"""
    head_id: str | None = None
    """its id in the sweep that it is the best head of"""
    grown_from: FolderName | None = None
    """the run whose prototypes it has, and more"""
    files: dict[InnerPath, str] = Field(default_factory=dict)
    """seal of each file beside the record"""

    @classmethod
    def of(cls, folder: Path) -> RunRecord:
        """Read the record of a run; raises EvaluationError where there is none to be trusted."""
        recover(folder)
        if not (folder / cls.file).is_file():
            raise EvaluationError(
                f"{folder} holds no trained head{did_you_mean_folder(folder, cls.file)} run: pal "
                f"train --run {folder.name}"
            )
        return cls.read(folder)

    @property
    def seal(self) -> str:
        """The seal of the head: what metrics and predictions of this very head name."""
        return self.files.get(HEAD, "")

    def require_same_run(self, folder: Path, remedy: str) -> None:
        """Raise TrainError, which ends with ``remedy``, if ``folder`` is not this run or free."""
        self.require_replaceable(folder)
        earlier = self.find(folder)
        if earlier is None:
            return
        was, now = earlier.deciding(), self.deciding()
        changed = [key for key in sorted({*now, *was}) if was.get(key) != now.get(key)]
        changed = [key for key in changed if key in now and key in was] or changed
        if changed:
            key = min(changed, key=lambda key: (not key.startswith("train."), key != HEAD_NAME))
            raise TrainError(
                f"{folder} holds a run with {key} = {_short(was.get(key))}, not "
                f"{_short(now.get(key))}; {remedy}"
            )

    def keep_folds(self, earlier: Path, folder: Path) -> None:
        """Copy the folds of an earlier run into the ``folder`` that takes its place, if this run
        has its settings and data; of others they would say nothing."""
        before = RunRecord.find(earlier)
        if before is not None and before.deciding() == self.deciding():
            folds = earlier / FOLDS
            if folds.is_dir():
                ignored = shutil.ignore_patterns(f"{INFLIGHT}*")
                shutil.copytree(folds, folder / FOLDS, ignore=ignored)

    def deciding(self) -> JsonObject:
        """Return what decides the numbers of the head, by key."""
        names = {
            "dataset", "encoder", "view", "seed", "split_digest", "pairs_digest",
            "cache_fingerprint", "grown_from",
        }  # fmt: skip
        settings = relevant_settings(self.train)
        found: JsonObject = self.model_dump(mode="json", include=names)
        return {**found, **{f"train.{key}": value for key, value in settings.items()}}


@dataclass(frozen=True)
class TrainedHead:
    """A head in evaluation mode, with all that is needed to use it on other features of its
    encoder."""

    head: Head
    metadata: RunRecord

    @property
    def users(self) -> list[str]:
        """User ids in the order of the head's table."""
        return self.metadata.users

    def save(
        self, folder: Path, config: JsonObject, log: Log, logs: Path | None = None
    ) -> TrainedHead:
        """Write a run as a whole and return it with the seals of its files.

        ``config``: the resolved configuration, to be read by people. ``logs``: a folder that is
        moved into the run. Folds of a run that it takes the place of stay, if they are of the same
        settings and data.
        """
        settings = self.metadata.train.model_dump(mode="json")
        text = yaml.safe_dump({**config, "train": settings}, sort_keys=False)
        with RunRecord.replace(folder) as temporary:
            write_log(temporary / LOG, log)
            files = {
                HEAD: write_tensors(temporary / HEAD, self.head.state_dict()),
                CONFIG: write_text(temporary / CONFIG, text),
                LOG: file_sha256(temporary / LOG),
            }
            record = self.metadata.model_copy(update={"files": files})
            self.metadata.keep_folds(folder, temporary)
            if logs is not None and logs.is_dir():
                shutil.move(logs, temporary / LOGS)
            record.write_to(temporary / RunRecord.file)
        return replace(self, metadata=record)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainedHead:
        """Read a run's head; raises EvaluationError where there is none that can be trusted."""
        record = RunRecord.of(folder)
        path = folder / HEAD
        try:
            state = read_tensors(path, record.seal)
        except Damaged as problem:
            raise EvaluationError(f"{path} {problem}; {RunRecord.remedy_for(folder)}") from None
        try:
            head = rebuild_head(record.train, record.dim, len(record.users), state)
        except ValueError as error:
            raise EvaluationError(
                f"{path} does not have the shapes of head {record.train.head}; "
                f"{RunRecord.remedy_for(folder)}"
            ) from error
        return cls(head.to(device).eval(), record)


def write_log(path: Path, rows: Log) -> None:
    """Write one row per epoch; what was not found in all of them is a column all the same."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 20 else f"{text[:15]}...{text[-1]}"
