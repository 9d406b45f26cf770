"""The model card of an export: what it is, what it gives, and how each tool loads it."""

from __future__ import annotations

import json
from typing import Any

WHOM = {
    "user": "one user's reward",
    "weights": "the reward of a fixed mixture of prototypes",
    "population": "the reward of the population: the mean of all users of the training",
    "prototype": "the reward of one prototype",
}


def card(facts: dict[str, Any], name: str, table: str) -> str:
    """Return README.md in Markdown, with the Hub's metadata on top; ``table`` is the run's
    evaluation."""
    encoder, head = facts["encoder"], facts["train"]["head"]
    spec = encoder["spec"]
    base = encoder["settings"]["model"] or ""
    kind = "image" if facts["modality"] == "image" else "text"
    metadata = ["---", "library_name: pal-heads", "tags: [reward-model, preferences, pal]"]
    if base.count("/") == 1 and not base.startswith(("/", ".")):
        metadata.append(f"base_model: {base}")
    if kind == "text":
        metadata.append("pipeline_tag: text-classification")
    metadata.append("---")
    rows = [
        ("run", facts["run"]), ("dataset", facts["dataset"]), ("head", f"{head}, K = {facts['train']['k']}"),
        ("reward of", WHOM[facts["choice"]] + (f" ({facts['user']})" if facts["user"] else "")),
        ("weights", json.dumps(facts["weights"]) if facts["weights"] is not None else "see head.safetensors"),
        ("other users", "none: nothing of them is in this folder" if facts["fixed"] else "by id; strangers have the "
         "population's"),
        ("encoder", f"`{base}`, revision {encoder['revision']}" + (", merged" if facts["merged"] else "")),
        ("feature", ", ".join(f"{key} {spec[key]}" for key in ("layer", "norm", "pooling", "normalize", "max_length")
                              if key in spec)),
        ("template", f"`{spec['template']}`" if spec.get("template") else "prompt, empty line, response"
         if facts["view"] == "prompt+response" else f"`{facts['item_text']}`"),
        ("feature statistics", "in `head.safetensors`: `head.item_scale.mean` and `.scale`"),
        ("dtype", f"computed in {spec['compute_dtype']}, rounded to {spec['store_dtype']}"),
        ("split digest", f"`{facts['split_digest'][:16]}`"), ("features", f"`{facts['cache_fingerprint'][:16]}`"),
    ]  # fmt: skip
    lines = [*metadata, "", f"# {name}", ""]
    if facts["untrained"]:
        lines += [
            "**The encoder has random weights: this model is for tests, its numbers mean "
            "nothing.**",
            "",
        ]
    lines += [
        f"A [PAL](https://arxiv.org/abs/2406.08469) reward model for {kind}s: "
        f"{WHOM[facts['choice']]}.",
        "",
    ]
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows),
        "",
    ]
    lines += ["## Evaluation", "", table or "Not evaluated.", ""]
    if table:
        lines += [
            "Accuracy per user on prompts of the test split, with 95 % intervals that resample "
            "whole users. The row is "
            "the whole run's, not the chosen user's.", "",
        ]  # fmt: skip
    lines += ["## Use", "", "```python", "from pal.reward import RewardModel", ""]
    lines += [f'model = RewardModel.from_pretrained("{name}")']
    lines += [
        'model.score(["a prompt"], images=["picture.png"])'
        if kind == "image"
        else 'model.score(["a prompt"], ["a response"])'
    ]
    lines += ["```", "", *_elsewhere(facts, name, head), ""]
    lines += [
        "Rewards compare items under one prompt for one user; they have no zero and no unit in "
        "common across users. "
        "`golden.json` holds inputs with their scores, which loading reproduces or refuses."
    ]
    return "\n".join(lines) + "\n"


def _elsewhere(facts: dict[str, Any], name: str, head: str) -> list[str]:
    """Say which other tools load the folder, and how."""
    if facts["modality"] == "image":
        return []
    lines = [
        f"- `pal serve --model {name}` answers OpenRLHF's `POST /get_reward`, and `POST /v1/score`."
    ]
    lines.append(
        f'- `pal.reward.tools.trl.PalReward("{name}")` is a `reward_funcs` entry of TRL trainers.'
    )
    if facts["merged"]:
        lines.append(
            "- `AutoModelForSequenceClassification.from_pretrained` loads it without this package."
        )
    elif head == "pal-b":
        lines.append(
            "- Its head reads the prompt apart, so no sequence classifier of transformers can "
            "hold it."
        )
    else:
        lines.append(
            "- `AutoModelForSequenceClassification.from_pretrained`, after `import "
            "pal.reward.tools.hf`."
        )
    return lines
