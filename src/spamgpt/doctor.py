"""Finds what would go wrong before it does."""

import hashlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple
from urllib.request import getproxies

import psutil
import requests
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement

from spamgpt import settings
from spamgpt.fast.precision import decide
from spamgpt.files import assets
from spamgpt.files.download import (
    CONNECT_SECONDS,
    DownloadError,
    check_way,
    connect_seconds,
    read_proxy,
    reason_of,
    trusted,
)
from spamgpt.files.wheels import is_offered
from spamgpt.files.workspace import (
    BUNDLED,
    POCKET,
    WorkspaceError,
    check_writable,
    show_path,
    workspace,
)
from spamgpt.hardware import best_device, cpus, memory
from spamgpt.models import base
from spamgpt.models.gpt2 import GPT2Config
from spamgpt.models.published import CONFIGS, load_config
from spamgpt.tasks import sms

GB = 1e9
REMEMBERED = "remembered from an earlier run; `python -m spamgpt fetch` tries again"
STALE = "remembered from an earlier run, but"
TRY_AGAIN = "run `python -m spamgpt fetch`, then the notebooks from 01 on"
# GPT-2 124M: its file, the classifier saved, and training it.
NEEDED_DISK, NEEDED_MEMORY = 1.5 * GB, 3 * GB
POCKET_DISK, POCKET_MEMORY = 0.2 * GB, 1 * GB  # training it peaks at 0.65 GB; Jupyter besides

# Of what the repository carries, with the line ends of Unix: git may change them on Windows.
BUNDLED_SHA256 = {
    "sms_sample.tsv": "f97babb649654315214e25c6684d502bf428d42fb4ca9e3fabac24985ca7c229",
    "pocket-gpt/config.json": "d7ff71aeb1ed4225ea789aecbf3ff2eab795b302705913bc82524dde7f12cde0",
    "pocket-gpt/model.safetensors": (
        "43ac4d9152d8b52ce0566cebc09068beb1f4dbb0d53d897b80bf74a8c4ab170b"
    ),
    "pocket-gpt/pocket.tiktoken": (
        "e774d53fb3e3cac55145607f84a094963a6a9a5ec0a7f57326ab7aa6b0143075"
    ),
}


class Check(NamedTuple):
    """One thing that was looked at, and what to do if it is not as it should be."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Everything a learner's machine needs, and what this one has."""
    checks = (
        _python,
        _packages,
        _kernel,
        _bundled,
        _workspace,
        _disk,
        _memory,
        _device,
        _mirror,
        _proxy,
        _https,
        _cache,
        _base,
        _data,
    )
    return [_result(check) for check in checks]


def _result(check: Callable[[], Check]) -> Check:
    """What a check finds; one that fails itself must not hide the others."""
    name = check.__name__.lstrip("_")
    try:
        return check()
    except WorkspaceError as error:
        return Check(name, False, error.problem, error.remedy)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) and f"{error.filename}: {error.strerror}"
        found = " ".join((words or str(error)).split()) or type(error).__name__
        return Check(name, False, found, "correct or unset what is named here")
    except Exception as error:
        found = " ".join(f"could not be examined ({type(error).__name__}: {error})".split())
        return Check(name, False, found, "correct what it names; if that is nothing, report it")


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


def _bundled() -> Check:
    """Whether what takes the place of downloads is as the repository has it."""
    wrong = []
    for name, sha256 in BUNDLED_SHA256.items():
        path = BUNDLED / name
        if not os.path.isfile(path):
            wrong.append(f"{name} is missing")
            continue
        content = path.read_bytes()
        if path.suffix != ".safetensors":
            content = content.replace(b"\r\n", b"\n")
        if hashlib.sha256(content).hexdigest() != sha256:
            wrong.append(f"{name} is damaged ({len(content):,} bytes)")
    return Check(
        "bundled",
        not wrong,
        "; ".join(wrong) or "Pocket GPT and the sample of messages are whole",
        "get them again: `git restore data/bundled`, or download or install the project anew",
    )


def _workspace() -> Check:
    check_writable()
    return Check("workspace", True, f"{show_path(workspace())}/ can be written")


def _wants_pocket() -> bool:
    return settings.base_name() == "pocket"


def _disk() -> Check:
    folder = workspace()
    while not os.path.exists(folder):
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
    """What a container may use, not what its machine has."""
    available, total = memory()
    machine = psutil.virtual_memory().total
    needed = POCKET_MEMORY if _wants_pocket() else NEEDED_MEMORY
    smaller = "" if _wants_pocket() else ", or set SPAMGPT_BASE=pocket"
    found = f"{available / GB:.1f} of {total / GB:.1f} GB available"
    if total < machine:
        found += f" in this container, of {machine / GB:.1f} GB in the machine"
    return Check(
        "memory",
        available >= needed,
        found,
        f"close programs until {needed / GB:.0f} GB are available{smaller}",
    )


def _device() -> Check:
    """What computes, and in which precision: as it was decided for the base model's width."""
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = f"{name}, {torch.get_num_threads()} CPU threads for {cpus()} CPUs"
    known = settings.base_name() in CONFIGS
    config = CONFIGS[settings.base_name()] if known else load_config(POCKET)
    if not isinstance(config, GPT2Config):  # see fast.blocks
        return Check("device", True, f"{found}; computed in fp32, block by block")
    try:
        decided = decide(device, config.n_embd)
    except ValueError as error:
        return Check("device", False, str(error), "unset SPAMGPT_PRECISION")
    found += f"; where nothing is trained: {decided.states}"
    if decided.inference != decided.states:
        found += f", {decided.inference} for labels"
    return Check("device", True, found + (", packed weights" if decided.packed else ""))


