"""An inference linear gives what the layer gives, in the precision and layout asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from spamgpt import settings
from spamgpt.fast import products
from spamgpt.fast.products import DTYPES, can_int8, can_pack, inference_linear


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(48, 64)


@pytest.fixture
def x():
    return torch.randn(5, 48, generator=torch.Generator().manual_seed(1))


def gelu(x):
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision, near", [("fp32", 1e-5), ("bf16", 0.02), ("int8", 0.03)])
def test_a_product_is_what_the_layer_computes(precision, near, packed, then, layer, x):
    if (packed and not can_pack(layer, x)) or (precision == "int8" and not can_int8(layer, x)):
        pytest.skip("this machine cannot")
    expected = gelu(layer(x)) if then else layer(x)
    for shape in ((5, 48), (5, 1, 48), (1, 5, 48)):
        result = inference_linear(layer, precision, packed, then)(x.view(shape))
        assert result.dtype == DTYPES.get(precision, torch.float32)  # sums of int8 are
        assert result.shape == (*shape[:-1], 64)
        assert not result.requires_grad
        assert_close(result.float().view(5, 64), expected.detach(), atol=near, rtol=near)


def test_every_precision_that_may_be_asked_for_exists():
    assert set(settings.PRECISIONS) == {*DTYPES, "int8"}


def test_in_int8_a_large_row_spoils_no_other(layer, x):
    if not can_int8(layer, x):
        pytest.skip("this machine does not multiply in int8")
    multiply, large = inference_linear(layer, "int8", packed=True), x.clone()
    large[0] *= 1e4
    assert torch.equal(multiply(large)[1:], multiply(x)[1:])
    assert torch.isfinite(multiply(torch.zeros(2, 48))).all()


def test_packed_weights_are_laid_out_once(layer, x, monkeypatch):
    if not can_pack(layer, x):
        pytest.skip("this machine does not pack weights")
    laid_out, ops = [], torch.ops.mkldnn
    reorder = ops._reorder_linear_weight
    monkeypatch.setattr(
        ops, "_reorder_linear_weight", lambda weight: laid_out.append(1) or reorder(weight)
    )
    multiply = inference_linear(layer, "fp32", packed=True)
    for _ in range(3):
        multiply(x)
    assert len(laid_out) == 1
    inference_linear(layer, "fp32", packed=False)(x)
    assert len(laid_out) == 1


# --- whether a machine can ------------------------------------------------------------

CAN = [can_pack, can_int8]


def exactly(layer, precision, packed, gelu=False):
    return inference_linear(layer, "fp32", packed=False, gelu=gelu)


@pytest.mark.parametrize("can", CAN)
@pytest.mark.parametrize("machine, may", [("arm64", False), ("x86_64", True), ("AMD64", True)])
def test_packing_is_for_one_kind_of_processor(machine, may, can, layer, x, monkeypatch):
    monkeypatch.setattr(products.platform, "machine", lambda: machine)
    monkeypatch.setattr(products, "inference_linear", exactly)
    assert can(layer, x) is may


@pytest.mark.parametrize("can", CAN)
@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_packing_is_not_used_where_torch_cannot(error, can, layer, x, monkeypatch):
    def without(layer, precision, packed, gelu=False):
        raise error("no such operator")

    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products, "inference_linear", without)
    assert can(layer, x) is False


@pytest.mark.parametrize("can", CAN)
def test_packing_is_not_used_where_its_result_is_another(can, layer, x, monkeypatch):
    def other(layer, precision, packed, gelu=False):
        return lambda x: exactly(layer, precision, packed, gelu)(x) + 1

    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products, "inference_linear", other)
    assert can(layer, x) is False


def test_int8_is_not_used_where_large_sums_overflow(layer, x, monkeypatch):
    """As on processors that add pairs of products in 16 bits."""

    def saturating(layer, precision, packed, gelu=False):
        return lambda x: exactly(layer, precision, packed, gelu)(x).clamp(max=4)

    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products, "inference_linear", saturating)
    assert can_pack(layer, x)
    assert can_int8(layer, x) is False
