"""Finds what would go wrong before it does."""

import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import psutil
import requests
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement

from spamgpt import settings
from spamgpt.fast.precision import decide
from spamgpt.files import assets
from spamgpt.files.download import CONNECT_SECONDS, connect_seconds
from spamgpt.files.workspace import POCKET, show_path, workspace
from spamgpt.hardware import best_device
from spamgpt.models import base
from spamgpt.models.published import CONFIGS, load_config
from spamgpt.tasks import sms

GB = 1e9
REMEMBERED = "remembered from an earlier run; `python -m spamgpt fetch` tries again"
STALE = "remembered from an earlier run, but"
TRY_AGAIN = "run `python -m spamgpt fetch`, then the notebooks from 01 on"
# GPT-2 124M: its file, the classifier saved, and training it.
NEEDED_DISK, NEEDED_MEMORY = 1.5 * GB, 3 * GB
POCKET_DISK, POCKET_MEMORY = 0.2 * GB, 1 * GB  # training it peaks at 0.65 GB; Jupyter besides


class Check(NamedTuple):
    """One thing that was looked at, and what to do if it is not as it should be."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Everything a learner's machine needs, and what this one has."""
    return [
        _python(),
        _packages(),
        _kernel(),
        _disk(),
        _memory(),
        _device(),
        _proxy(),
        _cache(),
        _base(),
        _data(),
    ]


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


def _kernel() -> Check:
    """Whether Jupyter's kernel "python3", which the notebooks ask for, is this environment."""
    mend = "`jupyter kernelspec remove python3`, then `python -m ipykernel install --sys-prefix`"
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("kernel", False, "Jupyter has no Python kernel here", mend)
    # Jupyter puts its own Python in place of a bare name.
    bare = {"python", "python3", "python{}.{}".format(*sys.version_info)}
    folder = Path(sys.executable).parent
    ok = program in bare or Path(program).parent == folder
    found = "the notebooks run in this environment"
    return Check("kernel", ok, found if ok else f"the notebooks run in {program}", mend)


def _wants_pocket() -> bool:
    return settings.base_name() == "pocket"


def _disk() -> Check:
    folder = workspace()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = POCKET_DISK if _wants_pocket() else NEEDED_DISK
    smaller = "" if _wants_pocket() else ", or set SPAMGPT_BASE=pocket, which needs almost none"
    return Check(
        "disk",
        free >= needed,
        f"{free / GB:.1f} GB free for {show_path(workspace())}/",
        f"free {needed / GB:.1f} GB{smaller}",
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    needed = POCKET_MEMORY if _wants_pocket() else NEEDED_MEMORY
    smaller = "" if _wants_pocket() else ", or set SPAMGPT_BASE=pocket"
    return Check(
        "memory",
        memory.available >= needed,
        f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB available",
        f"close programs until {needed / GB:.0f} GB are available{smaller}",
    )


def _device() -> Check:
    """What computes, and in which precision: as it was decided for the base model's width."""
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = f"{name}, {torch.get_num_threads()} CPU threads"
    known = settings.base_name() in CONFIGS
    config = CONFIGS[settings.base_name()] if known else load_config(POCKET)
    try:
        decided = decide(device, config.n_embd)
    except ValueError as error:
        return Check("device", False, str(error), "unset SPAMGPT_PRECISION")
    found += f"; where nothing is trained: {decided.states}"
    if decided.inference != decided.states:
        found += f", {decided.inference} for labels"
    return Check("device", True, found + (", packed weights" if decided.packed else ""))


def _proxy() -> Check:
    """Whether the proxy that downloads would go through answers."""
    proxies = {
        f"{kind}_proxy": address
        for kind, address in getproxies().items()
        if kind in ("http", "https", "all")
    }
    if not proxies:
        return Check("proxy", True, "none set")
    dead, shown = [], {}
    for name, address in proxies.items():
        parts = urlsplit(address if "://" in address else f"http://{address}")
        shown[name] = f"{name} = {parts.hostname}:{parts.port or 80}"  # without the password
        if not settings.offline() and not _answers(parts.hostname, parts.port or 80):
            dead.append(shown[name])
    found = ", ".join(dead or shown.values()) + (" does not answer" if dead else "")
    return Check("proxy", not dead, found, "correct it, or unset the variable, upper case as well")


def _answers(host: str | None, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _cache() -> Check:
    """Whether the files that were fetched are still what they were."""
    here = [name for name in assets.ASSETS if assets.cached(name).is_file()]
    bad = {}
    for name in here:
        try:
            assets.verify(assets.cached(name), assets.ASSETS[name])
        except (OSError, assets.AssetError) as error:
            bad[name] = str(error)
    found = "; ".join(f"{name}: {problem}" for name, problem in bad.items())
    return Check(
        "cache",
        not bad,
        found or f"{len(here)} fetched files, all as published",
        f"`python -m spamgpt fetch {' '.join(bad)}` gets them again",
    )


def _base() -> Check:
    wanted = settings.base_name()
    fix = "set SPAMGPT_BASE to auto, or connect and run `python -m spamgpt fetch`"
    if wanted not in ("auto", *base.BASE_NAMES):
        return Check("base", False, f"SPAMGPT_BASE={wanted} is not a base model", fix)
    if wanted == "pocket":
        return Check("base", True, "pocket (SPAMGPT_BASE says so)")
    name = "gpt2" if wanted == "auto" else wanted
    needed = {file: _source(file) for file in ("vocab.bpe", "encoder.json", name)}
    missing = [file for file, source in needed.items() if source is None]
    if wanted == "auto" and base.CHOICE.remembered():
        if not missing:
            return Check("base", False, f"pocket, {STALE} GPT-2 can be had now", TRY_AGAIN)
        return Check("base", True, f"pocket ({REMEMBERED})")
    if missing and wanted == "auto":
        return Check("base", True, f"pocket ({', '.join(missing)} cannot be had: no internet?)")
    return Check("base", not missing, f"{name} ({_sources(needed)})", fix)


def _data() -> Check:
    source = _source("sms")
    if sms.CHOICE.remembered():
        if source is not None:
            return Check(
                "data", False, f"bundled sample, {STALE} the collection can be had now", TRY_AGAIN
            )
        return Check("data", True, f"bundled sample ({REMEMBERED})")
    now = "sample" if source is None else "collection"
    if (made_of := _splits()) not in (None, now):
        old, new = sms.TASK.data_names[made_of], sms.TASK.data_names[now]
        found = f"{new}, but the saved splits were made of the {old}"
        return Check("data", False, found, "run the notebooks from 01 on")
    if source is None:
        return Check("data", True, "bundled sample (the collection cannot be had: no internet?)")
    return Check("data", True, f"SMS Spam Collection ({source})")


def _splits() -> str | None:
    """What the saved splits were made of, if there are any that can be read."""
    try:
        made_of = sms.TASK.split_source()
    except (OSError, ValueError, KeyError):
        return None
    return made_of if made_of in sms.TASK.data_names else None


def _source(name: str) -> str | None:
    """Where `fetch(name)` would find the file, or None."""
    if assets.cached(name).is_file():
        return "in the cache"
    if assets.available(name):
        return "in the mirror"
    for url in assets.addresses(name):
        try:
            requests.head(url, timeout=connect_seconds(url)).raise_for_status()
            return "to be downloaded"
        except requests.RequestException:
            continue
    return None


def _sources(needed: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {source or 'cannot be had'}" for name, source in needed.items())
