"""What a model's settings say before it is loaded: attention, positions, which half is read.

To know them, transformers' code of the model is imported, which takes seconds; so they are
remembered beside the hashes of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal.config import EncoderConfig
from pal.embed.digests import DigestMemory, ModelFacts
from pal.embed.trust import loading_files, own_classes, read_json
from pal.errors import EncoderError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
BEHIND_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""model types that count positions from behind the number of the padding token"""
ENDLESS = "relative_attention_num_buckets"
"""a setting of T5's family, whose positions have no end, whatever ``n_positions`` says"""
OWN = "own"
"""attention of code that a model brings itself"""


def facts_of(
    name: str, config: EncoderConfig, folder: Path, memory: DigestMemory, key: str
) -> ModelFacts:
    """Return what is known of a model in a folder; ``key`` names its settings by their hash.

    Raises EncoderError where transformers does not know the architecture.
    """
    import importlib.metadata

    trusted = "trusted " if config.trust_remote_code else ""
    key = f"{trusted}{key} in transformers {importlib.metadata.version('transformers')}"
    found = memory.facts.get(key)
    if found is None:
        found = _facts(name, config, folder)
        memory.remember(key, found)
    return found


def _facts(name: str, config: EncoderConfig, folder: Path) -> ModelFacts:
    if config.trust_remote_code and own_classes(folder):
        settings = read_json(folder / "config.json")
        return ModelFacts(sdpa=None, positions=positions_of(settings), is_half=False)
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if config.gguf_file is not None:
        options["gguf_file"] = config.gguf_file
    with loading_files(name, folder, trusted=False):
        found = AutoConfig.from_pretrained(folder, **options)
    return facts_of_settings(found)


def facts_of_settings(settings: PretrainedConfig) -> ModelFacts:
    """Return what transformers' own classes make of settings."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    model: Any = MODEL_MAPPING.get(type(settings), None)
    if isinstance(model, tuple):
        model = model[0]
    return ModelFacts(
        sdpa=bool(getattr(model, "_supports_sdpa", False)),
        positions=positions_of(settings.to_dict()),
        is_half=bool(getattr(settings, "is_encoder_decoder", False)),
    )


def positions_of(settings: dict[str, Any]) -> int | None:
    """Return how many positions a model has, None where they have no end or are not known."""
    inner = settings.get("text_config")
    settings = inner if isinstance(inner, dict) else settings
    if ENDLESS in settings and POSITIONS[0] not in settings:
        return None
    if settings.get("relative_attention") and not settings.get("position_biased_input", True):
        return None
    count = next((settings[key] for key in POSITIONS if isinstance(settings.get(key), int)), None)
    if count is None or count <= 0:
        return None
    if settings.get("model_type") in BEHIND_PADDING:
        padding = 1 if settings["model_type"] == "mpnet" else settings.get("pad_token_id")
        count -= (1 if padding is None else int(padding)) + 1  # mpnet's is written into its code
    return int(count)


def attention_of(name: str, config: EncoderConfig, facts: ModelFacts) -> str:
    """Return the attention that a model is loaded with; raises EncoderError for one that it does
    not have."""
    if config.attention == "auto":
        return OWN if facts.sdpa is None else "sdpa" if facts.sdpa else "eager"
    if config.attention == "sdpa" and facts.sdpa is False:
        raise EncoderError(
            f"embed.{name}.attention = 'sdpa', which this model does not support; use auto"
        )
    return config.attention
