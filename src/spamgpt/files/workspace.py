"""The workspace: the folder for whatever is fetched, made or trained, and how to write there.

What the repository carries (`BUNDLED`) is only read.
"""

import errno
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from spamgpt import settings
from spamgpt.settings import IN_WHEEL, PROJECT, workspace

BUNDLED = PROJECT / "data" / "bundled"
SAMPLE = BUNDLED / "sms_sample.tsv"
MODERN = BUNDLED / "modern.tsv"
POCKET = BUNDLED / "pocket-gpt"
FOLDERS = ("cache", "classifier", "own", "runs", "sms", "training")  # in the workspace
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", None)} - {None}  # no quota on Windows
# For a terminal that cannot show these.
PLAIN = str.maketrans({"─": "-", "│": "|", "…": "...", "–": "-"} | dict.fromkeys("┌┐└┘", "+"))


def show_path(path: Path) -> str:
    """A path as a reader knows it: from the project's folder on, never an absolute one."""
    path = Path(os.path.realpath(path))
    if IN_WHEEL and path.is_relative_to(Path.home()) and not path.is_relative_to(PROJECT):
        return f"~/{path.relative_to(Path.home()).as_posix()}"  # no project's folder to start from
    for base in (PROJECT, workspace().parent):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


class WorkspaceError(OSError):
    """The workspace cannot be used; `problem` says why, `remedy` what to do about it.

    Its errno is that of the error that was its cause.
    """

    def __init__(self, problem: str, cause: OSError):
        self.problem = problem
        self.remedy = (
            "free space there, or set SPAMGPT_WORKSPACE to a folder elsewhere"
            if cause.errno in DISK_FULL
            else "make that folder writable, or set SPAMGPT_WORKSPACE to a folder of your own"
        )
        super().__init__(cause.errno, f"{self.problem}: {self.remedy}")

    def __str__(self) -> str:
        return self.strerror


@contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into a WorkspaceError.

    `what` begins its sentence: "x cannot be written to", for example; the folder's name follows.
    """
    try:
        yield
    except WorkspaceError:
        raise
    except OSError as error:
        problem = f"{what} {show_path(folder)} ({why(error, folder)})"
        raise WorkspaceError(problem, error) from None  # a short traceback in notebooks


def why(error: OSError, folder: Path) -> str:
    """Why `folder` cannot be written or read, in words instead of a number."""
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in DISK_FULL:
        return f"the disk is full: {reason}"
    if not os.path.isdir(there):
        return f"{show_path(there)} is a file, not a folder"
    if error.errno in (errno.EACCES, errno.EPERM) and (owner := _other_owner(there)):
        return f"{show_path(there)} belongs to another user, {owner}"
    return reason


def _other_owner(path: Path) -> str | None:
    """Who owns `path`, if that is not the user who runs this (never on Windows)."""
    if not hasattr(os, "getuid") or path.stat().st_uid == os.getuid():
        return None
    try:
        return path.owner()
    except KeyError:  # a number without a name, as in a container
        return f"number {path.stat().st_uid}"


def check_writable(folder: Path | None = None) -> None:
    """Raise WorkspaceError if nothing can be written to a folder, which is really tried.

    Without a folder: to the workspace, and to the folders in it that exist, since one of them may
    be left from a run as another user.
    """
    folders = [folder] if folder else [workspace(), *(workspace() / name for name in FOLDERS)]
    with explained("files cannot be written to", folders[0]):
        folders[0].mkdir(parents=True, exist_ok=True)
    for place in filter(os.path.isdir, folders):
        with (
            explained("files cannot be written to", place),
            tempfile.TemporaryFile(dir=place) as file,
        ):
            file.write(b"x")
            file.flush()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path`, moved onto it only if the block succeeds.

    Raises WorkspaceError, an OSError that names the folder, if nothing can be written there or
    the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    what = f"{path.name} cannot be written to"
    with explained(what, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    _clear_up(path)
    try:
        yield temporary
        with explained(what, path.parent):
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in DISK_FULL:
            with explained(what, path.parent):
                raise
        raise
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


def printable(text: str) -> str:
    """`text` as standard output can show it: some terminals know neither boxes nor umlauts."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def shown(character: str) -> str:
        for form in (character, character.translate(PLAIN)):
            try:
                form.encode(encoding)
                return form
            except UnicodeEncodeError:
                continue
        return "?"

    return text if text.isascii() else "".join(map(shown, text))


def say(text: str) -> None:
    """Print `text`, whatever standard output can show."""
    print(printable(text))


def notice(text: str) -> None:
    """Print `text` in a box that cannot be overlooked."""
    text = printable(text)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 76) or [""]]
    say("┌" + "─" * 78 + "┐")
    say("\n".join(f"│ {line:<76} │" for line in lines))
    say("└" + "─" * 78 + "┘")


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
    """Let the next notebook find out again what can be had; WorkspaceError if it cannot."""
    with explained("choices.json cannot be removed from", workspace()):
        (workspace() / "choices.json").unlink(missing_ok=True)
