"""The released code of PAL, LoRe, VPL and MRM, run from checkouts that are given by path.

Nothing of it is kept here. Encoders are replaced by features, what only logs or plots by nothing;
all else is theirs: networks, losses, optimisers. Their first item is called left, a label of -1
says that it is preferred.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import lightning  # noqa: F401 -- before any stub, which it would take for the real thing
import torch
from torch import Tensor, nn
from transformers import Trainer  # noqa: F401 -- the same

from pal.train.heads.mlp import MLPs
from pal.train.pairs import Batch

COMMITS = {"pal": "fcfc03c", "lore": "6f93990", "vpl": "fdfdfa7", "mrm": "d53d667"}
"""what golden numbers and tables were made with"""
ABSENT = ("wandb", "higher", "matplotlib", "matplotlib.pyplot")
"""modules that they import and that no number here needs"""
PAL_RATES = {"projector": 1e-4, "projector_f": 1e-4, "projectors_gk": 1e-4}
PAL_RATES |= {"P": 5e-3, "W": 5e-3, "logit_scale": 1e-1}
"""the released learning rates by their names of parameters"""


logging.getLogger("src").setLevel(logging.CRITICAL + 1)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a checkout be imported, apart from whatever else has the same modules' names."""
    stubs = {name: types.ModuleType(name) for name in ABSENT}
    for name, stub in stubs.items():
        stub.__spec__ = ModuleSpec(name, None)  # without one, asking whether it is there fails
    stubs["higher"].innerloop_ctx = None  # type: ignore[attr-defined]
    stubs["matplotlib"].pyplot = stubs["matplotlib.pyplot"]  # type: ignore[attr-defined]
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    for name in [n for n in sys.modules if n.split(".")[0] in ("src", "utils", "train")]:
        del sys.modules[name]
    sys.modules.update({name: stub for name, stub in stubs.items() if name not in before})
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n not in before]:
            if name.split(".")[0] in ("src", "utils", "train", *ABSENT):
                del sys.modules[name]


