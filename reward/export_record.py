"""An export on disk: what it is, in one sealed record, and the numbers of its head.

exports/<name>/
  export.json        the record: encoder, view, head, whose reward, users, the seals of the files
  head.safetensors   the head, its feature statistics, the chosen user's vector, new users' prior
  golden.json        inputs, and the scores that a loaded model must give them
  config.json        what transformers reads; its block ``pal`` names export.json
  README.md          the model card
  tokenizer files    of text encoders
  model.safetensors  only after --merge: the encoder with the head folded in
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from pal.config import EncoderConfig, TrainConfig
from pal.errors import RewardError
from pal.items import ItemText, View
from pal.names import FolderName, InnerPath
from pal.records import (
    Damaged,
    Entry,
    JsonObject,
    Record,
    check_seal,
    read_sealed,
    read_tensors,
    write_tensors,
)
from pal.train.adapt.prior import Prior, Priors
from pal.train.build import rebuild_head
from pal.train.heads.head import Head

HEAD, CONFIG, CARD = "head.safetensors", "config.json", "README.md"
Modality = Literal["text", "image"]
ChoiceKind = Literal["user", "weights", "population", "prototype"]


class EncoderReference(Entry):
    """Which encoder a head was trained on. A path in it is only a place to look for weights."""

    name: str
    revision: str
    spec: JsonObject
    """everything its features depend on, with the digests of its files"""
    settings: EncoderConfig


class TunedPrior(Entry):
    """A prior of new users, whose numbers stand beside the head's."""

    shots: int
    """answers that it is tuned for"""
    by_community: bool


class ExportRecord(
    Record,
    kind="export",
    version=3,
    file="export.json",
    error=RewardError,
    remedy="export the run again: pal export --run RUN",
):
    """``export.json``; a run that is opened without being exported has one in memory."""

    run: FolderName
    dataset: FolderName
    view: View
    item_text: ItemText
    modality: Modality
    """what is rewarded"""
    encoder: EncoderReference
    untrained: bool
    """whether the encoder has random weights, so that the numbers mean nothing"""
    dim: int
    train: TrainConfig
    split_digest: str
    pairs_digest: str
    cache_fingerprint: str
    users: list[str]
    """names in the order of the head's table; empty for the export of one user"""
    choice: ChoiceKind = "population"
    """whose reward is given when nobody is named"""
    user: str | None = None
    """the chosen user"""
    weights: list[float] | None = None
    """the vector of whoever was chosen, where it has no more than 64 numbers"""
    fixed: bool = False
    """whether there is one reward only, and nothing is known of other users"""
    priors: list[TunedPrior] = Field(default_factory=list)
    """of new users; none where none can be added"""
    merged: bool = False
    """whether the head is folded into an encoder that lies in the same folder"""
    merged_spec: JsonObject | None = None
    """the specification of that encoder, with the digests of its files"""
    constant: float | None = None
    """what the merged model's logits lack to be rewards; no comparison sees it"""
    fold_max_abs_diff: float | None = None
    """largest difference of the merged model's logits from the golden scores"""
    pal_version: str
    files: dict[InnerPath, str] = Field(default_factory=dict)
    """seal of each sealed file beside the record"""

    @property
    def head_id(self) -> str:
        """The seal of the head: what users adapted later belong to."""
        return self.files.get(HEAD, "unsaved")


class GoldenInput(Entry):
    """An input of our own making: an export repeats nobody's data."""

    prompt: str | list[dict[str, str]]
    """a text or chat messages"""
    response: str | None = None
    image: str | None = None
    """a PNG file in base64"""


class Golden(
    Record, kind="golden", file="golden.json", error=RewardError, remedy=ExportRecord.remedy
):
    """``golden.json``: scores for whoever the export is for, which loading must reproduce."""

    user: str | None
    inputs: list[GoldenInput] = Field(min_length=1)
    scores: list[FiniteFloat]

    @model_validator(mode="after")
    def _one_score_each(self) -> Self:
        if len(self.scores) != len(self.inputs):
            raise ValueError(f"{len(self.scores)} scores for {len(self.inputs)} inputs")
        return self


