"""Inference linear: what a linear layer computes, without gradients, as fast as this CPU can.

torch.compile calls the same oneDNN operators. They are not part of torch's documented
interface, so ask `can_pack` and `can_int8` before.
"""

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ZERO = 128  # the byte that means 0


def inference_linear(
    layer: nn.Linear, precision: str, packed: bool, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """What `layer` computes, (..., in) -> (..., out), and GELU after it, without gradients.

    Multiplies in `precision`. `packed` lays the weights out once as oneDNN, the library that
    multiplies on a CPU, wants them (torch does it for each product), and has GELU computed
    before a result leaves the processor's registers; int8 is always packed.
    """
    if precision == "int8":
        return _int8_linear(layer, gelu)
    dtype = DTYPES[precision]
    weight, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    if packed:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        then = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, *then)
    if gelu:
        return lambda x: F.gelu(F.linear(x.to(dtype), weight, bias), approximate="tanh")
    return lambda x: F.linear(x.to(dtype), weight, bias)


def _int8_linear(layer: nn.Linear, gelu: bool) -> Callable[[Tensor], Tensor]:
    """`inference_linear` in int8: fp32 rows are rounded to bytes, products summed in int32.

    Weights have a step for each output, rows one each: what is large in one message spoils no
    other. With GELU all rows share a step, so that it can be computed in the registers.
    Rows have to be unsigned: for signed ones oneDNN has no fast kernel.
    """
    weight, bias = layer.weight.detach(), layer.bias.detach()
    steps = weight.abs().amax(dim=1).clamp_min(1e-12) / 127  # (out,)
    rounded = (weight / steps[:, None]).round_().to(torch.int8)
    rounded = torch.ops.onednn.qlinear_prepack(rounded, None)
    zeros = torch.zeros(len(steps), dtype=torch.int32)

    def multiply(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        step = torch.maximum(rows.amax(1, True), -rows.amin(1, True)).clamp_min_(1e-12) / 127
        if gelu:
            step = step.max()
        # By way of int8, since torch converts to uint8 several times as slowly.
        whole = (rows * step.reciprocal()).round_().to(torch.int8)
        whole = whole.view(torch.uint8).bitwise_xor_(ZERO)
        scale, shift, then = (step.item(), bias, "gelu") if gelu else (1.0, None, "none")
        y = torch.ops.onednn.qlinear_pointwise(
            *(whole, scale, ZERO), *(rounded, steps, zeros), shift, 1.0, 0, torch.float32,
            *(then, [], "tanh" if gelu else ""),
        )  # fmt: skip
        return (y if gelu else y.mul_(step).add_(bias)).view(*x.shape[:-1], -1)

    return multiply


def can_pack(layer: nn.Linear, x: Tensor) -> bool:
    """Whether `inference_linear` can pack weights here and gets the same result; tried out."""
    return _agrees(layer, x, "fp32", tolerance=1e-5)


def can_int8(layer: nn.Linear, x: Tensor) -> bool:
    """Whether `inference_linear` can multiply in int8 here, and sums without overflow."""
    largest = nn.Linear(layer.in_features, 16)  # CPUs without VNNI add pairs in 16 bits
    nn.init.ones_(largest.weight)
    return _agrees(layer, x, "int8", 0.05) and _agrees(largest, x.abs().clamp(1), "int8", 0.05)


@torch.no_grad()
def _agrees(layer: nn.Linear, x: Tensor, precision: str, tolerance: float) -> bool:
    """Whether packed products of eight rows are those of torch, but for rounding."""
    if x.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # elsewhere other libraries multiply
    exact = F.gelu(layer(x[:8]), approximate="tanh")
    try:
        found = inference_linear(layer, precision, packed=True, gelu=True)(x[:8])
    except (AttributeError, RuntimeError):  # a torch or a CPU without these operators
        return False
    return bool((found - exact).norm() <= tolerance * exact.norm())
