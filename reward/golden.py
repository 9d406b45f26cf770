"""Golden scores: what an export must give for inputs of our own, whoever loads it and wherever."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pal.errors import RewardError
from pal.reward.export_record import Golden, GoldenInput, read_golden

if TYPE_CHECKING:
    from pal.reward.model import RewardModel

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.2e-1, "mixed": 1.2e-1}
"""largest difference of a golden score, relative to the spread of all, that rounding on other
hardware explains"""
# Written for the purpose: an export repeats nobody's data.
TEXTS: list[tuple[str | list[dict[str, str]], str]] = [
    (
        "What should I cook tonight?",
        " A soup of lentils and carrots takes half an hour.",
    ),
    ("What should I cook tonight?", " Nothing. Order something."),
    ('Would you say this of yourself?\n"I enjoy long walks"', " Yes"),
    ('Would you say this of yourself?\n"I enjoy long walks"', " No"),
    (
        "Erkläre mir Primzahlen – kurz.",
        " Zahlen über 1, die nur 1 und sich selbst als Teiler haben: 2, 3, 5, 7 …",
    ),
    (
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Good day. How can I help?"},
            {"role": "user", "content": "Tell me a story."},
        ],
        " Once there was a clock that was always five minutes early.",
    ),
    (
        "Summarise: " + "the river was long and slow. " * 60,
        " A slow river. " + "It went on and on. " * 40,
    ),
    ("1 + 1 =", " 2"),
]
PROMPTS = ["a red bicycle in the rain", "a cat asleep on a keyboard", "mountains at dawn"]
IMAGES = 6


def golden_inputs(is_image: bool) -> list[GoldenInput]:
    """Return inputs that try templates, length and scripts, or waves of colour."""
    if not is_image:
        return [GoldenInput(prompt=prompt, response=response) for prompt, response in TEXTS]
    return [
        GoldenInput(prompt=PROMPTS[number % len(PROMPTS)], image=_drawn(number))
        for number in range(IMAGES)
    ]


def score_golden(model: RewardModel, inputs: Sequence[GoldenInput]) -> list[float]:
    """Score golden inputs for whoever the model is for."""
    prompts = [row.prompt for row in inputs]
    if model.is_image:
        images = [base64.b64decode(row.image or "") for row in inputs]
        return model.score(prompts, images=images)
    return model.score(prompts, [row.response for row in inputs])


def golden_difference(model: RewardModel, golden: Golden) -> float:
    """Return the largest difference between a model's golden scores and those on record."""
    found = score_golden(model, golden.inputs)
    return max(abs(a - b) for a, b in zip(found, golden.scores, strict=True))


def require_golden(model: RewardModel, folder: Path) -> float:
    """Return how well the golden scores are reproduced; raises RewardError where rounding cannot
    explain it."""
    golden = read_golden(folder, model.metadata)
    difference = golden_difference(model, golden)
    settings = model.encoder.source.config
    spread = max(golden.scores) - min(golden.scores)
    allowed = max(TOLERANCE[settings.compute_dtype], TOLERANCE[settings.store_dtype]) * spread
    if not difference <= max(allowed, 1e-6 * max(map(abs, golden.scores))):
        raise RewardError(
            f"{folder} gives golden scores that differ by {difference:.3g} from those on record, "
            f"more than the {allowed:.3g} of rounding; its files or the encoder's have changed: "
            "export the run again"
        )
    return difference


def _drawn(number: int) -> str:
    from PIL import Image

    x, y = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 64))
    waves = [np.sin((number + 1) * (c + 1) * 3 * x + number * y * math.pi) for c in range(3)]
    pixels = (127.5 * (1 + np.stack(waves, axis=2))).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
