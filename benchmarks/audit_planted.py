"""Sources whose plurality is known, for ``audit_verdicts.py``: small files of published schemas.

- Summaries of different lengths, as in TL;DR. Everybody chooses the longer one, one answer in ten
  aside: read as ``tldr-real``, one preference for all. Read as ``tldr-length``, three of ten
  workers prefer the shorter one.
- Drawn images, as in Pick-a-Pic, of which everybody prefers the warmer in six of ten pairs.
  Pick-a-Filter adds a colour that one half of the people likes and the other does not, to no pair
  (beta 0) or to all (beta 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pickapic_source import write_source

PEOPLE, SEEN, EACH, TRAINING = 30, 10, 60, 45
"""workers, those of them who have training rows, answers of each, and training rows of those"""
JUDGES = 3
"""workers who are asked about the same two summaries"""
WRONG = 0.1
WORDS = """my sister wants to move out but our parents think that she is too young and has no money
for it so she asked me to lend her some and I do not know what to say because we always fight about
it when the landlord came by he told us that the contract ends in spring which nobody expected"""


def write_summaries(path: Path) -> None:
    """Write comparisons of summaries in the schema of ``openai/summarize_from_feedback``."""
    rng = np.random.default_rng(0)
    workers = [f"worker-{number:02d}" for number in range(PEOPLE)]
    parts = [
        ("train", workers[:SEEN], TRAINING),
        ("valid1", workers[:SEEN], EACH - TRAINING),
        ("valid1", workers[SEEN:], EACH),
    ]
    with open(path, "w", encoding="utf-8") as stream:
        for part, (split, group, each) in enumerate(parts):
            for number in range(len(group) * each // JUDGES):
                texts = [_summary(rng, 20, 45), _summary(rng, 4, 12)]
                if rng.random() < 0.5:
                    texts.reverse()
                for judge in range(JUDGES):
                    worker = group[(number * JUDGES + judge) % len(group)]
                    row = _row(rng, f"{part}-{number}", split, worker, texts)
                    stream.write(json.dumps(row) + "\n")


def _summary(rng: np.random.Generator, shortest: int, longest: int) -> str:
    return " " + " ".join(rng.choice(WORDS.split(), rng.integers(shortest, longest))) + "."


def _row(
    rng: np.random.Generator, post: str, split: str, worker: str, texts: Sequence[str]
) -> dict[str, Any]:
    is_longer = len(texts[1]) > len(texts[0])
    return {
        "info": {"id": post, "post": f"This is post {post}.", "title": post, "subreddit": "r/none"},
        "split": split,
        "summaries": [{"text": text, "policy": "sup2", "note": None} for text in texts],
        "choice": int(is_longer ^ (rng.random() < WRONG)),
        "worker": worker,
        "batch": "batch3",
        "extra": {"confidence": None},
    }


def write_images(folder: Path) -> None:
    """Write drawn images; people prefer the warmer one in six of ten pairs, all the same."""
    rng = np.random.default_rng(0)

    def answer(user: int, first: float, second: float) -> float:
        return float((first > second) ^ bool(rng.random() < 0.4))

    write_source(folder, {"train": 1500, "validation": 150, "test": 150}, PEOPLE, answer=answer)