def load_file(folder: Path, file: str) -> Any:
    """Import one file of a checkout under a name of its own."""
    with importable(folder):
        path = folder / file
        spec = importlib.util.spec_from_file_location(f"peer_{folder.name}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class Settings(dict[str, Any]):
    """A dictionary whose keys are also read as attributes, as theirs are."""

    __getattr__ = dict.__getitem__


class Features(nn.Module):
    """In place of their language model: its token ids are features, one token a text."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return types.SimpleNamespace(last_hidden_state=input_ids.unsqueeze(1))


@dataclass
class PeerPal:
    """A released PAL head, kind ``a`` or ``b``, and how it is trained."""

    learner: Any
    kind: str

    @classmethod
    def build(
        cls, folder: Path, kind: str, dim: int, users: int, k: int, mlp: str, decay: float
    ) -> PeerPal:
        with importable(folder), mock.patch("builtins.print"):
            module = importlib.import_module(f"src.pal_rm_{kind}.lightningmodule")
            theirs = importlib.import_module(f"src.pal_rm_{kind}.learner")
            shared = {"sfx_type": "softmax", "sfx_temperature": 1.0}
            settings = Settings(
                d_hid=dim, d_pref=dim, k=k, llm_name="none", proj_arch=mlp,
                pref_learner_type="dist" if kind == "a" else "angle",
                user_learner_type="f(Pw)", initializer_type="gaussian",
                is_expectation_norm_init=False, is_temperature_learnable=False, **shared,
            )  # fmt: skip
            groups = {
                name: {"lr": rate, "weight_decay": decay if "proj" in name else 0.0}
                for name, rate in PAL_RATES.items()
            }
            optimiser = {"optimizer_hyperparams": groups, "epochs_new_pair": 1}
            optimiser |= {"epochs_new_user": 20, "warmup_ratio": 0.1}
            loss = {"loss_type": "hinge" if kind == "a" else "CE", "loss_weighting": "cumulative"}
            loss |= {"upper_bound": 4.0, "lmd": 1.0}
            with (
                mock.patch.object(theirs.AutoConfig, "from_pretrained"),
                mock.patch.object(theirs.AutoModel, "from_pretrained", return_value=Features()),
            ):
                learner = module.LearnerWrapLightning(settings, optimiser, loss)
        peer = cls(learner, kind)
        peer.add_users(users)
        return peer

    def add_users(self, users: int) -> None:
        """Give it users 0 .. U-1, in place of those it had."""
        table = self.learner.prefLearner.user_learner
        table.W.clear()
        table.u_id_set.clear()
        table.init_weight([str(u) for u in range(users)])

    def maps(self) -> list[nn.Module]:
        """Return f, then g_1 .. g_K."""
        own = self.learner.prefLearner
        if self.kind == "a":
            return [own.projector.mlp]
        return [own.projector_f.mlp, *(g.mlp for g in own.projectors_gk)]

    def user_logits(self) -> Tensor:
        table: Tensor = torch.stack(list(self.learner.prefLearner.user_learner.W.values()))
        return table

    def margins(self, rows: Batch) -> Tensor:
        """Return r(first) - r(second), (B,)."""
        out: Tensor = self.learner.prefLearner(self._input(rows))[:, 0]
        return -out if self.kind == "a" else out[:, 0] - out[:, 1]

    def loss(self, rows: Batch) -> Tensor:
        count = len(rows.label)
        inds = [[0] * count, [1] * count]
        y = [1 - 2 * int(label) for label in rows.label.tolist()]
        loss: Tensor = self.learner._wrap_forward(
            ({"input": self._input(rows), "inds": inds}, y), 0
        )[0]
        return loss

    def optimiser(self, new_users: bool = False) -> torch.optim.Optimizer:
        """Return theirs: of all parameters but the encoder's, or of new users' weights alone."""
        # f is in their list twice for PAL-A, once by either name, and would be stepped twice
        fixed = ["llm", "userLearnerProjector"] if self.kind == "a" else ["llm"]
        new = ["llm", "itemLearnerProjector", "userLearnerProjector"]
        self.learner.prefLearner.update_trainable_params(new if new_users else fixed)
        self.learner.set_mode("new_user" if new_users else "new_pair")
        made: torch.optim.Optimizer = self.learner.configure_optimizers()["optimizer"]
        return made

    def step(self, optimiser: torch.optim.Optimizer, rows: Batch) -> None:
        optimiser.zero_grad()
        self.loss(rows).backward()
        optimiser.step()

    def _input(self, rows: Batch) -> Any:
        users = [str(u) for u in rows.user.tolist()]
        items = {"left_input_ids": rows.first, "right_input_ids": rows.second}
        items |= dict.fromkeys(("left_attention_mask", "right_attention_mask"))
        if self.kind == "a":
            return users, items
        return users, {"input_ids": rows.prompt, "attention_mask": None}, items


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def copy_maps(ours: MLPs, theirs: Sequence[nn.Module]) -> None:
    """Give their maps the weights of ours, one each for every copy."""
    for copy, module in enumerate(theirs):
        for number, layer in enumerate(linear_layers(module)):
            layer.weight.copy_(ours.weights[number][copy])
            layer.bias.copy_(ours.biases[number][copy])


def differences_by_user(rows: Batch, users: int) -> list[Tensor]:
    """Return chosen minus rejected of each user's rows, as LoRe wants it."""
    x = torch.where((rows.label > 0.5).unsqueeze(1), 1.0, -1.0) * (rows.first - rows.second)
    return [x[rows.user == u] for u in range(users)]


def chosen_and_rejected(rows: Batch) -> tuple[Tensor, Tensor]:
    is_first = (rows.label > 0.5).unsqueeze(1)
    chosen = torch.where(is_first, rows.first, rows.second)
    return chosen, torch.where(is_first, rows.second, rows.first)
