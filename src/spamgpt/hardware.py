"""What this machine computes on, how much of it this process may use, and how long things take.

Importing this module limits torch to the CPUs that this process may use (`cpus`). In a container
that is given two of 64 CPUs, torch would start 64 threads, which then wait for each other. The
number is only ever lowered: OMP_NUM_THREADS still counts, and so does a call of
torch.set_num_threads after the import.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

ROOT = Path("/")


class Memory(NamedTuple):
    """Bytes that this process can still get, and bytes that there are in all."""

    available: int
    total: int


def memory(root: Path = ROOT) -> Memory:
    """The memory of the machine or, where that is less, of the container."""
    machine = psutil.virtual_memory()
    available, total = machine.available, machine.total
    for group in _control_groups("memory", root):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if not (limit and used and limit[0].isdecimal()):  # "max": no limit
            continue
        # Files that are only cached make room when memory is short.
        words = _words(group / "memory.stat")
        stat = dict(zip(words[::2], words[1::2], strict=False))
        cached = sum(
            int(stat.get(f"total_{kind}_file") or stat.get(f"{kind}_file", 0))
            for kind in ("active", "inactive")
        )
        total = min(total, int(limit[0]))
        available = min(available, int(limit[0]) - int(used[0]) + cached)
    return Memory(max(0, min(available, total)), total)


def cpus(root: Path = ROOT) -> int:
    """How many CPUs this process may keep busy; a part of one counts as one."""
    process = psutil.Process()
    affinity = process.cpu_affinity() if hasattr(process, "cpu_affinity") else []  # not on macOS
    fewest = len(affinity) or psutil.cpu_count() or 1
    for group in _control_groups("cpu", root):
        share = _words(group / "cpu.max") or [
            word for name in ("quota", "period") for word in _words(group / f"cpu.cfs_{name}_us")
        ]
        if len(share) == 2 and all(word.isdecimal() for word in share):  # "max" or -1: no limit
            fewest = min(fewest, math.ceil(int(share[0]) / int(share[1])))
    return max(1, fewest)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups above this process; not all of them need exist.

    Both versions of Linux's control groups, https://docs.kernel.org/admin-guide/cgroup-v2.html
    and https://docs.kernel.org/admin-guide/cgroup-v1/: the lowest limit up the tree counts.
    Inside a container, the container's group is usually the top of the tree that can be seen.
    """
    top = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        # such as 0::/a/b (version 2) or 4:cpu,cpuacct:/a/b (version 1)
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [top, top / "unified"]
        elif controller in controllers.split(","):
            mounts = [top / controllers, top / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            yield from (mount.joinpath(*parts[:n]) for n in range(len(parts) + 1))


def _text(path: Path) -> str:
    """The content of a file, nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


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


if cpus() < torch.get_num_threads():
    torch.set_num_threads(cpus())
