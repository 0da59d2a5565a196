"""What this machine computes on, and how it multiplies fastest where nothing is trained."""

import platform
import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def best_device() -> torch.device:
    """The GPU if there is one that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def product(
    layer: nn.Linear, dtype: torch.dtype, packed: bool, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """What `layer` computes, (..., in) -> (..., out), and GELU after it, without gradients.

    Multiplies in `dtype` and returns it. `packed` lays the weights out once as oneDNN, the
    library that multiplies on a CPU, wants them (torch does it anew for each product), and has
    GELU computed before a result leaves the processor's registers.

    Source: torch.compile calls the same two operators. They are not part of torch's documented
    interface, so ask `packing_pays` before.
    """
    weight, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    if packed:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        then = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, *then)
    if gelu:
        return lambda x: F.gelu(F.linear(x.to(dtype), weight, bias), approximate="tanh")
    return lambda x: F.linear(x.to(dtype), weight, bias)


@lru_cache
def packing_pays() -> bool:
    """Whether `product` can pack weights here, gets the same result and is no slower so.

    Tried and measured, not looked up (a tenth of a second).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # elsewhere other libraries multiply
    layer, x = _sample()
    plain = product(layer, torch.float32, packed=False, gelu=True)
    try:
        packed = product(layer, torch.float32, packed=True, gelu=True)
        same = torch.allclose(packed(x), plain(x), atol=1e-4)
    except (AttributeError, RuntimeError):  # a torch without these operators
        return False
    return same and shortest_seconds(packed, x) <= shortest_seconds(plain, x)


@lru_cache
def bf16_pays(device: torch.device) -> bool:
    """Whether this machine multiplies matrices in bf16 at least 1.5 times as fast as in fp32.

    Measured, not looked up (a tenth of a second): many CPUs accept bf16 and emulate it slowly.
    """
    if device.type == "mps":
        return False  # it gains little there and differs between versions of macOS
    packed = device.type == "cpu" and packing_pays()
    layer, x = (part.to(device) for part in _sample())
    bf16, fp32 = (product(layer, dtype, packed) for dtype in (torch.bfloat16, torch.float32))
    return shortest_seconds(bf16, x) * 1.5 < shortest_seconds(fp32, x)


def _sample() -> tuple[nn.Linear, Tensor]:
    """A layer of GPT-2's size and rows for it."""
    with torch.random.fork_rng(devices=[]):  # a training's next random numbers stay what they were
        return nn.Linear(768, 3072), torch.randn(128, 768)


def shortest_seconds(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest of ten calls of f(x), after one to warm up: other programs disturb."""
    times = []
    with torch.no_grad():
        for _ in range(11):
            began = time.perf_counter()
            f(x)[0, 0].item()  # item() waits for a GPU
            times.append(time.perf_counter() - began)
    return min(times[1:])
