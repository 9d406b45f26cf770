"""Texts end to end have the features that they have alone; a model that differs is padded."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal.config import EncoderConfig
from pal.embed.batching import joined_batches
from pal.embed.encoder import load, locate
from pal.embed.encoders import padding, trial, unpadded
from pal.embed.encoders.compiled import compile_blocks
from pal.embed.encoders.text import TextEncoder
from pal.items import Item, Text, Turn

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS: list[Item] = [
    Text("a"), Text("some words"), Text("ab" * 60), Text("an answer", (Turn("user", "why?"),)),
    Text("and a last one"),
]  # fmt: skip
WINDOW = 8
_BODY = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "pad_token_id": 0,
}  # fmt: skip
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {**_BODY, "num_key_value_heads": 2, "sliding_window": WINDOW},
    "qwen3": {
        **_BODY, "num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True,
        "sliding_window": WINDOW, "max_window_layers": 1,
    },
    "gemma3_text": {**_BODY, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW},
    "modernbert": {**_BODY, "local_attention": WINDOW, "global_attn_every_n_layers": 2},
}  # fmt: skip


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine's CPU do what a GPU does."""
    monkeypatch.setattr(unpadded, "can_be", lambda model, device, dtype: True)


def made(model: str, **settings: Any) -> TextEncoder:
    config = EncoderConfig(kind="hf-text", model=model, max_length=64, **settings)
    encoder = load(locate("tiny", config, None), "cpu", 300, [-1, -2], compiled=False)
    assert isinstance(encoder, TextEncoder)
    return encoder


def features(encoder: TextEncoder) -> list[torch.Tensor]:
    """Return the features of all texts, as stage one makes them, per tap."""
    inputs = encoder.prepare(TEXTS)
    found: dict[int, list[torch.Tensor]] = {}
    for rows in encoder.batches(inputs):
        batch = encoder.load_batch(inputs, rows)
        taps = encoder.encode(batch)
        assert batch.padded == inputs.n_tokens[rows].sum() or not encoder.joins
        for place, row in enumerate(rows.tolist()):
            found[row] = [tap[place] for tap in taps]
    return [torch.stack([found[row][tap] for row in range(len(TEXTS))]) for tap in range(2)]


def saved(family: str, folder: Path, settings: dict[str, Any] | None = None) -> str:
    from transformers import AutoConfig, AutoModel

    from pal.embed.encoders.random_models import byte_tokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(settings or WINDOWED[family]))
    AutoModel.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", "llama", "opt", "gpt2", "qwen2"])
def test_features_end_to_end_are_those_of_padded_batches(
    family: str, pooling: str, request: pytest.FixtureRequest
) -> None:
    wanted = features(made(f"random:{family}", pooling=pooling))
    request.getfixturevalue("everywhere")
    encoder = made(f"random:{family}", pooling=pooling)
    assert encoder.joins
    for one, other in zip(features(encoder), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_a_window_reaches_as_far_end_to_end(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = saved(family, tmp_path)
    wanted = features(made(model))
    request.getfixturevalue("everywhere")
    encoder = made(model)
    assert encoder.joins
    for one, other in zip(features(encoder), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_model_that_forgets_its_window_is_padded(
    everywhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = unpadded.attention

    def forgetful(*places: Any, sliding_window: int | None = None, **others: Any) -> Any:
        return own(*places, **others)

    monkeypatch.setattr(unpadded, "attention", forgetful)
    model = saved("mistral", tmp_path)
    assert not made(model).joins
    assert made(model).model.config._attn_implementation == "sdpa"


FOLLOWING = {
    **_BODY, "max_position_embeddings": 256, "original_max_position_embeddings": 32,
    "rope_scaling": {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
        "rope_theta": 10_000.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip


def test_positions_that_follow_the_longest_text_are_those_of_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TEXTS", ("Yes.", "Not everybody."))  # real models begin at 4,096
    encoder = made(saved("phi3", tmp_path, FOLLOWING))
    encoder.token_budget = 10_000
    assert (encoder.sharing, encoder.may_run_at_once) == (32, False)
    words = "nobody agrees about everything, and most people about something"
    texts: list[Item] = [Text(words[:count]) for count in (10, 60, 40, 20, 50, 40, 30)]

    def read(some: list[Item]) -> torch.Tensor:
        inputs = encoder.prepare(some)
        found = torch.zeros(len(some), 32)
        for rows in encoder.batches(inputs):
            found[rows] = encoder.encode(encoder.load_batch(inputs, rows))[0]
        return found

    alone = torch.cat([read([text]) for text in texts])
    torch.testing.assert_close(read(texts), alone, atol=2e-5, rtol=1e-4)
    ids = [encoder.renderer.tokenise([encoder.renderer.render(t)])[0].ids for t in texts]
    padded = torch.zeros(len(texts), 80, dtype=torch.long)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = torch.from_numpy(own)
    mask = torch.arange(80) < torch.tensor([len(own) for own in ids])[:, None]
    torch.testing.assert_close(encoder.features_of(padded, mask)[0], alone, atol=2e-5, rtol=1e-4)
    short = encoder.features_of(padded[:1], mask[:1])[0]
    torch.testing.assert_close(short, alone[:1], atol=2e-5, rtol=1e-4)
    encoder.sharing = (
        math.inf
    )  # as if it did not follow: the short ones have the long ones' positions
    assert (read(texts) - alone).abs().max() > 1e-3


def test_other_models_may_read_in_several_threads() -> None:
    assert made("random:llama").may_run_at_once


def test_attention_that_nobody_here_knows_is_padded(everywhere: None) -> None:
    assert not made("random:gemma2").joins  # its attention is eager
    starts = torch.tensor([0, 2], dtype=torch.int32)
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match="softcap"):
        unpadded.attention(
            torch.nn.Module(), states, states, states, None, softcap=1.0, cu_seq_lens_q=starts,
            max_length_q=2,
        )  # fmt: skip


def test_joined_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 200).astype(np.int32)
    batches = list(joined_batches(lengths, 120))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(lengths[rows].sum() <= 120 for rows in batches)
    assert list(map(len, joined_batches(np.array([500, 3], np.int32), 120))) == [1, 1]


def test_noise_of_the_arithmetic_is_allowed_for_and_a_fault_is_not() -> None:
    usual = padding.TOLERANCE["bfloat16"]
    assert padding.tolerance("bfloat16", 6, 0.0) == usual
    assert padding.tolerance("bfloat16", 48, 0.0) == 2 * usual
    assert padding.tolerance("bfloat16", 12, 0.02) == pytest.approx(0.08)
    assert padding.tolerance("bfloat16", 12, 0.5) == padding.MOST < 0.26


@pytest.mark.slow
def test_blocks_are_compiled_once_and_can_be_tapped() -> None:
    wanted = features(made("random:llama"))
    encoder = made("random:llama")
    compile_blocks(encoder.model)
    for one, other in zip(features(encoder), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_script_for_gpus_goes_through_without_one(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    script = REPOSITORY / "benchmarks" / "gpu.py"
    parts = ["heads", "sweep", "images", "text"]
    ran = subprocess.run(
        [sys.executable, str(script), str(page), "--device", "cpu", "--small", "--parts", *parts],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    text = page.read_text(encoding="utf-8")
    assert "A trial" in text
    assert all(name in text for name in ("| pal-b", "| bfloat16", "ViT-H/14", "8B decoder"))
