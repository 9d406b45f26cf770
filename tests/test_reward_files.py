"""Files that are scored: whole, from where a killed run was, and whatever stands in a row."""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pal.config import Config
from pal.errors import PalWarning, RewardError
from pal.reward import RewardModel
from pal.reward.score_file import score_file

Opened = Callable[..., RewardModel]


@pytest.fixture(scope="module")
def model(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("model"))
        return opened(["7", "seen-00000"], view="response")


class Killed(Exception): ...


def kill(count: int) -> None:
    raise Killed


def write_rows(path: str, count: int) -> Path:
    rows = [{"prompt": f"p{n // 3}", "response": f"r{n}", "user_id": "7"} for n in range(count)]
    Path(path).write_text("\n".join(map(json.dumps, rows)))
    return Path(path)


def say_more_rows(state: Path) -> None:
    state.write_text(json.dumps({**json.loads(state.read_text()), "rows": 600}, indent=1))


def scored_rows(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows that a model scores from now on."""
    counts: list[int] = []
    original = model.score_rows

    def counted(rows: Any, vectors: Any) -> Any:
        counts.append(len(rows))
        return original(rows, vectors)

    monkeypatch.setattr(model, "score_rows", counted)
    return counts


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda: None, 600 - 512),
        (lambda: say_more_rows(Path(".out.jsonl.json")), 600),
        (lambda: Path(".out.jsonl.json").write_text("{"), 600),
        (lambda: Path(".out.jsonl.json").unlink(), 600),
        (lambda: Path(".out.jsonl.part").unlink(), 600),
        (lambda: Path(".out.jsonl.part").write_bytes(b"0.5\n" * 512), 600),
        (lambda: write_rows("in.jsonl", 601), 601),
    ],
)
def test_scoring_goes_on_only_from_a_sound_state(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, damage: Callable[[], Any], left: int
) -> None:
    source = write_rows("in.jsonl", 600)
    with pytest.raises(Killed):
        score_file(model, source, Path("out.jsonl"), progress=kill)
    damage()
    counts = scored_rows(model, monkeypatch)
    summary = score_file(model, source, Path("out.jsonl"))
    assert sum(counts) == left
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == summary.rows_written == summary.rows
    wanted = model.score([r["prompt"] for r in rows], [r["response"] for r in rows], "7")
    assert [row["reward"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    assert not list(Path().glob(".out*"))


def test_another_model_does_not_go_on_from_it(opened: Opened, model: RewardModel) -> None:
    source = write_rows("in.jsonl", 600)
    with pytest.raises(Killed):
        score_file(model, source, Path("out.jsonl"), progress=kill)
    other = opened(["7"], seed=3)
    score_file(other, source, Path("out.jsonl"))
    first = json.loads(Path("out.jsonl").read_text().splitlines()[0])
    assert first["reward"] == pytest.approx(other.score("p0", ["r0"], 7)[0], rel=1e-5)


def test_a_second_scoring_of_one_output_is_refused(model: RewardModel) -> None:
    source = write_rows("in.jsonl", 3)

    def again(count: int) -> None:
        with pytest.raises(RewardError, match=r"out.jsonl is being written by another pal score"):
            score_file(model, source, Path("out.jsonl"))
        score_file(model, source, Path("other.jsonl"))

    score_file(model, source, Path("out.jsonl"), progress=again)
    score_file(model, source, Path("out.jsonl"))
    assert not list(Path().glob(".out*"))


def test_parquet_stays_as_it_was(model: RewardModel) -> None:
    count = 1100
    nested = pa.array([{"a": [n], "b": None} for n in range(count)])
    table = pa.table(
        {
            "response": [f"r{n}" for n in range(count)],
            "prompt": [[{"role": "user", "content": f"p{n // 4}"}] for n in range(count)],
            "user_id": pa.array([7 if n % 8 < 4 else None for n in range(count)], pa.int32()),
            "when": pa.array([1_600_000_000 + n for n in range(count)], pa.timestamp("ms", "UTC")),
            "raw": pa.array([b"\xff%d" % n for n in range(count)], pa.large_binary()),
            "nested": nested,
            "kind": pa.array(["x", "y"] * (count // 2)).dictionary_encode(),
        }
    ).replace_schema_metadata({"mine": "kept"})
    pq.write_table(table, "in.parquet")
    source = Path("in.parquet")
    score_file(model, source, Path("out.parquet"))
    written = pq.read_table("out.parquet")
    assert written.schema.names == [*table.schema.names, "reward", "reward_error"]
    assert written.schema.remove_metadata().field("when") == table.schema.field("when")
    assert written.schema.metadata[b"mine"] == b"kept"
    assert written.drop_columns(["reward", "reward_error"]).equals(pq.read_table(source))
    score_file(model, Path("out.parquet"), Path("again.parquet"))
    assert pq.read_table("again.parquet").equals(written)

    score_file(model, source, Path("best.parquet"), best_of=3)
    best = pq.read_table("best.parquet")
    assert best.schema == written.schema
    rewards = written["reward"].to_pylist()
    kept = [max(range(n, n + 3), key=rewards.__getitem__) for n in range(0, count, 4)]
    assert best.equals(written.take(kept))
    score_file(model, source, Path("best.jsonl"), best_of=3)
    lines = [json.loads(line) for line in Path("best.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == pytest.approx(best["reward"].to_pylist(), rel=1e-5)
    assert lines[0]["raw"]["base64"]

    score_file(model, source, Path("pairs.parquet"), pairs=True)
    pairs = pq.read_table("pairs.parquet")
    assert pairs.schema.field("user_id").type == pa.int32()
    assert pairs.schema.field("prompt").type == table.schema.field("prompt").type
    groups = [rewards[n : n + 4] for n in range(0, count, 4)]
    assert pairs["chosen_reward"].to_pylist() == [max(group) for group in groups]
    assert pairs["rejected_reward"].to_pylist() == [min(group) for group in groups]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_are_scored_whole_and_a_killed_run_goes_on(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    rows = [
        {
            "prompt": f"p{n // 4}",
            "response": f" r{n}",
            "user_id": ["7", None][n // 4 % 2],
            "n": n,
        }
        for n in range(1200)
    ]
    source, target = Path(f"in.{suffix}"), Path(f"out.{suffix}")
    frame = pl.DataFrame(rows)
    frame.write_ndjson(source) if suffix == "jsonl" else frame.write_parquet(source)
    with pytest.raises(Killed):
        score_file(model, source, target, progress=kill)
    assert not target.exists()
    with open(".out." + suffix + ".part", "ab") as part:
        part.write(b'{"half a li')
    calls = scored_rows(model, monkeypatch)
    result = score_file(model, source, target)
    assert (result.rows, result.users_known, result.users_unknown) == (1200, 1, 0)
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


def test_parquet_holds_every_column_and_numbers_are_ids(model: RewardModel) -> None:
    model.users.add("5", torch.tensor([1.0, 0.0]))
    rows = [{"prompt": "p", "response": f"r{n}", "user_id": None} for n in range(600)]
    rows += [{"prompt": "p", "response": "r0", "user_id": 5, "late": "yes"}]
    Path("in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = score_file(model, Path("in.jsonl"), Path("out.parquet"))
    assert (result.users_known, result.users_unknown) == (1, 0)
    written = pl.read_parquet("out.parquet")
    assert written["late"].to_list() == [None] * 600 + ["yes"]
    assert written["user_id"].to_list() == [None] * 600 + [5]
    assert written["reward"][600] == pytest.approx(model.score(["p"], ["r0"], ["5"])[0], rel=1e-5)


# --- odd rows --------------------------------------------------------------------------------

GOOD = b'{"prompt": "p", "response": "good", "user_id": 7}'
DEEP = b"[" * 5000 + b"]" * 5000
ODD: list[tuple[bytes, str]] = [
    (b'{"prompt": "p", "response": "\xff"}', "not UTF-8"),
    (b"no JSON", r"not JSON \(Expecting value\)"),
    (b'{"prompt": "p", "response": "cut', r"not JSON \(Unterminated string"),
    (b'["p", "r"]', "list instead of an object"),
    (b"NaN", "float instead of an object"),
    (b'{"prompt": "p", "response": "r", "n": 1' + b"0" * 5000 + b"}", "thousands of digits"),
    (b'{"prompt": "p", "response": "r", "n": ' + DEEP + b"}", "nested more than 100 deep"),
    (b'{"prompt": ' + b"[" * 100_000, "nested more than 100 deep"),
    (b'{"prompt": "p"}', "no 'response' is given"),
    (b'{"prompt": "p", "response": null}', "no 'response' is given"),
    (b'{"prompt": "p", "response": 5}', "a text is a string or a list of chat messages, not '5'"),
    (b'{"prompt": "p", "response": NaN}', "a text is a string or a list"),
    (b'{"prompt": "p", "response": {"role": "user"}}', "a text is a string or a list"),
    (b'{"prompt": "p", "response": []}', "a response is missing"),
    (b'{"prompt": "p", "response": [{"role": "assistant"}]}', "chat messages are objects"),
    (b'{"prompt": "p", "response": [{"content": 5}]}', "the content of a message is a string"),
    (b'{"prompt": "p", "response": ""}', "the text is empty"),
    (b'{"prompt": "p", "response": " \\n"}', "the text is empty"),
    (b'{"prompt": "p", "response": "\\ud800"}', "half of a surrogate pair"),
    (b'{"prompt": 5, "response": "r"}', "a text is a string or a list"),
    (b'{"prompt": {"content": "p"}, "response": "r"}', "a text is a string or a list"),
    (b'{"prompt": [[]], "response": "r"}', "chat messages are objects"),
    (b'{"prompt": "p", "response": "r", "user_id": ["a"]}', "a user's id is"),
    (b'{"prompt": "p", "response": "r", "user_id": true}', "a user's id is"),
    (b'{"prompt": "p", "response": "r", "user_id": 1e999}', "a user's id is"),
    (b'{"prompt": "p", "response": "r", "user_id": 1' + b"0" * 120 + b"}", "more than 100 digits"),
    (b'{"prompt": "p", "response": "r", "user_id": {"0": 0.5}}', "sum to one"),
    (b'{"prompt": "p", "response": "r", "user_id": {"9": 1}}', "no prototype"),
]


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def lines_of(path: str) -> list[Any]:
    """Return the objects of a file, strictly JSON."""
    lines = Path(path).read_text().splitlines()
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def test_an_odd_row_costs_only_itself(model: RewardModel) -> None:
    lines = [line for odd, _ in ODD for line in (GOOD, odd)]
    Path("in.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert (summary.rows, summary.rows_written) == (len(lines), len(lines))
    assert summary.rows_failed == len(ODD)
    assert summary.first_failure == "row 2: not UTF-8"
    rows = lines_of("out.jsonl")
    good = model.score("p", ["good"], 7)[0]
    assert [row["reward"] for row in rows[::2]] == pytest.approx([good] * len(ODD), rel=1e-4)
    assert all(row["reward_error"] is None for row in rows[::2])
    for number, (row, (odd, reason)) in enumerate(zip(rows[1::2], ODD, strict=True)):
        assert row["reward"] is None
        assert re.search(reason, row["reward_error"]), (odd[:80], row["reward_error"])
        assert row.get("row", 2 * number + 2) == 2 * number + 2
        assert ("row" in row) == (not can_be_copied(odd))
    for best_of, pairs in ((2, False), (None, True)):
        Path("in.jsonl").write_bytes(b"\n".join([*lines, GOOD.replace(b"good", b"other")]))
        summary = score_file(
            model, Path("in.jsonl"), Path("best.jsonl"), best_of=best_of, pairs=pairs
        )
        assert (summary.rows_failed, summary.rows_written) == (len(ODD), 1)
        assert all(value is not None for value in lines_of("best.jsonl")[0].values() if pairs)


def can_be_copied(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_odd_rows_of_parquet_and_into_parquet(model: RewardModel, suffix: str) -> None:
    alike = [line for odd, _ in ODD[:10] for line in (GOOD, odd)]
    alike += [GOOD[:-1] + b', "when": 1' + b"0" * 30 + b"}", GOOD[:-1] + b', "more": "\\udfff"}']
    Path("in.jsonl").write_bytes(b"\n".join(alike))
    summary = score_file(model, Path("in.jsonl"), Path("out.parquet"))
    written = pl.read_parquet("out.parquet")
    assert (summary.rows, summary.rows_failed, len(written)) == (22, 10, 22)
    assert written["reward"].null_count() == 10
    assert written["reward_error"].null_count() == 10
    assert written["row"].drop_nulls().to_list() == [2, 4, 6, 8, 10, 12, 14, 16, 21, 22]
    half = pa.array([b"r", b"\xff", b"r", b"r"], pa.binary()).cast(pa.string(), safe=False)
    half = pa.StringArray.from_buffers(4, *half.buffers()[1:])
    ids = pa.array([7, None, 7, 7], pa.int64())
    far = pa.array([0, 0, 1 << 62, 0], pa.timestamp("us"))
    nan = pa.array([1.0, float("nan"), 1.0, 2.0])
    table = pa.table({"prompt": ["p"] * 4, "response": half, "user_id": ids, "t": far, "n": nan})
    pq.write_table(table, "in.parquet")
    summary = score_file(model, Path("in.parquet"), Path(f"out.{suffix}"))
    assert (summary.rows, summary.rows_failed, summary.rows_written) == (4, 1, 4)
    if suffix == "jsonl":
        rows = lines_of("out.jsonl")
    else:
        columns = ["reward", "reward_error"]
        rows = pq.read_table("out.parquet", columns=columns).to_pylist()
    good = model.score("p", ["r"], 7)[0]
    rewards = [row["reward"] for row in rows]
    assert rewards == [
        pytest.approx(good, rel=1e-5),
        None,
        pytest.approx(good, rel=1e-5),
        pytest.approx(good, rel=1e-5),
    ]
    assert "column response cannot be read" in rows[1]["reward_error"]
    if suffix == "jsonl":  # a date that Python does not know: scored, but not copied
        assert rows[2]["reward_error"] == "column t cannot be read (OverflowError)"


def test_comparisons_of_a_file_are_those_of_python_and_an_odd_one_costs_only_itself(
    opened: Opened,
) -> None:
    model = opened(["7", "seen-00000"], "pal-b")  # of random pal-a heads all are sure
    good = {"prompt": "p", "first": "a b", "second": "c"}
    rows: list[dict[str, Any]] = [
        {**good, "user_id": "7"}, {**good, "user_id": True}, good,
        {"prompt": "p", "chosen": "c", "rejected": "a b", "user_id": "x"},
        {"prompt": "p", "first": "a b"}, {**good, "second": " "}, {"response": "r"}, good,
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, rows))
    Path("in.jsonl").write_text(text + "\nno JSON\n")
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"), compare=True)
    assert (summary.rows, summary.rows_failed, summary.rows_written) == (9, 5, 9)
    assert (summary.users_known, summary.users_unknown) == (1, 1)
    found = lines_of("out.jsonl")
    known, stranger, turned = (
        model.compare("p", [first], [second], user)[0]
        for first, second, user in (("a b", "c", 7), ("a b", "c", None), ("c", "a b", None))
    )
    wanted = [known, None, stranger, turned, None, None, None, stranger, None]
    assert [row["p"] for row in found] == [
        p if p is None else pytest.approx(p, rel=1e-5) for p in wanted
    ]
    assert abs(known - stranger) > 1e-3
    told = [row["p_error"] for row in found if row["p_error"] is not None]
    wanted_words = [
        "a user's id is", "no 'second' is", "text is empty", "no 'first' and no 'second'", "JSON",
    ]  # fmt: skip
    for words, error in zip(wanted_words, told, strict=True):
        assert words in error
    assert "reward" not in found[0]

    table = pl.DataFrame({"first": ["a b"] * 3, "second": ["c"] * 3, "prompt": ["p"] * 3})
    table.write_parquet("in.parquet")
    score_file(model, Path("in.parquet"), Path("out.parquet"), compare=True)
    written = pl.read_parquet("out.parquet")
    assert written.columns == ["first", "second", "prompt", "p", "p_error"]
    assert written["p"].to_list() == pytest.approx([stranger] * 3, rel=1e-5)
    with pytest.raises(RewardError, match="in.parquet has no column 'response', only first, sec"):
        score_file(model, Path("in.parquet"), Path("out.parquet"))
    table.drop("second").write_parquet("in.parquet")
    with pytest.raises(RewardError, match="in.parquet has no column 'second', only first, prompt"):
        score_file(model, Path("in.parquet"), Path("out.parquet"), compare=True)
    with pytest.raises(RewardError, match="--pairs and --compare exclude each other"):
        score_file(model, Path("in.jsonl"), Path("out.jsonl"), pairs=True, compare=True)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_file_of_both_kinds_of_comparisons_has_a_column_for_each(
    opened: Opened, suffix: str
) -> None:
    model = opened(["7"], "pal-b")
    rows = {"prompt": ["p", "p", "p"], "first": ["a b", None, "a b"], "second": ["c", None, None],
            "chosen": [None, "c", None], "rejected": [None, "a b", "c"]}  # fmt: skip
    source, told = Path(f"in.{suffix}"), Path("out.jsonl")
    table = pl.DataFrame(rows)
    table.write_parquet(source) if suffix == "parquet" else table.write_csv(source)
    assert score_file(model, source, told, compare=True).rows_failed == 1
    wanted = model.compare("p", ["a b", "c"], ["c", "a b"])
    found = lines_of(str(told))
    assert [row["p"] for row in found[:2]] == pytest.approx(wanted, rel=1e-5)
    assert found[2]["p_error"] == "no 'second' is given"


def test_a_text_is_not_compared_letter_by_letter(model: RewardModel) -> None:
    for first, second in (("abc", ["a", "b", "c"]), (["a", "b", "c"], "abc"), ({"a": 1}, ["a"])):
        with pytest.raises(
            RewardError, match="one (str|dict) is no list; give a sequence of (first|second)"
        ):
            model.compare("p", first, second)  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="one str is no list; give a sequence of responses"):
        model.score("p", "abc")


def test_rewards_are_not_gone_on_with_as_probabilities(model: RewardModel) -> None:
    rows = [{"prompt": "p", "response": "r", "first": "a b", "second": f"{n}"} for n in range(600)]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(Killed):
        score_file(model, Path("in.jsonl"), Path("out.jsonl"), progress=kill)
    score_file(model, Path("in.jsonl"), Path("out.jsonl"), compare=True)
    wanted = model.compare("p", ["a b"] * 600, [row["second"] for row in rows])
    assert [row["p"] for row in lines_of("out.jsonl")] == pytest.approx(wanted, abs=1e-5)


def test_nan_is_null_and_other_columns_stay(model: RewardModel) -> None:
    odd = {"n": [1.5, float("nan"), {"x": float("-inf")}], "reward": "old", "reward_error": "old"}
    Path("in.jsonl").write_text(json.dumps({"prompt": None, "response": "r", **odd}) + "\n\n")
    assert score_file(model, Path("in.jsonl"), Path("out.jsonl")).rows == 1
    reward = model.score(None, ["r"])[0]
    assert lines_of("out.jsonl") == [
        {
            "prompt": None,
            "response": "r",
            "n": [1.5, None, {"x": None}],
            "reward": pytest.approx(reward, rel=1e-5),
            "reward_error": None,
        }
    ]


def test_a_killed_run_keeps_the_reasons(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [(GOOD, b"no JSON", b'{"response": ""}')[number % 3] for number in range(600)]
    Path("in.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(Killed):
        score_file(model, Path("in.jsonl"), Path("out.jsonl"), progress=kill)
    counts = scored_rows(model, monkeypatch)
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert sum(counts) < 88
    assert (summary.rows, summary.rows_failed) == (600, 400)
    reasons = [row["reward_error"] for row in lines_of("out.jsonl")]
    assert reasons == [None, "not JSON (Expecting value)", "the text is empty"] * 200


def test_what_a_template_or_tokenizer_refuses_costs_only_itself(opened: Opened) -> None:
    model = opened(["7"])
    renderer = model.encoder.encoder.renderer
    tokenise = renderer.tokenise

    def choosy(texts: list[Any]) -> Any:
        if any("refused" in text.text for text in texts):
            raise ValueError("this tokenizer does not like it")
        return tokenise(texts)

    renderer.tokenise = choosy
    texts = ["a", "refused", "b", "c", "refused", "d"]
    rewards, failures = model.score_each(["p"] * 6, texts, [None] * 6)
    assert sorted(failures) == [1, 4]
    assert failures[1] == "this tokenizer does not like it"
    assert [reward for reward in rewards if reward is not None] == pytest.approx(
        model.score("p", ["a", "b", "c", "d"]), rel=1e-4
    )
    best, rewards = model.best_of_n("p", texts)
    assert rewards[1] is None
    assert rewards[best] == max(reward for reward in rewards if reward is not None)
    with pytest.raises(RewardError, match="no candidate can be scored; the first: this"):
        model.best_of_n("p", ["refused"] * 2)

    renderer.tokenise, renderer.is_chat = tokenise, True
    renderer.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    prompts = ["p", [{"role": "system", "content": "p"}], "p"]
    rewards, failures = model.score_each(prompts, ["r"] * 3, [None] * 3)
    assert list(failures) == [1]
    assert "no system" in failures[1]


def test_a_device_that_is_gone_is_no_fault_of_the_rows(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(["7"])

    def gone(batch: Any) -> Any:
        raise RuntimeError("the device is gone")

    encoder = model.encoder.encoder
    working = encoder.encode
    monkeypatch.setattr(encoder, "encode", gone)
    with pytest.raises(RewardError, match="encoder tiny fails at every item .the device is gone"):
        model.score_each(["p"], ["a"], [None])
    few = len("p\n\na") + 3  # bytes, and what the tokenizer adds

    def gone_at_few(batch: Any) -> Any:
        return (gone if batch.tensors[0].shape[1] <= few else working)(batch)

    monkeypatch.setattr(encoder, "encode", gone_at_few)
    assert model.score_each(["p"], ["a"], [None])[1] == {0: "the device is gone"}


def test_a_head_that_reads_prompts_scores_the_rows_that_have_one(opened: Opened) -> None:
    model = opened(["7"], "pal-b", view="response")
    rewards, failures = model.score_each(["p", None, []], ["r"] * 3, [None] * 3)
    assert rewards == [pytest.approx(model.score("p", ["r"])[0]), None, None]
    assert list(failures) == [1, 2]
    assert "head pal-b reads the prompt, but a row has none" in failures[1]


def test_prompts_are_one_for_each_row_whatever_the_first_is(model: RewardModel) -> None:
    prompts = [{"role": "user"}, "p", "p"]
    rewards, failures = model.score_each(prompts, ["r"] * 3, [None] * 3)
    assert list(failures) == [0]
    with pytest.raises(RewardError, match="row 0 cannot be scored: a text is a string or a list"):
        model.score(prompts, ["r"] * 3)
    assert rewards[1] == pytest.approx(model.score("p", ["r"])[0])
    for odd in (5, object()):
        with pytest.raises(RewardError, match="row 0 cannot be scored: a text is a string"):
            model.score(odd, ["r"])
    with pytest.raises(RewardError, match="a sequence of responses"):
        model.score("p", 5)  # type: ignore[arg-type]


def test_odd_images_cost_only_themselves(opened: Opened, configure: Callable[..., Config]) -> None:
    from PIL import Image

    own = configure({"encoder": "tiny-clip"}).encoder_config().model_dump()
    model = opened(["7"], view="response", modality="image", dim=48, **own)
    Image.new("RGB", (8, 8), "red").save("good.png")
    Path("bad.png").write_bytes(b"no image")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:40])
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    images: list[Any] = ["good.png", "bad.png", "cut.png", "folder.png", "pipe.png", "nowhere.png"]
    images += [{"bytes": None, "path": "good.png"}, {"bytes": None, "path": None}, 5, "\0.png", ""]
    rows = [{"prompt": "p", "image": image} for image in images]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert score_file(model, Path("in.jsonl"), Path("out.jsonl")).rows_failed == 9
    rewards = [row["reward"] for row in lines_of("out.jsonl")]
    assert [place for place, reward in enumerate(rewards) if reward is not None] == [0, 6]


# --- whole files -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("best_of", "pairs"), [(None, False), (2, False), (None, True)])
def test_empty_input_is_empty_output(
    model: RewardModel, suffix: str, best_of: int | None, pairs: bool
) -> None:
    names = {"prompt": pa.string(), "response": pa.string()}
    table = pa.schema(list(names.items())).empty_table()
    pq.write_table(table, "in.parquet")
    Path("in.jsonl").write_text("\n\n")
    for source in ("in.parquet", "in.jsonl"):
        target = Path(f"out.{suffix}")
        summary = score_file(model, Path(source), target, best_of=best_of, pairs=pairs)
        assert (summary.rows, summary.rows_failed, summary.rows_written) == (0, 0, 0)
        if suffix == "jsonl":
            assert target.read_bytes() == b""
            continue
        own = list(names) if source == "in.parquet" else []
        wanted = [*own, "reward", "reward_error"]
        if pairs:
            wanted = ["prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"]
        assert pq.read_table(target).schema.names == wanted
    assert not list(Path().glob(".out*"))


def test_what_is_no_file_of_rows_is_one_sentence_before_any_work(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    os.mkfifo("pipe")
    Path("null").symlink_to("/dev/null")
    Path("circle").symlink_to("circle")
    Path("in.jsonl").write_bytes(GOOD)
    Path("gzip.jsonl").write_bytes(gzip.compress(GOOD))
    Path("broken.parquet").write_bytes(b"PAR1 no more")
    pq.write_table(pa.table({"n": [1, 2]}), "none.parquet")
    pq.write_table(pa.table({"response": ["r"] * 2000}), "cut.parquet")
    Path("cut.parquet").write_bytes(Path("cut.parquet").read_bytes()[:-9])
    Path("parquet.jsonl").write_bytes(Path("none.parquet").read_bytes())
    Path("kinds.jsonl").write_bytes(GOOD + b'\n{"response": "r", "user_id": "x"}')
    Path("hollow.jsonl").write_bytes(b'{"response": "r", "meta": {}}')
    monkeypatch.setattr(model, "score_rows", None)  # nothing is scored
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for source, target, words in (
        ("nowhere.jsonl", "out.jsonl", "does not exist; give --input"),
        ("folder", "out.jsonl", "--input folder is no regular file"),
        ("pipe", "out.jsonl", "--input pipe is no regular file"),
        ("/dev/null", "out.jsonl", "--input /dev/null is no regular file"),
        ("gzip.jsonl", "out.jsonl", "gzip.jsonl is gzip, not JSON lines; unpack it"),
        ("parquet.jsonl", "out.jsonl", "parquet.jsonl is Parquet, not JSON lines"),
        ("broken.parquet", "out.jsonl", "broken.parquet is no Parquet file that can be read"),
        ("cut.parquet", "out.parquet", "cut.parquet is no Parquet file that can be read"),
        ("none.parquet", "out.jsonl", "none.parquet has no column 'response', only n"),
        ("kinds.jsonl", "out.parquet", "write .jsonl"),
        ("hollow.jsonl", "out.parquet", "write .jsonl"),
        ("in.jsonl", "in.jsonl", "is the input itself"),
        ("in.jsonl", "folder", "is a folder"),
        ("in.jsonl", "pipe", "--output pipe is no regular file"),
        ("in.jsonl", "/dev/null", "--output /dev/null is no regular file"),
        ("in.jsonl", "null", "--output null is no regular file"),
        ("in.jsonl", "circle", "cannot write --output circle"),
        ("in.jsonl", f"{'n' * 300}.jsonl", "File name too long"),
        ("in.jsonl", "file/below/out.jsonl", "cannot"),
        ("in.jsonl", "/proc/out.jsonl", "cannot make folder /proc or write there"),
        ("in.jsonl", "out.jsonl.gz", "under the name of something else"),
        ("in.jsonl", "out.xlsx", "under the name of something else"),
        ("in.jsonl", "out", "under the name of something else"),
    ):
        with pytest.raises(RewardError, match=words):
            score_file(model, Path(source), Path(target))
        now = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        assert now == before, (source, target)


def test_a_link_to_a_file_stays_a_link(model: RewardModel) -> None:
    Path("in.jsonl").write_bytes(GOOD)
    Path("real").mkdir()
    Path("out.jsonl").symlink_to("real/there.jsonl")
    score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert Path("out.jsonl").is_symlink()
    assert len(lines_of("real/there.jsonl")) == 1


def test_the_command_tells_how_many_rows_failed(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pal.cli

    monkeypatch.setattr(RewardModel, "from_pretrained", lambda *_, **__: model)

    def score(content: bytes, *more: str) -> tuple[int, str, str]:
        Path("in.jsonl").write_bytes(content)
        arguments = ["score", "--model", "m", "--input", "in.jsonl", "--output", "out.jsonl", *more]
        monkeypatch.setattr("sys.argv", ["pal", *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("always", PalWarning)
            with pytest.raises(SystemExit) as end:
                pal.cli.main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    code, out, err = score(GOOD + b"\nno JSON\n")
    assert code == 0
    assert "2 rows in" in out
    assert err.splitlines() == [
        "pal: warning: 1 of 2 rows of in.jsonl have no reward; the first is row 2: not JSON "
        "(Expecting value)"
    ]
    code, out, err = score(b"no JSON", "--json")
    assert code == 1
    assert json.loads(out)["rows_failed"] == 1
    assert err.startswith("pal: 1 of 1 rows of in.jsonl have no reward; the first is row 1: not")
    assert score(b"")[0] == 0
