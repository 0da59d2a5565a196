"""Inference linear: what a linear layer computes, without gradients, as fast as this CPU can."""

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def inference_linear(
    layer: nn.Linear, precision: str, packed: bool, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """What `layer` computes, (..., in) -> (..., out), and GELU after it, without gradients.

    Multiplies in `precision` and returns it. `packed` lays the weights out once as oneDNN, the
    library that multiplies on a CPU, wants them (torch does it for each product), and has
    GELU computed before a result leaves the processor's registers.

    Source: torch.compile calls the same two operators. They are not part of torch's documented
    interface, so ask `can_pack` before.
    """
    dtype = DTYPES[precision]
    weight, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    if packed:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        then = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, *then)
    if gelu:
        return lambda x: F.gelu(F.linear(x.to(dtype), weight, bias), approximate="tanh")
    return lambda x: F.linear(x.to(dtype), weight, bias)


def can_pack(layer: nn.Linear, x: Tensor) -> bool:
    """Whether `inference_linear` can pack weights here and gets the same result; tried out."""
    if x.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # elsewhere other libraries multiply
    plain = inference_linear(layer, "fp32", packed=False, gelu=True)
    try:
        packed = inference_linear(layer, "fp32", packed=True, gelu=True)
        return torch.allclose(packed(x), plain(x), atol=1e-4)
    except (AttributeError, RuntimeError):  # a torch without these operators
        return False
