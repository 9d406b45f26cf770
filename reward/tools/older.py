"""What transformers 4 needs to read a folder that transformers 5 has written.

Version 5 renamed some settings and its generic class of tokenizers, and its tokenizers give no
token types unless they are told to, which those of version 4 do; both versions read a file that has
the old names beside the new ones, and says what the model is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pal.reward.export_record import CONFIG

TOKENIZER = "tokenizer_config.json"
GENERIC, GENERIC_BEFORE = "TokenizersBackend", "PreTrainedTokenizerFast"
INPUTS = ["input_ids", "attention_mask"]
"""what a merged model was compared with its golden scores on: Llama refuses token types, and GPT-2
reads them as words"""


def let_older_versions_read(folder: Path) -> None:
    """Add the old names to ``config.json`` and ``tokenizer_config.json`` of a folder."""
    _rewrite(folder / CONFIG, with_old_names)
    if (folder / TOKENIZER).is_file():
        _rewrite(folder / TOKENIZER, _with_old_tokenizer)


def with_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's settings with the names of version 4 beside those of version 5."""
    old: dict[str, Any] = {}
    if "dtype" in config:
        old["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one for each kind of layer, as Gemma 3 has them
        sliding = rope.get("sliding_attention") or {}
        if "rope_theta" in sliding:
            old["rope_local_base_freq"] = sliding["rope_theta"]
        rope = rope["full_attention"]
    old |= _old_rope(rope)
    return {**old, **config}


def _old_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    old: dict[str, Any] = {}
    if "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        old["rope_scaling"] = {key: value for key, value in rope.items() if key not in apart}
    return old


def _with_old_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    config = {**config, "model_input_names": INPUTS}
    if config.get("tokenizer_class") == GENERIC:
        config["tokenizer_class"] = GENERIC_BEFORE
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # named ones alone had this place before
        config["additional_special_tokens"] = extra
        del config["extra_special_tokens"]
    return config


def _rewrite(path: Path, change: Any) -> None:
    text = json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), indent=2)
    path.write_text(text + "\n", encoding="utf-8")
