"""Texts with context: templates, and what is lost when they are too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pal.config import EncoderConfig
from pal.embed.chat import RefusedByTemplate
from pal.embed.encoder import locate
from pal.embed.encoders.pooling import pool
from pal.embed.encoders.random_models import byte_tokenizer, random_model
from pal.embed.encoders.text import TextEncoder
from pal.embed.render import Renderer, plain_text
from pal.errors import EncoderError
from pal.items import (
    ITEM_COLUMNS,
    Item,
    Text,
    Turn,
    conversation,
    item_row,
    items_of,
    items_schema,
    prompt_item,
    response_item,
)

CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] | trim }}</s>{% endfor %}"
PROMPT = (Turn("user", "first"), Turn("user", "second"))
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]


def renderer(chat: bool = False, **settings: Any) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT if chat else None
    return Renderer(
        "mine", tokenizer, EncoderConfig(**({"template": "chat"} if chat else {}), **settings)
    )


def read(made: Renderer, text: Text) -> tuple[str, bool, int]:
    """Return what the model would read, whether anything was cut, and how many answers were."""
    tokens, truncated, cut = made.tokenise([made.render(text)])
    return made.tokenizer.decode(tokens.ids, skip_special_tokens=True), bool(truncated[0]), cut


def test_context_stands_before_the_text() -> None:
    answer = Text("answer", PROMPT)
    assert renderer().render(answer).text == "first\n\nsecond\n\nanswer"
    pattern = renderer(template="Q: {context} A: {text}")
    assert pattern.render(answer).text == "Q: first\n\nsecond A: answer"
    assert renderer().render(Text("alone")).text == "alone"
    chat = renderer(chat=True).render(Text(" answer ", PROMPT))
    assert chat.text == "<s>user: first</s><s>user: second</s><s>assistant: answer</s>"
    assert renderer(chat=True).render(Text("alone")).text == "<s>user: alone</s>"


def test_a_prompt_of_system_and_user_is_not_an_assistants_text() -> None:
    prompt = conversation(MESSAGES)
    item = prompt_item(prompt)
    assert item is not None
    chat = renderer(chat=True)
    whole = chat.render(item)
    assert whole.text == "<s>system: be brief</s><s>user: why?</s>"
    answer = response_item(prompt, "because", "prompt+response", "{response}")
    assert chat.render(answer).text == f"{whole.text}<s>assistant: because</s>"
    assert renderer().render(item).text == "be brief\n\nwhy?"


def table_of(items: list[Item]) -> pa.Table:
    rows = [dict(zip(ITEM_COLUMNS, item_row(item), strict=True)) for item in items]
    return pa.Table.from_pylist(rows, items_schema())


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_from_a_table_renders_as_the_same_text_in_memory(chat: bool) -> None:
    prompt = conversation(MESSAGES)
    item = prompt_item(prompt)
    assert item is not None
    items: list[Item] = [item, Text("alone"), Text("ünïcode 猫", prompt), Text("x", prompt, "tool")]
    made = renderer(chat)
    from_table = [made.render(text) for text in items_of(table_of(items)) if isinstance(text, Text)]
    assert from_table == [made.render(text) for text in items if isinstance(text, Text)]


def test_a_conversation_that_the_chat_template_refuses_costs_that_item_alone() -> None:
    made = encoder("bert")
    made.renderer = renderer(chat=True)
    made.renderer.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT
    )
    inputs = made.prepare([Text("fine"), Text("no", conversation(MESSAGES))])
    ((row, failure),) = inputs.failures.items()
    assert (row, failure.stage) == (1, "tokenize")
    assert "does not accept the roles system, user, assistant: no system role" in failure.message


def test_the_context_is_cut_first_and_from_its_start() -> None:
    made = renderer(max_length=30)
    item = Text("the answer", (Turn("user", "x" * 50 + "end"),))
    text, truncated, cut = read(made, item)
    assert truncated
    assert not cut
    assert text.endswith("the answer")
    assert "end" in text
    assert len(made.tokenise([made.render(item)])[0].ids) == 30


def written(made: Renderer, text: Text) -> tuple[str, int, int]:
    """Return the whole chat that the model reads, its tokens, and how many answers were cut."""
    tokens, truncated, cut = made.tokenise([made.render(text)])
    assert truncated.all()
    return made.tokenizer.decode(tokens.ids), len(tokens.ids), cut


LONG = (Turn("system", "s" * 40), Turn("user", "0123456789" * 4), Turn("assistant", "so"))


@pytest.mark.parametrize("is_fast", [True, False])
def test_turns_of_a_chat_are_cut_oldest_first_and_keep_what_stands_around_them(
    is_fast: bool,
) -> None:
    made = renderer(chat=True, max_length=60)
    if not is_fast:
        made.tokenizer = Slow(made.tokenizer)
    text, count, cut = written(made, Text("the answer", LONG))
    assert text == (
        "<s>system: </s><s>user: 6789</s><s>assistant: so</s><s>assistant: the answer</s>"
    )
    assert (count, cut) == (60, 0)


def test_a_long_answer_in_a_chat_keeps_its_header_and_its_end_of_turn() -> None:
    made = renderer(chat=True, max_length=40)
    text, count, cut = written(made, Text("0123456789" * 30, (Turn("user", "why?"),)))
    assert text == "<s>user: </s><s>assistant: 0123456789012345678</s>"
    assert (count, cut) == (40, 1)
    text, count, _ = written(made, Text("0123456789" * 30))
    assert text == f"<s>user: {'0123456789' * 3}01</s>"
    assert count == 40
    left = renderer(chat=True, max_length=40, truncation_side="left")
    assert written(left, Text("0123456789" * 30))[0].endswith("0123456789</s>")


def test_of_many_turns_whose_marks_fill_the_length_the_oldest_go() -> None:
    made = renderer(chat=True, max_length=60)
    many = tuple(Turn(("user", "assistant")[n % 2], f"turn {n}") for n in range(40))
    text, count, cut = written(made, Text("the answer", many))
    assert text == "<s>assistant: </s><s>assistant: the answer</s>"
    assert count <= 60
    assert cut == 0


def test_a_chat_whose_marks_alone_are_too_long_costs_that_item() -> None:
    made = encoder("bert", max_length=16)
    made.renderer = renderer(chat=True, max_length=16)
    inputs = made.prepare([Text("fine"), Text("no", PROMPT)])
    assert sorted(inputs.failures) == [1]
    assert "around 2 turns leaves no place for a word in max_length = 16" in str(inputs.failures[1])


class Slow:
    """A tokenizer that does not say where in a text a token stands."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    def __call__(self, *given: Any, **options: Any) -> Any:
        assert not options.get("return_offsets_mapping")
        return self.fast(*given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)


