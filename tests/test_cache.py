"""The cache: its layout proven, its commits all or nothing, its damage found."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pal.cache import writer as writer_module
from pal.cache.export import export
from pal.cache.failures import FailedItem
from pal.cache.inspect import list_caches, stats, verify
from pal.cache.plan import make_plan
from pal.cache.reader import FeatureStore
from pal.cache.records import Manifest, Provenance, Receipt, Seconds, SpecRecord, Statistics
from pal.cache.shard import ITEM_BYTES, Shard, contiguous_vectors, write_shard
from pal.cache.spec import differences, fingerprint, folder_of, make_spec
from pal.cache.writer import CacheWriter, EncodedShard, clear
from pal.errors import CacheError, CacheMismatch

DIM = 6
MADE = Provenance(
    dataset="toy", encoder="fake", revision="none", untrained=False, dedup_ratio=1.0, seconds=0.0
)


def spec(dtype: str = "float32", **encoder: Any) -> dict[str, Any]:
    return make_spec("toy", "items", {"kind": "fake", "store_dtype": dtype, **encoder})


def ids(count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.sort(np.array([generator.bytes(16) for _ in range(count)], dtype="S16"))


def values(count: int, dtype: str = "float32") -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)).to(
        getattr(torch, dtype)
    )


def encoded(
    names: np.ndarray,
    features: torch.Tensor,
    dtype: str = "float32",
    errors: tuple[FailedItem, ...] = (),
) -> EncodedShard:
    count = len(names)
    raw = features.contiguous().view(torch.uint8).numpy()
    statistics = Statistics(count=features.numel(), sum=0.0, sum_of_squares=0.0, absmax=1.0)
    return EncodedShard(
        names, np.full(count, 3, np.int32), np.zeros(count, bool), raw, dtype, statistics,
        Seconds(encode=0.5), errors, tokens_padded=3 * count,
    )  # fmt: skip


def fill(
    folder: Path, count: int = 50, rows_per_shard: int = 20, dtype: str = "float32"
) -> torch.Tensor:
    """Write a complete cache and return its features."""
    writer = CacheWriter(folder, spec(dtype))
    names, features = ids(count), values(count, dtype)
    tasks = writer.plan(names, rows_per_shard)
    for task in writer.pending(tasks):
        part = slice(task.start, task.stop)
        writer.commit(task, encoded(names[part], features[part], dtype), {"pal": "test"})
    writer.finalize(tasks, MADE)
    return features


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_features_come_back_bit_for_bit(dtype: str) -> None:
    features = fill(Path("cache"), dtype=dtype)
    store = FeatureStore.open(Path("cache"), spec(dtype))
    assert torch.equal(store.features(), features)
    rows = np.array([49, 0, 20, 19, 20])
    assert torch.equal(store.gather(rows), features[rows])
    assert torch.equal(torch.cat(list(store.iter_blocks(7))), features)


def test_any_parquet_reader_reads_a_shard() -> None:
    features = fill(Path("cache"), dtype="float16").numpy()
    store = FeatureStore.open(Path("cache"))
    table = pq.read_table(store.shards[0].path)
    assert table.column("feature").to_pylist()[3] == features[3].tobytes()
    frame = store.scan().collect()
    np.testing.assert_array_equal(np.stack(frame["feature"].to_list()), features)
    assert frame.schema["feature"] == pl.Array(pl.Float16, DIM)


def test_vectors_lie_in_one_piece_in_our_own_files() -> None:
    fill(Path("cache"), count=40_000, rows_per_shard=40_000)
    shard = FeatureStore.open(Path("cache")).shards[0]
    assert len(shard.groups) == 3
    assert all(shard.is_view(group) for group in shard.groups)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 3000),
    page_size=st.sampled_from([256, 4096, 65_536, 1 << 30]),
    batch=st.sampled_from([64, 1024, 1 << 20]),
    group=st.sampled_from([100, 1000, 1 << 20]),
    compression=st.sampled_from(["none", "zstd", "snappy"]),
    dictionary=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    statistics=st.booleans(),
    checksum=st.booleans(),
    page_index=st.booleans(),
    nullable=st.booleans(),
    width=st.sampled_from([8, 64]),
)
def test_a_foreign_layout_is_never_mistaken_for_ours(
    tmp_path: Path, rows: int, page_size: int, batch: int, group: int, compression: str,
    dictionary: bool, version: str, statistics: bool, checksum: bool, page_index: bool,
    nullable: bool, width: int,
) -> None:  # fmt: skip
    """Whatever wrote the file: a row group is accepted only if the slice holds exactly its
    vectors."""
    vectors = np.random.default_rng(rows).integers(0, 255, (rows, width), dtype=np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), rows, [None, pa.py_buffer(vectors)]
    )
    fields = [pa.field(name, pa.int32(), nullable=False) for name in "abc"]
    schema = pa.schema([*fields, pa.field("feature", pa.binary(width), nullable=nullable)])
    path = tmp_path / "foreign.parquet"
    with pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=dictionary, data_page_version=version,
        data_page_size=page_size, write_batch_size=batch, write_statistics=statistics,
        write_page_checksum=checksum, write_page_index=page_index,
    ) as file:  # fmt: skip
        numbers = pa.array(np.arange(rows, dtype=np.int32))
        file.write_table(pa.table([numbers] * 3 + [column], schema=schema), row_group_size=group)
    content, metadata, start = path.read_bytes(), pq.read_metadata(path), 0
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        place = contiguous_vectors(
            metadata, number, width, lambda offset, size: content[offset : offset + size]
        )
        if place is not None:
            assert content[place[0] : place[1]] == vectors[start : start + count].tobytes()
        assert (
            contiguous_vectors(metadata, number, width + 1, lambda o, s: content[o : o + s]) is None
        )
        start += count


def test_a_shard_rewritten_by_another_tool_still_reads_right() -> None:
    features = values(100)
    write_shard(
        Path("own.parquet"), ids(100), np.ones(100, np.int32), np.zeros(100, bool),
        features.view(torch.uint8).numpy(), "float32", {},
    )  # fmt: skip
    pq.write_table(
        pq.read_table("own.parquet"), "other.parquet", compression="zstd", row_group_size=30
    )
    shard = Shard(Path("other.parquet"))
    raw = np.concatenate(shard.groups)
    assert raw.tobytes() == features.numpy().tobytes()
    assert not any(shard.is_view(group) for group in shard.groups)


def test_index_finds_rows_and_names_what_is_missing() -> None:
    fill(Path("cache"))
    store, names = FeatureStore.open(Path("cache")), ids(50)
    assert store.index(names[::-1]).tolist() == list(range(49, -1, -1))
    unknown = np.array([b"\x01" * 16], dtype="S16")
    with pytest.raises(CacheError, match=f"no feature for 1 of 1 items, e.g. {'01' * 16}"):
        store.index(unknown)
    assert store.index(np.concatenate([names[:1], unknown]), missing="mask").tolist() == [0, -1]


def test_ids_with_zero_bytes_are_told_apart() -> None:
    names = np.sort(
        np.array([b"a" + b"\0" * 15, b"a" + b"\0" * 14 + b"b", b"\0" * 16], dtype="S16")
    )
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(names, 10)
    writer.commit(tasks[0], encoded(names, values(3)), {})
    writer.finalize(tasks, MADE)
    store = FeatureStore.open(Path("cache"))
    assert store.index(names).tolist() == [0, 1, 2]


def test_plan_covers_every_row_once() -> None:
    for rows, size in ((1, 8), (8, 8), (9, 8), (100, 7)):
        tasks = make_plan(ids(rows), size)
        assert [row for task in tasks for row in range(task.start, task.stop)] == list(range(rows))


def test_a_plan_outlives_a_change_of_shard_size() -> None:
    writer = CacheWriter(Path("cache"), spec())
    before = writer.plan(ids(50), 20)
    assert writer.plan(ids(50), 10) == before


def test_equal_work_gives_equal_bytes() -> None:
    fill(Path("a"))
    fill(Path("b"))
    assert sorted(p.name for p in Path("a/shards").iterdir()) == sorted(
        p.name for p in Path("b/shards").iterdir()
    )
    for path in Path("a/shards").glob("*.parquet"):
        assert path.read_bytes() == (Path("b/shards") / path.name).read_bytes()


def test_a_shard_without_receipt_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dying between rename and receipt leaves a shard that is encoded again and then left no
    rival."""
    writer = CacheWriter(Path("cache"), spec())
    names, features = ids(50), values(50)
    tasks = writer.plan(names, 20)

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_failures", die)  # the step after the rename
        with pytest.raises(KeyboardInterrupt):
            writer.commit(tasks[0], encoded(names[:20], features[:20] + 1), {})
    assert len(list(Path("cache/shards").glob("*.parquet"))) == 1
    assert writer.pending(tasks) == tasks
    with pytest.raises(CacheError, match="is not finished"):
        writer.finalize(tasks, MADE)
    assert torch.equal(fill_rest(writer, tasks, names, features), features)
    assert len(list(Path("cache/shards").glob("*.parquet"))) == 3


