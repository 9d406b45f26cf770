"""The tools that people already use take an export: transformers, TRL's trainer, files,
RewardBench's files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pal import pipeline
from pal.config import Config
from pal.errors import RewardError
from pal.reward import RewardModel
from pal.reward.export import Choice, one_choice, push
from pal.reward.export_record import ExportRecord
from pal.reward.score_file import score_file
from pal.reward.tools.rewardbench import SECTIONS, evaluate

Configure = Callable[..., Config]
USERS = [f"seen-{number:05d}" for number in range(6)]


def trained(configure: Configure, head: str = "pal-a", **encoder: Any) -> Config:
    settings = {"store_dtype": "float32", **encoder}
    config = configure(
        {"train.head": head, "train.k": 2}
        | {f"embed.tiny-text.{key}": value for key, value in settings.items()}
    )
    pipeline.embed(config)
    pipeline.train(config, "run")
    return config


def exported(config: Config, choice: Choice | None = None, merge: bool = False) -> Path:
    """Export the run and return the folder."""
    return Path(pipeline.export(config, "run", choice or Choice(), merge=merge).dir)


def encoded(tokenizer: Any, texts: list[str], side: str) -> Any:
    return tokenizer(
        texts, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False
    )


@pytest.mark.parametrize(
    ("head", "family"),
    [("lore", "llama"), ("bt-linear", "opt"), ("drm", "gpt2"), ("per-user", "qwen2")],
)
def test_a_linear_head_is_folded_into_the_encoder(
    configure: Configure, head: str, family: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = trained(configure, head, model=f"random:{family}", pooling="last")
    user = None if head == "bt-linear" else USERS[1]
    choice = Choice() if user is None else Choice("user", user=user)
    folder = exported(config, choice, merge=True)
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(whole).__module__.startswith("transformers.")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    texts = ["short", "a somewhat longer text", "p" * 90]
    constant = ExportRecord.read(folder).constant
    wanted = RewardModel.from_run(config, "run").score("", texts, user)
    with torch.inference_mode():
        for side in ("left", "right"):
            found = whole(**encoded(tokenizer, texts, side)).logits
            assert found.shape == (3, 1)
            if side == "right":
                assert (found[:, 0] + constant).tolist() == pytest.approx(wanted, abs=1e-4)
    assert RewardModel.from_pretrained(folder).score("", texts) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("head", "pooling", "message"),
    [
        ("lore", "mean", "read with pooling mean"),
        ("pal-a", "last", "is not linear"),
        ("pal-b", "last", "prompt apart"),
    ],
)
def test_what_cannot_be_folded_is_refused(
    configure: Configure, head: str, pooling: str, message: str
) -> None:
    config = trained(configure, head, model="random:llama", pooling=pooling)
    with pytest.raises(RewardError, match=message):
        pipeline.export(config, "run", Choice(), merge=True)
    assert not list(Path("exports").glob("*"))


@pytest.mark.parametrize(
    ("head", "family", "pooling"), [("pal-a", "bert", "mean"), ("bt-mlp", "llama", "last")]
)
def test_transformers_loads_any_head_that_reads_one_sequence(
    configure: Configure, head: str, family: str, pooling: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import pal.reward.tools.hf

    config = trained(configure, head, model=f"random:{family}", pooling=pooling)
    folder = exported(config)
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(whole, pal.reward.tools.hf.PalForSequenceClassification)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["short", "a somewhat longer text"]
    wanted = RewardModel.from_pretrained(folder).score("", texts)
    with torch.inference_mode():
        for side in ("left", "right"):
            found = whole(**encoded(tokenizer, texts, side)).logits[:, 0].tolist()
            if family == "llama" or side == "right":  # BERT counts positions from the margin
                assert found == pytest.approx(wanted, abs=1e-4)


def test_a_head_that_reads_prompts_is_no_sequence_classifier(configure: Configure) -> None:
    from pal.reward.tools.hf import PalForSequenceClassification

    folder = exported(trained(configure, "pal-b"))
    with pytest.raises(RewardError, match="head pal-b reads the prompt apart"):
        PalForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("is_async", [False, True])
def test_trl_trains_on_the_reward_of_each_rows_user(configure: Configure, is_async: bool) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from pal.embed.encoders.random_models import byte_tokenizer
    from pal.reward.tools.trl import AsyncPalReward, PalReward

    folder = exported(trained(configure))
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
    rows = [{"prompt": f"Say something {n}", "user_id": USERS[n % 2]} for n in range(8)]
    seen: list[tuple[list[Any], list[str], list[float]]] = []

    class Watched(PalReward):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
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
    assert all(math.isfinite(row["rewards/pal_reward/mean"]) for row in logged)
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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_are_scored_whole_and_a_killed_run_goes_on(configure: Configure, suffix: str) -> None:
    config = trained(configure)
    folder = exported(config)
    model = RewardModel.from_pretrained(folder)
    rows = [
        {
            "prompt": f"p{n // 4}",
            "response": f" r{n}",
            "user_id": ["seen-00000", "nobody"][n // 4 % 2],
            "n": n,
        }
        for n in range(1200)
    ]
    source, target = Path(f"in.{suffix}"), Path(f"out.{suffix}")
    frame = pl.DataFrame(rows)
    frame.write_ndjson(source) if suffix == "jsonl" else frame.write_parquet(source)

    class Killed(Exception): ...

    def kill(count: int) -> None:
        raise Killed

    with pytest.raises(Killed), pytest.warns(UserWarning, match="'nobody' is not known"):
        score_file(model, source, target, progress=kill)
    assert not target.exists()
    with open(".out." + suffix + ".part", "ab") as part:
        part.write(b'{"half a li')
    calls = []
    original, model.score_rows = (
        model.score_rows,
        lambda rows, vectors: calls.append(len(rows)) or original(rows, vectors),
    )  # type: ignore[method-assign,func-returns-value]
    result = score_file(model, source, target)
    assert (result.rows, result.users_known, result.users_unknown) == (1200, 1, 1)
    assert sum(calls) == 1200 - 512
    written = pl.read_ndjson(target) if suffix == "jsonl" else pl.read_parquet(target)
    assert written["n"].to_list() == list(range(1200))
    wanted = model.score(
        [r["prompt"] for r in rows], [r["response"] for r in rows], [r["user_id"] for r in rows]
    )
    assert written["reward"].to_list() == pytest.approx(wanted, abs=1e-5)
    assert not [path for path in Path().glob(".out*")]
    best = score_file(model, source, Path("best.jsonl"), best_of=4)
    assert best.rows_written == 300
    first = json.loads(Path("best.jsonl").read_text().splitlines()[0])
    assert first["reward"] == pytest.approx(max(wanted[:4]), abs=1e-5)
    score_file(model, source, Path("pairs.parquet"), pairs=True)
    pair = pl.read_parquet("pairs.parquet").row(0, named=True)
    assert pair["chosen"] == rows[max(range(4), key=wanted.__getitem__)]["response"]
    assert pair["rejected"] == rows[min(range(4), key=wanted.__getitem__)]["response"]


def test_what_cannot_be_scored_is_one_sentence_and_leaves_nothing(configure: Configure) -> None:
    config = trained(configure)
    model = RewardModel.from_pretrained(exported(config))
    Path("folder").mkdir()
    Path("file").write_text("")
    good = b'{"prompt": "p", "response": "r"}\n'
    for content, target, words in (
        (good + b'{"prompt": "\xff"}', "out.jsonl", "line 2 is not UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "out.jsonl", "line 1 is nested too deeply"),
        (
            b'{"prompt": "p", "response": 5}',
            "out.jsonl",
            "a text is a string or a list of chat messages, not '5'",
        ),
        (b'{"prompt": 5, "response": "r"}', "out.jsonl", "row 1: a text is a string or a list"),
        (
            b'{"prompt": [{"role": "user", "content": 5}], "response": ""}',
            "out.jsonl",
            "content of a message",
        ),
        (
            b'{"prompt": "p", "response": "r", "user_id": ["a"]}',
            "out.jsonl",
            r"row 1: a user's id is",
        ),
        (good, "in.jsonl", "is the input itself"),
        (good, "folder", "is a folder"),
        (good, "file/below/out.jsonl", "cannot make folder"),
        (
            good + b'{"response": "r", "n": 1}\n{"response": "r", "n": "x"}',
            "out.parquet",
            "write .jsonl",
        ),
    ):
        Path("in.jsonl").write_bytes(content)
        with pytest.raises(RewardError, match=words):
            score_file(model, Path("in.jsonl"), Path(target))
        assert Path("in.jsonl").read_bytes() == content
        assert not Path(target).is_file() or target == "in.jsonl"
        for left in Path().glob(
            ".out.parquet*"
        ):  # what was scored may be written to a file that can hold it
            left.unlink()
        assert not list(Path().glob(".out*"))
    for name in ("../evil", "", ".."):
        with pytest.raises(RewardError, match="cannot be the name of an export"):
            pipeline.export(config, "run", Choice(), name)


def test_parquet_holds_every_column_and_numbers_are_ids(configure: Configure) -> None:
    model = RewardModel.from_pretrained(exported(trained(configure)))
    model.users.add("5", torch.tensor([1.0, 0.0]))
    rows = [{"prompt": "p", "response": f"r{n}", "user_id": None} for n in range(600)]
    rows += [{"prompt": "p", "response": "r0", "user_id": 5, "late": "yes"}]
    Path("in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = score_file(model, Path("in.jsonl"), Path("out.parquet"))
    assert (result.users_known, result.users_unknown) == (1, 0)
    written = pl.read_parquet("out.parquet")
    assert written["late"].to_list() == [None] * 600 + ["yes"]
    assert written["user_id"].to_list() == [None] * 600 + [5]
    assert written["reward"][600] == pytest.approx(model.score(["p"], ["r0"], ["5"])[0], abs=1e-4)


def test_the_commands_print_one_object(configure: Configure) -> None:
    trained(configure)
    Path("in.jsonl").write_text('{"prompt": "p", "response": " r", "user_id": "seen-00000"}\n')

    def pal(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pal", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        return done.returncode, done.stdout, done.stderr

    options = ["--set", "encoder=tiny-text", "--set", "embed.tiny-text.store_dtype=float32"]
    options += ["--set", "embed.tiny-text.max_length=128"]
    code, out, err = pal(
        "export", "--run", "run", "--weights", "0.3,0.7", "--name", "mine", "--json", *options
    )
    assert code == 0, err
    exported = json.loads(out)
    assert exported["dir"] == "exports/mine"
    assert exported["weights"] == pytest.approx([0.3, 0.7])
    assert exported["golden_max_abs_diff"] <= 1e-5
    code, out, _ = pal(
        "score", "--model", "exports/mine", "--input", "in.jsonl", "--output", "out.jsonl", "--json"
    )
    assert code == 0
    assert json.loads(out)["users_known"] == 1
    code, _, err = pal(
        "score", "--model", "nowhere", "--input", "in.jsonl", "--output", "out.jsonl"
    )
    assert code == 1
    assert "neither a folder nor a Hub repository" in err


def test_the_model_card_and_the_upload(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = exported(trained(configure), Choice("user", user=USERS[0]))
    card = (folder / "README.md").read_text()
    assert "random weights: this model is for tests" in card
    assert "| run (untrained encoder) | pal-a | 2 |" in card.replace("  ", " ")
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo: str, **options: Any) -> str:
            calls.append((repo, options))
            return "address"

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(folder, "me/mine") == "address"
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == folder
    with pytest.raises(RewardError, match="--user and --prototype exclude each other"):
        one_choice("u", None, False, 0)


class Told:
    """Gives the scores it is told, by response."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def score(self, prompts: Any, responses: list[str], user: Any) -> list[float]:
        return [self.scores[text] for text in responses]


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
    with pytest.raises(RewardError, match="row 1 has no chosen"):
        evaluate(Told({}), [{"prompt": "p", "rejected": "x", "subset": "Math"}])  # type: ignore[arg-type]
