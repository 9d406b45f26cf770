"""What all settings are made of."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails

from pal.names import did_you_mean

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Salt = Annotated[str, Field(min_length=1, max_length=16)]
LARGEST = 2**63 - 1
"""number that files and seeds have room for"""
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class Component(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True,
        allow_inf_nan=False,
    )  # fmt: skip

    @field_validator("*", mode="before")
    @classmethod
    def _take_single_values(cls, given: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        return as_list(given) if field is not None and _is_list(field.annotation) else given


def as_list(given: Any) -> Any:
    """Return a single value as a list of one; anything else, and a text with a comma, which was
    perhaps meant as a list, as it is."""
    is_single = isinstance(given, str | int | float) and "," not in str(given)
    return [given] if is_single else given


def _is_list(annotation: Any) -> bool:
    """Say whether a setting takes a list."""
    origin = get_origin(annotation)
    within = get_args(annotation) if origin in (Union, UnionType, Annotated) else ()
    return origin is tuple or any(map(_is_list, within))


def as_details(problem: Any, *before: str) -> InitErrorDetails:
    """Return a problem that pydantic found, to be raised again, its place behind other keys."""
    return InitErrorDetails(
        type=problem["type"],
        loc=(*before, *problem["loc"]),
        input=problem["input"],
        ctx=problem.get("ctx", {}),
    )


def keys_of(component: type[BaseModel]) -> dict[str, str]:
    """Return the fields of a component by the key that a user types."""
    return {field.alias or name: name for name, field in component.model_fields.items()}


def unknown(what: str, name: str, valid: list[str]) -> str:
    """Return the sentence about a name that nobody knows, with those that were perhaps meant."""
    return f"unknown {what} {name!r}{did_you_mean(name, valid)} valid: {', '.join(valid)}"
