"""Which bytes a model's files are, and what of them is in the cache key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pal.config import EncoderConfig
from pal.embed.architecture import attention_of, facts_of, facts_of_settings
from pal.embed.beside import Beside, Reading, read_beside, settle
from pal.embed.chat import TODAY
from pal.embed.digests import DigestMemory, ModelFacts
from pal.embed.encoder import EncoderSource
from pal.embed.folders import find_model, settings_files, weight_files, weights_of
from pal.embed.render import CHAT
from pal.embed.trust import code_of, require_closed
from pal.errors import EncoderError
from pal.records import JsonObject

if TYPE_CHECKING:
    import torch

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
