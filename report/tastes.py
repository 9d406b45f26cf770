"""What prototypes like, and what people disagree about, as the texts themselves.

Rewards have no zero in common across prompts or prototypes, so a thing is ranked by the probability
with which a prototype prefers it: to the other side of the comparisons that people were given, on
average; where the same two answers are given to all prompts, the thing is the prompt, and it is the
probability of the affirming answer. K prototypes, T things.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pal.audit.load import agreeing
from pal.audit.thumbnails import place_name, thumbnails_of
from pal.cache.mapped import features_of
from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.evaluate.predict import readable
from pal.items import Image, items_of
from pal.items import Text as TextItem
from pal.report.dataset import cut
from pal.report.page import Beside, Block, Cell, Table, Text, Thumbnail
from pal.train.build import settled
from pal.train.heads.users import ReadyWeights, UserWeights
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

Numbers = NDArray[np.float64]
MOST_PAIRS, ROWS_AT_ONCE = 20_000, 2048
SHOWN, FEWEST_ANSWERS = 6, 5
APART = 0.05
"""between prototypes, for their own tables to say anything"""


def prototype_weights(trained: TrainedHead) -> Numbers | None:
    """Return the seen users' points on the K-simplex, (N, K); None for heads without one."""
    users = trained.head.users
    if not isinstance(users, UserWeights | ReadyWeights):
        return None
    with torch.no_grad():
        vectors = users.of_logits(users.logits.detach()).double().numpy()
    return vectors[:, 1:] if isinstance(users, ReadyWeights) else vectors


def prototype_blocks(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore
) -> list[Block]:
    """Return what each prototype likes most and least, and what divides prototypes most."""
    liked = _liked(trained, dataset, store)
    if liked is None:
        return [Text("No comparison of the dataset can be read by this head.")]
    chance, unit = liked.chance, liked.unit
    count = chance.shape[1]

    def named(score: Numbers) -> list[tuple[list[Cell], Numbers]]:
        first = np.argsort(score, kind="stable")[:SHOWN]
        return list(zip(_cells(dataset, liked.things[first]), chance[first], strict=True))

    blocks: list[Block] = []
    if count > 1:
        apart = chance.max(axis=1) - chance.min(axis=1)
        rows = [[*name, *(f"{value:.2f}" for value in row)] for name, row in named(-apart)]
        header = [f"prototype {k}" for k in range(count)]
        blocks.append(_table(f"What divides the prototypes most: {unit}.", header, rows))
        if float(apart.max()) < APART:
            told = f"The prototypes like the same: they differ by {apart.max():.2f} at most."
            blocks.insert(0, Text(f"{told} What the first of them likes stands for all."))
            count = 1
    for k in range(count):
        tables = []
        for word, score in (("most", -chance[:, k]), ("least", chance[:, k])):
            rows = [[*name, f"{row[k]:.2f}"] for name, row in named(score)]
            caption = f"Prototype {k} likes {word}: {unit}."
            tables.append(_table(caption, ["probability"], rows))
        blocks.append(Beside(tables))
    return blocks


def disagreement_blocks(dataset: PreparedDataset) -> list[Block]:
    """Return what people disagree about most and agree on most, by their answers alone."""
    about = _things(dataset, dataset.viewed("response").pairs())
    counted = about.sides.group_by("number", maintain_order=True).agg(
        pl.col("user_id").n_unique().alias("people"), pl.mean("wins").alias("share")
    )
    judged = counted.filter(pl.col("people") >= FEWEST_ANSWERS)
    if judged.is_empty():
        told = f"Nothing was judged by {FEWEST_ANSWERS} people or more, so nobody can be compared."
        return [Text(told)]
    judged = judged.with_columns(apart=(pl.col("share") - 0.5).abs())
    blocks: list[Block] = []
    for caption, is_most in (("What divides people most", False), ("What people agree on", True)):
        order = judged.sort(["apart", "people"], descending=[is_most, True], maintain_order=True)
        shown = order.head(2 * SHOWN)
        names = _cells(dataset, about.things[shown["number"]])
        rows = [
            [*name, f"{row['share']:.0%}", f"{row['people']:,}"]
            for name, row in zip(names, shown.iter_rows(named=True), strict=True)
        ]
        header = [about.unit("share"), "people"]
        blocks.append(_table(f"{caption}, of {len(judged):,} things.", header, rows))
    return blocks


@dataclass(frozen=True)
class _Liked:
    """How much each prototype likes each thing."""

    things: pl.DataFrame
    """prompt_id, item_id"""
    chance: Numbers
    """(T, K)"""
    unit: str


