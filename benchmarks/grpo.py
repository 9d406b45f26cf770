"""GRPO on the rewards of two opposed users: do two policies part? A table for docs/results.

    python benchmarks/grpo.py FILE [--work FOLDER] [--seeds 0,1] [--steps 20] [--only RUN RUN]

FILE is a GGUF file of SmolLM2-135M-Instruct, the policy (it needs the package gguf). The reward is
a head of two prototypes on MiniLM, trained on the built-in data with two groups, who disagree about
every statement. The policy is asked statements to which a gardener says yes and a chess player no.
One policy is trained for a gardener, one for a chess player, by the same prompts and seeds; the
rewards of both users are logged in both runs, and only one counts. Then both answer statements that
neither the head nor a policy was trained on. Half of the first seed's runs is done once more with
the module form of the same reward. What is done is kept in the working folder, a run that was
stopped goes on; --only does some of the runs now.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from grpo_table import (
    ANSWERS,
    ASKED,
    COMPLETIONS,
    USERS,
    Done,
    Form,
    Runs,
    User,
    mean_and_error,
    opposed,
    table,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import pal.reward.tools.hf  # noqa: F401  what the module form needs
from pal import pipeline
from pal.config import Config, load
from pal.data.sources.demo import Demo
from pal.data.splits import split_of
from pal.evaluate.report import interval
from pal.reward import RewardModel
from pal.reward.export import Choice
from pal.reward.tools.trl import PalReward

PER_PROMPT, TOKENS, RATE, LAYERS = 4, 4, 3e-5, 10
"""completions of a prompt, tokens of one, learning rate, layers that learn: the last"""
TEXTS = ("Yes", "No", "Yes.", "No.", "Yes, I would", "No, I would", "No. The phrase")
"""answers whose rewards are told: those that the head knows, and what policies make of them"""
HEAD = ["data.demo.groups=2", "train.head=pal-a", "train.k=2"]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    policy: Path
    exports: dict[str, str]
    train: list[str]
    test: list[str]
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, default=Path("grpo"))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="FORM-USER-SEED, such as module-gardener-0")
    given = parser.parse_args()
    file = given.file.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    warnings.simplefilter("ignore")
    setting = prepared(file, given.steps)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    runs: Runs = {}
    for form, user, seed in wanted(seeds):
        place = Path(f"{form}-{user}-{seed}.json")
        if not place.is_file() and (given.only is None or place.stem in given.only):
            place.write_text(run(setting, form, user, seed).model_dump_json(indent=1))
            shutil.rmtree(place.stem, ignore_errors=True)  # what it would have gone on from
        if place.is_file():
            runs[form, user, seed] = Done.model_validate_json(place.read_text())
    print("\n".join([*table(runs, seeds), "", *told(setting)]))


def told(setting: Setting) -> list[str]:
    """Return what answers earn at the statements of nobody's training, against a yes."""
    model = RewardModel.from_pretrained(setting.exports["all"])
    prompts = [chat(question) for question in setting.test]
    lines = [
        "Rewards of answers to these statements, less that of Yes, ± standard error over them:", "",
        "| answer |" + "".join(f" in the {name}'s name |" for name in USERS), "|---|---|---|",
    ]  # fmt: skip
    found: dict[str, list[Any]] = {}
    for text in TEXTS:
        answers = [[{"role": "assistant", "content": text}]] * len(prompts)
        found[text] = [
            np.array(PalReward(model)(prompts, answers, user_id=[known] * len(prompts)))
            for known in USERS.values()
        ]
    for text, rewards in found.items():
        if text != "Yes":
            pairs = zip(rewards, found["Yes"], strict=True)
            cells = [mean_and_error(own - yes) for own, yes in pairs]
            lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def wanted(seeds: Sequence[int]) -> list[tuple[Form, User | None, int]]:
    """Return all runs: those of a seed together, the module form last."""
    runs: list[tuple[Form, User | None, int]] = []
    for seed in seeds:
        runs += [("callable", user, seed) for user in (None, *USERS)]
    return [*runs, *(("module", user, seeds[0]) for user in USERS)]


def prepared(file: Path, steps: int) -> Setting:
    """Return the policy's folder, the exports, and the prompts, made where they are not there."""
    config = load(overrides=HEAD).config
    if not Path("policy/config.json").is_file():
        unpacked(file).save_pretrained("policy")
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained("policy")
    choices = {"all": Choice(), **{name: Choice("user", user=id) for name, id in USERS.items()}}
    if not all((config.paths.exports / name).is_dir() for name in choices):
        pipeline.embed(config)
        pipeline.train(config, run="opposed")
        metrics = pipeline.evaluate(config, ["opposed"]).runs[0].test_seen
        print(f"accuracy of the head on new statements: {interval(metrics)}", flush=True)
        for name, choice in choices.items():
            pipeline.export(config, "opposed", choice, name)
    exports = {name: str(config.paths.exports / name) for name in choices}
    train, test = questions(config)
    return Setting(Path("policy"), exports, train, test, steps)