LOOPS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_stopped_and_costs_that_item() -> None:
    made = renderer(chat=True)
    made.tokenizer.chat_template = (
        "{% if 'odd' in messages[-1]['content'] %}" + LOOPS + "{% endif %}" + CHAT
    )
    assert made.render(Text("fine")).text == "<s>user: fine</s>"
    with pytest.raises(RefusedByTemplate, match="it runs for more than 2,000,000 lines"):
        made.render(Text("odd"))
    made.tokenizer.chat_template = "{{ 9 ** 9 ** 9 }}"
    with pytest.raises(EncoderError, match="computes powers, which can take hours"):
        Renderer("mine", made.tokenizer, EncoderConfig(template="chat"))


def test_a_template_sees_the_same_day_whenever_it_is() -> None:
    made = renderer(chat=True)
    made.tokenizer.chat_template = "\n{{ strftime_now('%d %B %Y, %Y-%m-%d') }}|" + CHAT
    assert made.render(Text("a")).text == "\n26 July 2024, 2024-07-26|<s>user: a</s>"


def test_an_instruction_has_no_place_in_a_chat() -> None:
    with pytest.raises(EncoderError, match=r"instruction has no place in a chat template"):
        renderer(chat=True, instruction="why: ")


def test_an_answer_too_long_alone_is_cut_at_its_end_and_counted() -> None:
    text, truncated, cut = read(renderer(max_length=12), Text("0123456789abcdef", PROMPT))
    assert (text, truncated, cut) == (
        "0123456789",
        True,
        1,
    )  # the model's own marks take two places


