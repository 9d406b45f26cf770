"""OpenRLHF's own client code against ``pal serve``: are its rewards those of /v1/score?

python benchmarks/openrlhf.py CHECKOUT TEMPLATES [--gguf FILE] [--named]

CHECKOUT is a checkout of OpenRLHF, whose code is loaded from there: the prompts are made by
``preprocess_data`` of its dataset, queries and requests by ``SingleTurnAgentExecutor``; only the
engine that would generate is replaced. TEMPLATES is a folder with chat templates, such as
``trl/chat_templates`` of an installed TRL. With --gguf (SmolLM2-135M-Instruct) its own tokenizer
and template are one of the policies. --named names each policy's tokenizer as ``serve.policy``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
import sys
import tempfile
import types
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from serve import TOKEN, served
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pal import pipeline
from pal.config import load
from pal.reward.export import Choice

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
"""after the published one of Mistral-7B-Instruct-v0.2"""
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""after the published one of zephyr-7b-beta"""
POLICIES: dict[str, tuple[str, str | None, str]] = {
    "Llama 3": ("llama3.jinja", "<|begin_of_text|>", "<|eot_id|>"),
    "Llama 3.2": ("llama3_2.jinja", "<|begin_of_text|>", "<|eot_id|>"),
    "Qwen 2.5": ("qwen2_5.jinja", None, "<|im_end|>"),
    "Qwen 3": ("qwen3.jinja", None, "<|im_end|>"),
    "Gemma": ("gemma.jinja", "<bos>", "<end_of_turn>"),
    "Gemma 3": ("gemma3.jinja", "<bos>", "<end_of_turn>"),
    "Mistral": (MISTRAL, "<s>", "</s>"),
    "Zephyr": (ZEPHYR, None, "</s>"),
}
SPECIAL = (
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>",
    "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<s>", "</s>", "[INST]", "[/INST]",
)  # fmt: skip
SPACED = {"Gemma": False, "Gemma 3": False, "Mistral": True, "Zephyr": True}
"""have tokenizers in which a blank is part of the word behind it; whether one is put before each
text"""
PROMPTS: list[Any] = [
    'Is the following statement something you would say?\n"I love long walks ."',
    "Schreib mir ein Gedicht über Kaffee – kurz, bitte! \u2615",
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day. How can I help?"},
        {"role": "user", "content": "Tell me, don't lie, a story."},
    ],
    "Summarise this:" + " the river was long and slow, and it went on." * 12,
]
RESPONSES = ["Yes", "No, I wouldn't say that.\n\n- first\n- second", "Once there was a clock."]
USERS = ["seen-00000", "seen-00001", "nobody"]
LONGEST, NEW = 1000, 60
"""tokens of prompt and answer, and of the answer; for every third row a third of the prompt is too
much"""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """What the rewards of one policy's queries were."""

    rows: int
    worst: float
    cut: int
    cut_told: int


def client_of(checkout: Path) -> tuple[Any, Any]:
    """Return ``preprocess_data`` and ``SingleTurnAgentExecutor`` of a checkout; the packages round
    them, which import vLLM and DeepSpeed, are left out."""
    for name in ("openrlhf", "openrlhf.utils", "openrlhf.datasets"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    dataset = importlib.import_module("openrlhf.datasets.prompts_dataset")
    agent = importlib.import_module("openrlhf.utils.agent")
    agent.logger.setLevel("ERROR")  # it warns of each prompt that it cuts
    return dataset.preprocess_data, agent.SingleTurnAgentExecutor


class Engine:
    """Generates what it is told, as vLLM's engine would."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    async def generate(self, prompt: list[int], sampling: Any, multi_modal_data: Any) -> Any:
        self.prompt = prompt
        output = types.SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


def policies(templates: Path, gguf: Path | None) -> dict[str, Any]:
    """Return tokenizers with chat templates."""
    found = {}
    if gguf is not None:
        found["SmolLM2"] = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for name, (template, bos, eos) in POLICIES.items():
        made = _spaced(SPACED[name]) if name in SPACED else _of_bytes()
        made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
        made.add_special_tokens({"eos_token": eos, **({"bos_token": bos} if bos else {})})
        is_file = template.endswith(".jinja")
        made.chat_template = (templates / template).read_text() if is_file else template
        found[name] = made
    return found


def _of_bytes() -> Any:
    from pal.embed.encoders.random_models import byte_tokenizer

    return byte_tokenizer()


def _spaced(is_prefixed: bool) -> Any:
    """Return a tokenizer as Llama 2, Gemma and Mistral have: blanks are letters, odd letters are
    bytes, and of some decoding drops the blank that was put before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    texts = [text for text in [*map(str, PROMPTS), *RESPONSES] for _ in range(3)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prefix = [normalizers.Prepend("▁")] if is_prefixed else []
    strip = [decoders.Strip(" ", 1, 0)] if is_prefixed else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    bytes_of_all = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_of_all])
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def generated(tokenizer: Any, chat: list[Any], prompt: str, response: str) -> tuple[list[int], str]:
    """Return the tokens that a policy trained on whole chats writes, and the answer they are: what
    stands behind the prompt in the whole chat, with a block of thoughts if the template adds one.
    """
    answered = [*chat, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    before, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole)
    )
    assert ids[: len(before)] == before, "a prompt's tokens change by what follows"
    own = ids[len(before) :]
    own = own[: own.index(tokenizer.eos_token_id) + 1]
    written = whole[len(prompt) :]
    return own, written.partition(tokenizer.eos_token)[0] if "<think>" in written else response


