"""A trained head on disk: ``head.json`` says what it is, ``head.safetensors`` holds its numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pal.config import TrainConfig
from pal.errors import EvaluationError
from pal.train.heads.head import Head, build_head


@dataclass
class TrainedHead:
    """A head in evaluation mode, with all that is needed to use it on other features of its
    encoder."""

    head: Head
    users: list[str]
    """user ids in the order of the head's table"""
    facts: dict[str, Any]
    """run, dataset, encoder, split digest, cache fingerprint, resolved settings, cost"""

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in self.head.state_dict().items()
        }
        save_file(state, folder / "head.safetensors", metadata={"format": "pt"})
        text = json.dumps({**self.facts, "users": self.users}, indent=1, ensure_ascii=False)
        (folder / "head.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainedHead:
        """Read a run's head; raises EvaluationError where there is none that can be used."""
        if not (folder / "head.json").is_file():
            raise EvaluationError(
                f"{folder} holds no trained head; run: pal train --run {folder.name}"
            )
        try:
            facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
            users = facts.pop("users")
            head = build_head(TrainConfig.model_validate(facts["train"]), facts["dim"], len(users))
            head.load_state_dict(load_file(folder / "head.safetensors"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise EvaluationError(
                f"the head in {folder} is damaged ({type(error).__name__}); train it again"
            ) from error
        return cls(head.to(device).eval(), users, facts)