def test_templates_that_cannot_work_are_one_sentence() -> None:
    with pytest.raises(EncoderError, match="has no chat template"):
        Renderer("mine", byte_tokenizer(), EncoderConfig(template="chat"))
    with pytest.raises(
        EncoderError, match=r"must be 'chat', or hold \{context\} and end with \{text\}"
    ):
        renderer(template="{text} then {context}")


def encoder(family: str = "llama", layers: tuple[int, ...] = (), **settings: Any) -> TextEncoder:
    config = EncoderConfig(model=f"random:{family}", store_dtype="float32", **settings)
    return TextEncoder.load(locate("tiny", config, Path(".digests.json")), "cpu", 10_000, layers)


def features(made: TextEncoder, texts: list[str]) -> list[torch.Tensor]:
    inputs = made.prepare([Text(text) for text in texts])
    return made.encode(made.load_batch(inputs, np.arange(len(texts))))


@pytest.mark.parametrize("family", ["llama", "bert", "opt"])
def test_several_layers_of_one_pass_are_those_of_single_passes(family: str) -> None:
    texts = ["some words", "a longer text with more words"]
    together = features(encoder(family, layers=(-2, -1, -3)), texts)
    for layer, feature in zip((-2, -1, -3), together, strict=True):
        torch.testing.assert_close(feature, features(encoder(family, layer=layer), texts)[0])


def test_the_last_layer_can_be_read_before_the_final_norm() -> None:
    texts = ["some words"]
    before, after = features(encoder(norm="pre"), texts)[0], features(encoder(), texts)[0]
    assert not torch.allclose(before, after)
    model = random_model("llama")
    ids = torch.tensor([byte_tokenizer()(texts[0])["input_ids"]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True)
        hidden: list[torch.Tensor] = []
        model.layers[-1].register_forward_hook(lambda m, a, out: hidden.append(out))
        model(ids)
    assert torch.equal(pool(hidden[0], torch.ones_like(ids), "mean"), before)
    torch.testing.assert_close(pool(model.norm(hidden[0]), torch.ones_like(ids), "mean"), after)
    torch.testing.assert_close(states.last_hidden_state, model.norm(hidden[0]))


def test_layers_that_do_not_exist_are_one_sentence() -> None:
    with pytest.raises(EncoderError, match="encoder tiny has 3 blocks, so layer -4 does not exist"):
        encoder(layer=-4)
    with pytest.raises(EncoderError, match="layer -2 lies before the final norm"):
        encoder(layer=-2, norm="post")


def test_text_that_cannot_be_read_is_a_failure_with_a_reason() -> None:
    made = encoder("bert")
    raw = pa.array([b"fine", b"\xff\xfe broken", b"", None, b"   "], pa.large_binary())
    text = pa.LargeStringArray.from_buffers(
        len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0]
    )
    half = [Text("half a pair: \ud800"), Text("fine", (Turn("user", "half a pair: \udc00"),))]
    inputs = made.prepare(
        [*items_of(pa.table({"modality": ["text"] * 5, "text": text})), *half, Text("fine")]
    )
    assert {row: failure[:2] for row, failure in inputs.failures.items()} == {
        1: ("decode", "UnicodeDecodeError"),
        2: ("tokenize", "EmptyText"),
        3: ("tokenize", "EmptyText"),
        4: ("tokenize", "EmptyText"),
        5: ("decode", "UnicodeDecodeError"),
        6: ("decode", "UnicodeDecodeError"),
    }


def test_a_text_of_half_a_megabyte_without_a_space_is_cut_and_marked() -> None:
    made = encoder("bert", max_length=64)
    inputs = made.prepare([Text("0123456789" * 50_000)])
    assert inputs.n_tokens.tolist() == [64]
    assert inputs.truncated.tolist() == [True]


def test_a_model_without_template_reads_the_context_too() -> None:
    alone = Text("a red one")
    behind = Text("a red one", (Turn("user", "Which car?"),))
    assert plain_text(alone) == "a red one"
    assert plain_text(behind) == "Which car?\n\na red one"