def unpacked(file: Path) -> Any:
    """Return the model of a GGUF file as one that was never quantised: transformers trains and
    saves no other."""
    found = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    settings = found.config.to_dict()
    settings.pop("quantization_config", None)
    made = AutoModelForCausalLM.from_config(type(found.config).from_dict(settings))
    made.load_state_dict(found.state_dict())
    return made


def questions(config: Config) -> tuple[list[str], list[str]]:
    """Return the questions that a gardener answers with yes, half of them about gardening: those of
    the policy's training, and those that no head was trained on either."""
    settings = config.dataset_config()
    parts: dict[bool, dict[int, list[str]]] = {False: {0: [], 1: []}, True: {0: [], 1: []}}
    for statement in Demo(settings).statements():
        if statement.matches_yes == (statement.interest == 0):
            is_test = split_of(settings.salt, statement.question) == "test"
            parts[is_test][statement.interest].append(statement.question)
    mixed = {}
    for is_test, by_interest in parts.items():
        for own in by_interest.values():
            random.Random(0).shuffle(own)
        mixed[is_test] = [
            text for both in zip(*by_interest.values(), strict=False) for text in both
        ]
    return mixed[False], mixed[True][:ASKED]


def run(setting: Setting, form: Form, user: User | None, seed: int) -> Done:
    """Train a policy for one user, and ask it."""
    policy = AutoModelForCausalLM.from_pretrained(setting.policy, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    model = RewardModel.from_pretrained(setting.exports["all"])
    began = time.perf_counter()
    steps = {} if user is None else trained(setting, form, user, seed, policy, tokenizer, model)
    print(f"{form}, {user}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    answers = asked(policy, tokenizer, setting.test, seed)
    prompts = [chat(question) for question in setting.test for _ in range(ANSWERS)]
    means: dict[User, list[float]] = {}
    for name, known in USERS.items():
        rewards = PalReward(model)(prompts, answers, user_id=[known] * len(answers))
        means[name] = np.array(rewards).reshape(-1, ANSWERS).mean(1).tolist()
    return Done(
        form=form,
        user=user,
        seed=seed,
        steps=steps,
        asked=means,
        answers=[answer[0]["content"] for answer in answers],
    )


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{question}\nAnswer yes or no."}]


def trained(
    setting: Setting,
    form: Form,
    user: User,
    seed: int,
    policy: Any,
    tokenizer: Any,
    model: RewardModel,
) -> dict[User, list[float]]:
    """Train a policy in place and return the mean rewards that were logged."""
    other = opposed(user)
    own: Any = PalReward(model, user_column=user, name=user)
    if form == "module":
        own = setting.exports[user]  # is logged under the folder's name, which is the user's, too
    rows = [{"prompt": chat(question), **USERS} for question in setting.train]
    policy.requires_grad_(False)
    policy.model.layers[-LAYERS:].requires_grad_(True)
    folder = f"{form}-{user}-{seed}"
    arguments = GRPOConfig(
        folder,
        max_steps=setting.steps // (2 if form == "module" else 1),
        per_device_train_batch_size=COMPLETIONS,
        num_generations=PER_PROMPT,
        max_completion_length=TOKENS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        reward_weights=[1.0, 0.0],
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        seed=seed,
        report_to="none",
        logging_steps=1,
        save_strategy="steps",
        save_steps=5,
        save_total_limit=1,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        policy,
        reward_funcs=[own, PalReward(model, user_column=other, name=other)],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=bool(list(Path(folder).glob("checkpoint-*"))))
    logged = [row for row in trainer.state.log_history if f"rewards/{user}/mean" in row]
    return {name: [row[f"rewards/{name}/mean"] for row in logged] for name in USERS}


@torch.inference_mode()
def asked(policy: Any, tokenizer: Any, questions: list[str], seed: int) -> list[Any]:
    """Return answers to each question, drawn by the same numbers for every policy of a seed."""
    policy.eval()
    texts = [
        tokenizer.apply_chat_template(chat(text), tokenize=False, add_generation_prompt=True)
        for text in questions
        for _ in range(ANSWERS)
    ]
    torch.manual_seed(1000 + seed)
    read = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
        return_token_type_ids=False,
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        made = policy.generate(
            **read, max_new_tokens=TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
    new = tokenizer.batch_decode(made[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in new]


if __name__ == "__main__":
    main()
