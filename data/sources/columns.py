"""Which column of the user's own files holds what: the one that the settings name, else the one
that has a usual name; and what to propose where neither is there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pal.config import Component
from pal.data.survey import Survey
from pal.errors import DataError
from pal.items import storable
from pal.rows import Row

USERS = (
    "user_id", "user", "userid", "participant", "participant_id", "annotator", "annotator_id",
    "rater", "rater_id", "worker", "worker_id", "voter", "voter_id", "respondent", "respondent_id",
)  # fmt: skip
PEOPLE = ("who", "person", "member", "customer", "name")
"""of a column of users, proposed and never taken without asking"""
PROMPTS = ("prompt", "question", "instruction")
SIDES = (("a", "b"), ("first", "second"), ("left", "right"), ("1", "2"), ("0", "1"))
"""how the names of two columns end that hold the two sides of a comparison"""
MOST_SHOWN = 30
"""columns of a source that a message lists"""


class UnclearColumns(DataError):
    """Columns have other names; ``proposal`` is a line for pipeline.yaml, None without a guess."""

    def __init__(self, sentence: str, proposal: str | None) -> None:
        super().__init__(sentence)
        self.proposal = proposal


@dataclass(frozen=True)
class Vocabulary:
    """What columns are called where nobody says, by our name for them, the likeliest first."""

    usual: Mapping[str, tuple[str, ...]]
    """names that are taken without asking"""
    needed: tuple[tuple[str, ...], ...]
    """what a source must have, in our names: all of one of these"""
    likely: Mapping[str, tuple[str, ...]]
    """further names, which are proposed and never taken without asking"""


@dataclass(frozen=True)
class Columns:
    """The columns of a source by our names for them; of several the first that a row has counts."""

    taken: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, survey: Survey, given: Component, words: Vocabulary, dataset: str) -> Columns:
        """Find the columns of a source; ``given`` has a field for each of our names: the column
        that was named for it, or None.

        Raises DataError where a column that was named is in no row, or columns are missing without
        which no row can be used; both say what columns there are.
        """
        taken: dict[str, tuple[str, ...]] = {}
        for name in type(given).model_fields:
            named = getattr(given, name)
            if named is None:
                taken[name] = called(survey.names, words.usual.get(name, (name,)))
            elif named in survey.columns or not survey.readable:
                taken[name] = (named,)
            else:
                close = nearest(named, survey.names)
                hint = f"; did you mean {storable(close)!r}?" if close else ";"
                raise DataError(
                    f"data.{dataset}.columns.{name} names the column {named!r}, which no row has"
                    f"{hint} the columns are {listed(survey.names)}"
                )
        found = cls(taken)
        if survey.readable:
            found._require(survey, words, dataset)
        return found

    def _require(self, survey: Survey, words: Vocabulary, dataset: str) -> None:
        """Raise UnclearColumns where no row can have what is needed."""
        if any(all(self.taken[name] for name in names) for names in words.needed):
            return
        wanted = ", nor ".join(self._absent(names) for names in words.needed)
        proposal = proposed(survey.names, words, self.taken)
        known = self.taken.keys() - {name for name, own in self.taken.items() if not own}
        is_whole = any(set(names) <= known | proposal.keys() for names in words.needed)
        mapping = in_yaml({**self._renamed(), **proposal}) if is_whole else "{our name: yours}"
        remedy = "if these are the right ones, set" if is_whole else "name yours with"
        raise UnclearColumns(
            f"the rows of dataset {dataset} have no {wanted}; their columns are "
            f"{listed(survey.names)}; {remedy} data.{dataset}.columns: {mapping}",
            f"data: {{{dataset}: {{columns: {mapping}}}}}" if is_whole else None,
        )

    def _absent(self, names: Sequence[str]) -> str:
        """Return those of some names, in a sentence, that no column was taken for."""
        *others, last = [name for name in names if not self.taken[name]]
        return f"{', '.join(others)} and {last}" if others else last

    def _renamed(self) -> dict[str, str]:
        """Return the columns that were taken by another name than ours."""
        return {name: own[0] for name, own in self.taken.items() if own and own[0] != name}

    def told(self) -> str:
        """Return what was taken for what, as the settings would say it."""
        return f"read as {in_yaml({name: own[0] for name, own in self.taken.items() if own})}"

    def of_row(self, row: Row, name: str) -> str | None:
        """Return the column of a row that holds something, None where it has none."""
        return next((column for column in self.taken[name] if column in row), None)

    def value(self, row: Row, name: str) -> Any:
        """Return what a row holds, None where it has no such column or nothing in it."""
        column = self.of_row(row, name)
        return None if column is None else row[column]

    def shown(self, name: str) -> str:
        """Return a column's name in the source for a message."""
        return next(iter(self.taken[name]), name)


def in_yaml(mapping: Mapping[str, str]) -> str:
    """Return which column holds what as a line of YAML."""
    pairs = ", ".join(f"{name}: {quoted(column)}" for name, column in mapping.items())
    return f"{{{storable(pairs)}}}"


def plain(name: str) -> str:
    """Return a column's name without what people write differently: case, blanks, hyphens."""
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def called(columns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that have one of some names, in the order of the names."""
    own = list(columns)
    exact = [name for name in names if name in own]
    alike = [column for name in names for column in own if plain(column) == plain(name)]
    return tuple(dict.fromkeys([*exact, *alike]))


def nearest(name: str, columns: Sequence[str]) -> str | None:
    """Return the column whose name is most like one that is no column."""
    by_plain = {plain(column): column for column in columns}
    close = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=0.6)
    return by_plain[close[0]] if close else None


def listed(columns: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    more = f" and {len(columns) - MOST_SHOWN} more" if len(columns) > MOST_SHOWN else ""
    return storable(", ".join(columns[:MOST_SHOWN])[:500] or "none") + more


def quoted(column: str) -> str:
    """Return a column's name as YAML reads it."""
    is_word = re.fullmatch(r"[A-Za-z_][\w-]*", column) and column.lower() not in (
        "yes", "no", "true", "false", "on", "off", "null", "y", "n",
    )  # fmt: skip
    return column if is_word else '"' + column.replace("\\", "\\\\").replace('"', '\\"') + '"'


def proposed(
    columns: Sequence[str], words: Vocabulary, taken: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Return the columns that probably hold what the usual names do not say, by our names."""
    free = [column for column in columns if not any(column in own for own in taken.values())]
    found: dict[str, str] = {}
    for name in taken:
        if taken[name]:
            continue
        likely = called(free, words.likely.get(name, ()))
        close = difflib.get_close_matches(name, [plain(column) for column in free], 1, 0.8)
        alike = [column for column in free if plain(column) in close]
        column = next(iter((*likely, *alike)), None)
        if column is not None:
            found[name] = column
            free.remove(column)
    sides = _two_sides(free)
    if sides and "first" in taken and not (taken["chosen"] or found.keys() & {"chosen", "first"}):
        found |= dict(zip(("first", "second"), sides, strict=True))
    return {name: found[name] for name in taken if name in found}


def _two_sides(columns: Sequence[str]) -> tuple[str, str] | None:
    """Return two columns whose names differ as those of two sides do."""
    by_plain = {plain(column): column for column in columns}
    for one, other in SIDES:
        for name, column in by_plain.items():
            stem = name.removesuffix(one)
            if name.endswith(one) and (not stem or stem.endswith("_") or one in ("1", "0")):
                second = by_plain.get(stem + other)
                if second is not None:
                    return column, second
    return None
