"""The workspace: the folder for whatever is fetched, made or trained, and how to write there.

What the repository carries (`BUNDLED`) is only read.
"""

import json
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from spamgpt import settings
from spamgpt.settings import PROJECT, workspace

BUNDLED = PROJECT / "data" / "bundled"
SAMPLE = BUNDLED / "sms_sample.tsv"
POCKET = BUNDLED / "pocket-gpt"


def show_path(path: Path) -> str:
    """A path as a reader knows it: from the project's folder on, never an absolute one."""
    path = Path(path).resolve()
    for base in (PROJECT, workspace().parent):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path`, moved onto it only if the block succeeds.

    Raises OSError that names the folder if nothing can be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise type(error)(
            f"{path.name} cannot be written to {show_path(path.parent)} ({error.strerror}): make "
            "that folder writable, or set SPAMGPT_WORKSPACE to a folder of your own"
        ) from error
    _clear_up(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _clear_up(path: Path) -> None:
    """Delete the temporary neighbours of `path` whose writers were killed."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        writer = left.name.removesuffix(".part").rpartition(".")[2]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            left.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path`, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def notice(text: str) -> None:
    """Print `text` in a box that cannot be overlooked."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 76) or [""]]
    print("┌" + "─" * 78 + "┐")
    print("\n".join(f"│ {line:<76} │" for line in lines))
    print("└" + "─" * 78 + "┘")


# The base model, the data set and the precision are chosen once for a workspace, so that all
# notebooks of one run agree and no cell waits twice for a dead network.


def _choices() -> dict:
    """All decisions, as long as they were taken with the mirror that is set now."""
    try:
        choices = read_json(workspace() / "choices.json")
    except (OSError, ValueError):  # none yet, or damaged
        return {}
    return choices if choices.get("mirror") == settings.mirror() else {}


def chosen(key: str) -> dict | None:
    """What this workspace decided for `key` ("base", "data" …): name and reason, or None."""
    return _choices().get(key)


def remember(key: str, name: str, reason: str) -> None:
    """Write a decision down for the notebooks to come.

    Where nothing can be written, each of them has to find out for itself.
    """
    choices = _choices() | {key: {"name": name, "reason": reason}, "mirror": settings.mirror()}
    with suppress(OSError):
        write_json(workspace() / "choices.json", choices)


def forget_choices() -> None:
    """Let the next notebook find out again what can be had."""
    (workspace() / "choices.json").unlink(missing_ok=True)
