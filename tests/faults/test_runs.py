"""A run that is stopped, a kernel that dies, a folder that cannot be written, an odd environment.

Small notebooks take the place of the real ones. Signals are real ones, sent to a process of its
own that was started as a user starts it.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from spamgpt import runner
from spamgpt.__main__ import main
from spamgpt.files.workspace import workspace
from spamgpt.hardware import Memory

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
V4 = nbformat.v4


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """notebooks(name=[source of a cell, …], …) puts these in place of the real ones."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)

    def make(**sources):
        for name, cells in sources.items():
            cells = [V4.new_code_cell(cell) for cell in cells]
            for cell in cells:  # as the repository stores them
                cell.outputs = [V4.new_output("stream", text="stored\n")]
            nbformat.write(V4.new_notebook(cells=cells), folder / f"_{name}.ipynb")
            (folder / f"_{name}.ipynb").rename(folder / f"{name.removeprefix('n')}.ipynb")
        return folder

    return make


def executed(name):
    """What each cell of the executed notebook printed."""
    (folder,) = (workspace() / "runs").iterdir()
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]


# --- signals --------------------------------------------------------------------------

RUN = """
import os, signal, sys
from pathlib import Path
from spamgpt import runner

for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # what started this process may ignore them
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
runner.NOTEBOOKS = Path(sys.argv[1])
{extra}
from spamgpt.__main__ import main
sys.exit(main(["run"]))
"""
# Tells its number and that of a program that it has started, then is busy.
BUSY = [
    "import os, pathlib, subprocess, sys, time",
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
    "print('begun', flush=True)\n"
    "time.sleep(1)  # until that has arrived\n"
    "pathlib.Path('kernel.part').write_text(f'{os.getpid()} {child.pid}')\n"
    "os.rename('kernel.part', 'kernel')\n"
    "time.sleep(100)",
    "print('never')",
]


def start(folder, extra=""):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", RUN.format(extra=extra), folder], **pipes)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def assert_one_line(process, code, *words):
    """The process ends with this exit code and one line on standard error."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    (line,) = err.split("\n")[1:-1] if err.startswith("\n") else err.splitlines()
    assert all(word in line for word in ("stopped", *words)), line
    assert "Traceback" not in out and "Error" not in out
    return out


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_run_in_one_line_and_keeps_what_was_executed(name, code, notebooks):
    folder = notebooks(n00_one=["print('one')"], n01_busy=BUSY, n02_never=["print('never')"])
    process = start(folder)
    wait_for((folder / "kernel").exists)
    process.send_signal(getattr(signal, name))
    out = assert_one_line(process, code, "01_busy", name, "work/runs/")
    assert "[1/3] 00_one" in out and "02_never" not in out
    assert executed("00_one") == ["one\n"]
    assert executed("01_busy") == ["", "begun\n", ""]
    (kept,) = (workspace() / "runs").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["00_one.ipynb", "01_busy.ipynb"]
    for pid in map(int, (folder / "kernel").read_text().split()):
        wait_for(lambda pid=pid: gone(pid), seconds=20)


@pytest.mark.slow
@needs_posix
def test_an_impatient_second_and_third_signal_change_nothing(notebooks):
    folder = notebooks(n00_busy=BUSY)
    process = start(folder)
    wait_for((folder / "kernel").exists)
    for name in ("SIGINT", "SIGINT", "SIGTERM", "SIGINT"):
        process.send_signal(getattr(signal, name))
        time.sleep(0.05)
    while process.poll() is None:  # until the very end
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert_one_line(process, 130, "00_busy", "SIGINT")
    assert executed("00_busy") == ["", "begun\n", ""]
    assert all(gone(int(pid)) for pid in (folder / "kernel").read_text().split())


SIGNAL_AT = """
whole = runner.{of}.{function}
def interrupted(*arguments, **options):
    if {of_class}:
        Path(sys.argv[1], "kernel").write_text(str(arguments[0].km.provisioner.pid))
    os.kill(os.getpid(), signal.SIGTERM)
    return whole(*arguments, **options)