async def ask(client: tuple[Any, Any], tokenizer: Any, address: str) -> Difference:
    """Send all prompts with all responses and users, and compare with /v1/score."""
    preprocess, executor_of = client
    executor = executor_of(f"{address}/get_reward/{TOKEN}")
    sampling = types.SimpleNamespace(max_tokens=NEW, logprobs=None)
    rewards, cut, told, bodies = [], 0, 0, []
    for prompt, response, (number, user) in product(PROMPTS, RESPONSES, enumerate(USERS)):
        row = {"input": prompt}
        text, _ = preprocess(row, None, "input", None, tokenizer.apply_chat_template)
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids, answer = generated(tokenizer, chat, text, response)
        whole = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        longest = LONGEST if number else NEW + whole * 2 // 3
        engine = Engine(ids)
        found = await executor.execute(text, user, sampling, longest, tokenizer, engine)
        cut += len(engine.prompt) < whole
        told += int(found["extra_logs"]["pal_prompt_cut"][0])
        rewards += found["reward"]
        bodies.append((prompt, answer, user))
    prompts, responses, users = (list(column) for column in zip(*bodies, strict=True))
    body = {"prompts": prompts, "responses": responses, "users": users}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    reply = httpx.post(f"{address}/v1/score", json=body, headers=headers, timeout=60).json()
    pairs = zip(rewards, reply["rewards"], strict=True)
    return Difference(len(rewards), max(abs(a - b) for a, b in pairs), cut, told)


def exports(encoder: str) -> dict[str, str]:
    """Train a head of each kind on the built-in data and return the folders of their exports."""
    found = {}
    for head in ("pal-a", "pal-b"):
        small = ["data.demo.users=20", "train.epochs=3", "train.k=2"]
        config = load(overrides=[f"encoder={encoder}", f"train.head={head}", *small]).config
        pipeline.embed(config)
        pipeline.train(config, run=head)
        found[head] = pipeline.export(config, head, Choice(), head).dir
    return found


def unknown_options(checkout: Path) -> set[str]:
    """Return the options of the example that OpenRLHF's trainer does not have."""
    example = Path(__file__).parents[1] / "examples" / "openrlhf.sh"
    trainer = (checkout / "openrlhf/cli/train_ppo_ray.py").read_text()
    _, _, command = example.read_text().partition("openrlhf.cli.train_ppo_ray")
    named = set(re.findall(r"--[a-z_]+(?:\.[a-z_]+)+", command))
    return {option for option in named if f'"{option}"' not in trainer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("templates", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--encoder", default="tiny-text")
    arguments = parser.parse_args()
    checkout, templates = arguments.checkout.resolve(), arguments.templates.resolve()
    gguf = arguments.gguf and arguments.gguf.resolve()
    unknown = unknown_options(checkout)
    client, tokenizers = client_of(checkout), policies(templates, gguf)
    failed = [f"the example's {option} is no option of the trainer" for option in sorted(unknown)]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        print("| policy | head | rows | cut by the client, told | worst difference |")
        print("|---|---|---|---|---|", flush=True)
        for head, folder in exports(arguments.encoder).items():
            for name, tokenizer in tokenizers.items():
                tokenizer.save_pretrained("policy")
                options = ["--set", "serve.policy=policy"] if arguments.named else []
                with served(folder, *options) as server:
                    found = asyncio.run(ask(client, tokenizer, server.address))
                told = f"{found.cut}, {found.cut_told}"
                print(
                    f"| {name} | {head} | {found.rows} | {told} | {found.worst:.1e} |", flush=True
                )
                if found.worst > TOLERANCE or found.cut != found.cut_told or not found.cut:
                    failed.append(f"{name}, {head}")
    sys.exit("; ".join(failed) or 0)


if __name__ == "__main__":
    main()