def fill_rest(
    writer: CacheWriter, tasks: Any, names: np.ndarray, features: torch.Tensor
) -> torch.Tensor:
    for task in writer.pending(tasks):
        part = slice(task.start, task.stop)
        writer.commit(task, encoded(names[part], features[part]), {})
    writer.finalize(tasks, MADE)
    return FeatureStore.open(writer.folder).features()


def test_nobody_takes_back_what_another_has_committed() -> None:
    """One that has just looked for what is pending, and all that it may do then."""
    names, features = ids(50), values(50)
    slow, quick = (CacheWriter(Path("cache"), spec()) for _ in range(2))
    tasks = slow.plan(names, 20)
    assert slow.pending(tasks) == tasks
    assert torch.equal(fill_rest(quick, tasks, names, features), features)
    before = {path: path.read_bytes() for path in Path("cache").rglob("*") if path.is_file()}
    CacheWriter(Path("cache"), spec()).plan(names, 10)
    for task in tasks:
        part = slice(task.start, task.stop)
        slow.commit(task, encoded(names[part], features[part] + 1), {})
    assert before == {path: path.read_bytes() for path in before}
    assert slow.pending(tasks) == []
    slow.finalize(tasks, MADE)
    assert torch.equal(FeatureStore.open(Path("cache")).features(), features)
    assert not list(Path("cache").rglob(".*"))  # no lock is left, nothing in flight


