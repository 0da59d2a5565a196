"""What this machine computes on, and how long it takes."""

import time
from collections.abc import Callable

import torch
from torch import Tensor


def best_device() -> torch.device:
    """The GPU if there is one that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def tokens_per_batch(device: torch.device) -> int:
    """How many tokens to compute together where nothing is trained.

    A CPU is fastest while a batch's intermediate results stay in its cache.
    """
    return 1024 if device.type == "cpu" else 16384


def shortest_seconds(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest of ten calls of f(x), after one to warm up: other programs disturb."""
    times = []
    with torch.no_grad():
        for _ in range(11):
            began = time.perf_counter()
            f(x)[0, 0].item()  # item() waits for a GPU
            times.append(time.perf_counter() - began)
    return min(times[1:])
