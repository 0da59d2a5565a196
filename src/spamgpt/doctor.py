"""Finds what would go wrong before it does."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

import psutil
import requests
import torch
from packaging.requirements import Requirement

from spamgpt import assets
from spamgpt.hardware import best_device, bf16_pays
from spamgpt.pretrained import BASE_NAMES
from spamgpt.workspace import show_path, workspace

GB = 1e9
REMEMBERED = "remembered from an earlier run; `python -m spamgpt fetch` tries again"
NEEDED_DISK, NEEDED_MEMORY = 1.5 * GB, 3 * GB  # GPT-2 124M: the file, and training it


class Check(NamedTuple):
    """One thing that was looked at, and what to do if it is not as it should be."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Everything a learner's machine needs, and what this one has."""
    return [_python(), _packages(), _disk(), _memory(), _device(), _base(), _data()]


def _python() -> Check:
    found = f"Python {sys.version.split()[0]}"
    return Check("python", sys.version_info >= (3, 10), found, "install Python 3.10 or newer")


def _packages() -> Check:
    wrong, n = [], 0
    for line in requires("spamgpt") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        n += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, needed {requirement.specifier}")
    found = "; ".join(wrong) or f"{n} packages, torch {torch.__version__}"
    return Check("packages", not wrong, found, "pip install -r requirements.txt")


def _disk() -> Check:
    folder = workspace()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check(
        "disk",
        free >= NEEDED_DISK,
        f"{free / GB:.1f} GB free for {show_path(workspace())}/",
        f"free {NEEDED_DISK / GB:.1f} GB, or set SPAMGPT_BASE=pocket, which needs almost none",
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    return Check(
        "memory",
        memory.available >= NEEDED_MEMORY,
        f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB available",
        f"close programs until {NEEDED_MEMORY / GB:.0f} GB are available, "
        "or set SPAMGPT_BASE=pocket",
    )


def _device() -> Check:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = "bf16 where nothing is trained" if bf16_pays(device) else "fp32"
    return Check("device", True, f"{name}, {torch.get_num_threads()} CPU threads, {precision}")


def _base() -> Check:
    wanted = os.environ.get("SPAMGPT_BASE") or "auto"
    fix = "set SPAMGPT_BASE to auto, or connect and run `python -m spamgpt fetch`"
    if wanted not in ("auto", *BASE_NAMES):
        return Check("base", False, f"SPAMGPT_BASE={wanted} is not a base model", fix)
    if wanted == "pocket":
        return Check("base", True, "pocket (SPAMGPT_BASE says so)")
    name = "gpt2" if wanted == "auto" else wanted
    if wanted == "auto" and assets.why_stand_in("base", "pocket", "gpt2"):
        return Check("base", True, f"pocket ({REMEMBERED})")
    needed = {file: _source(file) for file in ("vocab.bpe", "encoder.json", name)}
    missing = [file for file, source in needed.items() if source is None]
    if missing and wanted == "auto":
        return Check("base", True, f"pocket ({', '.join(missing)} cannot be had: no internet?)")
    return Check("base", not missing, f"{name} ({_sources(needed)})", fix)


def _data() -> Check:
    if assets.why_stand_in("data", "sample", "sms"):
        return Check("data", True, f"bundled sample ({REMEMBERED})")
    source = _source("sms")
    if source is None:
        return Check("data", True, "bundled sample (the collection cannot be had: no internet?)")
    return Check("data", True, f"SMS Spam Collection ({source})")


def _source(name: str) -> str | None:
    """Where `fetch(name)` would find the file, or None."""
    if assets.cached(name).is_file():
        return "in the cache"
    if assets.available(name):
        return "in the mirror"
    for url in assets.addresses(name):
        try:
            requests.head(url, timeout=assets.CONNECT_SECONDS).raise_for_status()
            return "to be downloaded"
        except requests.RequestException:
            continue
    return None


def _sources(needed: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {source or 'cannot be had'}" for name, source in needed.items())
