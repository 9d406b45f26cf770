"""The layers of settings, later ones win: the built-in pipeline.yaml, the file in the working
directory (or ``--config``), ``--set dotted.key=value``, and the options of a command.
``Settings.origins`` remembers which layer each value came from.
"""

from __future__ import annotations

import copy
import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pal.config.base import keys_of, unknown
from pal.config.data import DataConfig
from pal.config.embed import EmbedConfig, EncoderConfig
from pal.config.heads import TrainConfig
from pal.config.whole import Config
from pal.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """A resolved configuration, and for each dotted key the layer its value came from."""

    config: Config
    origins: dict[str, str]


def load(
    file: Path | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolve the configuration.

    ``overrides`` are ``dotted.key=value`` strings, values in YAML; ``options`` maps dotted keys to
    values typed on the command line, None meaning "not given". Raises ConfigError in one sentence.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _merge(tree, _built_in("pipeline.yaml"), "built-in", origins)
    if file is None and Path("pipeline.yaml").is_file():
        file = Path("pipeline.yaml")
    if file is not None:
        _merge(tree, _parse_yaml(_read(file), str(file)), str(file), origins)
    given: list[tuple[str, Any, str]] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes dotted.key=value, got {override!r}")
        given.append((key, _parse_value(text, override), f"--set {override}"))
    given += [(key, value, "option") for key, value in (options or {}).items() if value is not None]
    _merge_preset(tree, origins, [(key, value) for key, value, _ in given])
    for key, value, origin in given:
        if not (key == "train.head" and value in presets()):
            _merge(tree, _nest(key, value), origin, origins)
    try:
        return Settings(Config.model_validate(tree), origins)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem, origins, tree) for problem in error.errors())
        raise ConfigError(problems) from None


def reference() -> Config:
    """Return the reference run: the built-in settings, nothing typed."""
    return Config.model_validate(_built_in("pipeline.yaml"))


def presets() -> dict[str, dict[str, Any]]:
    """Return the settings of ``train`` that a name of ``--head`` may stand for."""
    return _built_in("presets.yaml")


def _merge_preset(
    tree: dict[str, Any], origins: dict[str, str], given: Iterable[tuple[str, Any]]
) -> None:
    """Put a preset above the built-in values and below all that the user typed, in files too.

    A value that a file only repeats from the built-in ones is not taken as typed. Nothing happens
    unless the head that was chosen last is the name of a preset.
    """
    chosen = [value for key, value in given if key == "train.head"]
    train = tree.get("train") or {}
    name = chosen[-1] if chosen else train.get("head")
    if name not in presets():
        return
    built_in = {**TrainConfig().model_dump(), **_built_in("pipeline.yaml")["train"]}
    typed = {key for key, value in train.items() if value != built_in.get(key)}
    wanted = {k: v for k, v in presets()[name].items() if k == "head" or k not in typed}
    _merge(tree, {"train": wanted}, f"preset {name}", origins)


class _NoAliases(yaml.SafeLoader):
    """YAML without aliases, a few of which can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)


def _built_in(name: str) -> dict[str, Any]:
    return copy.deepcopy(_parsed_built_in(name))


@functools.cache
def _parsed_built_in(name: str) -> dict[str, Any]:
    return _parse_yaml(
        resources.files("pal").joinpath(name).read_text(encoding="utf-8"), f"the built-in {name}"
    )


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        value = yaml.load(text, _NoAliases) or {}
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ConfigError(f"{name} is not valid YAML{where}; correct it or remove it") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold keys and values, not {type(value).__name__}")
    return value


def _read(file: Path) -> str:
    """Return the text of a settings file in UTF-8, with or without a byte-order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}; give an existing file to --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8; save it as UTF-8") from error


def _parse_value(text: str, override: str) -> Any:
    try:
        value = yaml.load(text, _NoAliases) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not valid YAML; check its brackets"
        ) from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def _merge(
    tree: dict[str, Any],
    layer: dict[str, Any],
    origin: str,
    origins: dict[str, str],
    prefix: str = "",
) -> None:
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            below = tree.setdefault(name, {})
            if not isinstance(below, dict):
                below = tree[name] = {}
            _merge(below, value, origin, origins, f"{key}.")
        else:
            tree[name] = value
            origins[key] = origin


def _component_at(path: Iterable[Any], tree: Any) -> type[BaseModel] | None:
    """Return the model class that the keys of ``path`` lead to; ``tree`` tells datasets' kinds."""
    component: Any = Config
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
        if component is DataConfig:
            component = DataConfig.settings_class(str(part), tree)
            continue
        if not (isinstance(component, type) and issubclass(component, BaseModel)):
            return None
        name = keys_of(component).get(str(part))
        if name is None:
            return EncoderConfig if component is EmbedConfig else None
        component = component.model_fields[name].annotation
    return component if isinstance(component, type) and issubclass(component, BaseModel) else None


def _sentence(problem: Any, origins: Mapping[str, str], tree: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(location)
    # a union reports its branch as a further part of the location
    while (
        location and key not in origins and not any(name.startswith(f"{key}.") for name in origins)
    ):
        location.pop()
        key = ".".join(location)
    source = f" (from {origins[key]})" if key in origins else ""
    if problem["type"] == "extra_forbidden":
        component = _component_at(location[:-1], tree)
        if component is DataConfig:
            known = set(DataConfig.kinds())
            known |= {
                name
                for name, given in tree["data"].items()
                if DataConfig.settings_class(name, given)
            }
            sentence = unknown("key of data", location[-1], sorted(known))
            own = f"data.{location[-1]}.kind=pairs"
            return f"{sentence}, or a name of your own with its kind, e.g. {own}{source}"
        valid = sorted(keys_of(component)) if component else []
        return (
            unknown(f"key of {'.'.join(location[:-1]) or 'pipeline.yaml'}", location[-1], valid)
            + source
        )
    if location[:1] == ["embed"] and len(location) == 2 and problem["type"] == "model_type":
        settings = sorted(EmbedConfig.model_fields)
        return (
            f"embed.{location[1]} is neither a setting ({', '.join(settings)}) nor an encoder "
            "with its own keys" + source
        )
    message = _message(problem, key, _component_at(location, tree))
    return f"{key} = {problem['input']!r} is not valid: {message}{source}"


def _message(problem: Any, key: str, component: type[BaseModel] | None) -> str:
    """Return what is wrong with a value, in words that name settings and no types of ours."""
    if problem["type"] == "tuple_type":
        return "it takes a list in brackets, such as [1, 2]"
    if problem["type"] == "too_short":
        return "the list is empty; put something into it"
    if problem["type"] == "model_type" and component is not None:
        keys = ", ".join(f"{key}.{name}" for name in list(keys_of(component))[:3])
        return f"it stands for several settings; set one of them: {keys}, ..."
    found: str = problem["msg"]
    return found[0].lower() + found[1:]


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return a configuration as dotted keys and JSON values, in the order of the file."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(f"{prefix}.{name}" if prefix else name, below)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def load_overrides(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a configuration with some dotted keys replaced; raises ConfigError in one sentence."""
    changed = {"train", *(key.partition(".")[0] for key in values)}
    tree = dict(config)  # what is not changed stays as it was checked
    tree.update(config.model_dump(include=changed, exclude_unset=True))
    _merge_preset(tree, {}, values.items())
    for key, value in values.items():
        if not (key == "train.head" and value in presets()):
            _merge(tree, _nest(key, value), f"sweep {key}={value!r}", {})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        origins = {key: "sweep" for key in values}
        raise ConfigError(
            "; ".join(_sentence(problem, origins, tree) for problem in error.errors())
        ) from None
