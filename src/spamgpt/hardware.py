"""What this machine computes on, and in which precision."""

import time
from functools import lru_cache

import torch
from torch import Tensor


def best_device() -> torch.device:
    """The GPU if there is one that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@lru_cache
def bf16_pays(device: torch.device) -> bool:
    """Whether this machine multiplies matrices in bf16 at least 1.5 times as fast as in fp32.

    Measured, not looked up (a quarter of a second): many CPUs accept bf16 and emulate it slowly.
    """
    if device.type == "mps":
        return False  # its autocast gains little and differs between versions of macOS
    fp32 = [torch.randn(shape, device=device) for shape in ((512, 768), (768, 3072))]
    bf16 = [matrix.to(torch.bfloat16) for matrix in fp32]
    return _seconds(*bf16) * 1.5 < _seconds(*fp32)


def _seconds(a: Tensor, b: Tensor) -> float:
    """The shortest of twenty matrix products, after one to warm up: other programs disturb."""
    times = []
    for _ in range(21):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # item() waits for a GPU
        times.append(time.perf_counter() - began)
    return min(times[1:])
