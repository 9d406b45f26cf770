"""Files of prompts and responses scored block by block: memory does not grow with the file, a
killed run goes on.

Finished blocks are lines of ``.<output>.part``, a JSONL file whose name is known, and
``.<output>.json`` says for which input and model; the output itself appears whole. Candidates of
``--best-of`` and ``--pairs`` stand together: rows that follow one another with the same prompt and
user are one group.
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
from pal.reward.users import id_of

BLOCK = 512
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL or Parquet file; raises RewardError naming the line that is
    none."""
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
            raise RewardError(
                f"{path} is no Parquet file that can be read; write it again"
            ) from error
        return
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode()
                if not line.strip():
                    continue
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise RewardError(
                    f"{path} line {number} is not UTF-8; give JSONL in UTF-8, or Parquet"
                ) from error
            except RecursionError as error:
                raise RewardError(f"{path} line {number} is nested too deeply; mend it") from error
            except json.JSONDecodeError as error:
                raise RewardError(
                    f"{path} line {number} is not JSON ({error.msg}); mend it"
                ) from error
            if not isinstance(row, dict):
                raise RewardError(
                    f"{path} line {number} is not an object with prompt and response; mend it"
                )
            yield row


def score_file(
    model: RewardModel, source: Path, target: Path, *, best_of: int | None = None, pairs: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:  # fmt: skip
    """Write ``source`` with a column ``reward`` to ``target``, or what ``best_of`` or ``pairs``
    make of it.

    ``pairs``: prompt, chosen, rejected (and rewards), the best and the worst of each group that has
    two distinct rewards. Returns what ``pal score --json`` prints; ``seconds`` are those of this
    call.
    """
    if best_of is not None and pairs:
        raise RewardError("--best-of and --pairs exclude each other; score the file twice")
    began = time.perf_counter()
    if source.resolve() == target.resolve():
        raise RewardError(
            f"--output {target} is the input itself, which would be lost; give another file"
        )
    if target.is_dir():
        raise RewardError(f"--output {target} is a folder; give the name of a file")
    part = target.parent / f".{target.name}.part"
    state_file = target.parent / f".{target.name}.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RewardError(
            f"cannot make folder {target.parent} ({error.strerror}); give another --output"
        ) from error
    key = {"input": _stamp(source), "head": model.facts.get("head_sha256", None)}
    done = _resume(part, state_file, key)
    known: set[str] = set()
    unknown: set[str] = set()
    rows = 0
    reader = read_rows(source)
    try:
        with open(part, "ab") as out:
            while block := list(islice(reader, BLOCK)):
                for row in block:
                    user = id_of(row.get("user_id"))
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
    finally:
        if part.is_file() and not part.stat().st_size:  # nothing was done that could go on
            part.unlink()
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
    """Return how many rows are done, after cutting off what was half written; none if anything has
    changed."""
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
    """Yield each row with its reward; raises RewardError naming the first row that cannot have
    one."""
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
    try:
        codes = model.users.codes([id_of(row.get("user_id")) for row in block])
    except RewardError as error:
        raise RewardError(
            f"{source}, in rows {start + 1} to {start + len(block)}: {error}"
        ) from error
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
    """Write the final file from the scored rows, whole or not at all, and return its number of
    rows."""

    def rows() -> Iterator[Row]:
        with open(part, encoding="utf-8") as lines:
            scored: Iterator[Row] = map(json.loads, lines)
            if best_of is not None:
                yield from (
                    max(islice(group, best_of), key=lambda row: row["reward"])
                    for group in _groups(scored)
                )
            elif pairs:
                yield from (
                    pair for group in _groups(scored) if (pair := _pair(list(group))) is not None
                )
            else:
                yield from scored

    with atomic_file(target) as temporary:
        if target.suffix == ".parquet":
            return _write_parquet(temporary, rows, source)
        count = 0
        with open(temporary, "w", encoding="utf-8") as out:
            for count, row in enumerate(rows(), start=1):  # noqa: B007, counted for after the loop
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        return count


def _groups(rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
    for _, group in groupby(
        rows, key=lambda row: (json.dumps(row.get("prompt")), row.get("user_id"))
    ):
        yield group


def _pair(group: list[Row]) -> Row | None:
    """Return the best and the worst response of a group as a comparison, None where all are liked
    equally."""
    best, worst = (
        max(group, key=lambda row: row["reward"]),
        min(group, key=lambda row: row["reward"]),
    )
    if best["reward"] == worst["reward"]:
        return None
    item = "response" if "response" in best else "image"
    user = {"user_id": best["user_id"]} if "user_id" in best else {}
    return {
        "prompt": best.get("prompt"), "chosen": best[item], "rejected": worst[item], **user,
        "chosen_reward": best["reward"], "rejected_reward": worst["reward"],
    }  # fmt: skip


def _write_parquet(path: Path, rows: Callable[[], Iterator[Row]], source: Path) -> int:
    """Write rows block by block, in the schema that all of them have together, which a first pass
    finds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    for block in _tables(rows()):
        try:
            schema = pa.unify_schemas([schema, block.schema], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise RewardError(
                f"{source} has a column of different kinds of values, which Parquet cannot hold "
                f"({error}); write .jsonl"
            ) from error
    schema = schema if len(schema) else pa.schema([("reward", pa.float64())])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in _tables(rows(), schema):
            writer.write_table(block)
            count += len(block)
    return count


def _tables(rows: Iterator[Row], schema: Any = None) -> Iterator[Any]:
    """Yield blocks of rows as tables, with the columns that any row of a block has, or those of a
    schema."""
    import pyarrow as pa

    while block := list(islice(rows, BLOCK)):
        names = (
            dict.fromkeys(name for row in block for name in row) if schema is None else schema.names
        )
        columns = {name: [_bytes(row.get(name)) for row in block] for name in names}
        try:
            yield pa.table(columns, schema=schema)
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise RewardError(
                f"a column holds values that one Parquet column cannot hold ({error}); write .jsonl"
            ) from error


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"base64"}:
        import base64

        return base64.b64decode(value["base64"])
    return value