def test_many_may_fill_one_cache_at_once() -> None:
    """They come to other plans, and to other bytes of each shard; one of each is kept."""
    names, features = ids(60), values(60)

    def work(number: int) -> None:
        writer = CacheWriter(Path("cache"), spec())
        tasks = writer.plan(names, 5 + number)
        for task in tasks[number:] + tasks[:number]:
            part = slice(task.start, task.stop)
            writer.commit(task, encoded(names[part], features[part] + number), {})
        writer.finalize(tasks, MADE)
        FeatureStore.open(Path("cache"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    store = FeatureStore.open(Path("cache"))
    assert store.rows == 60
    named = {Path(entry.path).name for entry in store.manifest.shards}
    assert {path.name for path in Path("cache/shards").glob("*.parquet")} == named
    by_name = store.gather(store.index(names))
    offset = by_name - features
    assert torch.allclose(offset, offset.round(), atol=1e-5)  # each row is whole, whoever's it is
    assert set(offset[:, 0].round().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_a_cache_stays_complete_while_its_failed_items_are_tried_again() -> None:
    names, features = ids(20), values(20)
    failed = FailedItem(bytes(names[9]).ljust(16, b"\0"), "encode", "RuntimeError", "no", 1)
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(names, 10)
    writer.commit(tasks[0], encoded(names[:9], features[:9], errors=(failed,)), {})
    writer.commit(tasks[1], encoded(names[10:], features[10:]), {})
    writer.finalize(tasks, MADE)
    stale = Manifest.read(Path("cache"))
    again = CacheWriter(Path("cache"), spec(), retry_errors=True)
    assert writer.pending(tasks) == []
    assert again.pending(tasks) == tasks[:1]
    worse = encoded(names[:8], features[:8], errors=(failed, failed))
    assert again.commit(tasks[0], worse, {}).errors == 1  # more failed this time: not taken
    again.commit(tasks[0], encoded(names[:10], features[:10]), {})
    assert FeatureStore.open(Path("cache")).rows == 19
    again.finalize(tasks, MADE)
    assert FeatureStore.open(Path("cache")).rows == 20
    assert writer.failures(tasks).total() == 0
    # one that was killed after the manifest
    left = Path("cache/shards/part-00000-of-00002.00000000.parquet")
    left.write_bytes(b"")
    clear(Path("cache"), Manifest.read(Path("cache")))
    assert not left.exists()
    # one that had read the manifest before, and opens the shards now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "of", lambda folder: stale)
        assert FeatureStore.open(Path("cache")).rows == 20


def test_the_loser_of_a_race_yields_to_the_winner() -> None:
    writer = CacheWriter(Path("cache"), spec())
    names, features = ids(10), values(10)
    task = writer.plan(names, 10)[0]
    winner = writer.commit(task, encoded(names, features), {})
    same = writer.commit(task, encoded(names, features), {})
    other = writer.commit(task, encoded(names, features + 1), {})
    assert winner == same == other
    assert [path.name for path in Path("cache/shards").glob("*.parquet")] == [
        Path(winner.path).name
    ]


def test_another_specification_is_another_folder() -> None:
    one, two = spec(layer=-1), spec(layer=-2)
    assert folder_of(Path("c"), "toy", "fake", one) != folder_of(Path("c"), "toy", "fake", two)
    assert fingerprint(one) == fingerprint(json.loads(json.dumps(one)))


def test_a_foreign_folder_is_refused_with_the_differing_keys() -> None:
    fill(Path("cache"))
    for refuse in (CacheWriter, FeatureStore.open):
        with pytest.raises(CacheMismatch, match="encoder.layer: 'absent' in the cache, -2 wanted"):
            refuse(Path("cache"), spec(layer=-2))
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b: 1 in the cache, 2 wanted"]


def damage_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_by_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_by_removal(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_bit, damage_by_removal])
def test_damage_is_found_refused_and_mended(damage: Any) -> None:
    features = fill(Path("cache"))
    path = sorted(Path("cache/shards").glob("*.parquet"))[1]
    damage(path)
    with pytest.raises(
        CacheError, match=f"{path.name} is damaged or missing; run pal embed.* again"
    ):
        FeatureStore.open(Path("cache"))
    with pytest.raises(CacheError, match=f"{path.name} is damaged or missing"):
        verify(Path("cache"))
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(ids(50), 20)
    assert writer.pending(tasks) == [tasks[1]]
    assert torch.equal(fill(Path("cache")), features)
    assert verify(Path("cache")).rows == 50


def test_verify_hashes_even_what_looks_untouched() -> None:
    fill(Path("cache"))
    path = sorted(Path("cache/shards").glob("*.parquet"))[0]
    stat = path.stat()
    damage_by_one_bit(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CacheError, match="is damaged"):
        verify(Path("cache"))
    with pytest.raises(
        CacheError, match="is damaged"
    ):  # and the readers no longer trust the old mark
        FeatureStore.open(Path("cache"))


def test_verify_finds_values_that_are_not_finite() -> None:
    writer = CacheWriter(Path("cache"), spec())
    features = values(10)
    features[3, 2] = torch.nan
    tasks = writer.plan(ids(10), 10)
    writer.commit(tasks[0], encoded(ids(10), features), {})
    writer.finalize(tasks, MADE)
    with pytest.raises(CacheError, match="NaN or infinite"):
        verify(Path("cache"))


def test_damaged_bookkeeping_is_one_sentence() -> None:
    fill(Path("cache"))
    for content in (
        "{",
        Path("cache/manifest.json").read_text().replace('"rows": 50', '"rows": 5'),
    ):
        Path("cache/manifest.json").write_text(content)
        with pytest.raises(CacheError, match="manifest.json is damaged.*run pal embed.* again"):
            FeatureStore.open(Path("cache"))
    with pytest.raises(CacheError, match="no complete cache in absent; run pal embed"):
        FeatureStore.open(Path("absent"))


BOOKKEEPING = ("spec.json", "plan.parquet", "manifest.json", "verified.json", "receipt")


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_bit, damage_by_removal])
@pytest.mark.parametrize("name", BOOKKEEPING)
def test_damaged_bookkeeping_is_made_again_and_costs_at_most_its_shard(
    name: str, damage: Any
) -> None:
    features = fill(Path("cache"))
    path = Path("cache") / name
    if name == "receipt":
        path = sorted(Path("cache/shards").glob("part-*.json"))[1]
    damage(path)
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(ids(50), 20)
    assert writer.pending(tasks) == ([tasks[1]] if name == "receipt" else [])
    assert torch.equal(fill(Path("cache")), features)
    assert torch.equal(FeatureStore.open(Path("cache"), spec()).features(), features)
    assert verify(Path("cache")).rows == 50
    assert SpecRecord.read(Path("cache")).spec == spec()


