"""From a prepared dataset, and its cache, to what an audit tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow.compute as pc
import torch
from torch import Tensor

from pal.audit.answers import Answers, oriented
from pal.audit.thumbnails import place_name
from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset, ids_of
from pal.errors import EvaluationError
from pal.items import Image, Place, items_of, turns_of_json
from pal.train.build import settled
from pal.train.heads.auto import Auto
from pal.train.pairs import drop_without_feature
from pal.train.sharing import Array, Numbers

AFFIRMING = ("agree", "yes", "true", "approve", "like", "good", "1")
"""of two answers, the one whose share is told"""
MOST_PARTS = 50
"""sources whose plurality is told apart"""
Ids = np.ndarray
"""(n,) S16"""


@dataclass(frozen=True)
class Loaded:
    """All answers of a dataset: every split, seen and unseen users alike, for an audit holds out
    answers by itself and chooses nothing by them."""

    answers: Answers
    users: list[str]
    shown: list[str]
    """(T,) what each thing is: its text, or where its image is"""
    agree: str | None
    """of votes: the answer that a label of 1 stands for"""
    points: Tensor | None
    """(T, X) standardised features of things; None without features"""
    copies: int
    """users who were somebody else again, left out"""
    left_out: int
    """answers without a feature, or without a prompt where prompts are judged"""
    places: Sequence[Place | None] = ()
    """(T,) where the image of each thing is; nothing where no thing is an image"""


def load(dataset: PreparedDataset, store: FeatureStore | None, by: str | None = None) -> Loaded:
    """Read all answers; ``by``: a column of ``pairs.parquet`` that says where a row comes from.

    Raises EvaluationError for a column that is not there or names no sources, and where no answer
    is left.
    """
    settings = settled(TrainConfig(head="auto"), dataset)
    reads, view = settings.reads, settings.view
    assert view is not None
    dataset = dataset.viewed(view)
    every = dataset.pairs()
    if by is not None and by not in every.columns:
        raise EvaluationError(
            f"--by {by}: {dataset.folder / 'pairs.parquet'} has no such column; it has "
            f"{', '.join(every.columns)}"
        )
    pairs = every if store is None else drop_without_feature(every, store)
    if reads == "both" and pairs["prompt_id"].n_unique() < 2:
        reads = "items"  # one prompt for all says nothing
    if reads != "items":
        pairs = pairs.filter(pl.col("prompt_id").is_not_null())
    if pairs.is_empty():
        raise EvaluationError(
            f"dataset {dataset.name} has no answer that could be audited; run pal doctor --dataset "
            f"{dataset.name}"
        )
    assert reads is not None
    laid_out = _LaidOut.of(pairs, reads, dataset)
    users, user = np.unique(pairs["user_id"].to_numpy().astype(str), return_inverse=True)
    group = ids_of(pairs["group_id"])
    other = group
    if "other_group_id" in pairs.columns:
        second = ids_of(pairs["other_group_id"])
        other = np.where(second == b"", group, second)
    names = np.unique(np.concatenate([group, other]))
    part = None if by is None else _parts(pairs, by)
    answers = oriented(
        laid_out.first, laid_out.second, user, laid_out.label, np.searchsorted(names, group),
        np.searchsorted(names, other), len(laid_out.items), part,
    )  # fmt: skip
    copies = answers.copies()
    if len(copies):
        answers = answers.only(~np.isin(answers.user, copies))
        users = np.delete(users, copies)
    shown = _shown(dataset, laid_out)
    points = None if store is None else _points(store, laid_out, reads)
    return Loaded(
        answers, users.tolist(), shown, laid_out.agree, points, len(copies),
        len(every) - len(pairs), _places(dataset, laid_out),
    )  # fmt: skip


def _parts(pairs: pl.DataFrame, by: str) -> list[str]:
    """Return what a column says of each answer; raises EvaluationError where it is no source."""
    column = pairs[by]
    if column.dtype == pl.Binary or column.dtype.is_nested():
        raise EvaluationError(
            f"--by {by}: it holds ids or lists, not names of sources; choose a column of texts or "
            "numbers"
        )
    names = column.cast(pl.String).fill_null("(none)")
    count = names.n_unique()
    if count > MOST_PARTS:
        raise EvaluationError(
            f"--by {by}: it has {count:,} different values, more than the {MOST_PARTS} sources "
            "that can be compared; choose a column with fewer"
        )
    return names.to_list()


@dataclass(frozen=True)
class _LaidOut:
    """Things, by prompt and item, and which of them the answers are about."""

    prompts: Ids
    """(T,) empty where items are judged without a prompt"""
    items: Ids
    """(T,) empty where prompts are judged"""
    first: Numbers
    second: Numbers | None
    label: Array
    agree: str | None = None

    @classmethod
    def of(
        cls,
        pairs: pl.DataFrame,
        reads: Literal["prompt", "items", "both"],
        dataset: PreparedDataset,
    ) -> _LaidOut:
        label = pairs["label"].to_numpy().astype(np.float64)
        if reads == "prompt":
            things, thing = np.unique(ids_of(pairs["prompt_id"]), return_inverse=True)
            agrees, word = agreeing(pairs, dataset)
            said = np.where(agrees, label, 1.0 - label)
            return cls(things, np.zeros_like(things), thing, None, said, word)
        sides = np.concatenate([ids_of(pairs[name]) for name in ("first_id", "second_id")])
        prompt = np.zeros_like(sides)
        if reads == "both":
            prompt = np.tile(ids_of(pairs["prompt_id"]), 2)
        prompts, of_prompt = np.unique(prompt, return_inverse=True)
        items, of_item = np.unique(sides, return_inverse=True)
        keys, thing = np.unique(of_prompt * len(items) + of_item, return_inverse=True)
        first, second = thing.reshape(2, -1)
        return cls(prompts[keys // len(items)], items[keys % len(items)], first, second, label)


def agreeing(pairs: pl.DataFrame, dataset: PreparedDataset) -> tuple[np.ndarray, str]:
    """Return for each answer whether its first item is the one that affirms, (n,), and its text.

    The same two answers are given to all prompts, by themselves or behind the prompt.
    """
    texts = pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"])))
    named = pairs.select("prompt_id", "first_id", "second_id")
    for name in ("prompt", "first", "second"):
        renamed = texts.rename({"item_id": f"{name}_id", "text": name})
        named = named.join(renamed, on=f"{name}_id", how="left", maintain_order="left")
    rest = named.select(
        pl.col(name).str.strip_prefix(pl.col("prompt")).str.strip_chars()
        for name in ("first", "second")
    )
    words = sorted(set(rest["first"].unique()) | set(rest["second"].unique()), key=_affirms)
    return (rest["first"] == words[0]).to_numpy(), str(words[0])


def _affirms(word: str | None) -> tuple[bool, str]:
    plain = (word or "").casefold()
    return plain not in AFFIRMING, plain


def _points(
    store: FeatureStore, laid_out: _LaidOut, reads: Literal["prompt", "items", "both"]
) -> Tensor:
    """Return the standardised features of things, as ``auto`` reads them."""
    head = Auto(store.dim, 1, k=1, reads=reads)
    found: dict[str, Tensor] = {}
    for name, ids in (("prompt", laid_out.prompts), ("item", laid_out.items)):
        if name in reads or reads == "both":
            found[name] = store.gather(store.index(ids)).float()
            if not bool(torch.isfinite(found[name]).all()):
                raise EvaluationError(
                    "the cache holds NaN or infinite features; run: pal cache verify, then pal "
                    "embed"
                )
            distinct = np.unique(ids, return_index=True)[1]
            scale = getattr(head, f"{name}_scale")
            scale.fit(found[name], torch.from_numpy(distinct))
    item = found.get("item", found.get("prompt"))
    assert item is not None
    with torch.no_grad():
        return head.things(found.get("prompt"), item)


def _shown(dataset: PreparedDataset, laid_out: _LaidOut) -> list[str]:
    """Return what a person reads of each thing: prompt and text, or where an image is."""
    table = pl.DataFrame(pl.from_arrow(dataset.items()))
    where = pl.struct(file="image_file", group="image_group", row="image_row")
    place = pl.when(pl.col("modality") == "image").then(where)
    columns = table.select(pl.col("item_id").bin.encode("hex"), "text", "context", at=place)
    told = [
        (name if at is None else place_name(Place(**at)), None) if text is None else (text, context)
        for name, text, context, at in columns.iter_rows()
    ]
    by_id = dict(zip(ids_of(table["item_id"]).tolist(), told, strict=True))
    both = zip(laid_out.prompts.tolist(), laid_out.items.tolist(), strict=True)
    return [_name_of([by_id[name] for name in names if name]) for names in both]


def _places(dataset: PreparedDataset, laid_out: _LaidOut) -> list[Place | None]:
    """Return where the image of each thing is; an empty list where none is an image."""
    table = dataset.items()
    images = table.filter(pc.equal(table.column("modality"), "image"))
    if not len(images):
        return []
    names = ids_of(pl.DataFrame(pl.from_arrow(images.select(["item_id"])))["item_id"])
    by_id = dict(zip(names.tolist(), items_of(images), strict=True))
    found = [by_id.get(name) for name in laid_out.items.tolist()]
    return [item.place if isinstance(item, Image) else None for item in found]


def _name_of(parts: list[tuple[str, str | None]]) -> str:
    """Return one line for a thing, what was said before an item's text first."""
    texts = []
    for text, context in parts:
        if context:
            texts.append(turns_of_json(context)[-1].content)
        texts.append(text)
    return " → ".join(" ".join(text.split()) for text in texts)
