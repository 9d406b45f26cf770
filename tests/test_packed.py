"""Linear layers with packed weights compute what plain ones do, wherever the model goes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pal.embed.encoders import packed
from pal.embed.encoders.packed import pack

CPU = torch.device("cpu")


def network(dtype: torch.dtype, bias: bool = True) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 48, bias), torch.nn.GELU(), torch.nn.Linear(48, 5, bias)]
    return torch.nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def is_packed(model: torch.nn.Module) -> list[bool]:
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    return ["forward" in part.__dict__ for part in layers]


@pytest.fixture(autouse=True)
def _has_packed_products() -> None:
    """Leave out processors that have none, where everything stays as it is."""
    if not pack(network(torch.float32), CPU):
        pytest.skip("no packed products here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 7, 24), (0, 24), (1500, 24)])
def test_values_are_those_of_plain_layers(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    plain, ours = network(dtype, bias), network(dtype, bias)
    if pack(ours, CPU) == 0:
        pytest.skip(f"no packed products of {dtype} here")
    some = torch.randn(shape, dtype=dtype)
    with torch.inference_mode():
        wanted, found = plain(some), ours(some)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    close = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)


def test_strided_rows_are_read_where_they_lie() -> None:
    plain, ours = network(torch.float32), network(torch.float32)
    pack(ours, CPU)
    some = torch.randn(24, 6, 3).transpose(0, 2)
    with torch.inference_mode():
        torch.testing.assert_close(ours(some), plain(some))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_weights_of_its_own(copied: object) -> None:
    model = network(torch.float32)
    pack(model, CPU)
    some = torch.randn(4, 24)
    with torch.inference_mode():
        wanted = model(some)
        other = copied(model)  # type: ignore[operator]
        model[0].weight.zero_()
        torch.testing.assert_close(other(some), wanted)


def test_a_model_that_was_moved_or_learns_is_computed_plainly() -> None:
    model = network(torch.float32)
    pack(model, CPU)
    some = torch.randn(4, 24)
    with torch.inference_mode():
        wanted = model(some)
    model.double()
    with torch.inference_mode():
        torch.testing.assert_close(model(some.double()).float(), wanted)
    model.float().requires_grad_(True)
    model(some).sum().backward()
    assert model[0].weight.grad is not None


def test_the_state_of_a_model_is_what_it_was() -> None:
    plain, ours = network(torch.float32), network(torch.float32)
    pack(ours, CPU)
    before, after = plain.state_dict(), ours.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    model = network(torch.float32)
    torch.manual_seed(3)
    pack(model, CPU)
    assert torch.equal(torch.rand(1), wanted)


def test_large_models_are_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float32)
    monkeypatch.setattr(packed, "MOST", 1000)
    assert pack(model, CPU) == 0
    assert is_packed(model) == [False, False]


def test_what_a_processor_refuses_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuses)
    model = network(torch.float32)
    assert pack(model, CPU) == 0
    assert is_packed(model) == [False, False]
    assert model(torch.randn(2, 24)).shape == (2, 5)


def test_other_results_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(values: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros(len(values), 48 if values.shape[-1] == 24 else 5)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", wrong)
    assert pack(network(torch.float32), CPU) == 0
