"""Which split a prompt group or an item belongs to, and which role a user has: by hash, and never
so few that a number could not mean anything."""

from __future__ import annotations

import numpy as np
import polars as pl

from pal.chance import bucket
from pal.config import ComparisonsConfig
from pal.dataset import FEWEST, SPLITS, Divided

CUTS: dict[Divided, tuple[float, float]] = {
    "prompt": (0.8, 0.9), "prompt+items": (0.8, 0.9), "items": (0.6, 0.8),
}  # fmt: skip
"""where validation and test begin. A pair of two items is in a split if both are: with a tenth of
the items for the test it would have a hundredth of the pairs, with a fifth it has a twenty-fifth"""
FEWEST_TO_DIVIDE = 10
"""with fewer users than this all are seen: a share of them would be nobody or everybody"""
LARGEST_JUDGED = 0.2
"""share of all pairs above which a unit is trained on: no test may be one question"""


def divided_by_hash(
    places: np.ndarray, cuts: tuple[float, float], least: tuple[int, int]
) -> np.ndarray:
    """Return train, val or test for each place in [0, 1), (n,).

    Where fewer than ``least`` places lie behind a cut, those before it that are next to it are
    taken too.
    """
    order = np.argsort(places, kind="stable")
    test = max(int((places >= cuts[1]).sum()), least[1])
    val = max(int(((places >= cuts[0]) & (places < cuts[1])).sum()), least[0])
    names = np.full(len(places), "train", dtype=object)
    first_test = len(places) - test
    names[order[first_test:]] = "test"
    names[order[max(0, first_test - val) : first_test]] = "val"
    return names


def fewest_of(count: int) -> int:
    """Return how many of so many units validation and test each have at least: a fifth, up to twice
    as many as mean something, for not everyone answered each."""
    return 0 if count < len(SPLITS) else max(1, min(2 * FEWEST, count // 5))


def splits_of_units(
    units: pl.DataFrame, present: set[str], config: ComparisonsConfig, divided: Divided
) -> pl.Series:
    """Return the split of each unit.

    ``units`` has ``unit`` (its name), ``pairs`` (how many), whether rows of the source's own splits
    ``train, val, test`` are in it, and whether users of the roles ``seen_role, val_role,
    test_role`` are. The source's own splits ``present`` are kept, the most guarded one of a unit,
    and missing ones are cut out of train. Otherwise the splits are by hash; half of the units that
    only new users answered are for their shots.
    """
    names = [name.hex() for name in units["unit"]]
    fixed = [
        _own(row) if present else _of_new_users(row, name, config)
        for name, row in zip(names, units.iter_rows(named=True), strict=True)
    ]
    open_ = np.array([one is None for one in fixed])
    sizes = units["pairs"].to_numpy()
    is_large = open_ & (sizes > LARGEST_JUDGED * sizes.sum())
    if not present and (open_ & ~is_large).sum() >= len(SPLITS):
        fixed = ["train" if large else one for one, large in zip(fixed, is_large, strict=True)]
        open_ &= ~is_large
    places = np.array(
        [bucket("prompt", config.salt, name) for name, one in zip(names, open_, strict=True) if one]
    )
    fewest = fewest_of(len(places))
    least = (0 if "val" in present else fewest, 0 if "test" in present else fewest)
    drawn = divided_by_hash(places, CUTS[divided], least)
    # what the source has as train is given only the splits that the source lacks
    found = iter("train" if name in present else str(name) for name in drawn)
    return pl.Series([next(found) if one is None else one for one in fixed], dtype=pl.String)


def _own(row: dict[str, object]) -> str | None:
    """Return the most guarded of a unit's own splits; None where it is to be drawn."""
    return next((name for name in ("test", "val") if row[name]), None)


def _of_new_users(row: dict[str, object], name: str, config: ComparisonsConfig) -> str | None:
    """Return the split of a unit that only new users answered; None where it is to be drawn."""
    if row["seen_role"]:
        return None
    if bucket("pool", config.salt, name) < 0.5:
        return "train"
    if row["val_role"] and row["test_role"]:
        both = config.validation_user_share + config.test_user_share
        is_val = bucket("role", config.salt, name) * both < config.validation_user_share
        return "val" if is_val else "test"
    return "val" if row["val_role"] else "test"


def roles_of_users(users: list[str], config: ComparisonsConfig) -> list[str]:
    """Return each user's role by hash: seen, or new and evaluated on val or on test."""
    if len(users) < FEWEST_TO_DIVIDE:
        return ["seen"] * len(users)
    test_from = 1.0 - config.test_user_share
    val_from = test_from - config.validation_user_share
    shares = (config.validation_user_share, config.test_user_share)
    val, test = (min(FEWEST, round(share * len(users))) for share in shares)
    places = np.array([bucket("user", config.salt, user) for user in users])
    names = divided_by_hash(places, (val_from, test_from), (val, test))
    return ["seen" if name == "train" else str(name) for name in names]
