"""The choice of device, what a container leaves of memory and CPUs, and the clock."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from spamgpt import hardware


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_gpu_comes_first(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert hardware.best_device().type == expected


def test_a_gpu_is_given_more_at_a_time():
    assert hardware.tokens_per_batch(torch.device("cpu")) == 1024
    assert hardware.tokens_per_batch(torch.device("cuda")) > 1024


def test_a_real_measurement_gives_seconds():
    matrix = torch.ones(8, 8)
    assert 0 < hardware.shortest_seconds(lambda x: x @ x, matrix) < 60


def test_the_shortest_of_ten_calls_counts_and_the_first_of_all_does_not(monkeypatch):
    """Each call takes as many seconds as it says: warming up, nothing; later, at least two."""
    clock, took = [0.0], iter([0, 9, 8, 7, 6, 2, 3, 4, 5, 6, 7])

    def f(x):
        clock[0] += next(took)
        return x

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    assert hardware.shortest_seconds(f, torch.ones(1, 1)) == 2
    assert next(took, None) is None


# --- memory and CPUs ------------------------------------------------------------------

GB = 10**9
NO_LIMIT = 9223372036854771712  # as version 1 writes it


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """A machine of 64 GB, 40 GB of them available, and of 16 CPUs."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine)
    monkeypatch.setattr(psutil, "Process", lambda: Machine)


Machine = SimpleNamespace(available=40 * GB, total=64 * GB, cpu_affinity=lambda: list(range(16)))


