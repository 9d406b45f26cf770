"""The tools that people already use take an export: transformers, TRL's trainer, RewardBench's
files, the command line. The heads here are random, but where a command trains one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal import pipeline
from pal.config import Config
from pal.errors import PalWarning, RewardError
from pal.reward import RewardModel
from pal.reward.export import Choice, export, one_choice, push
from pal.reward.export_record import ExportRecord
from pal.reward.tools.older import with_old_names
from pal.reward.tools.rewardbench import SECTIONS, as_text, evaluate
from pal.reward.tools.silence import SILENCE
from pal.rows import BadRow

Configure = Callable[..., Config]
Opened = Callable[..., RewardModel]
ALONE = {"view": "response", "max_length": 128}
USERS = [f"seen-{number:05d}" for number in range(6)]


def exported(model: RewardModel, choice: Choice | None = None, merge: bool = False) -> Path:
    """Export a model and return the folder."""
    export(model, choice or Choice(), Path("exports/mine"), merge=merge)
    return Path("exports/mine")


def encoded(tokenizer: Any, texts: list[str], side: str) -> Any:
    return tokenizer(
        texts, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False
    )


@pytest.mark.parametrize(
    ("head", "family"),
    [("lore", "llama"), ("bt-linear", "opt"), ("drm", "gpt2"), ("per-user", "qwen2")],
)
def test_a_linear_head_is_folded_into_the_encoder(opened: Opened, head: str, family: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dim = 32 if family == "opt" else 64
    made = opened(USERS, head, dim=dim, model=f"random:{family}", pooling="last", **ALONE)
    user = None if head == "bt-linear" else USERS[1]
    choice = Choice() if user is None else Choice("user", user=user)
    folder = exported(made, choice, merge=True)
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(whole).__module__.startswith("transformers.")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    texts = ["short", "a somewhat longer text", "p" * 90]
    constant = ExportRecord.read(folder).constant
    wanted = made.score("", texts, user)
    with torch.inference_mode():
        for side in ("left", "right"):
            found = whole(**encoded(tokenizer, texts, side)).logits
            assert found.shape == (3, 1)
            if side == "right":
                assert (found[:, 0] + constant).tolist() == pytest.approx(wanted, abs=1e-4)
    assert RewardModel.from_pretrained(folder).score("", texts) == pytest.approx(wanted, abs=1e-4)


def test_a_merged_folder_has_the_names_that_transformers_4_knows(
    opened: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing is told while it is made."""
    made = opened(USERS, "lore", model="random:llama", pooling="last", **ALONE)
    folder = exported(made, Choice("user", user=USERS[1]), merge=True)
    assert capfd.readouterr() == ("", "")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


