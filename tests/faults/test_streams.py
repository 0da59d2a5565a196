"""Streams that are closed, full or read no further, and signals: a sentence or silence."""

import io
import os
import signal
import subprocess
import sys
import time
from itertools import product

import pytest

from spamgpt.__main__ import GONE, main
from spamgpt.saving import save_classifier

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell is needed")
COMMAND = [sys.executable, "-m", "spamgpt"]


@pytest.fixture(autouse=True)
def saved(trained_classifier):
    save_classifier(trained_classifier)


def start(arguments, redirected="", **environment):
    """The command in a process of its own; `redirected` is what a shell makes of it."""
    usual = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # it hides faults
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=usual | environment,
    )


def finish(process, data=b""):
    """(exit code, standard output, standard error)"""
    out, err = process.communicate(data, timeout=120)
    return process.returncode, out.decode(), err.decode()


# --- closed ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("closed", list(product(("", "<&-"), ("", ">&-"), ("", "2>&-"))), ids=str)
@pytest.mark.parametrize("text", ["hi", "-"])
def test_closed_streams(text, closed):
    stdin, stdout, stderr = closed
    code, out, err = finish(start(["classify", text], " ".join(closed)), b"hi\n")
    wrong = stdout or (stdin and text == "-")
    assert code == (1 if wrong else 0)
    assert out.endswith("%  hi\n") if not wrong else out == ""
    if not wrong or stderr:
        assert err == ""
    else:
        name = "standard output" if stdout else "standard input"
        assert err.startswith(f"{name} is closed: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_does_not_stop_what_does_not_need_it(name, monkeypatch, workspace_folder):
    monkeypatch.setattr(sys, name, None)
    assert main(["clean"]) == 0
    assert not (workspace_folder / "classifier").exists()


def test_the_first_file_that_is_opened_does_not_become_a_closed_stream(tmp_path):
    """It would get what is printed: the number of a closed stream is the next to be given."""
    program = (
        "import os, sys; from spamgpt.__main__ import main; main(['clean'])\n"
        "file = open(sys.argv[1], 'w'); assert file.fileno() > 2\n"
        "os.write(1, b'x'); os.write(2, b'x')"
    )
    path = tmp_path / "file"
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    assert subprocess.run([*shell, sys.executable, "-c", program, path]).returncode == 0
    assert path.read_text() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["--version"]])
@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&-"])
def test_help_with_a_closed_stream(arguments, redirected):
    code, _, err = finish(start(arguments, redirected))
    assert code == 0 and err == ""


# --- full, or nobody reads ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_head_ends_it_quietly(form):
    process = start(["classify", "-", "--format", form])
    process.stdin.write(b"message\n" * 5000)
    process.stdin.close()
    lines = [process.stdout.readline() for _ in range(3)]
    process.stdout.close()
    assert all(b"message" in line or b"label" in line for line in lines)
    assert process.wait(120) == GONE == 141
    assert process.stderr.read() == b""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a Linux thing")
@pytest.mark.parametrize("text", ["hi", "-"])
def test_a_full_disk_is_said_once(text):
    code, _, err = finish(start(["classify", text], ">/dev/full"), b"hi\n")
    assert code == 1 and err == "the results cannot be written (No space left on device)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a Linux thing")
def test_errors_that_cannot_be_written_are_no_traceback():
    process = start(["classify", "--file", "nothere"], "2>/dev/full")
    assert finish(process) == (1, "", "")


def test_a_reader_that_has_gone_within_one_process(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["classify", "hi"]) == GONE
    assert err.getvalue() == ""


def test_a_folder_in_place_of_a_file(tmp_path, capsys):
    assert main(["classify", "--file", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path}: Is a directory\n"


# --- signals, and waiting -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "begins"),
    [(signal.SIGINT, 130, "stopped; "), (signal.SIGTERM, 143, "ended by SIGTERM; ")],
)
def test_each_message_is_answered_at_once_and_a_signal_ends_it_with_one_line(number, code, begins):
    process = start(["classify", "-"])
    for text in (b"first", b"second"):
        process.stdin.write(text + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"%  " + text + b"\n")  # the pipe stays open
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stdout.read() == b""
    assert process.stderr.read().decode() == (
        f"{begins}results printed are right, the rest was not judged\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_libraries_are_imported(number, code):
    """Within the first second there is nothing yet, and there is no traceback."""
    process = start(["classify", "-"])
    time.sleep(0.5)
    process.send_signal(number)
    code_found, out, err = finish(process)
    # -SIGINT, which a shell shows as 130 too, if an import of torch had swallowed the first one
    assert code_found in (code, -number) and out == ""
    assert "Traceback" not in err and err.count("\n") <= 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("doctor", "nothing was changed"),
        ("fetch", "what was fetched or saved so far is kept"),
        ("run", "what was fetched or saved so far is kept"),
        ("experiments", "finished runs are kept"),
        ("classify", "results printed are right"),
        ("clean", "run it again to remove the rest"),
    ],
)
@pytest.mark.parametrize("code", [130, 143])
def test_every_command_says_what_is_left_when_stopped(command, words, code, monkeypatch, capsys):
    from spamgpt import __main__ as command_line

    def stopped(args):
        os.kill(os.getpid(), {130: signal.SIGINT, 143: signal.SIGTERM}[code])
        time.sleep(10)

    monkeypatch.setattr(command_line, command, stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert main([command, *(["x"] if command == "classify" else [])]) == code
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) is before


# --- the locale -----------------------------------------------------------------------


@pytest.mark.slow
def test_arguments_are_read_as_utf8_whatever_the_locale():
    text = "Win £900 🎁 ünï"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = [finish(start(["classify", text], **more)) for more in ({}, ascii_only)]
    assert found[0] == found[1] and found[0][1].endswith(f"%  {text}\n")
    data = f"{text}\n".encode()
    assert finish(start(["classify", "-"], **ascii_only), data)[1] == found[0][1]