@pytest.fixture
def system(tmp_path):
    """system(groups, files) is the root of files as Linux shows them to a process."""

    def make(groups, files):
        files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        for name, text in {"proc/self/cgroup": groups, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return make


def stat(total="", **kinds):
    """memory.stat; version 1 lists a group's own numbers, and with total_ those of all below."""
    rows = [("anon", 1), ("total_inactive_anon", 1)] + [
        (f"{total}{k}", n) for k, n in kinds.items()
    ]
    return "\n".join(f"{name} {n}" for name, n in rows)


def test_without_limits_the_machine_counts(tmp_path, system):
    assert hardware.memory(tmp_path) == (40 * GB, 64 * GB)  # no Linux
    assert hardware.cpus(tmp_path) == 16
    files = {"a/memory.max": "max", "a/memory.current": 3 * GB, "a/cpu.max": "max 100000"}
    root = system("0::/a", files)
    assert hardware.memory(root) == (40 * GB, 64 * GB)
    assert hardware.cpus(root) == 16


def test_this_very_machine_gives_sensible_numbers(monkeypatch):
    monkeypatch.undo()
    available, total = hardware.memory()
    assert 10**7 < available <= total <= psutil.virtual_memory().total
    assert 1 <= hardware.cpus() <= os.cpu_count()


@pytest.mark.parametrize("top", ["", "unified/"])  # alone, and beside version 1
def test_version_2_counts_what_is_used_but_not_what_only_caches_files(system, top):
    files = {
        "a/b/memory.max": 2 * GB,
        "a/b/memory.current": 1_500_000_000,
        "a/b/memory.stat": stat(active_file=100_000_000, inactive_file=300_000_000),
    }
    root = system("0::/a/b", {top + name: text for name, text in files.items()})
    assert hardware.memory(root) == (900_000_000, 2 * GB)


def test_version_1_counts_what_is_used_but_not_what_only_caches_files(system):
    files = {
        "memory/docker/x/memory.limit_in_bytes": 700_000_000,
        "memory/docker/x/memory.usage_in_bytes": 500_000_000,
        "memory/docker/x/memory.stat": stat("total_", active_file=30_000_000, inactive_file=0)
        + "\nactive_file 7\ninactive_file 7",
        "memory/memory.limit_in_bytes": NO_LIMIT,
        "memory/memory.usage_in_bytes": 20 * GB,
    }
    root = system("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/", files)
    assert hardware.memory(root) == (230_000_000, 700_000_000)


@pytest.mark.parametrize("lowest", ["a", "a/b", "a/b/c"])
def test_the_lowest_limit_up_the_tree_counts(system, lowest):
    files = {}
    for folder in ("a", "a/b", "a/b/c"):
        files[f"{folder}/memory.max"] = (1 if folder == lowest else 5) * GB
        files[f"{folder}/memory.current"] = GB // 4
        files[f"{folder}/cpu.max"] = "200000 100000" if folder == lowest else "700000 100000"
    root = system("0::/a/b/c", files)
    assert hardware.memory(root) == (GB - GB // 4, GB)
    assert hardware.cpus(root) == 2


def test_a_full_group_up_the_tree_leaves_nothing_however_high_the_own_limit_is(system):
    files = {"a/memory.max": 5 * GB, "a/memory.current": 5 * GB + 1, "a/b/memory.max": GB}
    assert hardware.memory(system("0::/a/b", files | {"a/b/memory.current": 0})) == (0, GB)


@pytest.mark.parametrize("path", ["/", "/docker/abc", "/../..", "/kubepods.slice/pod x/y"])
def test_inside_a_container_the_top_of_what_can_be_seen_is_the_containers_group(system, path):
    """The path is the host's, or one from the container's on."""
    old = {
        "memory/memory.limit_in_bytes": 3 * GB,
        "memory/memory.usage_in_bytes": GB,
        "cpu,cpuacct/cpu.cfs_quota_us": 150_000,
        "cpu,cpuacct/cpu.cfs_period_us": 50_000,
    }
    root = system(f"7:memory:{path}\n3:cpu,cpuacct:{path}", old)
    assert (hardware.memory(root), hardware.cpus(root)) == ((2 * GB, 3 * GB), 3)
    new = {"memory.max": 2 * GB, "memory.current": GB, "cpu.max": "400000 100000"}
    root = system(f"0::{path}", new)
    assert (hardware.memory(root), hardware.cpus(root)) == ((GB, 2 * GB), 4)


@pytest.mark.parametrize(
    "quota, expected", [("50000 100000", 1), ("150000 100000", 2), ("1000 100000", 1), ("", 16)]
)
def test_a_part_of_a_cpu_counts_as_one(system, quota, expected):
    assert hardware.cpus(system("0::/a", {"a/cpu.max": quota})) == expected


def test_without_a_quota_version_1_says_minus_one(system):
    files = {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000}
    assert hardware.cpus(system("1:cpu:/", files)) == 16


def test_the_affinity_counts_where_it_is_lower_than_the_quota(system, monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: [3, 7, 9]))
    assert hardware.cpus(system("0::/a", {"a/cpu.max": "800000 100000"})) == 3
    monkeypatch.setattr(psutil, "Process", SimpleNamespace)  # macOS knows none
    monkeypatch.setattr(psutil, "cpu_count", lambda: 6)
    assert hardware.cpus(system("0::/a", {"a/cpu.max": "800000 100000"})) == 6


def test_a_limit_higher_than_the_machine_is_none(system):
    files = {"a/memory.max": 500 * GB, "a/memory.current": GB, "a/cpu.max": "6400000 100000"}
    root = system("0::/a", files)
    assert (hardware.memory(root), hardware.cpus(root)) == ((40 * GB, 64 * GB), 16)


@pytest.mark.parametrize("given, available, expected", [(8, 2, 2), (2, 8, 2), (1, 4, 1), (4, 1, 1)])
def test_torch_gets_no_more_threads_than_cpus_and_never_more_than_the_user_said(
    given, available, expected
):
    """In a process of its own: this is done once, when the module is imported."""
    script = f"""
import psutil, torch
torch.set_num_threads({given})  # as OMP_NUM_THREADS does
psutil.Process.cpu_affinity = lambda self: list(range({available}))
import spamgpt.hardware
print(torch.get_num_threads())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) == expected


@pytest.mark.parametrize("module", ["models.base", "saving"])
def test_who_has_a_model_has_limited_threads(module):
    """A base model comes from the one, a classifier from the other."""
    script = f"import sys, spamgpt.{module}\nprint('spamgpt.hardware' in sys.modules)"
    call = [sys.executable, "-c", script]
    assert subprocess.run(call, capture_output=True, text=True).stdout == "True\n"


LIBRARIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("name, ours", LIBRARIES.items())
@pytest.mark.parametrize("said", [None, "64"])
def test_libraries_are_bounded_unless_the_user_says_otherwise(name, ours, said):
    """In a process of its own, before torch is there: they read it once.

    By the first a stream of messages stays flat; by the second a training beside another program
    takes twice as long, not ten times.
    """
    environment = {k: v for k, v in os.environ.items() if k != name} | (
        {name: said} if said else {}
    )
    script = f"import os, sys, spamgpt; print(os.environ[{name!r}], 'torch' in sys.modules)"
    call = [sys.executable, "-c", script]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [said or ours, "False"]
