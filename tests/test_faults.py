"""Stage one when things go wrong: kills, rivals, full disks, damage, lack of memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal import pipeline
from pal.cache.inspect import verify
from pal.cache.reader import FeatureStore
from pal.cache.records import Manifest
from pal.config import Config
from pal.embed.encoders.text import TextEncoder
from pal.embed.run import EmbedResult
from pal.errors import CacheError

Configure = Callable[..., Config]
KILLS = 25
SHARDS = 30
DATA = [
    "--set", "data.demo.groups=1", "--set", "data.demo.limit=200",
    "--set", "data.demo.validation_pairs_per_user=5", "--set", "data.demo.test_pairs_per_user=5",
]  # fmt: skip
SETTINGS = [*DATA, "--encoder", "tiny-text", "--set", "embed.rows_per_shard=20"]

# A process that has everything imported and forks: each child embeds and may be killed while it
# does.
NURSERY = """
import os, signal, sys
from pal import pipeline
from pal.config import load
from pal.embed import runner
from pal.embed.encoders import text
from pal.embed.engines import engine, local
import pal.cache.writer as writer
import transformers, torch
torch.set_num_threads(1)
overrides = [v for o, v in zip(sys.argv[1::2], sys.argv[2::2]) if o == "--set"]
config = load(None, overrides, {"encoder": "tiny-text"}).config
for line in sys.stdin:
    publishes = int(line)  # die by one's own hand after so many published files; 0: live on
    child = os.fork()
    if child == 0:
        original, done = writer._publish, []
        def publish(path, record):
            if publishes and len(done) == publishes:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(path)
            return original(path, record)
        writer._publish = publish
        pipeline.embed(config)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


def pal(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def embedded(*arguments: str, **options: Any) -> EmbedResult:
    return EmbedResult.model_validate_json(pal("embed", *arguments, "--json", **options).stdout)


def shards_of(folder: Path) -> dict[str, bytes]:
    """Return the feature bytes by item of a complete cache."""
    store = FeatureStore.open(folder)
    rows = store.features().view(torch.uint8).numpy()
    return {bytes(name): row.tobytes() for name, row in zip(store.item_ids, rows, strict=True)}


@pytest.mark.slow
def test_killed_again_and_again_the_cache_ends_as_if_nothing_had_happened(
    configure: Configure,
) -> None:
    Path("whole").mkdir()
    Path("killed").mkdir()
    whole = embedded(*SETTINGS, cwd="whole")
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, *SETTINGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd="killed",
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    chance, killed, between = random.Random(0), 0, 0
    while killed < KILLS:
        at_a_receipt = killed % 3 == 0  # between the renaming of a shard and its receipt
        print(1 + (killed == 0) if at_a_receipt else 0, file=nursery.stdin, flush=True)
        child = int(nursery.stdout.readline())
        if not at_a_receipt:
            time.sleep(chance.uniform(0.0, 0.15))
            os.kill(child, signal.SIGKILL)
        status = int(nursery.stdout.readline())
        killed += status == -signal.SIGKILL
        between += at_a_receipt
        folder = next(Path("killed/cache/demo").glob("tiny-text-*"), None)
        if status == 0 or (
            folder is not None and len(list((folder / "shards").glob("part-*.json"))) > SHARDS - 3
        ):
            for receipt in sorted((folder / "shards").glob("part-*.json"))[::2]:  # type: ignore[operator]
                receipt.unlink()  # it came too far: take some of it back
            (folder / "manifest.json").unlink(missing_ok=True)  # type: ignore[operator]
    print(0, file=nursery.stdin, flush=True)
    nursery.stdout.readline()
    assert int(nursery.stdout.readline()) == 0
    nursery.stdin.close()
    nursery.wait()
    print(f"{killed} kills, {between} of them between rename and receipt")
    folder = Path("killed") / whole.dir
    assert shards_of(folder) == shards_of(Path("whole") / whole.dir)
    named = {Path(shard.path).name for shard in Manifest.read(folder).shards}
    assert {path.name for path in (folder / "shards").glob("part-*.parquet")} == named
    assert len(named) == SHARDS


def test_a_kill_between_rename_and_receipt_costs_one_shard() -> None:
    nursery = subprocess.run(
        [sys.executable, "-c", NURSERY, *SETTINGS],
        input="5\n0\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert nursery.stdout.split()[1::2] == [str(-signal.SIGKILL), "0"]
    (folder,) = Path("cache/demo").glob("tiny-text-*")
    assert verify(folder).shards == SHARDS
    assert len(list((folder / "shards").glob("part-*.parquet"))) == SHARDS


def test_two_processes_fill_the_same_cache() -> None:
    command = [sys.executable, "-m", "pal", "embed", *SETTINGS, "--json"]
    pal("prepare", *DATA)
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [EmbedResult.model_validate_json(process.communicate()[0]) for process in both]
    assert results[0].fingerprint == results[1].fingerprint
    folder = Path(results[0].dir)
    assert verify(folder).rows == 600
    assert len(list((folder / "shards").glob("part-*.parquet"))) == SHARDS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=220k", "none", folder]
    mount = subprocess.run(command, capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk: Path) -> None:
    pal("prepare", *DATA)
    done = pal("embed", *SETTINGS, "--set", f"paths.cache={small_disk}")
    assert done.returncode == 1, done.stderr
    assert "no space is left for" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    (folder,) = small_disk.glob("demo/tiny-text-*")
    assert not (folder / "manifest.json").exists()
    finished = len(list((folder / "shards").glob("part-*.json")))
    assert 0 < finished < SHARDS
    assert not list((folder / "shards").glob(".inflight-*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    again = embedded(*SETTINGS, "--set", f"paths.cache={small_disk}")
    assert again.reused == 20 * finished
    assert verify(folder).rows == 600


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_shard_is_found_refused_and_encoded_again(how: str, configure: Configure) -> None:
    config = configure({"embed.rows_per_shard": 100})
    folder = Path(pipeline.embed(config).dir)
    before = shards_of(folder)
    shard = sorted((folder / "shards").glob("part-*.parquet"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content[:-100] if how == "truncated" else content)
    with pytest.raises(CacheError, match=shard.name):
        verify(folder)
    with pytest.raises(CacheError, match="run pal embed again"):
        pipeline.train(config)
    assert pipeline.embed(config).encoded == 100
    assert shards_of(folder) == before


def test_a_batch_that_finds_no_memory_is_halved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = TextEncoder.encode, []

    def small_memory(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if len(batch.rows) > 10:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(batch.rows))
        return original(self, batch)

    whole = shards_of(Path(pipeline.embed(configure({"paths.cache": "whole"})).dir))
    monkeypatch.setattr(TextEncoder, "encode", small_memory)
    result = pipeline.embed(configure())
    assert (result.errors, result.encoded) == (0, 600)
    assert max(sizes) > 4  # halves, not single items
    halved = shards_of(Path(result.dir))
    assert whole.keys() == halved.keys()
    first, second = (
        np.frombuffer(b"".join(c[k] for k in sorted(c)), np.float16) for c in (whole, halved)
    )
    np.testing.assert_allclose(first, second, atol=2e-3)


def test_failed_items_are_tried_again_when_asked(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.encode

    def fail(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if 3 in batch.rows:
            raise RuntimeError("not today")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", fail)
        assert pipeline.embed(configure()).errors == 1
    assert pipeline.embed(configure()).encoded == 0
    again = pipeline.embed(configure(), retry_errors=True)
    assert (again.errors, again.encoded) == (0, 600)
    assert not list(Path(again.dir).glob("errors/*.parquet"))
