"""Our heads against the released code of PAL, LoRe, VPL and MRM.

``peers.json`` was made with their code, by ``benchmarks/peers.py``; with PAL_PEERS set to a folder
that has the checkouts ``pal``, ``lore``, ``vpl`` and ``mrm``, it is made again and compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pal.train.adapt.descent import BATCH, steps_of_epoch

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((REPOSITORY / "tests" / "peers.json").read_text(encoding="utf-8"))
CHECKOUTS = os.environ.get("PAL_PEERS", "")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the modules of benchmarks/ be imported."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


@pytest.mark.parametrize("case", sorted(GOLDEN["cases"]))
def test_our_code_gives_the_numbers_of_the_released_code(case: str, benchmarks: None) -> None:
    import peer_cases

    ours = peer_cases.OURS[case]()
    for name, expected in GOLDEN["cases"][case].items():
        found = ours[name].detach().double().flatten()
        wanted = torch.tensor(expected, dtype=torch.float64)
        assert bool((wanted != 0.0).any()), f"{name} shows nothing"
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7, msg=f"{case}: {name}")


def test_every_case_has_golden_numbers(benchmarks: None) -> None:
    import peer_cases

    assert peer_cases.OURS.keys() == GOLDEN["cases"].keys()


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="PAL_PEERS names no folder with the peers' checkouts")
@pytest.mark.filterwarnings("ignore")
def test_the_released_code_still_gives_the_golden_numbers(benchmarks: None) -> None:
    import peer_golden

    folders = {name: Path(CHECKOUTS) / name for name in GOLDEN["commits"]}
    found: Any = peer_golden.as_record(peer_golden.theirs(folders))
    assert found["cases"].keys() == GOLDEN["cases"].keys()
    for case, values in found["cases"].items():
        for name, numbers in values.items():
            assert numbers == pytest.approx(GOLDEN["cases"][case][name], rel=1e-9, abs=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="PAL_PEERS names no folder with the peers' checkouts")
@pytest.mark.filterwarnings("ignore")
def test_lore_and_ours_find_opposed_users(benchmarks: None) -> None:
    import peer_methods
    import peers

    world = peers.opposed(dim=8, users=12, train=30)
    theirs = peer_methods.lore_theirs(Path(CHECKOUTS) / "lore", world, k=2, seed=0)
    ours = peer_methods.ours("lore", world, k=2, seed=0)
    assert theirs.accuracy > 0.75
    assert ours.accuracy > theirs.accuracy - 0.02


def test_new_users_take_a_step_for_each_batch_that_has_some_of_their_answers() -> None:
    """Batches mix users: with many of them, m answers are m steps an epoch, not m / 4."""
    users, answers = 40, 7
    user = torch.arange(users).repeat_interleave(answers)
    turns = list(steps_of_epoch(user, torch.Generator().manual_seed(0)))
    rows = torch.cat([rows for rows, _ in turns])
    assert rows.sort().values.tolist() == list(range(len(user))), "every answer once an epoch"
    for turn, _ in turns:
        assert user[turn].tolist() == sorted(user[turn].tolist())
    steps = torch.zeros(users)
    for turn, _ in turns:
        steps[user[turn].unique()] += 1
    assert 0.9 * answers < float(steps.mean()) <= answers
    assert float(sum(share.sum() for _, share in turns)) == pytest.approx(len(user) / BATCH)
