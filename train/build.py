"""From the settings of ``train:`` to a head: which settings it reads, their defaults, and how it is
built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Literal

import polars as pl

from pal.config import TrainConfig
from pal.config.base import unknown
from pal.dataset import PreparedDataset
from pal.errors import ConfigError
from pal.train.heads import find_heads
from pal.train.heads.head import Head

CHECKED = ("mlp", "score", "learner", "bound", "reads")
"""settings that must be null for heads that do not read them"""
ANSWERS = 2
"""that all prompts have where prompts are judged: Agree and Disagree, say"""


def heads() -> dict[str, type[Head]]:
    """Return the heads by name."""
    return find_heads()


def defaults_of(head: type[Head]) -> dict[str, object]:
    """Return the settings of ``train:`` that a head's constructor reads, each with what stands for
    null."""
    arguments = inspect.signature(head).parameters.values()
    own = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}
    return {name: default for name, default in own.items() if name in TrainConfig.model_fields}


def resolve(settings: TrainConfig) -> TrainConfig:
    """Fill in the chosen head's defaults; raises ConfigError for an unknown head or a setting it
    does not read."""
    known = heads()
    if settings.head not in known:
        raise ConfigError(unknown("head", settings.head, list(known)))
    head = known[settings.head]
    own = defaults_of(head)
    read = {*own, "bound"} if "score" in own else set(own)  # the bound is on ideal points
    for key in CHECKED:
        value = getattr(settings, key)
        if value is not None and key not in read:
            raise ConfigError(
                f"train.{key} = {value!r} is not read by head {settings.head}; leave it null"
            )
    if "reads" not in own:  # else the dataset decides, see ``settled``
        own["view"] = "response" if head.uses_prompt else "prompt+response"
    settings = settings.model_copy(update={"k": settings.prototypes})
    filled = {key: default for key, default in own.items() if default is not None}
    return settings.model_copy(
        update={key: value for key, value in filled.items() if getattr(settings, key) is None}
    )


def settled(settings: TrainConfig, dataset: PreparedDataset) -> TrainConfig:
    """Fill in what the dataset decides, for heads that can read it in several ways.

    ``reads``: the prompt, if the same two answers are given to all prompts; both, if every item has
    a prompt and no view has it in its text; else items. ``view`` follows from it.
    """
    settings = resolve(settings)
    if "reads" not in defaults_of(heads()[settings.head]):
        return settings
    reads, view = settings.reads, settings.view
    if reads is None:
        reads = "items" if view == "prompt+response" else _reads_of(dataset)
    if view is None:
        view = "prompt+response" if reads == "items" else "response"
    return settings.model_copy(update={"reads": reads, "view": view})


def reads_prompt(settings: TrainConfig) -> bool:
    """Say whether a head of settled settings reads the prompt's feature."""
    if settings.reads is not None:
        return settings.reads != "items"
    return heads()[settings.head].uses_prompt


def _reads_of(dataset: PreparedDataset) -> Literal["prompt", "items", "both"]:
    columns = ["prompt_id", "first_id", "second_id"]
    pairs = dataset.viewed("response").pairs("train", "seen", columns)
    if pairs["prompt_id"].null_count():
        return "items"
    if pairs["prompt_id"].n_unique() > 1 and _answers_of(dataset, pairs) == ANSWERS:
        return "prompt"
    return "both" if dataset.card.views == ("response",) else "items"


def _answers_of(dataset: PreparedDataset, pairs: pl.DataFrame) -> int:
    """Return how many answers are given to all prompts, apart from the prompts' text before
    them."""
    given = [pairs.select("prompt_id", item_id=side) for side in ("first_id", "second_id")]
    items = pl.concat(given).unique()
    found = items["item_id"].n_unique()
    if found <= ANSWERS or len(items) > ANSWERS * items["prompt_id"].n_unique():
        return found
    texts = pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"])))
    prompts = texts.rename({"item_id": "prompt_id", "text": "prompt"})
    both = items.join(texts, on="item_id").join(prompts, on="prompt_id")
    if both["text"].null_count() or both["prompt"].null_count():
        return found  # images
    rest = both.select(pl.col("text").str.strip_prefix(pl.col("prompt")).str.strip_chars())
    return rest.to_series().n_unique()


def build_head(settings: TrainConfig, dim: int, users: int) -> Head:
    """Build an untrained head for features of ``dim`` dimensions and a table of ``users`` users.

    Weights are drawn from torch's global generator: seed it first. Raises ConfigError for settings
    that the head cannot use.
    """
    settings = resolve(settings)
    head = heads()[settings.head]
    chosen = {key: getattr(settings, key) for key in defaults_of(head)}
    try:
        return head(dim, users, **chosen)
    except ValueError as error:
        raise ConfigError(_with_keys(str(error), chosen)) from error


def _with_keys(sentence: str, arguments: Iterable[str]) -> str:
    """Name arguments of a head as users type them: ``mlp = 'x'`` becomes ``train.mlp = 'x'``."""
    for name in arguments:
        sentence = re.sub(rf"\b{name}\b(?= = | must )", f"train.{name}", sentence)
    return sentence
