"""Merged exports in other people's environments: a table for docs/results.

    python benchmarks/readers.py PYTHON [PYTHON ...] [--models a,b] [--gguf FILE] [--work FOLDER]

PYTHON is the interpreter of an environment with a transformers of its own, and RewardBench if it is
there. Small random decoders, and SmolLM2-135M-Instruct where a GGUF file of it is named, get a
head, which is folded into them. Plain transformers reads the folders: are its logits the rewards?
RewardBench's own command reads them, with rows of ours in the place of its dataset: are its rewards
and sections those of ``pal rewardbench``? Ends with an error where they are not.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pal import pipeline
from pal.config import load
from pal.reward import RewardModel
from pal.reward.export import Choice
from pal.reward.export_record import ExportRecord
from pal.reward.tools.chat_template import template_of
from pal.reward.tools.rewardbench import SECTIONS, evaluate

FAMILIES = ("llama", "qwen2", "mistral", "gemma2", "gpt2", "opt")
FROM_THE_MARGIN = {"gpt2"}
"""count positions from the left edge, and RewardBench pads there without saying so to the model"""
SMALL = [
    "train.head=lore", "train.k=2", "train.epochs=3", "data.demo.limit=120", "data.demo.users=6",
    "data.demo.groups=2", "data.demo.pairs_per_user=20", "data.demo.unseen_users=2",
    "data.demo.validation_users=2", "data.demo.test_pairs_per_user=5",
    "data.demo.validation_pairs_per_user=5",
]  # fmt: skip
PLAIN = "{pooling: last, max_length: 256, store_dtype: float32, model: 'random:%s'}"
REAL = "{pooling: last, template: chat, store_dtype: float32, model: '%s', gguf_file: '%s'}"
"""float32: the cache's rounding is no reader's fault"""
WORDS = "the river was long and slow it went on yes no maybe never always soup clock story"
SIDE = Path(__file__).resolve().parent / "read_elsewhere.py"
TOLERANCE = 1e-4
"""of the spread of the rewards"""


@dataclass(frozen=True)
class Reader:
    """Another environment."""

    python: Path
    transformers: str
    has_rewardbench: bool

    @classmethod
    def at(cls, python: Path) -> Reader:
        return cls(python, *json.loads(call(python, "version").splitlines()[-1]))


def call(python: Path, *arguments: str, given: str = "") -> str:
    """Return what another environment prints; ends where it fails."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [str(python), str(SIDE), *arguments], input=given, capture_output=True, text=True,
        env={**os.environ, **offline, "HF_HOME": str(Path("hf").resolve())},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", type=Path, nargs="+")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--models", default=",".join(FAMILIES), help="random families")
    parser.add_argument("--batch-size", type=int, default=8, help="of RewardBench's command")
    parser.add_argument("--work", type=Path, default=Path("readers"))
    given = parser.parse_args()
    pythons = [python.absolute() for python in given.python]
    gguf = given.gguf and given.gguf.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    warnings.simplefilter("ignore")
    readers = [Reader.at(python) for python in pythons]
    rows = preferences()
    encoders = {family: PLAIN % family for family in given.models.split(",") if family}
    if gguf is not None:
        encoders["SmolLM2-135M"] = REAL % (gguf.parent, gguf.name)
    print("| model | read by | logits differ | by RewardBench's command | sections |")
    print("|---|---|---|---|---|", flush=True)
    failed: list[str] = []
    for name, settings in encoders.items():
        wanted = Wanted.of(exported(name, settings), rows)
        for reader in readers:
            line, problem = judged(name, wanted, reader, given.batch_size)
            print(line, flush=True)
            failed += [problem] if problem else []
    sys.exit("; ".join(failed) or 0)


def preferences() -> list[dict[str, Any]]:
    """Write rows of RewardBench's schema where its command looks for its dataset, and return them:
    texts by chance, so that a reader that is wrong has other sections."""
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(WORDS.split(), k=chance.randint(2, 14))) + "."

    subsets = [name for section in SECTIONS.values() for name in section for _ in range(3)]
    rows = [
        {"id": n, "prompt": f"Question {n}?", "chosen": text(), "rejected": text(), "subset": name}
        for n, name in enumerate(subsets)
    ]
    place = Path("allenai/reward-bench/data")
    place.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(place / "filtered-00000-of-00001.parquet")
    return rows


