"""Every test runs in an empty working directory, with no network and small settings at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

from pal.config import Config, load

settings.register_profile("busy", deadline=None)  # a machine that is busy is no failure
settings.load_profile("busy")

if TYPE_CHECKING:
    from pal.reward import RewardModel

REPOSITORY = Path(__file__).resolve().parents[1]
PERSONA = REPOSITORY.parent / "shared" / "persona"

DIGESTS = Path(".digests.json")
"""what is known of the files of encoders"""

SMALL: dict[str, Any] = {
    "encoder": "tiny-text",
    "train.epochs": 2,
    "data.demo.limit": 200,
    "data.demo.groups": 1,
}
SMALL_GROUPS = {
    "users": 6, "unseen_users": 4, "validation_users": 2,
    "pairs_per_user": 10, "validation_pairs_per_user": 5, "test_pairs_per_user": 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` mean float32 on every machine that runs the tests; tests of it say otherwise."""
    monkeypatch.setattr("pal.probe.gain", lambda device: 1.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tasks have a thread each; what is to be the same to the bit has one here, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """Return a function that resolves small settings with dotted keys on top:
    ``configure({"train.k": 3})``."""

    def build(options: dict[str, Any] | None = None) -> Config:
        sizes = {
            f"data.{name}.{key}": value
            for name in ("demo", "persona", "simulated")
            for key, value in SMALL_GROUPS.items()
        }
        return load(None, (), {**SMALL, **sizes, **(options or {})}).config

    return build


@pytest.fixture(scope="session")
def opened() -> Callable[..., RewardModel]:
    """Return a function that gives the run of a random head on a small random encoder, as if it had
    been trained: ``opened(["user 1", "user 2"], "pal-b")``."""
    import torch

    from pal.config import EncoderConfig, TrainConfig
    from pal.embed.encoder import locate
    from pal.reward import RewardModel
    from pal.train.build import build_head, resolve
    from pal.train.run_record import RunRecord, TrainedHead

    def build(
        users: list[str],
        head: str = "pal-a",
        seed: int = 0,
        view: str = "prompt+response",
        item_text: str = "{response}",
        dim: int = 64,
        modality: str = "text",
        **encoder: Any,
    ) -> RewardModel:
        given = {"model": "random:bert", "store_dtype": "float32", "max_length": 64, **encoder}
        config = EncoderConfig(**given)
        source = locate("tiny", config, DIGESTS)
        train = resolve(TrainConfig(head=head, k=2))
        torch.manual_seed(seed)
        made = build_head(train, dim, len(users)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        record = RunRecord(
            run=f"run{seed}", dataset="made", view=view, item_text=item_text, encoder="tiny",
            untrained=True, seed=seed, dim=dim, params=0, params_per_user=0, seconds=0.0,
            best_epoch=0, split_digest="s", pairs_digest="p", cache_fingerprint="c",
            encoder_spec=source.spec, train=train, users=users, files={},
        )  # fmt: skip
        return RewardModel.of(TrainedHead(made, record), config, DIGESTS, modality)

    return build


@pytest.fixture
def persona_source() -> Path:
    if not PERSONA.is_dir():
        pytest.skip(f"persona statements are not at {PERSONA}")
    return PERSONA


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not PERSONA.is_dir():
        terminalreporter.write_line(
            f"The tests on real persona statements were skipped: nothing at {PERSONA}."
        )