def _mirror() -> Check:
    """Whether the folder or address that is asked first is there."""
    mirror, fix = settings.mirror(), "correct SPAMGPT_MIRROR, or unset it"
    if mirror is None:
        return Check("mirror", True, "none set")
    if "://" in mirror:
        try:
            check_way(mirror)
            requests.head(mirror, timeout=connect_seconds(mirror), verify=trusted(mirror))
        except (OSError, ValueError) as error:
            return Check("mirror", False, f"{assets.shown(mirror)}: {reason_of(error)}", fix)
        return Check("mirror", True, f"{assets.shown(mirror)} answers")
    if not os.path.isdir(mirror):
        found = f"there is no folder {mirror}"
        return Check("mirror", False, found, f"{fix}; an address begins with http:// or https://")
    here = [
        name
        for name in assets.ASSETS
        if any(place == "the mirror" for _, place in assets.nearby(name))
    ]
    found = f"{mirror} has {', '.join(here) or 'none of the files'}"
    return Check("mirror", bool(here), found, f"{fix}; data/README.md says what belongs there")


def _proxy() -> Check:
    """Whether the proxy that downloads would go through can be used, and answers."""
    proxies = {
        f"{kind}_proxy": address
        for kind, address in getproxies().items()
        if kind in ("http", "https", "all") and address
    }
    if not proxies:
        return Check("proxy", True, "none set")
    wrong, fine = [], []
    for name, address in proxies.items():
        try:
            host, port = read_proxy(address)
        except DownloadError as error:
            wrong.append(f"{name}: {error}")
            continue
        known = f"{name} = {host}:{port}"  # without the password
        if settings.offline() or _answers(host, port):
            fine.append(known)
        else:
            wrong.append(f"{known} does not answer")
    fix = "correct it, or unset the variable, upper case as well"
    return Check("proxy", not wrong, "; ".join(wrong or fine), fix)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError):
        return False
    return True


def _https() -> Check:
    """Whether the certificates that downloads are checked with can be read."""
    if not (named := settings.certificates()):
        return Check("https", True, "checked with the certificates that requests brings")
    variable, path = named
    fix = f"correct {variable}, or unset it"
    if not os.path.exists(path):
        return Check("https", False, f"{variable} names {path}, which is not there", fix)
    try:
        trusted("https://")
    except DownloadError as error:
        return Check("https", False, str(error), fix)
    return Check("https", True, f"checked with the certificates in {path} ({variable})")


def _cache() -> Check:
    """Whether the files that were fetched are still what they were."""
    here = [name for name in assets.ASSETS if os.path.isfile(assets.cached(name))]
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
    fix = f"set SPAMGPT_BASE to auto, or connect and run `python -m spamgpt fetch {name}`"
    needed = {file: _source(file) for file in base.files_of(name)}
    missing = [f"{file}: {source.where}" for file, source in needed.items() if not source.ok]
    if wanted == "auto" and base.CHOICE.remembered():
        if not missing:
            return Check("base", False, f"pocket, {STALE} GPT-2 can be had now", TRY_AGAIN)
        return Check("base", True, f"pocket ({REMEMBERED})")
    if missing and wanted == "auto":
        return Check("base", True, f"pocket, since GPT-2 cannot be had ({'; '.join(missing)})")
    sources = ", ".join(f"{file} {source.where}" for file, source in needed.items())
    return Check("base", not missing, f"{name} ({sources})", fix)


def _data() -> Check:
    source = _source("sms")
    if sms.CHOICE.remembered():
        if source.ok:
            return Check(
                "data", False, f"bundled sample, {STALE} the collection can be had now", TRY_AGAIN
            )
        return Check("data", True, f"bundled sample ({REMEMBERED})")
    now = "collection" if source.ok else "sample"
    if (made_of := _splits()) not in (None, now):
        old, new = sms.TASK.data_names[made_of], sms.TASK.data_names[now]
        found = f"{new}, but the saved splits were made of the {old}"
        return Check("data", False, found, "run the notebooks from 01 on")
    if not source.ok:
        found = f"bundled sample, since the collection cannot be had ({source.where})"
        return Check("data", True, found)
    return Check("data", True, f"SMS Spam Collection ({source.where})")


def _splits() -> str | None:
    """What the saved splits were made of, if there are any that can be read."""
    try:
        made_of = sms.TASK.split_source()
    except (OSError, ValueError, KeyError):
        return None
    return made_of if made_of in sms.TASK.data_names else None


class Source(NamedTuple):
    """Whether a file can be had, and where; or why not."""

    ok: bool
    where: str


def _source(name: str) -> Source:
    """Where `fetch(name)` would find the file."""
    if os.path.isfile(assets.cached(name)):
        return Source(True, "in the cache")
    if near := assets.nearby(name):
        return Source(True, f"in {near[0][1]}")
    problem = "no internet address may be asked"
    for url in assets.addresses(name):
        try:
            check_way(url)
            reply = requests.head(url, timeout=connect_seconds(url), verify=trusted(url))
            reply.raise_for_status()
            return Source(True, "to be downloaded")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            problem = reason_of(error)
    wheel = assets.ASSETS[name].wheel
    if wheel and not settings.offline():
        if is_offered(wheel):
            return Source(True, "to be downloaded by pip")
        problem = f"pip finds no {wheel}"
    return Source(False, problem)