def exported(name: str, settings: str) -> Path:
    """Train a head of one user on an encoder and fold it in, where that is not done."""
    config = load(overrides=[f"encoder={name}", f"embed.{name}={settings}", *SMALL]).config
    if not (config.paths.exports / name).is_dir():
        pipeline.embed(config, tell=lambda line: None)
        pipeline.train(config, run=name, tell=lambda line: None)
        pipeline.export(config, name, Choice("user", user="seen-00000"), name, merge=True)
    return config.paths.exports / name


@dataclass(frozen=True)
class Wanted:
    """What a reader should find."""

    folder: str
    constant: float
    """what logits lack to be rewards"""
    texts: list[str]
    """chats with the chosen answers, as the folder's template writes them"""
    rewards: dict[str, list[float]]
    sections: dict[str, float]

    def apart(self, logits: Sequence[Any], side: str = "chosen") -> float:
        """Return the largest difference of logits, (n,) or (n, 1), from the rewards, as a share of
        the rewards' spread."""
        flat = [value[0] if isinstance(value, list) else value for value in logits]
        rewards = self.rewards[side]
        differences = [abs(a + self.constant - b) for a, b in zip(flat, rewards, strict=True)]
        return max(differences) / (max(rewards) - min(rewards))

    @classmethod
    def of(cls, folder: Path, rows: Sequence[dict[str, Any]]) -> Wanted:
        model = RewardModel.from_pretrained(folder)
        renderer = model.encoder.encoder.renderer
        own = template_of(renderer, model.metadata)
        prompts = [row["prompt"] for row in rows]
        rewards, texts = {}, []
        for side in ("chosen", "rejected"):
            rewards[side] = model.score(prompts, [row[side] for row in rows])
        for row in rows:
            chat = [{"role": "user", "content": row["prompt"]}]
            chat.append({"role": "assistant", "content": row["chosen"]})
            written = renderer.tokenizer.apply_chat_template(
                chat, chat_template=own, tokenize=False
            )
            texts.append(written)
        constant = ExportRecord.read(folder).constant or 0.0
        return cls(str(folder), constant, texts, rewards, evaluate(model, rows).sections)


def judged(name: str, wanted: Wanted, reader: Reader, batch: int) -> tuple[str, str]:
    """Return a line of the table, and what is wrong."""
    start = f"| {name} | transformers {reader.transformers}"
    given = json.dumps(wanted.texts)
    try:
        logits = json.loads(call(reader.python, "logits", wanted.folder, given=given))
        apart = wanted.apart(logits)
        told, problem = "not there | |", ""
        if reader.has_rewardbench:
            told, problem = benched(wanted, reader, batch)
    except RuntimeError as error:
        return f"{start} | fails | | |", f"{name}, {reader.transformers}: {error}"
    problem = problem * (name not in FROM_THE_MARGIN or batch == 1)
    if apart > TOLERANCE:
        problem = f"{name}, {reader.transformers}: logits differ by {apart:.1e} of the spread"
    return f"{start} | {apart:.1e} | {told}", problem


def benched(wanted: Wanted, reader: Reader, batch: int) -> tuple[str, str]:
    """Return two cells of what RewardBench's command finds, and what is wrong."""
    options = [f"--model={wanted.folder}", f"--batch_size={batch}", "--not_quantized"]
    options += ["--torch_dtype=float32", "--output_dir=bench/"]
    told = call(reader.python, "rewardbench", *options)
    outputs = Path("bench") / f"{wanted.folder}_outputs.jsonl"
    saved = [json.loads(line) for line in outputs.read_text().splitlines()]
    apart = max(
        wanted.apart([row[f"scores_{side}"] for row in saved], side) for side in wanted.rewards
    )
    sections = ast.literal_eval(told.rpartition("Results: ")[2].strip().splitlines()[0])
    own = wanted.sections
    equal = sum(abs(sections[section] - own[section]) < 1e-9 for section in own)
    is_wrong = apart > TOLERANCE or equal < len(own)
    problem = f"RewardBench differs by {apart:.1e}: {sections}, not {own}" if is_wrong else ""
    return f"{apart:.1e} | {equal} of {len(own)} equal |", f"{wanted.folder}: {problem}" * is_wrong


if __name__ == "__main__":
    main()