def test_a_plan_of_another_order_takes_over_only_shards_of_the_same_items() -> None:
    """Images are encoded in the order of their source, which may be moved and prepared again."""
    fill(Path("cache"))
    names, features = ids(50), values(50)
    order = np.concatenate([np.arange(20), np.arange(20, 50)[::-1]])
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(names[order], 20)
    assert writer.pending(tasks) == tasks[1:]
    for task in tasks[1:]:
        part = order[task.start : task.stop]
        writer.commit(task, encoded(names[part], features[part]), {})
    writer.finalize(tasks, MADE)
    store = FeatureStore.open(Path("cache"))
    assert torch.equal(store.gather(store.index(names)), features)


def test_what_an_earlier_plan_left_is_cleared() -> None:
    fill(Path("cache"))
    Path("cache/plan.parquet").unlink()
    fill(Path("cache"), rows_per_shard=30)
    assert len(list(Path("cache/shards").iterdir())) == 4
    assert verify(Path("cache")).shards == 2


def test_a_table_of_errors_that_is_damaged_counts_attempts_from_the_start() -> None:
    writer = CacheWriter(Path("cache"), spec())
    names, features = ids(10), values(10)
    tasks = writer.plan(names, 10)
    failed = FailedItem(bytes(names[9]), "encode", "RuntimeError", "half a pair: \ud800", 2)
    writer.commit(tasks[0], encoded(names[:9], features[:9], errors=(failed,)), {})
    assert writer.earlier_attempts(tasks[0]) == {bytes(names[9]): 2}
    assert writer.failures(tasks) == {"RuntimeError": 1}
    path = Path("cache/errors/part-00000-of-00001.parquet")
    assert pl.read_parquet(path)["message"].to_list() == ["half a pair: ?"]
    damage_by_one_bit(path)
    assert writer.earlier_attempts(tasks[0]) == {}
    assert writer.failures(tasks).total() == 1
    writer.finalize(tasks, MADE)
    assert stats(Path("cache")).errors == 1