@dataclass(frozen=True)
class Contents:
    """A head with all that its rewards depend on but the encoder."""

    metadata: ExportRecord
    head: Head
    user_vector: Tensor
    """(R,) of whoever is meant when no user is named"""
    prior: Priors | None = None
    """of new users' raw numbers; None where none can be added"""


def write_head(folder: Path, contents: Contents) -> str:
    """Write the numbers into an existing folder and return their seal."""
    tensors = {f"head.{name}": value for name, value in contents.head.state_dict().items()}
    tensors["user_vector"] = contents.user_vector
    if contents.prior is not None:
        for shots, prior in contents.prior.by_shots.items():
            tensors |= {f"prior.{shots}.{n}": v for n, v in _tensors_of_prior(prior).items()}
    return write_tensors(folder / HEAD, tensors)


def write_golden(folder: Path, golden: Golden) -> str:
    """Write golden inputs and scores into an existing folder and return their seal."""
    golden.write(folder)
    return check_seal((folder / Golden.file).read_bytes())


def read_contents(folder: Path) -> Contents:
    """Read an export without its encoder; raises RewardError for none and for a damaged one."""
    if not (folder / ExportRecord.file).is_file():
        raise RewardError(
            f"{folder} holds no exported reward model; make one with pal export --run RUN, or name "
            "its folder"
        )
    record = ExportRecord.read(folder)
    try:
        tensors = read_tensors(folder / HEAD, record.files.get(HEAD, ""))
    except Damaged as problem:
        raise RewardError(f"{folder / HEAD} {problem}; {ExportRecord.remedy}") from None
    try:
        prefix = "head."
        head = rebuild_head(
            record.train,
            record.dim,
            len(record.users),
            {
                name.removeprefix(prefix): tensors[name]
                for name in tensors
                if name.startswith(prefix)
            },
        )
        priors = {tuned.shots: _prior_of_tensors(tensors, tuned) for tuned in record.priors}
        own = tensors["user_vector"]
        return Contents(record, head.eval(), own, Priors(priors) if priors else None)
    except (ValueError, KeyError, RuntimeError) as error:  # of another version's head
        raise RewardError(
            f"the head in {folder} does not fit this version of pal ({type(error).__name__}); "
            f"{ExportRecord.remedy}"
        ) from error


def read_golden(folder: Path, record: ExportRecord) -> Golden:
    """Read the golden inputs that belong to an export; raises RewardError."""
    path = folder / Golden.file
    try:
        return Golden.parse(read_sealed(path, record.files.get(Golden.file, "")))
    except Damaged as problem:
        raise RewardError(f"{path} {problem}; {Golden.remedy}") from None


def tuned_priors(priors: Priors) -> list[TunedPrior]:
    """Return what the record says of priors."""
    return [
        TunedPrior(shots=shots, by_community=prior.by_community)
        for shots, prior in priors.by_shots.items()
    ]


def _tensors_of_prior(prior: Prior) -> dict[str, Tensor]:
    """Return a prior as tensors; a precision that is a multiple of the identity is one number."""
    level = prior.precision.diagonal()[:1]
    identity = torch.eye(len(prior.mean), device=level.device)
    precision = level if torch.equal(prior.precision, level * identity) else prior.precision
    # safetensors keeps no two tensors in one memory, and priors may share theirs
    return {"mean": prior.mean.clone(), "precision": precision.clone(),
            "centres": prior.centres.clone()}  # fmt: skip


def _prior_of_tensors(tensors: dict[str, Tensor], tuned: TunedPrior) -> Prior:
    mean, precision, centres = (
        tensors[f"prior.{tuned.shots}.{name}"] for name in ("mean", "precision", "centres")
    )
    if precision.dim() == 1:
        precision = precision * torch.eye(len(mean))
    return Prior(mean, precision, centres, tuned.by_community)