runner.{of}.{function} = interrupted
"""


@pytest.mark.slow
@needs_posix
def test_a_signal_while_a_kernel_starts_leaves_no_kernel(notebooks):
    folder = notebooks(n00_one=["print('one')"])
    extra = SIGNAL_AT.format(of="_Client", function="async_start_new_kernel_client", of_class=True)
    assert_one_line(start(folder, extra), 143, "00_one", "SIGTERM")
    assert gone(int((folder / "kernel").read_text()))
    assert executed("00_one") == [""]  # what the repository had stored is not passed off as run


@pytest.mark.slow
@needs_posix
def test_a_signal_before_a_kernel_starts_starts_none(notebooks):
    extra = SIGNAL_AT.format(of="asyncio", function="run", of_class=False)
    assert_one_line(start(notebooks(n00_one=["print('one')"]), extra), 143, "00_one")
    assert executed("00_one") == [""]


@pytest.mark.slow
@needs_posix
def test_a_signal_while_a_notebook_is_written_waits_until_it_is(notebooks):
    extra = SIGNAL_AT.format(of="nbformat", function="write", of_class=False)
    folder = notebooks(n00_one=["print('one')"], n01_two=["print('two')"])
    assert_one_line(start(folder, extra), 143, "00_one")
    assert executed("00_one") == ["one\n"]


@pytest.mark.slow
@needs_posix
def test_a_signal_before_the_first_notebook_leaves_no_folder(notebooks):
    extra = SIGNAL_AT.format(of="sms", function="source", of_class=False)
    process = start(notebooks(n00_one=["print('one')"]), extra)
    assert_one_line(process, 143, "no notebook was executed")
    assert list((workspace() / "runs").iterdir()) == []


@pytest.mark.slow
@needs_posix
def test_a_signal_while_the_report_is_written_keeps_the_notebooks(notebooks):
    extra = SIGNAL_AT.format(of="HTMLExporter", function="from_notebook_node", of_class=False)
    assert_one_line(start(notebooks(n00_one=["print('one')"]), extra), 143, "SIGTERM")
    assert executed("00_one") == ["one\n"]


@pytest.mark.slow
@needs_posix
def test_when_the_run_is_killed_outright_its_kernel_ends_too(notebooks):
    folder = notebooks(n00_busy=BUSY)
    process = start(folder)
    wait_for((folder / "kernel").exists)
    process.kill()
    process.wait()
    kernel, child = map(int, (folder / "kernel").read_text().split())
    try:
        wait_for(lambda: gone(kernel), seconds=30)
    finally:
        os.kill(child, signal.SIGKILL)  # holds the pipes open
        process.communicate()


@needs_posix
def test_an_ignored_signal_stays_ignored():
    """As `nohup` wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with runner.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.came is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_a_run_signals_do_what_they_did(notebooks):
    notebooks(n00_one=["print('one')"])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert runner.run_notebooks([]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- kernels --------------------------------------------------------------------------


def test_no_kernel_outlives_its_notebook(notebooks):
    """A run of eight notebooks would otherwise need the memory of eight kernels."""
    folder = notebooks(
        n00_one=["import os", "print(os.getpid())"], n01_two=["import os", "print(os.getpid())"]
    )
    assert runner.run_notebooks([]) == 0
    assert all(gone(int(executed(path.stem)[1])) for path in folder.glob("*.ipynb"))


KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@needs_posix
def test_a_kernel_that_is_killed_is_named_with_its_cell_and_the_memory(
    notebooks, monkeypatch, capsys
):
    """As the kernel of Linux does when a container's memory is used up."""
    monkeypatch.setattr(runner, "memory", lambda: Memory(300_000_000, 700_000_000))
    notebooks(n00_one=["print('one')"], n01_two=["print('two')", "# Fit.\n" + KILL, "print(3)"])
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "01_two" in out and "in cell 2: # Fit." in out and "(SIGKILL)" in out
    assert "too little memory: 0.3 of 0.7 GB were available" in out
    for advice in ("SPAMGPT_BASE=pocket", "Close other programs", "the container", "doctor"):
        assert advice in out
    assert "Traceback" not in out
    assert executed("00_one") == ["one\n"] and executed("01_two") == ["two\n", "", ""]


@needs_posix
def test_a_kernel_that_dies_while_it_starts(notebooks, monkeypatch, capsys):
    monkeypatch.setattr(runner, "get_kernel_dict", lambda _: {"argv": [sys.executable, "-c", KILL]})
    notebooks(n00_one=["print('one')"])
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "00_one" in out and "while it was starting" in out and "too little memory" in out
    assert executed("00_one") == [""]


def test_a_cell_that_takes_too_long_is_named_and_the_rest_is_kept(notebooks, monkeypatch, capsys):
    monkeypatch.setattr(runner, "CELL_SECONDS", 1)
    notebooks(n00_slow=["print('one')", "import time\ntime.sleep(100)"])
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "timed out" in out and "time.sleep(100)" in out
    assert executed("00_slow") == ["one\n", ""]


# --- folders --------------------------------------------------------------------------


@pytest.fixture
def nothing_runs(notebooks, monkeypatch):
    """A notebook that must not be executed."""
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a notebook was executed"))
    return notebooks(n00_one=["print('one')"])


def test_a_read_only_disk_is_found_before_the_first_notebook(nothing_runs, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "executed notebooks cannot be written to work/runs (Read-only file system)" in line
    assert "SPAMGPT_WORKSPACE" in line


def test_a_file_in_place_of_the_folder_is_found_before_the_first_notebook(nothing_runs, capsys):
    workspace().mkdir()
    (workspace() / "runs").write_text("mine")
    assert main(["run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written to work/runs" in line and "SPAMGPT_WORKSPACE" in line
    assert (workspace() / "runs").read_text() == "mine"


def test_without_notebooks_the_run_says_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "none")
    assert main(["run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no notebooks here" in line and "repository" in line


# --- figures --------------------------------------------------------------------------

FIGURE = "plots.padding({'to 120': (300, 900)}, title='Title');"


@pytest.mark.parametrize("backend", [None, "agg", "Agg", "TkAgg", "pdf"])
def test_figures_are_shown_whatever_the_environment_says(backend, notebooks, monkeypatch):
    """MPLBACKEND set as for scripts or a desktop; each cell's figure, and each once."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    if backend is not None:
        monkeypatch.setenv("MPLBACKEND", backend)
    notebooks(n00_one=["from spamgpt import plots", FIGURE, FIGURE])
    assert runner.run_notebooks([]) == 0
    (folder,) = (workspace() / "runs").iterdir()
    cells = nbformat.read(folder / "00_one.ipynb", as_version=4).cells
    images = [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells]
    assert images == [0, 1, 1]
    assert (folder / "report.html").read_text(encoding="utf-8").count('src="data:image/png') == 2


def test_a_reader_can_still_choose_another_backend(notebooks):
    notebooks(
        n00_one=["from spamgpt import plots", "%matplotlib agg", "print(plots.plt.get_backend())"]
    )
    assert runner.run_notebooks([]) == 0
    assert executed("00_one")[2].strip().lower() == "agg"