def test_a_receipt_of_another_cache_is_not_believed() -> None:
    fill(Path("cache"))
    fill(Path("other"), dtype="float16")
    for path in Path("other/shards").iterdir():
        path.rename(Path("cache/shards") / path.name)
    writer = CacheWriter(Path("cache"), spec())
    tasks = writer.plan(ids(50), 20)
    assert writer.pending(tasks) == tasks


def test_a_file_that_the_manifest_names_is_checked() -> None:
    from pal.records import write_tensors

    fill(Path("cache"))
    writer = CacheWriter(Path("cache"), spec())
    score = Path("cache/score.safetensors")
    seal = write_tensors(score, {"weight": torch.ones(1, DIM)})
    writer.finalize(writer.plan(ids(50), 20), MADE, {score.name: seal})
    weight = FeatureStore.open(Path("cache")).score_weight()
    assert weight is not None
    assert torch.equal(weight, torch.ones(1, DIM))
    write_tensors(score, {"weight": torch.zeros(1, DIM)})
    with pytest.raises(
        CacheError, match="score.safetensors is not the file.*run pal embed.* again"
    ):
        FeatureStore.open(Path("cache"))


def test_caches_are_listed_with_their_state() -> None:
    fill(Path("cache/toy/fake-1"))
    CacheWriter(Path("cache/toy/fake-2"), spec())
    fill(Path("cache/toy/fake-3"))
    damage_by_one_bit(Path("cache/toy/fake-3/manifest.json"))
    states = [(entry.dir, entry.state, entry.rows) for entry in list_caches(Path("cache"))]
    assert states == [
        ("cache/toy/fake-1", "complete", 50),
        ("cache/toy/fake-2", "incomplete", 0),
        ("cache/toy/fake-3", "damaged", 0),
    ]


