"""A wheel by pip, from whatever index the user's pip is set up for; nothing in it is installed.

Company mirrors, proxies and certificates work, since pip knows of them.
"""

import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

from spamgpt.files.download import LOGIN_PAGE
from spamgpt.files.workspace import say

# What pip prints, and what it means; the first that fits is said. {0} is what was asked for.
MEANINGS = (
    (r"No module named pip\b", "this Python has no pip: `{python} -m ensurepip` adds it"),
    (r"SSLError|CERTIFICATE_VERIFY_FAILED", "pip's connection is not secure" + LOGIN_PAGE),
    (r"ProxyError|Cannot connect to proxy", "pip's proxy does not answer (see HTTPS_PROXY)"),
    (
        r"Retrying \(|NewConnection|NameResolution|Temporary failure|Max retries|timed out",
        "pip's package index does not answer (no internet?)",
    ),
    (r"DO NOT MATCH THE HASHES", "what pip's package index sent is not what the index announced"),
    (r"from versions: (?!none)([^)]+)\)", "pip's package index has other versions only: {0}"),
    (r"No matching distribution", "pip's package index has no such package"),
)


def download_wheel(requirement: str, target: Path) -> None:
    """Write the wheel that pip finds for `requirement` (NAME==VERSION) to `target`.

    Raises OSError that says in a sentence why not.
    """
    folder = target.with_name(f".{requirement.replace('==', '-')}.pip")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    say(f"pip downloads {requirement}; that may take some minutes")
    try:
        _run_pip(requirement, folder)
        (wheel,) = folder.glob("*.whl")
        wheel.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_offered(requirement: str) -> bool:
    """Whether pip's index has NAME==VERSION; nothing is downloaded."""
    name, version = requirement.split("==")
    done = _pip("index", "versions", name)
    return done.returncode == 0 and version in re.split(r"[\s,()]+", done.stdout)


def _pip(*command: str) -> subprocess.CompletedProcess:
    quiet = ("--no-input", "--disable-pip-version-check", "--retries=2")
    return subprocess.run(
        [sys.executable, "-m", "pip", *command, *quiet],
        capture_output=True,
        text=True,
        errors="replace",
    )


def _run_pip(requirement: str, folder: Path) -> None:
    # Only wheels: a source archive would be built, and that runs what is in it.
    only = ("--no-deps", "--only-binary=:all:", "--progress-bar=off")
    done = _pip("download", requirement, *only, "--dest", str(folder))
    if done.returncode:
        said = done.stdout + done.stderr
        if re.search(r"Errno 28|No space left", said):
            raise OSError(errno.ENOSPC, "while pip was downloading")
        raise OSError(_meaning(said))


def _meaning(said: str) -> str:
    """What pip's output means, in a sentence."""
    for pattern, meaning in MEANINGS:
        if found := re.search(pattern, said):
            return meaning.format(*found.groups(), python=Path(sys.executable).name)
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    return "pip says: " + (errors[-1].removeprefix("ERROR: ") if errors else said.strip()[-200:])