def _liked(trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore) -> _Liked | None:
    frame = readable(drop_without_feature(dataset.pairs(), store), trained.head)
    frame = frame.unique(["prompt_id", "first_id", "second_id"], maintain_order=True)
    if len(frame) > MOST_PAIRS:  # evenly from all
        frame = frame.gather_every(-(-len(frame) // MOST_PAIRS))
    if frame.is_empty():
        return None
    pairs = Pairs.join(frame, store, trained.users, trained.head.uses_prompt, "cpu")
    features, vectors = features_of(store), _prototypes(trained)
    found = []
    with torch.inference_mode():
        for start in range(0, len(pairs), ROWS_AT_ONCE):
            batch = pairs.batch(features, slice(start, start + ROWS_AT_ONCE))
            prepared = trained.head.prepare(*batch[:3])
            found.append(trained.head.margins_of_each(prepared, vectors).double().sigmoid())
    first = torch.cat(found).numpy()
    about = _things(dataset, frame.with_columns(row=pl.int_range(pl.len())))
    sides = about.sides
    side, row = sides["is_first"].to_numpy()[:, None], sides["row"].to_numpy()
    chance = np.where(side, first[row], 1.0 - first[row])
    number = sides["number"].to_numpy()
    count = np.bincount(number)
    mean = np.stack([np.bincount(number, column) / count for column in chance.T], axis=1)
    return _Liked(about.things, mean, about.unit("probability"))


def _prototypes(trained: TrainedHead) -> torch.Tensor:
    """Return the vectors of users who are one prototype each, (K, R), as ready to agree as the
    mean user."""
    users = trained.head.users
    assert isinstance(users, UserWeights | ReadyWeights)
    if isinstance(users, UserWeights):
        return torch.eye(users.logits.shape[1])
    count = users.logits.shape[1] - 1
    ready = users.logits[:, :1].detach().mean().expand(count, 1)
    return torch.cat([ready, torch.eye(count)], dim=1)


def _judges_prompts(dataset: PreparedDataset) -> bool:
    return settled(TrainConfig(head="auto"), dataset).reads == "prompt"


@dataclass(frozen=True)
class _Sides:
    """What comparisons are about."""

    things: pl.DataFrame
    """number, prompt_id, item_id"""
    sides: pl.DataFrame
    """the sides of comparisons that are things: the pairs' columns with ``number``, ``is_first``,
    and ``wins``, the share of the answer that the side has"""
    affirming: str | None
    """where the same two answers are given to all prompts, the affirming one: then the thing is the
    prompt and has one side"""

    def unit(self, what: str) -> str:
        if self.affirming is not None:
            return f"{what} of “{self.affirming}”"
        return f"{what} with which it wins a comparison"


def _things(dataset: PreparedDataset, pairs: pl.DataFrame) -> _Sides:
    """Return what pairs are about."""
    if dataset.view != "response":
        plain = dataset.viewed("response").pairs(columns=["pair_id", "first_id", "second_id"])
        pairs = pairs.drop("first_id", "second_id").join(
            plain, on="pair_id", how="left", maintain_order="left"
        )
    label = pl.col("label")
    affirming = None
    if _judges_prompts(dataset):
        agrees, affirming = agreeing(pairs, dataset)
        sides = pairs.with_columns(
            is_first=pl.Series(agrees), item_id=pl.lit(None, pl.Binary)
        ).with_columns(wins=pl.when("is_first").then(label).otherwise(1.0 - label))
    else:
        sides = pl.concat(
            [
                pairs.with_columns(is_first=pl.lit(True), item_id="first_id", wins=label),
                pairs.with_columns(is_first=pl.lit(False), item_id="second_id", wins=1.0 - label),
            ]
        )
    key = ["prompt_id", "item_id"]
    things = sides.select(key).unique(maintain_order=True).with_row_index("number")
    sides = sides.join(things, on=key, nulls_equal=True, maintain_order="left")
    return _Sides(things, sides, affirming)


def _table(caption: str, header: Sequence[str], rows: Sequence[list[Cell]]) -> Table:
    """Return a table whose first column, or two, are what ``_cells`` gives."""
    extra = len(rows[0]) - len(header) if rows else 1
    return Table.of(caption, [*["text", "image"][:extra], *header], rows)


def _cells(dataset: PreparedDataset, things: pl.DataFrame) -> list[list[Cell]]:
    """Return what a person sees of each thing: prompt and text, or where an image is and, where
    some are images, the image."""
    both = things.select("prompt_id", "item_id").rows()
    wanted = pa.array({name for row in both for name in row if name is not None}, pa.binary(16))
    table = dataset.items()
    some = table.filter(pc.is_in(table.column("item_id"), wanted))
    items = dict(zip(some.column("item_id").to_pylist(), items_of(some), strict=True))
    names = [" → ".join(cut(_told(items[one])) for one in row if one is not None) for row in both]
    places = {
        number: item.place
        for number, (_, name) in enumerate(both)
        if name is not None and isinstance(item := items[name], Image)
    }
    if not places:
        return [[name] for name in names]
    small = {number: base64.b64encode(raw).decode() for number, raw in thumbnails_of(places)}
    return [
        [name, Thumbnail(name, small[number]) if number in small else ""]
        for number, name in enumerate(names)
    ]


def _told(item: object) -> str:
    if isinstance(item, TextItem):
        return item.text or "(an empty text)"
    if isinstance(item, Image):
        return f"image in {place_name(item.place)}"
    return "a vector that the dataset brings"