def test_width_follows_from_dimension_and_dtype() -> None:
    assert {name: getattr(torch, name).itemsize for name in ITEM_BYTES} == ITEM_BYTES


def test_stats_sum_what_the_shards_cost() -> None:
    features = fill(Path("cache"))
    found = stats(Path("cache"))
    assert (found.rows, found.shards, found.dim) == (50, 3, features.shape[1])
    receipts = [Receipt.read_file(file) for file in Path("cache/shards").glob("part-*.json")]
    assert found.seconds.encode == 1.5
    assert found.seconds.write == pytest.approx(sum(r.seconds.write for r in receipts), abs=1e-3)
    assert (found.tokens_real, found.tokens_padded) == (150, 150)
    assert Manifest.read(Path("cache")).encoder == "fake"
    with pytest.raises(CacheError, match="no complete cache in absent; run pal embed"):
        stats(Path("absent"))


@pytest.mark.parametrize("kind", ["fsl", "npy", "safetensors"])
def test_an_export_holds_the_same_vectors_under_the_same_ids(kind: str) -> None:
    from safetensors.torch import load_file

    features = fill(Path("cache"))
    store = FeatureStore.open(Path("cache"))
    made = export(Path("cache"), Path("copy"), kind)
    assert (made.rows, made.format) == (50, kind)
    assert json.loads(Path("copy/cache.json").read_text())["fingerprint"] == store.fingerprint
    if kind == "fsl":
        table = pq.read_table("copy/features.parquet")
        found = torch.tensor(table["feature"].to_pylist())
        names = b"".join(table["item_id"].to_pylist())
    elif kind == "npy":
        found, names = (
            torch.from_numpy(np.load("copy/features.npy")),
            np.load("copy/item_ids.npy").tobytes(),
        )
    else:
        tensors = load_file("copy/features.safetensors")
        found, names = tensors["feature"], tensors["item_id"].numpy().tobytes()
        assert found.dtype == features.dtype
    assert torch.equal(found.float(), features.float())
    assert names == store.item_ids.tobytes()


def test_an_export_to_a_folder_of_any_name_says_how_it_is_read() -> None:
    fill(Path("cache"))
    export(Path("cache"), Path("a {copy} of it"), "npy")
    assert 'load("a {copy} of it/features.npy"' in Path("a {copy} of it/README.md").read_text()


def test_an_export_overwrites_nothing_and_knows_its_formats() -> None:
    fill(Path("cache"))
    Path("copy").mkdir()
    with pytest.raises(CacheError, match="copy exists; remove it or export to another folder"):
        export(Path("cache"), Path("copy"), "npy")
    with pytest.raises(
        CacheError, match="unknown format 'hdf5'; use --format with one of: fsl, npy, safetensors"
    ):
        export(Path("cache"), Path("other"), "hdf5")
    assert not Path("other").exists()
