"""What lies beside a model's weights and says how its texts are read: the files of
sentence-transformers and of the tokenizer.

Settings that nobody typed follow these files. What is not followed is said in a sentence before
anything is encoded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pal.config import EncoderConfig
from pal.embed.trust import read_json
from pal.errors import EncoderError, shown

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
LENGTHS = ("sentence_bert_config.json", "sentence_roberta_config.json")
Pooling = Literal["mean", "cls", "last"]
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
NO_LIMIT = 1_000_000
"""a tokenizer without a limit says 10^30"""


class Dense(NamedTuple):
    """A linear layer behind the pooling."""

    folder: str
    activation: str
    """its class in torch.nn"""


@dataclass(frozen=True)
class Beside:
    """What the files say; None and empty where they say nothing."""

    pooling: str | None = None
    """as sentence-transformers calls it"""
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    instruction: str | None = None
    """the prompt that the model's files choose"""
    prompts: tuple[str, ...] = ()
    """names of those among which they leave the choice"""
    without_prompt: bool = False
    """whether the words of a prompt are left out of the pooling"""
    longest: int | None = None
    """tokens of a text"""
    unknown: tuple[str, ...] = ()
    """modules that are not followed"""


def read_beside(folder: Path) -> Beside:
    """Read what lies beside a model; raises EncoderError for damaged files."""
    pooling, dense, normalize, unknown = None, [], False, []
    modules = _modules(folder)
    without_prompt = False
    for kind, path in modules:
        settings = read_json(folder / path / "config.json") if path else {}
        if kind == "Pooling" and pooling is None:
            pooling = _pooling(settings)
            without_prompt = settings.get("include_prompt") is False
        elif kind == "Dense" and pooling and not normalize and _is_plain(settings):
            dense.append(Dense(path, _activation(settings)))
        elif kind == "Normalize" and pooling:
            normalize = True
        elif kind != "Transformer":
            unknown.append(kind)
    prompts = read_json(folder / SETTINGS)
    named = prompts.get("prompts") or {}
    chosen = named.get(prompts.get("default_prompt_name"))
    lengths = [read_json(folder / name).get("max_seq_length") for name in LENGTHS if modules]
    lengths.append(read_json(folder / "tokenizer_config.json").get("model_max_length"))
    found = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < NO_LIMIT]
    return Beside(
        pooling, tuple(dense), normalize, chosen, tuple(name for name in named if named[name]),
        without_prompt, min(found, default=None), tuple(unknown),
    )  # fmt: skip


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return class and path of each module of sentence-transformers, in order."""
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_bytes())
        found = [(str(module["type"]), str(module.get("path") or "")) for module in listed]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EncoderError(f"{path} is no list of modules; fetch the model again") from None
    outside = [p for _, p in found if p and Path(p).name != p]
    if outside:
        raise EncoderError(
            f"{path} names the folder {shown(outside[0])}, which is none of the model's; correct "
            "or remove the entry"
        )
    own = "sentence_transformers."
    return [(kind.rsplit(".", 1)[1] if kind.startswith(own) else kind, p) for kind, p in found]


def _pooling(settings: dict[str, Any]) -> str:
    mode = settings.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in OLD_POOLINGS.items() if settings.get(key)] or ["mean"]
    return mode if isinstance(mode, str) else " and ".join(map(str, mode))


def _activation(settings: dict[str, Any]) -> str:
    return str(settings.get("activation_function", "torch.nn.Tanh")).rsplit(".", 1)[-1]


def _is_plain(settings: dict[str, Any]) -> bool:
    return _activation(settings) in ACTIVATIONS and not settings.get("use_residual")


@dataclass(frozen=True)
class Reading:
    """How an encoder's texts are read: settings without any ``auto``, and what is behind them."""

    config: EncoderConfig
    dense: tuple[Dense, ...]
    notes: tuple[str, ...]
    """what of the files is not followed, in sentences"""


def settle(name: str, config: EncoderConfig, beside: Beside, positions: int | None) -> Reading:
    """Fill in what nobody typed from the files; raises EncoderError for what cannot be read."""
    if config.kind != "hf-text":
        return Reading(config.model_copy(update={"normalize": bool(config.normalize)}), (), ())
    notes = []
    if beside.unknown:
        notes.append(
            f"encoder {name}: modules {', '.join(beside.unknown)} of its sentence-transformers "
            "files are not followed"
        )
    pooling = config.pooling
    if pooling == "auto":
        pooling = _known_pooling(name, beside)
    is_theirs = beside.pooling is not None and POOLINGS.get(beside.pooling) == pooling
    dense = beside.dense if is_theirs and config.layer == -1 and config.norm != "pre" else ()
    if beside.dense and not dense:
        notes.append(
            f"encoder {name}: the dense layers of its sentence-transformers files are left out, "
            f"which belong behind {beside.pooling} pooling of the last layer"
        )
    normalize = config.normalize
    instruction = config.instruction
    if instruction is None:
        instruction = "" if config.template == "chat" else beside.instruction
        if beside.prompts and not beside.instruction and config.template != "chat":
            notes.append(
                f"encoder {name}: its texts are read without an instruction, while its files offer "
                f"{', '.join(beside.prompts)}; set embed.{name}.instruction"
            )
    if instruction and beside.without_prompt:
        notes.append(
            f"encoder {name}: the words of the instruction are pooled, which its files leave out"
        )
    length, note = _length(name, config, beside, positions)
    found = {
        "pooling": pooling,
        "normalize": beside.normalize if normalize is None else normalize,
        "instruction": instruction or "",
        "max_length": length,
    }
    return Reading(config.model_copy(update=found), dense, (*notes, *note))


def _known_pooling(name: str, beside: Beside) -> Pooling:
    if beside.pooling is None:
        return "mean"
    if beside.pooling not in POOLINGS:
        raise EncoderError(
            f"encoder {name} pools by {beside.pooling} in its sentence-transformers files, which "
            f"pal does not; set embed.{name}.pooling to mean, cls or last to read it otherwise"
        )
    return POOLINGS[beside.pooling]


def _length(
    name: str, config: EncoderConfig, beside: Beside, positions: int | None
) -> tuple[int, list[str]]:
    """Return how many tokens a text may have, and what its files say to that."""
    typed = "max_length" in config.model_fields_set
    if not typed:
        limits = [n for n in (beside.longest, positions) if n is not None]
        return min([config.max_length, *limits]), []
    if positions is not None and config.max_length > positions:
        raise EncoderError(
            f"embed.{name}.max_length = {config.max_length}, but the model has {positions:,} "
            f"positions; set at most {positions}"
        )
    if beside.longest is not None and config.max_length > beside.longest:
        return config.max_length, [
            f"encoder {name}: texts of up to {config.max_length:,} tokens are read, while its "
            f"files say {beside.longest:,}"
        ]
    return config.max_length, []
