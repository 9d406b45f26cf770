"""From the settings of ``train:`` to a head: which settings it reads, their defaults, and how it is
built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import polars as pl
import torch
from torch import Tensor

from pal.config import TrainConfig
from pal.config.base import unknown
from pal.dataset import PreparedDataset
from pal.errors import ConfigError, PalError
from pal.train.heads import find_heads
from pal.train.heads.arithmetic import Precision
from pal.train.heads.head import Head
from pal.train.heads.shrunk import SHRUNK
from pal.train.probe import quickest
from pal.train.two_answers import ANSWERS

CHECKED = ("mlp", "score", "learner", "bound", "reads", "sigma")
"""settings that must be null for heads that do not read them"""


def heads() -> Mapping[str, type[Head]]:
    """Return the heads by name."""
    return find_heads()


def has_prototypes(head: str) -> bool:
    """Say whether a head, by its name, has K prototypes; one that nobody knows may have."""
    kind = heads().get(head)
    return kind is None or "k" in defaults_of(kind)


def with_k(head: str, k: int) -> str:
    """Return how a head is told to people: with K, if it has prototypes."""
    return f"{head}, K = {k}" if has_prototypes(head) else head


def kind_of(settings: TrainConfig) -> type[Head]:
    """Return the class of the head that settings name."""
    kind = heads()[settings.head]
    return SHRUNK.get(settings.head, kind) if settings.priors == "auto" else kind


def has_priors(settings: TrainConfig) -> bool:
    """Say whether settings train a head under priors: not one that is solved, or whose rewards
    cannot be divided for what is not known."""
    kind = kind_of(settings)
    return settings.priors == "auto" and kind.has_residuals and not kind.is_solved


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
    head = kind_of(settings)
    own = defaults_of(head)
    read = {*own, "bound"} if "score" in own else set(own)  # the bound is on ideal points
    own.pop("sigma", None)  # null: by evidence, see ``pal.train.fit``
    for key in CHECKED:
        value = getattr(settings, key)
        if value is not None and key not in read:
            under = " under priors" if head is not known[settings.head] else ""
            raise ConfigError(
                f"train.{key} = {value!r} is not read by head {settings.head}{under}; leave it null"
            )
    if has_priors(settings):
        _require_posterior(settings)
    if "reads" not in own:  # else the dataset decides, see ``settled``
        own["view"] = "response" if head.uses_prompt else "prompt+response"
    settings = settings.model_copy(
        update={"k": settings.prototypes, "precision": _precision(settings)}
    )
    filled = {key: default for key, default in own.items() if default is not None}
    return settings.model_copy(
        update={key: value for key, value in filled.items() if getattr(settings, key) is None}
    )


def _precision(settings: TrainConfig) -> Precision:
    """Return the arithmetic of a head's training steps: for ``auto`` what the machine is fast at,
    and float32 for heads that know no other."""
    if not kind_of(settings).can_be_rounded:
        return "float32"
    return quickest(settings.device) if settings.precision == "auto" else settings.precision


def _require_posterior(settings: TrainConfig) -> None:
    """Raise ConfigError where settings and priors together are no posterior."""
    if settings.loss != "logistic":
        raise ConfigError(
            f"train.loss = {settings.loss!r} is no likelihood, which train.priors needs; use "
            "logistic, or train.priors=none"
        )
    if settings.loss_over != "pairs":
        raise ConfigError(
            f"train.loss_over = {settings.loss_over!r} weighs answers, which a likelihood under "
            "train.priors does not; use pairs, or train.priors=none"
        )
    if settings.absent_users != "move":
        raise ConfigError(
            f"train.absent_users = {settings.absent_users!r} keeps the prior from users without a "
            "pair in a batch; use move, or train.priors=none"
        )
    if settings.head in SHRUNK and settings.weights != "mixture":
        raise ConfigError(
            f"train.weights = {settings.weights!r} has no prior; use mixture, or train.priors=none"
        )


def settled(settings: TrainConfig, dataset: PreparedDataset) -> TrainConfig:
    """Fill in what the dataset decides, for heads that can read it in several ways.

    ``reads``: the prompt, if the same two answers are given to all prompts; both, if every item has
    a prompt and no view has it in its text; else items. ``view`` follows from it.
    """
    settings = resolve(settings)
    if "reads" not in defaults_of(kind_of(settings)):
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
    return kind_of(settings).uses_prompt


def holds_votes(dataset: PreparedDataset) -> bool:
    """Say whether the same two answers are given to all prompts."""
    return _reads_of(dataset) == "prompt"


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
    head = kind_of(settings)
    chosen = {key: getattr(settings, key) for key in defaults_of(head)}
    if chosen.get("sigma", 0.0) is None:
        chosen["sigma"] = defaults_of(head)["sigma"]
    try:
        return head(dim, users, **chosen)
    except ValueError as error:
        raise ConfigError(_with_keys(str(error), chosen)) from error


def rebuild_head(settings: TrainConfig, dim: int, users: int, state: Mapping[str, Tensor]) -> Head:
    """Build a head with numbers that were read from a file; raises ValueError where they do not
    fit.

    Shapes are compared before memory is taken: what stands beside the numbers may promise more
    than any machine has.
    """
    try:
        with torch.device("meta"):
            promised = build_head(settings, dim, users).state_dict()
        if set(promised) != set(state) or not all(
            _is_promised(promised[name], value) for name, value in state.items()
        ):
            raise ValueError("other shapes")
        head = build_head(settings, dim, users)
        head.load_state_dict(dict(state))
    # TypeError: torch's, of a number that no tensor's size can be
    except (PalError, RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error
    return head


def _is_promised(promised: Tensor, found: Tensor) -> bool:
    """Say whether a tensor has the promised shape; of none rows, a head takes as many as it
    finds."""
    of_any_length = promised.dim() > 0 and len(promised) == 0
    return promised.dim() == found.dim() and (
        promised.shape[1:] == found.shape[1:] if of_any_length else promised.shape == found.shape
    )


def _with_keys(sentence: str, arguments: Iterable[str]) -> str:
    """Name arguments of a head as users type them: ``mlp = 'x'`` becomes ``train.mlp = 'x'``."""
    for name in arguments:
        sentence = re.sub(rf"\b{name}\b(?= = | must )", f"train.{name}", sentence)
    return sentence
