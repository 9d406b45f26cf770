"""Linear layers with packed weights compute what plain ones do, wherever the model goes."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch

from pal.embed.encoders import packed
from pal.embed.encoders.packed import PackedLinear, pack

CPU = torch.device("cpu")


def network(dtype: torch.dtype, bias: bool = True) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 48, bias), torch.nn.GELU(), torch.nn.Linear(48, 5, bias)]
    return torch.nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def is_packed(model: torch.nn.Module) -> list[bool]:
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    return [isinstance(part, PackedLinear) for part in layers]


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
    outside = copied(model)  # type: ignore[operator]
    with torch.inference_mode():
        wanted = model(some)
        within = copied(model)  # type: ignore[operator]
        model[0].weight.zero_()
        for other in (outside, within):
            torch.testing.assert_close(other(some), wanted)
        assert outside[0].packed is not None


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


def add_one(layer: torch.nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.add_(1)


def add_one_within(layer: torch.nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight.add_(1)


def load_one_more(layer: torch.nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def give_one_more(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight + 1, requires_grad=False)


def lay_elsewhere(layer: torch.nn.Linear) -> None:
    layer.weight.data = layer.weight.data + 1


def round_and_back(layer: torch.nn.Linear) -> None:
    layer.half().float()


def train_a_step(layer: torch.nn.Linear) -> None:
    layer.requires_grad_(True)
    layer(torch.ones(2, layer.in_features)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


CHANGES = [
    add_one, add_one_within, load_one_more, give_one_more, lay_elsewhere, round_and_back,
    train_a_step,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_those_that_are_used(
    change: Callable[[torch.nn.Linear], None],
) -> None:
    plain, ours = network(torch.float32), network(torch.float32)
    pack(ours, CPU)
    some = torch.randn(4, 24)
    with torch.no_grad():
        before = ours(some)
    for model in (plain, ours):
        change(model[0])  # type: ignore[arg-type]
    with torch.no_grad():
        wanted, found = plain(some), ours(some)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, before)


def test_weights_of_a_call_alone_are_used_for_it() -> None:
    model, some = network(torch.float32), torch.randn(4, 24)
    pack(model, CPU)
    other = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert not torch.func.functional_call(model, other, (some,)).any()
        assert model(some).any()


def test_autocast_of_somebody_else_means_what_it_does_to_a_plain_layer() -> None:
    plain, ours = network(torch.float32), network(torch.float32)
    pack(ours, CPU)
    some = torch.randn(4, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(some), plain(some))
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        ours(some.double())


def test_a_recording_of_a_model_holds_plain_weights() -> None:
    model, some = network(torch.float32), torch.randn(4, 24)
    pack(model, CPU)
    with torch.no_grad():
        found = torch.export.export(model, (some,)).graph
    assert not any("mkldnn" in str(node.target) for node in found.nodes)


def test_a_model_ends_with_its_last_name() -> None:
    model = network(torch.float32)
    pack(model, CPU)
    left = weakref.ref(model[0].weight)
    del model
    assert left() is None  # before any collection of garbage: nothing refers to itself


def test_a_forward_pass_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = network(torch.float32), []
    plain = model[0].forward
    model[0].forward = lambda some: calls.append(1) or plain(some)  # type: ignore[assignment]
    assert pack(model, CPU) == 1
    assert is_packed(model) == [False, True]
    with torch.inference_mode():
        model(torch.randn(2, 24))
    assert calls


def test_odd_weights_stay_as_they_are() -> None:
    class Quantised(torch.Tensor):
        """What libraries of quantised weights put into plain linear layers."""

    model = network(torch.float32)
    weight = model[0].weight.as_subclass(Quantised)  # type: ignore[union-attr, arg-type]
    model[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    nothing = torch.nn.Linear(3, 3, bias=False)
    nothing.weight = torch.nn.Parameter(torch.zeros(0, 3))
    with torch.device("meta"):
        elsewhere = torch.nn.Linear(3, 3)
    with torch.inference_mode():
        uncounted = torch.nn.Linear(3, 3)  # torch does not count how often it is changed
    for odd in (nothing, elsewhere, uncounted):
        assert pack(torch.nn.Sequential(odd), CPU) == 0
    assert pack(model, CPU) == 1
    assert is_packed(model) == [False, True]


def test_packing_twice_packs_once() -> None:
    model = network(torch.float32)
    assert pack(model, CPU) == 2
    kept = model[0].packed
    assert pack(model, CPU) == 0
    assert model[0].packed is kept


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


def test_small_machines_hold_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float32)
    size = sum(layer.weight.nbytes for layer in (model[0], model[2]))  # type: ignore[union-attr]
    for memory, count in ((4 * size - 1, 0), (4 * size, 2)):
        monkeypatch.setattr(packed, "memory_of", lambda device, memory=memory: memory)
        assert pack(model, CPU) == count


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
