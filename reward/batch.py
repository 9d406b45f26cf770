"""Files of prompts and responses scored block by block: memory does not grow with the file, a killed run goes on.

Finished blocks are lines of ``.<output>.part``, a JSONL file whose name is known, and ``.<output>.json`` says for which
input and model; the output itself appears whole. Candidates of ``--best-of`` and ``--pairs`` stand together: rows that
follow one another with the same prompt and user are one group.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from pal.errors import RewardError
from pal.files import atomic_file, file_sha256, write_json
from pal.reward.model import RewardModel

BLOCK = 512
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL or Parquet file; raises RewardError naming the line that is none."""
    if not path.is_file():
        raise RewardError(f"{path} does not exist; give --input a JSONL or Parquet file")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as opened:
                for batch in opened.iter_batches(BLOCK):
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise RewardError(f"{path} is no Parquet file that can be read; write it again") from error
        return
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RewardError(f"{path} line {number} is not JSON ({error.msg}); mend it") from error
            if not isinstance(row, dict):
                raise RewardError(f"{path} line {number} is not an object with prompt and response; mend it")
            yield row


def score_file(
    model: RewardModel, source: Path, target: Path, *, best_of: int | None = None, pairs: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:  # fmt: skip
    """Write ``source`` with a column ``reward`` to ``target``, or what ``best_of`` or ``pairs`` make of it.

    ``pairs``: prompt, chosen, rejected (and rewards), the best and the worst of each group that has two distinct
    rewards. Returns what ``pal score --json`` prints; ``seconds`` are those of this call.
    """
    if best_of is not None and pairs:
        raise RewardError("--best-of and --pairs exclude each other; score the file twice")
    began = time.perf_counter()
    part = target.parent / f".{target.name}.part"
    state_file = target.parent / f".{target.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    key = {"input": _stamp(source), "head": model.facts.get("head_sha256", None)}
    done = _resume(part, state_file, key)
    known: set[str] = set()
    unknown: set[str] = set()
    rows = 0
    reader = read_rows(source)
    with open(part, "ab") as out:
        while block := list(islice(reader, BLOCK)):
            for row in block:
                user = row.get("user_id")
                if isinstance(user, str):
                    (known if user in model.users else unknown).add(user)
            if rows >= done["rows"]:  # blocks always begin at the same rows
                for scored in _scored(model, block, rows, source):
                    out.write(json.dumps(scored, default=_plain).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
                write_json(state_file, {**key, "rows": rows + len(block), "bytes": out.tell()})
            rows += len(block)
            progress(len(block))
    written = _finish(part, source, target, best_of, pairs)
    state_file.unlink(missing_ok=True)
    part.unlink()
    return {
        "rows": rows,
        "rows_written": written,
        "users_known": len(known),
        "users_unknown": len(unknown),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _stamp(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise RewardError(f"{source} does not exist; give --input a JSONL or Parquet file")
    return {"path": str(source.resolve()), "sha256": file_sha256(source)}


def _resume(part: Path, state_file: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Return how many rows are done, after cutting off what was half written; none if anything has changed."""
    try:
        state: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8"))
        if {name: state[name] for name in key} == key and part.stat().st_size >= state["bytes"]:
            os.truncate(part, state["bytes"])
            return state
    except (OSError, json.JSONDecodeError, KeyError):
        pass
    part.unlink(missing_ok=True)
    return {"rows": 0}


def _scored(model: RewardModel, block: list[Row], start: int, source: Path) -> Iterator[Row]:
    """Yield each row with its reward; raises RewardError naming the first row that cannot have one."""
    column = "image" if model.is_image else "response"
    rendered = []
    for number, row in enumerate(block, start=start + 1):
        if row.get(column) is None:
            raise RewardError(f"{source} row {number} has no {column!r}; give one to every row")
        item = row[column]
        if isinstance(item, dict) and "bytes" in item:  # the image feature of Hugging Face datasets
            item = item["bytes"] or item["path"]
        try:
            rendered.append(model.row(row.get("prompt"), item))
        except RewardError as error:
            raise RewardError(f"{source} row {number}: {error}") from error
    codes = model.users.codes([row.get("user_id") for row in block])
    rewards, failures = model.score_rows(rendered, codes)
    if failures:
        bad = min(failures)
        raise RewardError(f"{source} row {start + bad + 1} cannot be scored: {failures[bad]}")
    for row, reward in zip(block, rewards.tolist(), strict=True):
        yield {**row, "reward": reward}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return {"base64": base64.b64encode(value).decode()}
    return str(value)


def _finish(part: Path, source: Path, target: Path, best_of: int | None, pairs: bool) -> int:
    """Write the final file from the scored rows, whole or not at all, and return its number of rows."""
    with open(part, encoding="utf-8") as lines:
        rows: Iterable[Row] = map(json.loads, lines)
        if best_of is not None:
            rows = (max(islice(group, best_of), key=lambda row: row["reward"]) for group in _groups(rows))
        elif pairs:
            rows = (pair for group in _groups(rows) if (pair := _pair(list(group))) is not None)
        with atomic_file(target) as temporary:
            if target.suffix == ".parquet":
                return _write_parquet(temporary, rows)
            count = 0
            with open(temporary, "w", encoding="utf-8") as out:
                for count, row in enumerate(rows, start=1):  # noqa: B007, counted for after the loop
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
            return count


def _groups(rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
    for _, group in groupby(rows, key=lambda row: (json.dumps(row.get("prompt")), row.get("user_id"))):
        yield group


def _pair(group: list[Row]) -> Row | None:
    """Return the best and the worst response of a group as a comparison, None where all are liked equally."""
    best, worst = max(group, key=lambda row: row["reward"]), min(group, key=lambda row: row["reward"])
    if best["reward"] == worst["reward"]:
        return None
    item = "response" if "response" in best else "image"
    user = {"user_id": best["user_id"]} if "user_id" in best else {}
    return {
        "prompt": best.get("prompt"), "chosen": best[item], "rejected": worst[item], **user,
        "chosen_reward": best["reward"], "rejected_reward": worst["reward"],
    }  # fmt: skip


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write rows block by block, in the schema of the first block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    iterator, count = iter(rows), 0
    try:
        while block := list(islice(iterator, BLOCK)):
            for row in block:
                row.update({key: _bytes(value) for key, value in row.items()})
            table = pa.Table.from_pylist(block, writer.schema if writer else None)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            count += len(block)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        pq.write_table(pa.table({"reward": pa.array([], pa.float64())}), path)
    return count


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"base64"}:
        import base64

        return base64.b64decode(value["base64"])
    return value
