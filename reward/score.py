"""Rewards for single responses: the encoder runs live, the head is a run's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pal.config import Config
from pal.embed.encoder import load, locate
from pal.embed.executors import CPU_TOKEN_BUDGET
from pal.embed.storage import from_stored, to_stored
from pal.errors import EvaluationError, PalWarning
from pal.train.checkpoint import TrainedHead


class Scorer:
    """r_u(prompt, response) for texts, under one run's head and the encoder it was trained on."""

    def __init__(self, config: Config, run: str) -> None:
        """Load a run and its encoder; raises EvaluationError if the encoder's files have changed since."""
        self.trained = TrainedHead.load(config.paths.runs / run)
        facts = self.trained.facts
        config = config.model_copy(update={"encoder": facts["encoder"]})
        source = locate(config.encoder, config.encoder_config(), Path(config.paths.cache) / ".digests.json")
        if source.spec != facts["encoder_spec"]:
            raise EvaluationError(
                f"run {run} was trained under other settings of encoder {config.encoder}; restore them"
            )
        self.encoder = load(source, "cpu", CPU_TOKEN_BUDGET, [source.config.layer], False)
        self.store_dtype = source.config.store_dtype
        self._warned: set[str] = set()

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts as stage one does, with the same rounding: (n, dim)."""
        items = pa.table({"modality": ["text"] * len(texts), "text": list(texts)})
        inputs = self.encoder.prepare(items)
        if inputs.failures:
            row, (_, _, message) = next(iter(inputs.failures.items()))
            raise EvaluationError(f"text {row} cannot be scored: {message}")
        batches = list(self.encoder.batches(inputs))
        encoded = [self.encoder.encode(self.encoder.load_batch(inputs, rows))[0] for rows in batches]
        stored = from_stored(to_stored(torch.cat(encoded), self.store_dtype), self.store_dtype)
        features = torch.empty_like(stored)
        features[torch.from_numpy(np.concatenate(batches))] = stored
        return features

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], items: Sequence[str], users: Sequence[str | None]) -> list[float]:
        """Return one reward per row. ``items`` are the texts as the dataset has them (persona: with the prompt).

        A user who was not trained on is scored as the population, and named once in a warning.
        """
        head = self.trained.head
        features = self.features(items)
        prompt = self.features(prompts) if head.uses_prompt else None
        return [float(value) for value in head.reward(prompt, features, self.weights(users))]

    def weights(self, users: Sequence[str | None]) -> torch.Tensor:
        """Return the weights of users, (n, K); None and unknown users have those of the population."""
        head, number = self.trained.head, {name: row for row, name in enumerate(self.trained.users)}
        for user in users:
            if user is not None and user not in number and user not in self._warned:
                self._warned.add(user)
                warnings.warn(f"user {user!r} was not trained on; scored as the population", PalWarning, stacklevel=3)
        rows = [
            head.users.population() if user not in number else head.users(torch.tensor([number[user]]))[0]
            for user in users
        ]
        return torch.stack(rows)