def test_settings_of_rotary_positions_have_their_old_names() -> None:
    gemma = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = with_old_names({"rope_parameters": gemma, "rope_theta": 5.0})
    assert (old["rope_theta"], old["rope_local_base_freq"]) == (5.0, 1e4)
    assert old["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    phi = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    old = with_old_names({"rope_parameters": phi, "dtype": "float16"})
    assert (old["partial_rotary_factor"], old["torch_dtype"]) == (0.5, "float16")
    assert "rope_scaling" not in old
    assert with_old_names({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("head", "pooling", "message"),
    [
        ("lore", "mean", "read with pooling mean"),
        ("pal-a", "last", "is not linear"),
        ("pal-b", "last", "prompt apart"),
    ],
)
def test_what_cannot_be_folded_is_refused(
    opened: Opened, head: str, pooling: str, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        exported(opened(USERS, head, model="random:llama", pooling=pooling), merge=True)
    assert not list(Path("exports").glob("*"))


@pytest.mark.parametrize(
    ("head", "family", "pooling"), [("pal-a", "bert", "mean"), ("bt-mlp", "llama", "last")]
)
def test_transformers_loads_any_head_that_reads_one_sequence(
    opened: Opened, head: str, family: str, pooling: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import pal.reward.tools.hf

    folder = exported(opened(USERS, head, model=f"random:{family}", pooling=pooling, **ALONE))
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(whole, pal.reward.tools.hf.PalForSequenceClassification)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["short", "a somewhat longer text"]
    wanted = RewardModel.from_pretrained(folder).score("", texts)
    with torch.inference_mode():
        for side in ("left", "right"):
            found = whole(**encoded(tokenizer, texts, side)).logits[:, 0].tolist()
            if family == "llama" or side == "right":  # BERT counts positions from the margin
                assert found == pytest.approx(wanted, rel=1e-5)
        beside = encoded(tokenizer, [*texts, "odd"], "right")
        beside["attention_mask"][2] = 0  # nothing at all
        found = whole(**beside).logits[:2, 0].tolist()
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_head_that_reads_prompts_is_no_sequence_classifier(opened: Opened) -> None:
    from pal.reward.tools.hf import PalForSequenceClassification

    folder = exported(opened(USERS, "pal-b", view="response"))
    with pytest.raises(RewardError, match="head pal-b reads the prompt apart"):
        PalForSequenceClassification.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own call
@pytest.mark.filterwarnings("ignore:a completion has no reward")
@pytest.mark.parametrize("is_async", [False, True])
def test_trl_trains_on_the_reward_of_each_rows_user(opened: Opened, is_async: bool) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from pal.embed.encoders.random_models import byte_tokenizer
    from pal.reward.tools.trl import AsyncPalReward, PalReward

    folder = exported(opened(USERS))
    tokenizer = byte_tokenizer()
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    policy = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape))
    if is_async:  # mixtures, of which some do not sum to one
        users: list[Any] = [{"0": 0.5, "1": 0.4 + 0.1 * (n % 3 > 0)} for n in range(8)]
    else:
        users = [USERS[n % 2] for n in range(8)]
    rows = [{"prompt": f"Say something {n}", "user_id": user} for n, user in enumerate(users)]
    seen: list[tuple[list[Any], list[str], list[float | None]]] = []

    class Watched(PalReward):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Any:
            rewards = super().__call__(prompts, completions, **columns)
            seen.append((completions, columns["user_id"], rewards))
            return rewards

    reward = AsyncPalReward(folder) if is_async else Watched(folder)
    arguments = GRPOConfig(
        "trained",
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        policy,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/pal_reward/mean" in row]
    assert len(logged) == 3
    left_out = [row["pal_reward/not_rewarded"] for row in logged]
    assert (max(left_out) > 0) == is_async
    assert min(left_out) < 1
    for row in logged:  # a step without any reward has no mean, and training goes on
        mean = row["rewards/pal_reward/mean"]
        has_mean = mean is not None and math.isfinite(mean)
        assert has_mean == (row["pal_reward/not_rewarded"] < 1)
    if not is_async:
        assert {user for _, users, _ in seen for user in users} == set(USERS[:2])
        completion = [seen[0][0][0]] * 2
        one, other = PalReward(folder)(["Say something"] * 2, completion, user_id=USERS[:2])
        assert one != other
        with pytest.raises(RewardError, match="passed no column 'user_id'"):
            PalReward(folder)(["p"], ["c"])
        chat = PalReward(folder)(
            [[{"role": "user", "content": "p"}]],
            [[{"role": "assistant", "content": "c"}]],
            user_id=[USERS[0]],
        )
        assert chat == pytest.approx(PalReward(folder)(["p"], ["c"], user_id=[USERS[0]]), abs=1e-5)


def test_rows_without_a_reward_are_none_for_trl_and_told(opened: Opened) -> None:
    from pal.reward.tools.trl import PalReward

    model = opened(USERS)
    told: dict[str, float] = {}
    completions = ["a", "", "b", [{"content": 5}]]
    users = [USERS[0], USERS[0], ["odd"], USERS[1]]
    with pytest.warns(PalWarning, match="a completion has no reward, .*: a user's id is"):
        rewards = PalReward(model)(
            ["p"] * 4, completions, log_metric=told.__setitem__, user_id=users
        )
    wanted = model.score("p", ["a", SILENCE], USERS[0])
    assert rewards == [*map(pytest.approx, wanted), None, None]
    assert told == {"pal_reward/unknown_users": 0.0, "pal_reward/not_rewarded": 0.5}


def test_users_of_a_dataset_may_be_numbers(opened: Opened) -> None:
    from pal.reward.tools.trl import PalReward

    model = opened(["7", "8"])
    wanted = model.score("p", ["a"] * 4, ["7", "8", None, "7"])
    for users in ([7, 8, None, 7.0], [np.int64(7), np.float32(8), float("nan"), "7"]):
        assert PalReward(model)(["p"] * 4, ["a"] * 4, user_id=users) == pytest.approx(wanted)


CHAT = [
    {"role": "user", "content": 'What "is" {{ this }}?'},
    {"role": "assistant", "content": "A {% question %}."},
    {"role": "user", "content": "And that?"},
]


@pytest.mark.parametrize(
    ("settings", "view", "item_text"),
    [
        ({"model": "random:bert"}, "prompt+response", "{response}"),
        ({"model": "random:bert", "instruction": "Rate: "}, "response", "{response}"),
        ({"model": "random:llama", "pooling": "last"}, "response", "{prompt}{response}"),
        (
            {"model": "random:llama", "template": "Q: {context}\nA: {text}"},
            "prompt+response",
            "{response}",
        ),
    ],
)
def test_a_module_gives_trl_the_rewards_of_the_model(
    opened: Opened, settings: dict[str, Any], view: str, item_text: str
) -> None:
    """TRL writes chats with the tokenizer of ``_name_or_path`` and tokenises without special
    tokens."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import pal.reward.tools.hf

    model = opened(USERS, "pal-a", view=view, item_text=item_text, max_length=200, **settings)
    folder = exported(model, Choice("user", user=USERS[0]))
    module = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    assert isinstance(module, pal.reward.tools.hf.PalForSequenceClassification)
    tokenizer = AutoTokenizer.from_pretrained(module.config._name_or_path)
    answers = ["It is.", "No, I would not say so at all."]
    for chat in (CHAT[:1], CHAT):
        rows = [[*chat, {"role": "assistant", "content": answer}] for answer in answers]
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        wanted = model.score([chat] * 2, answers, USERS[0])
        for side in ("left", "right"):
            read = tokenizer(
                text=texts, return_tensors="pt", padding=True, padding_side=side,
                add_special_tokens=False,
            )  # fmt: skip
            with torch.autocast("cpu", torch.bfloat16, enabled=side == "left"):  # as trainers do
                found = module(**read).logits[:, 0].tolist()
            assert found == pytest.approx(wanted, rel=1e-5)
    long = tokenizer(["word " * 300, ""], return_tensors="pt", padding=True)
    assert module(**long).logits.isfinite().all()
    empty = torch.zeros((2, 0), dtype=torch.long)
    assert module(empty).logits.isfinite().all()


@pytest.mark.parametrize("view", ["response", "prompt+response"])
def test_the_template_of_an_export_writes_what_the_encoder_reads(opened: Opened, view: str) -> None:
    """Also where the encoder has a chat template of its own."""
    from pal.reward.tools.chat_template import template_of

    model = opened(USERS, "pal-a", view=view, model="random:llama", pooling="last")
    renderer = model.encoder.encoder.renderer
    renderer.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    renderer.is_chat = True
    own = template_of(renderer, model.metadata)
    for chat in (CHAT[:1], CHAT):
        whole = [*chat, {"role": "assistant", "content": "It is {{ so }}."}]
        wanted = renderer.render(model.row(chat, whole[-1]["content"]).item).text
        written = renderer.tokenizer.apply_chat_template(whole, chat_template=own, tokenize=False)
        assert written == wanted


def test_a_module_is_saved_as_the_export_that_it_was(opened: Opened) -> None:
    from transformers import AutoModelForSequenceClassification

    from pal.reward.tools.hf import PalForSequenceClassification

    folder = exported(opened(USERS, "pal-a"))
    module = PalForSequenceClassification.from_pretrained(folder)
    module.save_pretrained("again")
    module.save_pretrained("again")
    ids = torch.tensor([[5, 6, 7]])
    again = AutoModelForSequenceClassification.from_pretrained("again")
    assert torch.equal(again(ids).logits, module(ids).logits)
    assert RewardModel.from_pretrained("again").score("p", ["a"])
    with torch.no_grad():
        next(again.head.parameters()).add_(1.0)
    with pytest.raises(RewardError, match="was trained after it had been exported"):
        again.save_pretrained("other")
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    with pytest.raises(RewardError, match="mine"):
        module.save_pretrained("mine")


def test_the_commands_print_one_object(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pal.cli

    settings = {"embed.tiny-text.store_dtype": "float32", "train.head": "pal-a", "train.k": 2}
    config = configure(settings)
    pipeline.embed(config)
    pipeline.train(config, "run")
    capsys.readouterr()
    Path("in.jsonl").write_text('{"prompt": "p", "response": " r", "user_id": "seen-00000"}\n')

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pal", *arguments])
        with pytest.raises(SystemExit) as end:
            pal.cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    options = ["--set", "encoder=tiny-text", "--set", "embed.tiny-text.store_dtype=float32"]
    options += ["--set", "embed.tiny-text.max_length=128"]
    code, out, err = run(
        "export", "--run", "run", "--weights", "0.3,0.7", "--name", "mine", "--json", *options
    )
    assert code == 0, err
    exported = json.loads(out)
    assert exported["dir"] == "exports/mine"
    assert exported["weights"] == pytest.approx([0.3, 0.7])
    assert exported["golden_max_abs_diff"] <= 1e-5
    card = Path("exports/mine/README.md").read_text()
    assert re.search(r"\| run \(untrained encoder\) +\| pal-a +\| 2 +\|", card)
    code, out, _ = run(
        "score", "--model", "exports/mine", "--input", "in.jsonl", "--output", "out.jsonl", "--json"
    )
    assert code == 0
    assert json.loads(out)["users_known"] == 1
    code, _, err = run(
        "score", "--model", "nowhere", "--input", "in.jsonl", "--output", "out.jsonl"
    )
    assert code == 1
    assert "neither a folder nor a Hub repository" in err


def test_the_model_card_and_the_upload(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = exported(opened(USERS), Choice("user", user=USERS[0]))
    card = (folder / "README.md").read_text()
    assert "random weights: this model is for tests" in card
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo: str, **options: Any) -> str:
            calls.append((repo, options))
            return "address"

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

        def upload_file(self, **options: Any) -> None:
            calls.append(("card", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(folder, "me/mine") == "address"
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == folder
    assert (calls[2][0], b"me/mine" in calls[2][1]["path_or_fileobj"]) == ("card", True)
    with pytest.raises(RewardError, match="--user and --prototype exclude each other"):
        one_choice("u", None, False, 0)


class Told:
    """Gives the scores it is told, by response."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def score_each(
        self, prompts: Any, responses: list[str], users: Any
    ) -> tuple[list[float | None], dict[int, str]]:
        failures = {row: "odd" for row, text in enumerate(responses) if text not in self.scores}
        return [self.scores.get(text) for text in responses], failures


def test_rewardbench_one_weighs_sections_as_published() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, scores, hits = [], {}, {}
    for weights in SECTIONS.values():
        for subset in weights:
            for number in range(4):
                pair = torch.rand(2, generator=generator).tolist()
                chosen, rejected = f"{subset} c{number}", f"{subset} r{number}"
                scores |= {chosen: pair[0], rejected: pair[1] if number else pair[0]}
                hits.setdefault(subset, []).append(
                    number > 0 and pair[0] > pair[1]
                )  # equal scores are wrong
                rows.append(
                    {"prompt": "p", "chosen": chosen, "rejected": rejected, "subset": subset}
                )
    result = evaluate(Told(scores), rows)  # type: ignore[arg-type]
    accuracy = {subset: sum(values) / 4 for subset, values in hits.items()}
    code = [f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust")]
    reasoning = 0.5 * accuracy["math-prm"] + 0.5 * sum(accuracy[name] for name in code) / 6
    assert result.sections["Reasoning"] == pytest.approx(reasoning)
    safety = (
        100 * accuracy["refusals-dangerous"]
        + 100 * accuracy["refusals-offensive"]
        + 154 * accuracy["xstest-should-refuse"]
        + 250 * accuracy["xstest-should-respond"]
        + 136 * accuracy["donotanswer"]
    ) / 740
    assert result.sections["Safety"] == pytest.approx(safety)
    assert [sum(SECTIONS[name].values()) for name in SECTIONS] == [358, 456, 740, 1968]
    assert result.score == pytest.approx(sum(result.sections.values()) / 4)
    assert result.complete


def test_rewardbench_two_credits_the_best_of_four_and_ties() -> None:
    rows = [
        {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "id": "1"},
        {"prompt": "p", "chosen": ["e"], "rejected": ["f", "g", "h"], "subset": "Math", "id": "2"},
        {"prompt": "p", "chosen": ["i"], "rejected": ["j"], "subset": "Ties", "id": "ref:1"},
        {"prompt": "p", "chosen": ["k", "l"], "rejected": ["m"], "subset": "Ties", "id": "tied:1"},
        {"prompt": "p", "chosen": ["n"], "rejected": ["o"], "subset": "Ties", "id": "ref:2"},
        {"prompt": "p", "chosen": ["q", "s"], "rejected": ["t"], "subset": "Ties", "id": "tied:2"},
    ]
    scores = dict(
        a=1, b=1, c=0, d=0, e=0, f=1, g=0, h=0, i=3, j=1, k=5, l=4, m=2, n=1, o=2, q=4, s=1, t=0
    )
    result = evaluate(Told({key: float(value) for key, value in scores.items()}), rows)  # type: ignore[arg-type]
    assert result.subsets["Math"] == pytest.approx((0.5 + 0.0) / 2)
    # margins: ref 2, -1; tied 2, 1; spreads 1, 3
    far = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    assert result.subsets["Ties"] == pytest.approx(
        0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * far
    )
    with pytest.raises(RewardError, match=r"no row can be scored, row 1: no chosen"):
        evaluate(Told({}), [{"prompt": "p", "rejected": "x", "subset": "Math"}])  # type: ignore[arg-type]


def test_an_odd_row_of_rewardbench_is_wrong_and_no_more() -> None:
    told: Any = Told({"good": 1.0, "bad": 0.0})

    def row(chosen: Any, rejected: Any = "bad", **more: Any) -> dict[str, Any]:
        return {"prompt": "p", "chosen": chosen, "rejected": rejected, "subset": "Math", **more}

    first = evaluate(told, [row("good"), row("unheard"), row(5), BadRow(4, "not UTF-8")])
    assert first.subsets == {"Math": pytest.approx(1 / 3)}
    assert (first.rows, first.rows_failed, first.first_failure) == (4, 3, "row 2: odd")
    assert "3 of 4 rows cannot be scored and count as wrong; row 2: odd" in as_text(first)
    odd = [
        row(["good"], ["bad", "unheard"]),
        row("good"),
        row([], ["bad"]),
        row(["good"], None),
        row(["good"], ["bad"], subset={}),
        {},
    ]
    second = evaluate(told, [row(["good"], ["bad"]), *odd])
    assert second.subsets == {"Math": pytest.approx(1 / 5)}
    assert (second.version, second.rows_failed) == (2, len(odd))
    ties = {"subset": "Ties", "chosen": ["good"], "rejected": ["bad"]}
    rows = [{**ties, "prompt": "p", "id": name} for name in ("ref:1", "tied:1", "ref:2", "tied:2")]
    whole = evaluate(told, rows).subsets["Ties"]
    rows[1]["chosen"] = ["good", "unheard"]  # the answers of one of two are not known
    assert evaluate(told, rows).subsets["Ties"] == pytest.approx(whole / 2 - 0.01 / 2 + 0.3 / 2)
    rows[2]["id"] = None
    assert evaluate(told, rows).rows_failed == 2


@pytest.mark.parametrize("rows", [[], [{}], [BadRow(1, "not JSON")]])
def test_rewardbench_without_rows_has_no_score(rows: list[Any]) -> None:
    if rows:
        with pytest.raises(RewardError, match="no row can be scored, row 1: no"):
            evaluate(Told({}), rows)  # type: ignore[arg-type]
        return
    figures = evaluate(Told({}), rows)  # type: ignore[arg-type]
    assert (figures.rows, figures.score, figures.complete) == (0, None, False)
    json.dumps(figures.model_dump(mode="json"), allow_nan=False)
