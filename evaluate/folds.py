"""Folds: a dataset divided anew, so that every prompt is tested once.

A single test split of real answers may hold twenty prompts, and its numbers jump with them. Here
prompt groups are dealt into N folds by hash. Each fold is the test once; of the others a share
validates (early stopping, thresholds), the rest trains. Dealt over answers instead, every answer is
tested once by a head that knows the same prompt from other people, and the person from other
answers: how well it predicts the rest of a survey, not a new question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pal.chance import bucket
from pal.dataset import Population, PreparedDataset, Split, oriented
from pal.evaluate.crossed import OTHER_GROUP, PROMPT_GROUP, with_prompt_group
from pal.files import digest
from pal.train.run_record import FOLDS

if TYPE_CHECKING:
    import polars as pl

Over = Literal["prompts", "answers"]
FEWEST_FOLDS = 2
VALIDATION_SHARE, VALIDATION_SHARE_OF_ITEMS = 1 / 8, 1 / 4
"""of the prompt groups outside a fold; larger where items are divided, for of the comparisons both
items must be in the share"""
"""column: where items are divided instead of prompts, the other item"""


@dataclass(frozen=True)
class Fold(PreparedDataset):
    """A prepared dataset whose splits are those of one fold.

    Seen users: the fold is the test, a share of the rest validates, the other prompts train. Users
    kept for the test: the fold is the test, their answers to all other prompts are what they can be
    adapted by. Users kept for validation answer what validates, and the fold never. Where items are
    divided, a split holds a comparison if it holds both of its items; one of items in different
    folds is never tested. Over answers, the same holds with answers in place of prompts, a user's
    repeated answers to the same being one.
    """

    number: int = 0
    """from 0"""
    of: int = FEWEST_FOLDS
    over: Over = "prompts"

    @classmethod
    def all_of(cls, dataset: PreparedDataset, of: int, over: Over = "prompts") -> list[Fold]:
        """Return all folds of a dataset in the same view."""
        return [
            cls(dataset.folder, dataset.card, dataset.view, number, of, over)
            for number in range(of)
        ]

    @property
    def split_digest(self) -> str:
        what = "fold" if self.over == "prompts" else f"fold over {self.over}"
        return digest([self.card.split_digest, what, self.number, self.of])

    def pairs(
        self,
        split: Split | None = None,
        population: Population | None = None,
        columns: list[str] | None = None,
    ) -> pl.DataFrame:
        """Return the comparisons of one split of the fold, as ``PreparedDataset`` does."""
        import polars as pl

        frame = self._divided
        for name, wanted in (("split", split), ("population", population)):
            if wanted is not None:
                frame = frame.filter(pl.col(name) == wanted)
        return frame if columns is None else frame.select(columns)

    @cached_property
    def _divided(self) -> pl.DataFrame:
        import polars as pl

        frame = with_prompt_group(super().pairs())
        if self.over == "answers":
            frame = with_answer(frame)
        dealt = self._dealt(frame)
        for group, name in ((PROMPT_GROUP, "one"), (OTHER_GROUP, "two")):
            table = dealt.rename({PROMPT_GROUP: group, "dealt": name})
            frame = frame.join(table, on=group, how="left", maintain_order="left")
        one, two = pl.col("one"), pl.col("two")
        of_seen = pl.when(one == two).then(one)
        is_for_validation = (pl.col("split") == "val").any().over("user_id")
        of_validation = pl.when(one != "test").then(of_seen)
        is_known = (one != "test") & (two != "test")
        of_test = pl.when(is_known).then(pl.lit("train")).when(one == two).then(pl.lit("test"))
        of_unseen = pl.when(is_for_validation).then(of_validation).otherwise(of_test)
        is_seen = pl.col("population") == "seen"
        frame = frame.with_columns(split=pl.when(is_seen).then(of_seen).otherwise(of_unseen))
        frame = frame.filter(pl.col("split").is_not_null())
        return frame.drop(PROMPT_GROUP, OTHER_GROUP, "one", "two")

    def _dealt(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Return the split of each prompt group; folds are of equal size, to one group."""
        import polars as pl

        everything = shuffled_groups(pairs, self.salt)
        test = everything[self.number :: self.of]
        others = [group for place, group in enumerate(everything) if place % self.of != self.number]
        others = _shuffled(others, f"inner {self.number}/{self.of}", self.salt)
        has_items = bool((pairs[PROMPT_GROUP] != pairs[OTHER_GROUP]).any())
        share = VALIDATION_SHARE_OF_ITEMS if has_items else VALIDATION_SHARE
        validation = max(1, round(len(others) * share))
        splits = ["test"] * len(test) + ["val"] * validation
        splits += ["train"] * (len(others) - validation)
        return pl.DataFrame(
            {PROMPT_GROUP: [*test, *others], "dealt": splits},
            {PROMPT_GROUP: pl.String, "dealt": pl.String},
        )


def crossing_folds(dataset: PreparedDataset, of: int) -> int:
    """Return how many comparisons no fold tests, because their items are in different ones; those
    of users who are kept for validation are tested nowhere, and do not count."""
    import polars as pl

    pairs = with_prompt_group(PreparedDataset(dataset.folder, dataset.card, dataset.view).pairs())
    fold = {group: place % of for place, group in enumerate(shuffled_groups(pairs, dataset.salt))}
    is_unseen = pl.col("population") == "unseen"
    pairs = pairs.filter(~(is_unseen & (pl.col("split") == "val").any().over("user_id")))
    one, two = (
        pairs[name].replace_strict(fold, return_dtype=pl.Int64)
        for name in (PROMPT_GROUP, OTHER_GROUP)
    )
    return int((one != two).sum())


def with_answer(pairs: pl.DataFrame) -> pl.DataFrame:
    """Put the name of each answer in place of its prompt groups: of one user to one comparison,
    whichever side came first."""
    import polars as pl

    parts = [pl.col(name).bin.encode("hex") for name in ("prompt_id", "low", "high")]
    parts[0] = parts[0].fill_null("")
    name = pl.concat_str(pl.col("user_id"), *parts, separator="|")
    named = oriented(pairs).with_columns(name.alias(PROMPT_GROUP), name.alias(OTHER_GROUP))
    return named.select(list(dict.fromkeys([*pairs.columns, PROMPT_GROUP, OTHER_GROUP])))


def shuffled_groups(pairs: pl.DataFrame, salt: str) -> list[str]:
    """Return all prompt groups in the order in which they are dealt into folds."""
    import polars as pl

    names = pl.concat([pairs[PROMPT_GROUP], pairs[OTHER_GROUP].alias(PROMPT_GROUP)])
    return _shuffled(names.unique().sort().to_list(), "fold", salt)


def _shuffled(groups: list[str], kind: str, salt: str) -> list[str]:
    return sorted(groups, key=lambda group: bucket(kind, salt, group))


def folder_of(run: Path, folds: int, over: Over = "prompts") -> Path:
    """Return where a run keeps what was trained on so many folds."""
    return run / FOLDS / (f"of-{folds}" if over == "prompts" else f"of-{folds}-{over}")
