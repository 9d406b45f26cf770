"""An exported reward model on disk: what its files are, written whole and read back with every
check.

exports/<name>/
  config.json        what it is: encoder with revision and digests, template, pooling, view, head, choice of user
  head.safetensors   the head, its feature statistics, the chosen user's code, the prior of new users
  users.json         ids in the order of the head's table; absent in the export of one user
  golden.json        inputs, and the scores that a loaded model must give them
  README.md          the model card
  tokenizer files    of text encoders
  model.safetensors  only after --merge: the encoder with the head folded in
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pal.config import EncoderConfig, TrainConfig
from pal.errors import RewardError
from pal.files import file_sha256
from pal.train.adapt.map import Prior
from pal.train.heads.head import Head, build_head

FORMAT = 1
CONFIG, HEAD, USERS, GOLDEN, CARD, DIGESTS = (
    "config.json", "head.safetensors", "users.json", "golden.json", "README.md", ".digests.json",
)  # fmt: skip


@dataclass
class Contents:
    """What a folder holds, and what a run has before it is exported."""

    facts: dict[str, Any]
    """``config.json``'s block ``pal``"""
    head: Head
    users: list[str]
    """ids of the head's table; empty for the export of one user"""
    code: Tensor
    """(R,) the code of whoever is asked for when no user is named"""
    prior: Prior | None = None
    """of new users' raw numbers; None where none can be added"""

    @property
    def encoder_config(self) -> EncoderConfig:
        return EncoderConfig.model_validate(self.facts["encoder"]["settings"])

    @property
    def is_fixed(self) -> bool:
        """Whether there is one user only, and nothing is known of others."""
        return bool(self.facts["fixed"])


def write_head(folder: Path, contents: Contents) -> None:
    """Write the numbers, and the ids that belong to them, into an existing folder."""
    state = {f"head.{name}": value for name, value in contents.head.state_dict().items()}
    state["code"] = contents.code
    if contents.prior is not None:
        state |= _prior_tensors(contents.prior)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / HEAD, metadata={"format": "pt"})
    if contents.users:
        text = json.dumps(contents.users, ensure_ascii=False, indent=0)
        (folder / USERS).write_text(text + "\n", encoding="utf-8")
    contents.facts["head_sha256"] = file_sha256(folder / HEAD)


def read(folder: Path) -> Contents:
    """Read an export without loading its encoder; raises RewardError where the folder is none or is
    damaged."""
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["pal"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RewardError(
            f"{folder} holds no exported reward model; make one with pal export --run RUN, or "
            "name its folder"
        ) from error
    if facts.get("format") != FORMAT:
        raise RewardError(
            f"{folder} has format {facts.get('format')!r} and this version reads {FORMAT}; export "
            "the run again"
        )
    try:
        if file_sha256(folder / HEAD) != facts["head_sha256"]:
            raise ValueError("digest")
        tensors = load_file(folder / HEAD)
        users = (
            json.loads((folder / USERS).read_text(encoding="utf-8"))
            if (folder / USERS).is_file()
            else []
        )
        head = build_head(TrainConfig.model_validate(facts["train"]), facts["dim"], len(users))
        own = {
            n.removeprefix("head."): value for n, value in tensors.items() if n.startswith("head.")
        }
        head.load_state_dict(own)
        prior = _prior_of(tensors, bool(facts["prior_by_community"]))
        return Contents(facts, head.eval(), users, tensors["code"], prior)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewardError(
            f"the export in {folder} is damaged ({type(error).__name__}); export the run again"
        ) from error


def _prior_tensors(prior: Prior) -> dict[str, Tensor]:
    """Return a prior as tensors; a precision that is a multiple of the identity as that one
    number."""
    size = len(prior.mean)
    level = prior.precision.diagonal()[:1]
    is_isotropic = torch.equal(prior.precision, level * torch.eye(size))
    precision = level if is_isotropic else prior.precision
    return {"prior.mean": prior.mean, "prior.precision": precision, "prior.centres": prior.centres}


def _prior_of(tensors: dict[str, Tensor], by_community: bool) -> Prior | None:
    if "prior.mean" not in tensors:
        return None
    mean, precision = tensors["prior.mean"], tensors["prior.precision"]
    if precision.dim() == 1:
        precision = precision * torch.eye(len(mean))
    return Prior(mean, precision, tensors["prior.centres"], by_community)
