"""Each distinct item and prompt is mapped once, and nothing but time changes by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pal.config import TrainConfig
from pal.evaluate.predict import margins_of_strangers
from pal.train import prepared as prepared_module
from pal.train.adapt.answers import NUMBERS_KEPT, Answers, Known
from pal.train.adapt.average import likelihood_of_seen, zero_shot
from pal.train.build import build_head, heads
from pal.train.heads.head import Head, Mapped
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.heads.things import Table, Things, alike
from pal.train.pairs import Pairs
from pal.train.prepared import prepared, prepared_blocks
from pal.train.steps import StepOfHead

DIM, USERS, ITEMS, PAIRS = 6, 4, 9, 60
STEPPED = [name for name, kind in sorted(heads().items()) if not kind.is_solved]
FEATURES = torch.randn(40, DIM, generator=torch.Generator().manual_seed(0)).double()


def pairs_of(things: int = ITEMS) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    prompt, first, second = torch.randint(0, things, (3, PAIRS), generator=generator)
    user = torch.randint(0, USERS, (PAIRS,), generator=generator)
    return Pairs(prompt, first, second, user, torch.ones(PAIRS).double())


def head_of(name: str, **settings: Any) -> Head:
    torch.manual_seed(3)
    return build_head(TrainConfig(head=name, k=3, **settings), DIM, USERS).double()


def rows_mapped(head: Head) -> list[int]:
    """Return a list that takes the number of rows of each standardised table from now on."""
    counts: list[int] = []
    for name in ("item_scale", "prompt_scale"):
        scale = getattr(head, name, None)
        if scale is not None:
            scale.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    return counts


def rows_judged(head: Head, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that takes, from now on, how many pairs are judged by several vectors at
    once."""
    asked: list[int] = []
    each = type(head).margins_of_each

    def counted(self: Head, prepared: Any, vector_CR: torch.Tensor) -> torch.Tensor:
        margins = each(self, prepared, vector_CR)
        asked.append(len(margins))
        return margins

    monkeypatch.setattr(type(head), "margins_of_each", counted)
    return asked


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_on_distinct_things_is_the_step_on_all_rows(name: str) -> None:
    """Margins and all gradients."""
    pairs, head = pairs_of(), head_of(name)
    step, batch = (make(FEATURES, slice(None)) for make in (pairs.step, pairs.batch))
    assert len(step.things.item.values) == ITEMS
    own = head.margins(step.things, step.user)
    prompt = batch.prompt if head.uses_prompt else None
    wanted = head.margin(prompt, batch.first, batch.second, head.users(batch.user))
    torch.testing.assert_close(own, wanted)
    learned = [p for p in head.parameters() if p.numel()]
    weight = torch.randn(PAIRS).double()
    for mine, other in zip(
        torch.autograd.grad((own * weight).sum(), learned, allow_unused=True),
        torch.autograd.grad((wanted * weight).sum(), learned, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", sorted(heads()))
def test_prepared_pairs_are_those_of_all_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pal.train.prepared.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("pal.train.prepared.PROMPTS_AT_ONCE", 4)
    pairs, head = pairs_of(), head_of(name).eval()
    batch = pairs.batch(FEATURES, slice(None))
    wanted = head.prepare(batch.prompt if head.uses_prompt else None, batch.first, batch.second)
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    for mine, other in zip(prepared(head, pairs, FEATURES.__getitem__), wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_bound_maps_nothing_twice() -> None:
    head = head_of("pal-b")
    step = pairs_of().step(FEATURES, slice(None))
    counts = rows_mapped(head)
    assert len(StepOfHead(head, 0.1)(step.things, step.user)) == 2
    assert counts == [ITEMS, ITEMS]  # all prompts, then all items


@pytest.mark.parametrize("name", ["pal-a", "pal-b", "bt-mlp", "consensus", "user-embedding"])
def test_of_many_pairs_each_thing_is_mapped_once(name: str) -> None:
    pairs, head = pairs_of(), head_of(name).eval()
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    counts = rows_mapped(head)
    for _, found in prepared_blocks(head, pairs, FEATURES.__getitem__):
        zero_shot(head, found)
    assert sum(counts) == ITEMS * (2 if head.uses_prompt else 1)


def test_what_is_drawn_is_drawn_for_each_comparison() -> None:
    """With dropout equal rows are not one: as in the released code each has a mask of its own."""
    head = head_of("pal-b", mlp="mlp2-gelu-dropout5")
    pairs = pairs_of(things=1)
    pairs.user.zero_()
    step = pairs.step(FEATURES, slice(None))
    assert isinstance(head, IdealPointHead)
    ideal = head.train().margins_and_ideal(step.things, step.user)[1]
    assert len(ideal.unique(dim=0)) == PAIRS
    ideal = head.eval().margins_and_ideal(step.things, step.user)[1]
    assert len(ideal.unique(dim=0)) == 1


def test_batch_normalisation_sees_every_row() -> None:
    head = head_of("pal-a", mlp="mlp1-relu-dropout0-batchnorm").train()
    pairs = pairs_of(things=2)
    step, batch = (make(FEATURES, slice(None)) for make in (pairs.step, pairs.batch))
    wanted = head(None, batch.first, batch.second, batch.user)
    torch.testing.assert_close(head.margins(step.things, step.user), wanted)


@pytest.mark.parametrize(
    ("settings", "is_drawn"),
    [
        ({"mlp": "mlp1-gelu-dropout5"}, True),
        ({"mlp": "mlp1-gelu-dropout0", "weights": "gumbel"}, True),
        ({"mlp": "mlp1-gelu-dropout0"}, False),
    ],
)
@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_what_is_drawn_for_a_user_is_drawn_for_each_comparison(
    name: str, settings: dict[str, Any], is_drawn: bool
) -> None:
    """Also where users are fewer than rows, and an ideal point could be computed once for each."""
    head, pairs = head_of(name, **settings).train(), pairs_of(things=1)
    pairs.user.zero_()
    step = pairs.step(FEATURES, slice(None))
    assert isinstance(head, IdealPointHead)
    ideal = head.margins_and_ideal(step.things, step.user)[1]
    assert (len(ideal.unique(dim=0)) > USERS) == is_drawn


def test_batch_normalisation_counts_users_by_their_comparisons() -> None:
    """Not those who have none."""
    found = []
    for absent in (0.0, 100.0):
        head = head_of("pal-a", mlp="mlp1-relu-dropout0-batchnorm").train()
        head.users.logits.data[1] = absent * torch.tensor([1.0, -1.0, 0.0])
        pairs = pairs_of()
        pairs.user = torch.where(pairs.user == 1, 0, pairs.user)
        found.append(head.margins(pairs.step(FEATURES, slice(None)).things, pairs.user))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_of_very_many_items_only_some_are_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 16
    monkeypatch.setattr("pal.train.prepared.ITEMS_AT_ONCE", most)
    pairs, head = pairs_of(things=len(FEATURES)), head_of(name).eval()
    batch = pairs.batch(FEATURES, slice(None))
    wanted = head.prepare(batch.prompt if head.uses_prompt else None, batch.first, batch.second)
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    kept: list[int] = []
    of_all = prepared_module._mapped

    def noted(*given: Any) -> Mapped:
        kept.append(len(given[2]))
        return of_all(*given)

    monkeypatch.setattr(prepared_module, "_mapped", noted)
    for mine, other in zip(prepared(head, pairs, FEATURES.__getitem__), wanted, strict=True):
        torch.testing.assert_close(mine, other)
    assert len(kept) > 1
    assert max(kept) <= most


def test_a_table_is_made_only_where_it_is_shorter() -> None:
    assert Table.of(FEATURES, torch.arange(20)).place is None
    table = Table.of(FEATURES, torch.tensor([5, 5, 2, 5]))
    assert torch.equal(table.values, FEATURES[[2, 5]])
    assert torch.equal(table.each(), FEATURES[[5, 5, 2, 5]])


def test_things_of_several_batches_are_brought_to_one_shape() -> None:
    rows = [torch.tensor([1, 1, 1, 2, 2, 2, 1, 1]), torch.arange(8)]
    made = [Things(None, Table.of(FEATURES, own)) for own in rows]
    assert [things.item.place is None for things in made] == [False, True]
    same = alike(made)
    assert {things.item.values.shape for things in same} == {(8, DIM)}
    for own, things in zip(rows, same, strict=True):
        assert torch.equal(torch.cat(things.both()), FEATURES[own])
    everyone = alike([made[1], made[1]])
    assert all(things.item.place is None for things in everyone)


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_of_no_pairs_there_is_one_block_without_rows(name: str) -> None:
    head = head_of(name).eval()
    none = torch.zeros(0, dtype=torch.long)
    pairs = Pairs(none if head.uses_prompt else None, none, none, none, torch.zeros(0))
    for value in prepared(head, pairs, FEATURES.__getitem__):
        assert value is not None
        assert len(value) == 0


def test_pairs_of_one_content_compare_the_same() -> None:
    pairs = pairs_of(3)
    rows = torch.stack([pairs.prompt, pairs.first, pairs.second], dim=1)  # type: ignore[list-item]
    for own, compared in ((pairs, rows), (replace(pairs, prompt=None), rows[:, 1:])):
        number = compared.unique(dim=0, return_inverse=True)[1]
        equal = own.content(len(FEATURES))[:, None] == own.content(len(FEATURES))
        assert torch.equal(equal, number[:, None] == number)


@pytest.mark.parametrize("name", ["user-embedding", "pal-a", "pal-b"])
def test_strangers_judge_each_comparison_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However their pairs are spread over the blocks that are prepared together."""
    monkeypatch.setattr("pal.train.prepared.ROWS_AT_ONCE", 7)
    pairs, head = pairs_of(3), head_of(name).eval()
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    asked: list[int] = []

    def counted(head: Head, found: Any) -> torch.Tensor:
        margin = zero_shot(head, found)
        asked.append(len(margin))
        return margin

    monkeypatch.setattr("pal.evaluate.predict.zero_shot", counted)
    found = margins_of_strangers(head, pairs, FEATURES)
    assert sum(asked) == len(pairs.content(len(FEATURES)).unique())
    wanted = zero_shot(head, prepared(head, pairs, FEATURES.__getitem__))
    torch.testing.assert_close(found, wanted.float())


@pytest.mark.parametrize("name", ["user-embedding", "pal-b"])
def test_what_seen_users_think_is_kept_from_draw_to_draw(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, head = pairs_of(3), head_of(name).float().eval()
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    found = prepared(head, pairs, FEATURES.float().__getitem__)
    content = pairs.content(len(FEATURES))
    fresh = Answers(found, pairs.label, pairs.user, USERS, content)
    kept = replace(fresh, known=Known.of(fresh.content, USERS))
    wanted = [
        likelihood_of_seen(head, fresh.take(torch.arange(start, PAIRS))) for start in (40, 20, 0)
    ]
    asked = rows_judged(head, monkeypatch)
    for start, likelihood in zip((40, 20, 0, 0), [*wanted, wanted[-1]], strict=True):
        of_draw = kept.take(torch.arange(start, PAIRS))
        torch.testing.assert_close(likelihood_of_seen(head, of_draw), likelihood)
    assert sum(asked) == len(content.unique())
    assert Known.of(content, NUMBERS_KEPT) is None


@pytest.mark.parametrize("name", ["user-embedding", "pal-a", "pal-b", "lore"])
def test_seen_users_judge_each_comparison_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, head = pairs_of(3), head_of(name).eval()
    pairs.prompt = pairs.prompt if head.uses_prompt else None
    found = prepared(head, pairs, FEATURES.__getitem__)
    one_by_one = Answers(found, pairs.label, pairs.user, USERS)
    answers = Answers(found, pairs.label, pairs.user, USERS, pairs.content(len(FEATURES)))
    asked = rows_judged(head, monkeypatch)
    likelihood = likelihood_of_seen(head, answers)
    seen = zero_shot(head, answers.prepared, answers.content)
    assert answers.content is not None
    assert asked == [len(answers.content.unique())] * 2
    torch.testing.assert_close(likelihood, likelihood_of_seen(head, one_by_one))
    torch.testing.assert_close(seen, zero_shot(head, one_by_one.prepared))
    some = torch.arange(5, PAIRS)
    torch.testing.assert_close(
        likelihood_of_seen(head, answers.take(some)),
        likelihood_of_seen(head, one_by_one.take(some)),
    )
