"""What was encoded lately is not encoded again, and is the same to the bit."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pal.config import EncoderConfig
from pal.embed.encoder import locate
from pal.items import Text
from pal.reward.live import LiveEncoder
from pal.reward.recent import ENTRY_BYTES, RecentFeatures

FEATURE_BYTES = 4 * 4 + ENTRY_BYTES


def feature(value: float) -> torch.Tensor:
    return torch.full((4,), value)


def test_the_longest_unused_feature_goes_first() -> None:
    recent = RecentFeatures(most_bytes=3 * FEATURE_BYTES)
    recent.keep({b"a": feature(0.0), b"b": feature(1.0), b"c": feature(2.0)})
    recent.found([b"a"])
    recent.keep({b"a": feature(9.0), b"d": feature(3.0)})
    assert list(recent.found([b"a", b"b", b"c", b"d"])) == [b"a", b"c", b"d"]
    assert torch.equal(recent.found([b"a"])[b"a"], feature(0.0))
    assert (len(recent), recent.bytes) == (3, 3 * FEATURE_BYTES)


def test_a_row_keeps_no_batch_alive_and_can_be_learned_from() -> None:
    recent = RecentFeatures()
    with torch.inference_mode():
        batch = torch.ones(1000, 4)
        recent.keep({b"a": batch[0]})
    kept = recent.found([b"a"])[b"a"]
    assert kept.untyped_storage().nbytes() == 16
    weight = torch.ones(4, requires_grad=True)
    (weight * kept).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0] * 4


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveEncoder:
    config = EncoderConfig(model="random:bert", store_dtype="float16", max_length=64)
    digests = tmp_path_factory.mktemp("live") / ".digests.json"
    return LiveEncoder(locate("tiny", config, digests), "cpu")


def test_only_what_is_new_is_encoded(live: LiveEncoder) -> None:
    some, more = [Text("one"), Text("two")], [Text("three"), Text("two"), Text("one"), Text("two")]
    before = live.encoded
    first = live.features(some)
    assert live.encoded - before == 2
    second = live.features(more)
    assert live.encoded - before == 3
    assert torch.equal(second.values[[2, 1]], first.values)
    assert torch.equal(second.values[1], second.values[3])
    assert len(live.features([]).values) == 0


def test_what_fails_is_tried_again_and_costs_only_itself(live: LiveEncoder) -> None:
    odd, fine = Text("half \ud800"), Text("fine")
    for given in ([odd], [fine, odd], [odd, fine, odd]):
        before = live.encoded
        found = live.features(given)
        assert sorted(found.failures) == [row for row, item in enumerate(given) if item is odd]
        assert live.encoded - before >= 1
        assert bool(found.values[[row for row, item in enumerate(given) if item is fine]].all())


@pytest.mark.parametrize("passes", [1, 3])
def test_threads_that_score_at_once_get_their_own_features(tmp_path: Path, passes: int) -> None:
    """An inner layer is read by a hook, which sees whichever pass runs."""
    config = EncoderConfig(model="random:bert", store_dtype="float16", max_length=64, layer=-2)
    live = LiveEncoder(locate("tiny", config, tmp_path / ".digests.json"), "cpu")
    live.allow(passes)
    items = [Text(f"text {number}" + " more" * (number % 7)) for number in range(12)]
    wanted = torch.cat([live.features([item]).values for item in items])
    live.recent = RecentFeatures(most_bytes=3 * (64 * 2 + ENTRY_BYTES))

    def scored(seed: int) -> bool:
        drawn = torch.Generator().manual_seed(seed)
        for _ in range(15):
            rows = torch.randint(0, len(items), (4,), generator=drawn)
            found = live.features([items[row] for row in rows.tolist()])
            if found.failures or not torch.allclose(found.values, wanted[rows], atol=1e-2):
                return False
        return True

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(scored, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert live.recent.bytes == len(live.recent) * (64 * 2 + ENTRY_BYTES)


def test_what_another_thread_encodes_just_now_is_waited_for(
    live: LiveEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.allow(2)
    began, goes_on, plain = threading.Event(), threading.Event(), live.encoder.encode

    def slowly(batch: Any) -> Any:
        began.set()
        assert goes_on.wait(10)
        return plain(batch)

    monkeypatch.setattr(live.encoder, "encode", slowly)
    before, odd = live.encoded, Text("odd \ud800 one")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(live.features, [Text("both want"), odd])
        assert began.wait(10)
        began.clear()
        second = pool.submit(live.features, [Text("own"), Text("both want"), odd])
        assert began.wait(10)  # its own item does not wait
        goes_on.set()
        one, other = first.result(10), second.result(10)
    assert torch.equal(one.values[0], other.values[1])
    assert (list(one.failures), list(other.failures)) == ([1], [2])
    assert one.failures[1] == other.failures[2]
    assert live.encoded - before == 4  # what failed is tried twice
    live.allow(1)
