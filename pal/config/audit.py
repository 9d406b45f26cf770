"""Settings of the audit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pal.config.base import Component


class AuditConfig(Component):
    """Does a dataset hold plurality, and would we have seen it."""

    permutations: Annotated[int, Field(ge=19)] = 99
    """Draws of each null of the test with features; with fewer than 19 no p is below 0.05."""
    overlap_draws: Annotated[int, Field(ge=19)] = 999
    """Draws of each null of the test of pairs that several people judged."""
    power: bool = False
    """Whether other tastes are planted, to say which share of the people would have been found."""
    features: bool = True
    """Whether the test that reads features is done; without, the answers alone are tested."""
    by: str | None = None
    """Column of pairs.parquet that says where an answer comes from: which part holds the
    plurality."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the prompts, each held out once."""
    executor: Literal["local", "ray"] = "local"
    """Who draws the nulls: this process, or tasks of a Ray cluster (extra ray)."""
    workers: PositiveInt | None = None
    """Threads that draw the null of the test without features, or tasks of a Ray cluster at once;
    null: one for each core."""
    ray_address: str | None = None
    """Address of a running Ray cluster; null: that of RAY_ADDRESS, else one is started here."""
