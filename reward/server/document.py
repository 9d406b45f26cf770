"""The document of the routes for people: /openapi.json as a page that needs no script.

FastAPI's own pages fetch a script from elsewhere. The one packaged for Python (swagger-ui-bundle
1.1.0) is a version of 2022, has 2.6 MB and needs styles within the page, which its policy forbids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

Schema = dict[str, Any]
"""a part of an OpenAPI document, as FastAPI makes it"""
LIMITS = {
    "minimum": "at least", "maximum": "at most", "minItems": "at least so many:",
    "maxItems": "at most so many:",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A value in a body or path, in words."""

    name: str
    kind: str
    """what it is; names of other parts stand in ``parts`` too"""
    parts: tuple[str, ...]
    told: str
    is_needed: bool


@dataclass(frozen=True)
class Part:
    """A schema that bodies are made of."""

    name: str
    told: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Operation:
    """A path with a method."""

    method: str
    path: str
    title: str
    told: str
    tag: str
    needs_token: bool
    fields: tuple[Field, ...]
    """of the path"""
    body: str | None
    """name of the part that it takes"""
    reply: str | None
    command: str


def as_html(document: Schema, summary: str) -> str:
    """Return an OpenAPI document as HTML; Jinja2 escapes every text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = (files("pal.reward.server") / "page" / "docs.html").read_text(encoding="utf-8")
    operations = list(operations_of(document))
    tags = list(dict.fromkeys(one.tag for one in operations))
    return environment.from_string(template).render(
        title=document["info"]["title"],
        version=document["info"]["version"],
        summary=summary,
        groups=[(tag, [one for one in operations if one.tag == tag]) for tag in tags],
        parts=parts_of(document),
        has_token=any(one.needs_token for one in operations),
        words=_words,
    )


def operations_of(document: Schema) -> Iterator[Operation]:
    """Yield each path with each of its methods."""
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            body = _body_of(one.get("requestBody", {}))
            reply = _body_of(one["responses"].get("200", {}))
            taken = document["components"]["schemas"].get(body, {})
            example = {key: taken["example"][key] for key in taken.get("properties", ())}
            needs_token = bool(one.get("security"))
            yield Operation(
                method.upper(),
                path,
                one["summary"],
                one.get("description", ""),
                one["tags"][0],
                needs_token,
                tuple(_field(p["name"], p["schema"], True) for p in one.get("parameters", ())),
                body,
                reply,
                _command(method, path, example, needs_token),
            )


def parts_of(document: Schema) -> list[Part]:
    """Return the schemas by name, without those of FastAPI's own errors."""
    return [
        Part(
            name,
            schema.get("description", ""),
            tuple(
                _field(key, value, key in schema.get("required", ()))
                for key, value in schema.get("properties", {}).items()
            ),
        )
        for name, schema in sorted(document["components"]["schemas"].items())
        if name not in ("HTTPValidationError", "ValidationError")
    ]


def _body_of(holder: Schema) -> str | None:
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return _name(schema) if "$ref" in schema else None


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _field(name: str, schema: Schema, is_needed: bool) -> Field:
    told = str(schema.get("description", ""))
    if not is_needed and schema.get("default") not in (None, []):
        told += f" (default {json.dumps(schema['default'])})"
    return Field(name, _kind(schema), tuple(dict.fromkeys(_refs(schema))), told, is_needed)


def _kind(schema: Schema) -> str:
    """Return what a value is, in words."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        inner = _kind(schema.get("items", {}))
        kind = f"list of ({inner})" if " or " in inner else f"list of {inner}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(schema['additionalProperties'])}"
    limits = [f"{word} {schema[key]:g}" for key, word in LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


def _refs(schema: Schema) -> Iterator[str]:
    """Yield the names of the parts that a schema refers to."""
    if "$ref" in schema:
        yield _name(schema)
    inner = [*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")]
    for one in inner:
        if isinstance(one, dict):
            yield from _refs(one)


def _command(method: str, path: str, example: Any, needs_token: bool) -> str:
    """Return how curl asks; ``$PAL`` is the server's address."""
    lines = [f"curl{'' if method == 'get' else f' -X {method.upper()}'} $PAL{path}"]
    if needs_token:
        lines.append("-H 'authorization: Bearer TOKEN'")
    if example:
        quoted = json.dumps(example, ensure_ascii=False).replace("'", "'\\''")
        lines += ["-H 'content-type: application/json'", f"-d '{quoted}'"]
    return " \\\n  ".join(lines)


def _words(told: str) -> list[tuple[str, bool]]:
    """Return a text in pieces, and whether each is code: it stands between double backticks."""
    return [(piece, number % 2 == 1) for number, piece in enumerate(told.split("``"))]
