"""The choice of device, precision and layout of weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from spamgpt import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    measured = (hardware.bf16_pays, hardware.packing_pays)  # a test may put others in their place
    for function in measured:
        function.cache_clear()
    yield
    for function in measured:
        function.cache_clear()


@pytest.mark.parametrize(("bf16_seconds", "pays"), [(0.5, True), (0.9, False), (3.0, False)])
def test_bf16_is_used_only_where_it_is_clearly_faster(monkeypatch, bf16_seconds, pays):
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 1.0}
    monkeypatch.setattr(hardware, "shortest_seconds", lambda f, x: seconds[f(x).dtype])
    assert hardware.bf16_pays(CPU) is pays


def test_the_measurement_is_made_once(monkeypatch):
    calls = []
    monkeypatch.setattr(hardware, "packing_pays", lambda: False)
    monkeypatch.setattr(hardware, "shortest_seconds", lambda f, x: calls.append(x) or 1.0)
    hardware.bf16_pays(CPU)
    hardware.bf16_pays(CPU)
    assert len(calls) == 2  # one for each precision


@pytest.mark.parametrize("measure", ["packing_pays", "bf16_pays"])
def test_measuring_leaves_the_random_numbers_of_a_training_alone(measure):
    before = torch.random.get_rng_state()
    hardware.bf16_pays(CPU) if measure == "bf16_pays" else hardware.packing_pays()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_real_measurement_gives_seconds():
    matrix = torch.ones(8, 8)
    assert 0 < hardware.shortest_seconds(lambda x: x @ x, matrix) < 60


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_product_is_what_the_layer_computes(dtype, near, packed, gelu):
    if packed and not hardware.packing_pays():
        pytest.skip("this machine does not pack weights")
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 64), torch.randn(5, 48)
    expected = F.gelu(layer(x), approximate="tanh") if gelu else layer(x)
    result = hardware.product(layer, dtype, packed, gelu)(x)
    assert result.dtype == dtype
    assert not result.requires_grad
    assert_close(result.float(), expected.detach(), atol=near, rtol=near)


def test_packing_is_not_used_where_it_is_slower(monkeypatch):
    seconds = iter([2.0, 1.0])  # packed, plain
    monkeypatch.setattr(hardware, "shortest_seconds", lambda f, x: next(seconds))
    assert hardware.packing_pays() is False


def test_packing_is_for_one_kind_of_processor(monkeypatch):
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    assert hardware.packing_pays() is False


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_packing_is_not_used_where_torch_cannot(monkeypatch, error):
    plain = hardware.product

    def without(layer, dtype, packed, gelu=False):
        if packed:
            raise error("no such operator")
        return plain(layer, dtype, packed, gelu)

    monkeypatch.setattr(hardware, "product", without)
    assert hardware.packing_pays() is False


def test_packing_is_not_used_where_its_result_is_another(monkeypatch):
    plain = hardware.product
    monkeypatch.setattr(
        hardware,
        "product",
        lambda *args, packed, **kw: lambda x: plain(*args, packed=False, **kw)(x) + packed,
    )
    assert hardware.packing_pays() is False


def test_the_gpu_comes_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.best_device().type == "cuda"
