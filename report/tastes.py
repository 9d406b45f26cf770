"""What prototypes like, and what people disagree about, as the texts themselves.

Rewards have no zero in common across prompts or prototypes, so a thing is ranked by the probability
with which a prototype prefers it: to the other side of the comparisons that people were given, on
average; where the same two answers are given to all prompts, the thing is the prompt, and it is the
probability of the affirming answer. K prototypes, T things.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset, ids_of
from pal.evaluate.predict import readable
from pal.items import Image, Text as TextItem, items_of
from pal.report.dataset import cut
from pal.report.page import Block, Table, Text
from pal.train.build import settled
from pal.train.heads.users import ReadyWeights, UserWeights
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

Numbers = NDArray[np.float64]
MOST_PAIRS, ROWS_AT_ONCE = 20_000, 2048
SHOWN, FEWEST_ANSWERS = 6, 5
AFFIRMING = ("agree", "yes", "true", "approve", "like", "good", "1")


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
    chance, names, unit = liked.chance, liked.names, liked.unit
    count = chance.shape[1]
    blocks: list[Block] = []
    header = ["text", *(f"prototype {k + 1}" for k in range(count))]
    if count > 1:
        apart = chance.max(axis=1) - chance.min(axis=1)
        rows = [_row(names, chance, t) for t in _first(-apart)]
        blocks.append(Table.of(f"What divides the prototypes most: {unit}.", header, rows))
    for k in range(count):
        for word, score in (("most", -chance[:, k]), ("least", chance[:, k])):
            rows = [[names[t], f"{chance[t, k]:.2f}"] for t in _first(score)]
            caption = f"Prototype {k + 1} likes {word}: {unit}."
            blocks.append(Table.of(caption, ["text", "probability"], rows))
    return blocks


def disagreement_blocks(dataset: PreparedDataset) -> list[Block]:
    """Return what people disagree about most and agree on most, by their answers alone."""
    things = _things(dataset, dataset.viewed("response").pairs())
    counted = things.group_by("thing", maintain_order=True).agg(
        pl.col("user_id").n_unique().alias("people"), pl.mean("wins").alias("share")
    )
    judged = counted.filter(pl.col("people") >= FEWEST_ANSWERS)
    if judged.is_empty():
        told = f"Nothing was judged by {FEWEST_ANSWERS} people or more, so nobody can be compared."
        return [Text(told)]
    unit = _unit(dataset)
    judged = judged.with_columns(apart=(pl.col("share") - 0.5).abs())
    names = _names(dataset, judged["thing"].to_list())
    blocks: list[Block] = []
    for caption, is_most in (("What divides people most", False), ("What people agree on", True)):
        order = judged.with_row_index().sort(
            ["apart", "people"], descending=[is_most, True], maintain_order=True
        )
        rows = [
            [names[row["index"]], f"{row['share']:.0%}", f"{row['people']:,}"]
            for row in order.head(2 * SHOWN).iter_rows(named=True)
        ]
        header = ["text", unit, "people"]
        blocks.append(Table.of(f"{caption}, of {len(judged):,} things.", header, rows))
    return blocks


@dataclass(frozen=True)
class _Liked:
    """How much each prototype likes each thing."""

    names: list[str]
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
    features, vectors = store.features(), _prototypes(trained)
    found = []
    with torch.inference_mode():
        for start in range(0, len(pairs), ROWS_AT_ONCE):
            batch = pairs.batch(features, slice(start, start + ROWS_AT_ONCE))
            prepared = trained.head.prepare(*batch[:3])
            found.append(trained.head.margins_of_each(prepared, vectors).double().sigmoid())
    first = torch.cat(found).numpy()
    things = _things(dataset, frame.with_columns(row=pl.int_range(pl.len())))
    side = things["is_first"].to_numpy()[:, None]
    row = things["row"].to_numpy()
    chance = np.where(side, first[row], 1.0 - first[row])
    keys, inverse = np.unique(things["number"].to_numpy(), return_inverse=True)
    count = np.bincount(inverse)
    mean = np.stack([np.bincount(inverse, column) / count for column in chance.T], axis=1)
    by_number = things.unique("number").sort("number")["thing"].to_list()
    assert len(keys) == len(by_number)
    return _Liked(_names(dataset, by_number), mean, _unit(dataset, is_model=True))


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


def _unit(dataset: PreparedDataset, is_model: bool = False) -> str:
    what = "probability" if is_model else "share"
    if _judges_prompts(dataset):
        return f"{what} of “{_answers(dataset)[1]}”"
    return f"{what} with which it wins a comparison"


def _answers(dataset: PreparedDataset) -> tuple[bytes, str]:
    """Return the affirming one of the two answers that all prompts have: its id and its text."""
    pairs = dataset.viewed("response").pairs(columns=["first_id", "second_id"])
    ids = pl.concat([pairs["first_id"], pairs["second_id"].alias("first_id")]).unique().sort()
    table = dataset.items(["item_id", "text"])
    texts = pl.DataFrame(pl.from_arrow(table)).filter(pl.col("item_id").is_in(ids.implode()))
    ranked = sorted(
        texts.iter_rows(), key=lambda row: ((row[1] or "").casefold() not in AFFIRMING, row[1] or "")
    )
    return ranked[0][0], ranked[0][1] or ""


def _things(dataset: PreparedDataset, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each side of each pair that is a thing: ``thing`` = (prompt_id, item_id),
    its ``number``, whether it ``is_first``, and the share that it ``wins`` of the answer.

    Where the same two answers are given to all prompts, the thing is the prompt and has one side.
    """
    plain = pairs
    if dataset.view != "response":
        ids = dataset.viewed("response").pairs(columns=["pair_id", "first_id", "second_id"])
        plain = pairs.drop("first_id", "second_id").join(
            ids, on="pair_id", how="left", maintain_order="left"
        )
    first = plain.with_columns(is_first=pl.lit(True), item="first_id", wins="label")
    second = plain.with_columns(
        is_first=pl.lit(False), item="second_id", wins=1.0 - pl.col("label")
    )
    both = pl.concat([first, second])
    if _judges_prompts(dataset):
        affirming = _answers(dataset)[0]
        both = both.filter(pl.col("item") == affirming).with_columns(
            item=pl.lit(None, pl.Binary)
        )
    return both.with_columns(thing=pl.struct("prompt_id", "item")).with_columns(
        number=pl.struct("prompt_id", "item").rank("dense")
    )


