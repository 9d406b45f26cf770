"""The model card of an export: what it is, what it gives, and how each tool loads it."""

from __future__ import annotations

import json

from pal.reward.export_record import ExportRecord
from pal.train.build import with_k

WHOM = {
    "user": "one user's reward",
    "weights": "the reward of a fixed mixture of prototypes",
    "population": "the reward of the population: the mean of its users' rewards",
    "prototype": "the reward of one prototype",
}
FEATURE = ("layer", "norm", "pooling", "normalize", "max_length")


def card(record: ExportRecord, name: str, table: str) -> str:
    """Return README.md in Markdown; ``table`` is the run's evaluation."""
    whom = WHOM[record.choice]
    lines = [*_hub_metadata(record), "", f"# {name}", ""]
    if record.untrained:
        lines += [
            "**The encoder has random weights: this model is for tests, its numbers mean "
            "nothing.**",
            "",
        ]
    lines += [
        f"A [PAL](https://arxiv.org/abs/2406.08469) reward model for {record.modality}s: {whom}.",
        "",
    ]
    rows = [(key, value.replace("|", "/")) for key, value in _rows(record)]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    lines += ["## Evaluation", "", table or "Not evaluated.", ""]
    if table:
        lines += [
            "Accuracy per user on prompts of the test split, with 95 % intervals that resample "
            "whole users. The row is the whole run's, not the chosen user's.",
            "",
        ]
    call = '(["a prompt"], ["a response"])'
    if record.modality == "image":
        call = '(["a prompt"], images=["picture.png"])'
    lines += ["## Use", "", "```python", "from pal.reward import RewardModel", ""]
    lines += [f'model = RewardModel.from_pretrained("{name}")', f"model.score{call}", "```", ""]
    lines += [*_elsewhere(record, name), ""]
    lines += [
        "Rewards compare items under one prompt for one user; they have no zero and no unit in "
        "common across users. `golden.json` holds inputs with their scores, which loading "
        "reproduces or refuses."
    ]
    return "\n".join(lines) + "\n"


def for_repository(text: str, name: str, repo: str) -> str:
    """Return a card of the folder ``name`` as that of a repository on the Hub: its title, and every
    line that loads it."""
    for before, after in (("# ", "\n"), ('"', '"'), ("--model ", "`")):
        text = text.replace(f"{before}{name}{after}", f"{before}{repo}{after}")
    return text


def _hub_metadata(record: ExportRecord) -> list[str]:
    """Return the lines on top that the Hub reads."""
    base = record.encoder.settings.model or ""
    lines = ["---", "library_name: pal-heads", "tags: [reward-model, preferences, pal]"]
    if base.count("/") == 1 and not base.startswith(("/", ".")):
        lines.append(f"base_model: {base}")
    if record.modality == "text":
        lines.append("pipeline_tag: text-classification")
    return [*lines, "---"]


def _rows(record: ExportRecord) -> list[tuple[str, str]]:
    reference, spec = record.encoder, record.encoder.spec
    if spec.get("template"):
        template = f"`{spec['template']}`"
    elif record.view == "prompt+response":
        template = "prompt, empty line, response"
    else:
        template = f"`{record.item_text}`"
    whom = WHOM[record.choice] + (f" ({record.user})" if record.user else "")
    others = "by id; strangers have the population's"
    if record.fixed:
        others = "none: nothing of them is in this folder"
    weights = "see head.safetensors" if record.weights is None else json.dumps(record.weights)
    encoder = f"`{reference.settings.model or ''}`, revision {reference.revision}"
    return [
        ("run", record.run),
        ("dataset", record.dataset),
        ("head", with_k(record.train.head, record.train.k)),
        ("reward of", whom),
        ("weights", weights),
        ("other users", others),
        ("encoder", encoder + (", merged" if record.merged else "")),
        ("feature", ", ".join(f"{key} {spec[key]}" for key in FEATURE if key in spec)),
        ("template", template),
        (
            "feature statistics",
            "in `head.safetensors`: `head.item_scale.mean` and `.scale`",
        ),
        ("dtype", f"computed in {spec['compute_dtype']}, rounded to {spec['store_dtype']}"),
        ("split digest", f"`{record.split_digest[:16]}`"),
        ("features", f"`{record.cache_fingerprint[:16]}`"),
    ]


def _elsewhere(record: ExportRecord, name: str) -> list[str]:
    """Say which other tools load the folder, and how."""
    if record.modality == "image":
        return []
    lines = [
        f"- `pal serve --model {name}` answers OpenRLHF's `POST /get_reward`, and `POST "
        "/v1/score`.",
        f'- `pal.reward.tools.trl.PalReward("{name}")` is a `reward_funcs` entry of TRL trainers.',
    ]
    if record.merged:
        last = (
            f'`AutoModelForSequenceClassification.from_pretrained("{name}")` loads it without this '
            "package."
        )
    elif record.train.head == "pal-b":
        last = "Its head reads the prompt apart, so no sequence classifier can hold it."
    else:
        last = (
            f'`AutoModelForSequenceClassification.from_pretrained("{name}")`, after `import '
            "pal.reward.tools.hf`."
        )
    return [*lines, f"- {last}"]
