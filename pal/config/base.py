"""What all settings are made of."""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Salt = Annotated[str, Field(min_length=1, max_length=16)]
Count = Annotated[int, Field(ge=0)]


class Component(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True
    )


def keys_of(component: type[BaseModel]) -> dict[str, str]:
    """Return the fields of a component by the key that a user types."""
    return {field.alias or name: name for name, field in component.model_fields.items()}


def unknown(what: str, name: str, valid: list[str]) -> str:
    """Return the sentence about a name that nobody knows, with those that were perhaps meant."""
    variants = [other for other in valid if other.startswith(f"{name}-")]
    close = variants or difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
    return f"unknown {what} {name!r}{hint} valid: {', '.join(valid)}"