def _names(dataset: PreparedDataset, things: list[dict[str, bytes | None]]) -> list[str]:
    """Return what a person reads of each thing: prompt and text, or where an image is."""
    wanted = {name for thing in things for name in thing.values() if name is not None}
    table = dataset.items()
    keep = pl.Series(ids_of(pl.Series(pl.from_arrow(table.column("item_id")))).tolist()).is_in(
        list(wanted)
    )
    some = table.filter(keep.to_arrow())
    texts = dict(zip(some.column("item_id").to_pylist(), map(_told, items_of(some)), strict=True))
    return [
        " → ".join(cut(texts[name]) for name in (one["prompt_id"], one["item"]) if name is not None)
        for one in things
    ]


def _told(item: object) -> str:
    if isinstance(item, TextItem):
        return item.text or "(an empty text)"
    if isinstance(item, Image):
        where = item.place.file or "the source"
        return f"image in {where}" + ("" if item.place.row is None else f", row {item.place.row}")
    return "a vector that the dataset brings"


def _first(score: Numbers) -> list[int]:
    return [int(t) for t in np.argsort(score, kind="stable")[:SHOWN]]


def _row(names: list[str], chance: Numbers, thing: int) -> list[str]:
    return [names[thing], *(f"{value:.2f}" for value in chance[thing])]


