"""What the files of a model may do: be read.

Classes of a model's own (``auto_map``) run only if ``trust_remote_code`` is set for this encoder,
which no file of the model can do. What then may run is hashed, so that other code is another cache.
Nothing in a folder may lead to files outside it, of which no hash would know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pal.errors import EncoderError, PalError, shown
from pal.hub import fetch, local_copy
from pal.records import JsonObject

if TYPE_CHECKING:
    from pal.config import EncoderConfig
    from pal.embed.digests import DigestMemory
    from pal.embed.encoder import EncoderSource

CODE = "*.py"
CONFIGS = ("config*.json", "tokenizer_config.json", "*processor_config.json")
"""files that may name classes"""
ELSEWHERE = "--"
"""``owner/name--module.Class`` is a class in another repository"""
OWN = "own"


class Code(NamedTuple):
    """The code that a trusted model brings."""

    digests: JsonObject
    """of its files by repository; empty where none may run or none is needed"""
    commit: str | None = None
    """of the other repository that it comes from"""


def require_closed(folder: Path, name: str, weights: list[str]) -> None:
    """Raise EncoderError if loading a model folder would read what is not in its hashed files."""
    if (folder / "adapter_config.json").exists():
        raise EncoderError(
            f"{folder} is an adapter of another model, which embed.{name}.model cannot be; merge "
            "it into its base model and give the folder of the merged one"
        )
    indices = {path: read_json(path) for path in sorted(folder.glob("*.safetensors.index.json"))}
    listed = [index.get("weight_map") for index in indices.values()]
    shards = {str(shard) for part in listed if isinstance(part, dict) for shard in part.values()}
    single = read_json(folder / "config.json").get("transformers_weights")
    allowed = {*weights, *(path.name for path in indices)}
    wanted = shards | ({str(single)} if single is not None else set())
    if wanted - allowed:
        raise EncoderError(
            f"{folder} wants weights from {shown(min(wanted - allowed))}, which is none of its "
            "*.safetensors files; give a folder that holds all of its weights"
        )
    for file, key in (
        ("config.json", "configuration_files"),
        ("tokenizer_config.json", "fast_tokenizer_files"),
    ):
        versions = read_json(folder / file).get(key) or []
        names = versions if isinstance(versions, list) else [versions]
        outside = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if outside:
            raise EncoderError(
                f"{folder / file} names {shown(outside[0])} under {key}, which is no file of the "
                "folder; correct or remove the entry"
            )


def own_classes(folder: Path) -> list[str]:
    """Return the classes that the files of a folder name as code of its own, e.g.
    ``modeling.Model`` or ``owner/name--modeling.Model``."""
    found: list[Any] = []
    for path in sorted({path for pattern in CONFIGS for path in folder.glob(pattern)}):
        mapped = read_json(path).get("auto_map")
        values = list(mapped.values()) if isinstance(mapped, dict) else [mapped]
        for value in values:  # a tokenizer has two, one of them perhaps null
            found += value if isinstance(value, list) else [value]
    return sorted({value for value in found if isinstance(value, str)})


def lacks_code(folder: Path, config: EncoderConfig) -> bool:
    """Say whether a model may run code of its own that is not in its folder."""
    modules = [f"{name.split('.')[0]}.py" for name in own_classes(folder) if ELSEWHERE not in name]
    return config.trust_remote_code and not all((folder / module).is_file() for module in modules)


def code_of(name: str, config: EncoderConfig, folder: Path, memory: DigestMemory) -> Code:
    """Return what code may run; raises EncoderError where it comes from several repositories."""
    classes = own_classes(folder)
    if not config.trust_remote_code or not classes:
        return Code({})
    others = sorted({value.split(ELSEWHERE)[0] for value in classes if ELSEWHERE in value})
    if len(others) > 1:
        raise EncoderError(
            f"encoder {name} takes code from {', '.join(others)}, but one other repository is the "
            "most; copy the code into the model's own folder"
        )
    digests: JsonObject = {OWN: _python_files(folder, memory)}
    if not others:
        return Code(digests)
    place = _other_repository(name, config, others[0])
    return Code({**digests, others[0]: _python_files(place, memory)}, place.name)


def _other_repository(name: str, config: EncoderConfig, repository: str) -> Path:
    """Return where the code of another repository lies, fetched if it is not here."""
    revision = config.code_revision or "main"
    place = local_copy(repository, revision, [CODE])
    if place is not None and any(place.rglob(CODE)):
        return place
    try:
        return fetch(repository, revision, [CODE])
    except Exception as error:
        raise EncoderError(
            f"cannot fetch {repository}, whose code encoder {name} runs, from the Hub "
            f"({type(error).__name__}); check the network and embed.{name}.code_revision"
        ) from error


def _python_files(folder: Path, memory: DigestMemory) -> JsonObject:
    files = sorted(path for path in folder.rglob(CODE) if path.is_file())
    return {path.relative_to(folder).as_posix(): memory.sha256(path) for path in files}


def loading_options(source: EncoderSource) -> dict[str, Any]:
    """Return what transformers is told about an encoder's code, and that all files are here."""
    options = {"trust_remote_code": source.config.trust_remote_code, "local_files_only": True}
    commit = source.code_commit
    return options if commit is None else {**options, "code_revision": commit}


def loading(source: EncoderSource) -> AbstractContextManager[None]:
    """Raise EncoderError for whatever damaged or foreign files make a library raise."""
    return loading_files(source.name, source.folder, source.config.trust_remote_code)


@contextmanager
def loading_files(name: str, folder: Path | None, trusted: bool) -> Iterator[None]:
    """As ``loading``, of an encoder that is not located yet."""
    try:
        yield
    except PalError:
        raise
    except Exception as error:
        whole = " ".join(str(error).split())
        reason, remedy = whole[:300] or type(error).__name__, "check its files, or fetch them again"
        if "trust_remote_code" in whole and not trusted:
            reason, remedy = (
                "it brings code of its own",
                f"that code runs only if you set embed.{name}.trust_remote_code, or pass "
                "--trust-remote-code where an export is loaded",
            )
        raise EncoderError(
            f"cannot load encoder {name} from {folder}: {reason}; {remedy}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model, empty where there is none; raises
    EncoderError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise EncoderError(
            f"{path} is no JSON file ({type(error).__name__}); fetch the model again"
        ) from None
    return found if isinstance(found, dict) else {}
