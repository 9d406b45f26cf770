"""What OpenRLHF's client sends is rewarded as the same prompt and response in /v1/score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward import RewardModel
from pal.reward.server.app import build_app
from pal.reward.server.service import Service
from pal.reward.tools.chat_formats import FAMILIES
from pal.reward.tools.openrlhf import NotRecognised, QueryReader, _overlap
from pal.reward.tools.silence import SILENCE, spoken

Opened = Callable[..., RewardModel]
Message = dict[str, str]
# Written after the published templates; the benchmark openrlhf.py takes the real ones.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ s }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OWN = (
    "{% for m in messages %}[{{ m.role | upper }}: {{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT: {% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "", "<|im_end|>"),
    "llama-3": (
        LLAMA_3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<end_of_turn>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>"),
    "zephyr": (ZEPHYR, ["</s>"], "", "</s>"),
}
CHATS: list[list[Message]] = [
    [{"role": "user", "content": "What should I cook\n\ntonight? Fünf Gäste kommen."}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Tell me <b>a story</b>, please."},
    ],
    [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "user", "content": "1 + 1 ="},
    ],
]
RESPONSES = ["Soup. It takes half an hour.", "Once there was  a clock:\n\n- tick\n- tock", "2"]


def tokenizer_of(template: str, special: list[str], bos: str, eos: str) -> Any:
    """Return a tokenizer of bytes that drops blanks before full stops when it decodes, as some
    do."""
    from pal.embed.encoders.random_models import byte_tokenizer

    made = byte_tokenizer()
    made.add_special_tokens({"eos_token": eos, **({"bos_token": bos} if bos else {})})
    made.add_special_tokens({"additional_special_tokens": special})
    made.chat_template = template
    return made


def sent(tokenizer: Any, chat: list[Message], response: str, longest: int | None = None) -> Any:
    """Return query and prompt as the client makes them; of the prompt ``longest`` tokens are
    kept."""
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-(longest or 0) :]
    ids += tokenizer(response + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False), prompt


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_query_is_read_as_its_prompt_and_response(family: str, named: bool) -> None:
    tokenizer = tokenizer_of(*TEMPLATES[family])
    reader = QueryReader(tokenizer if named else None)
    for chat in CHATS if family not in ("gemma", "mistral") else CHATS[:2]:
        for response in RESPONSES:
            for longest in (None, 60):
                query, prompt = sent(tokenizer, chat, response, longest)
                found = reader.read(query, prompt)
                assert (found.prompt, found.response) == (chat, response)
                whole = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
                assert found.is_cut == (longest is not None and whole > longest)
            if not named:
                assert reader.read(sent(tokenizer, chat, response)[0]).response == response


def test_a_template_of_ones_own_is_read_where_the_policy_is_named() -> None:
    tokenizer = tokenizer_of(OWN, [], "", "</s>")
    query, prompt = sent(tokenizer, CHATS[1], RESPONSES[1])
    found = QueryReader(tokenizer).read(query, prompt)
    assert (found.prompt, found.response) == (CHATS[1], RESPONSES[1])
    tokenizer = tokenizer_of(OWN.replace("[", "<|x|>"), [], "", "</s>")
    query, prompt = sent(tokenizer, CHATS[0], RESPONSES[0])
    assert QueryReader(tokenizer).read(query, prompt).prompt == CHATS[0]
    with pytest.raises(NotRecognised, match=r"holds '<\|x\|>' .* serve.policy=FOLDER"):
        QueryReader().read(query, prompt)
    with pytest.raises(RewardError, match="has no chat template that takes a user's turn"):
        QueryReader(tokenizer_of("{{ raise_exception('no') }}", [], "", "</s>"))


def test_what_a_decoder_changes_of_a_prompt_does_not_count() -> None:
    """Blanks before full stops, round special tokens; letters in two parts as one; half letters."""
    reader = QueryReader()
    prompt = "<s>[INST] Cafe\u0301 , he said . Wo n't he ? [/INST]"
    query = "<s> [INST] Caf\u00e9, he said. Won't he? [/INST] Yes.</s>"
    found = reader.read(query, prompt)
    assert found.prompt == [{"role": "user", "content": "Cafe\u0301 , he said . Wo n't he ?"}]
    assert (found.response, found.is_cut) == ("Yes.", False)
    found = reader.read("\ufffd" + query[17:], prompt)
    assert (found.response, found.is_cut) == ("Yes.", True)


def test_plain_prompts_are_left_as_they_are() -> None:
    reader = QueryReader()
    prompt = "Question: why?\nAnswer:"
    for query, is_cut in ((prompt + " So.</s>", False), (prompt[9:] + " So.<|endoftext|>", True)):
        found = reader.read(query, prompt)
        assert (found.prompt, found.response, found.is_cut) == (prompt, " So.", is_cut)
    assert reader.read(" So.</s>").response == " So."
    with pytest.raises(NotRecognised, match="begins neither with its prompt nor with the end"):
        reader.read("other", prompt)
    with pytest.raises(NotRecognised, match=r"holds '\[/INST\]'"):
        reader.read("Hi [/INST] there", "Hi [/INST]")


def test_think_blocks_that_a_template_opens_belong_to_no_turn() -> None:
    chat = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    found = QueryReader().read(chat + "Hello<|im_end|>\n", chat)
    assert (found.prompt, found.response) == ([{"role": "user", "content": "hi"}], "Hello")


def test_a_format_that_ends_in_no_answer_is_refused() -> None:
    chat = "<|im_start|>user\nhi<|im_end|>\n"
    with pytest.raises(NotRecognised):
        QueryReader().read(chat + "Hello", chat)
    assert [family.read("hi") for family in FAMILIES] == [None] * len(FAMILIES)


@pytest.mark.parametrize(
    ("prompt", "query", "size"),
    [("abcab", "cabx", 3), ("aaaa", "aab", 2), ("abc", "x", 0), ("abc", "", 0), ("ab", "abc", 2)],
)
def test_the_longest_end_of_a_prompt_that_begins_the_query(
    prompt: str, query: str, size: int
) -> None:
    assert _overlap(prompt, query) == size


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_rewards_of_queries_are_those_of_score(opened: Opened, head: str) -> None:
    model = opened(["ann", "7"], head, max_length=256)
    with asking(model) as http:
        for family, chat, user in (("chatml", CHATS[2], "ann"), ("llama-3", CHATS[1], 7)):
            tokenizer = tokenizer_of(*TEMPLATES[family])
            wanted = http.post(
                "/v1/score", json={"prompts": [chat], "responses": RESPONSES[:1], "users": [user]}
            ).json()["rewards"]
            for longest, is_cut in ((None, 0.0), (50, 1.0)):
                query, prompt = sent(tokenizer, chat, RESPONSES[0], longest)
                body = {"query": [query], "prompts": [prompt], "labels": [user]}
                found = http.post("/get_reward", json=body).json()
                assert found["rewards"] == pytest.approx(wanted, abs=1e-5)
                assert found["extra_logs"] == {
                    "pal_user_known": [1.0],
                    "pal_prompt_cut": [is_cut],
                }
        assert "pal_prompts_cut_total 2.0" in http.get("/metrics").text
        query, prompt = sent(tokenizer, CHATS[0], "")
        silent = http.post("/get_reward", json={"query": [query], "prompts": [prompt]}).json()
        assert silent["rewards"] == pytest.approx(model.score([CHATS[0]], [SILENCE]), abs=1e-5)
        odd = http.post("/get_reward", json={"query": ["<|a|>b"], "prompts": ["<|a|>"]})
        assert (odd.status_code, odd.json()["detail"][:22]) == (422, "a prompt holds '<|a|>'")


def test_a_policy_without_a_tokenizer_is_refused_before_the_server_starts(opened: Opened) -> None:
    service = Service(opened(["a"]), ServeConfig(policy="nowhere"), None)
    with pytest.raises(RewardError, match=r"serve.policy = 'nowhere' has no tokenizer"):
        build_app(service)
    service.store.close()
    tokenizer_of(*TEMPLATES["chatml"]).save_pretrained("policy")
    with asking(opened(["a"]), policy="policy") as http:
        assert http.get("/health").status_code == 200


def test_answers_without_a_word_are_silence() -> None:
    assert [spoken(answer) for answer in ("", " \n", "a")] == [SILENCE, SILENCE, "a"]
    chat = [{"role": "assistant", "content": ""}]
    assert spoken(chat) == [{"role": "assistant", "content": SILENCE}]
    assert spoken([{"content": 5}]) == [{"content": 5}]
    assert spoken(None) is None


def asking(model: RewardModel, **options: Any) -> TestClient:
    settings = ServeConfig(store=Path("users.sqlite"), **options)
    return TestClient(build_app(Service(model, settings, None)), "http://localhost")
