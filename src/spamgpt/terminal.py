"""What surrounds a command: standard streams that are closed or break, and signals.

Only the standard library, so that Ctrl-C is answered from the first moment.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GONE = 141  # 128 + SIGPIPE: what a shell gives for a program whose reader went away


class Usage(ValueError):
    """The command was called in a way that makes no sense; the message says how it does."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it has begun is cleared up."""


def say(text: str) -> None:
    """Print a line to standard error, where somebody may read it or nobody."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Say `what` failed if the system refuses to write; a reader who went away is no failure."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"{what} ({error.strerror})") from None


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Let SIGTERM raise Terminated."""

    def stop(*_) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def open_closed_streams() -> set[str]:
    """Put the null device where a standard stream is closed; the names of those.

    Otherwise the next file that is opened takes its number, and what a library prints is
    written into that file.
    """
    names = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    if names:
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # it is the lowest that is free
            os.set_inheritable(number, True)
        os.close(number)
    for name in names:
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    return set(names)


def settle(stream) -> None:
    """Give up what cannot be written, lest Python complain about it once more at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    except ValueError:  # closed
        pass
