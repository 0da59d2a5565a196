"""The notebooks as learners treat them: alone, twice, in any order, killed, from anywhere.

The kernels inherit this process's environment: the sample, Pocket GPT, and a workspace of
their own. Where a test is not about notebook 01, its messages are so few that notebook 06
trains in seconds.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError, DeadKernelError
from safetensors.torch import load_file

from spamgpt import runner
from spamgpt.files.workspace import SAMPLE, workspace
from spamgpt.resume import FILE
from spamgpt.tasks import sms

pytestmark = pytest.mark.slow

# Notebook 09 trains for minutes; the tests of experiments.py stop its grid and continue it.
NAMES = [p.stem for p in sorted(runner.NOTEBOOKS.glob("[0-9]*.ipynb")) if p.name[:2] != "09"]
MAKES_SPLITS, MAKES_CLASSIFIER = "01_download_balance_split", "06_finetune"
needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def read(name):
    return nbformat.read(runner.NOTEBOOKS / f"{name}.ipynb", as_version=4)


def printed(cell):
    """All that a cell wrote, results and errors included."""
    parts = []
    for output in cell.outputs:
        parts += [output.get("text", ""), str(output.get("data", {}).get("text/plain", ""))]
        parts += [f"{output.ename}: {output.evalue}"] if output.output_type == "error" else []
    return "\n".join(parts)


def run(name, folder=None):
    """The executed notebook; nbclient's error if a cell fails."""
    notebook = read(name)
    runner.client(notebook, folder).execute()
    return notebook


class Kernel:
    """A running kernel, and the code cells of a notebook to run in it one by one."""

    def __init__(self, name, folder=None):
        self.cells = read(name).cells
        notebook = nbformat.v4.new_notebook(cells=self.cells)
        self.client = runner.client(notebook, folder, allow_errors=True)

    def __enter__(self):
        self.context = self.client.setup_kernel()
        self.context.__enter__()
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)

    def code(self):
        """The ids of the code cells."""
        return [cell.id for cell in self.cells if cell.cell_type == "code"]

    def run(self, cell_id):
        """Run a cell; what it printed. An error that it raised is in it too."""
        (index,) = (i for i, cell in enumerate(self.cells) if cell.id == cell_id)
        self.client.execute_cell(self.cells[index], index)
        return printed(self.cells[index])

    def value(self, expression):
        """What an expression is in the kernel, as text."""
        cell = nbformat.v4.new_code_cell(f"print({expression})")
        self.cells.append(cell)
        self.client.execute_cell(cell, len(self.cells) - 1)
        return printed(self.cells.pop()).strip()


def error_in(text):
    return "Error: " in text or "KeyboardInterrupt" in text


# --- workspaces -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace with few messages and the classifier that notebook 06 makes of them."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPAMGPT_WORKSPACE", str(folder))
        patch.delenv("SPAMGPT_MIRROR", raising=False)
        splits = sms.TASK.split(sms.load(SAMPLE))
        sizes = {"train": 32, "validation": 16, "test": 24}
        sms.TASK.save_splits({name: part[: sizes[name]] for name, part in splits.items()}, "sample")
        run(MAKES_CLASSIFIER)
    return folder


@pytest.fixture
def ready(finished, workspace_folder):
    """This test's own copy of the finished workspace."""
    shutil.copytree(finished, workspace_folder)
    return workspace_folder


@pytest.fixture
def untrained(ready):
    """The same before notebook 06 has run; another test's copy of it trains the same."""
    shutil.rmtree(ready / "classifier")
    return ready


# --- alone, elsewhere, again ----------------------------------------------------------

MISSING = dict.fromkeys(["02", "04", "05", "06", "10"], MAKES_SPLITS)
MISSING |= dict.fromkeys(["07", "08"], MAKES_CLASSIFIER)


@pytest.mark.parametrize("name", NAMES)
def test_alone_in_a_fresh_workspace_it_works_or_names_the_notebook_to_run(name):
    needed = MISSING.get(name[:2])
    if needed is None:
        run(name)
    else:
        with pytest.raises(CellExecutionError, match=f"FileNotFoundError.*run notebook {needed} f"):
            run(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_time_and_from_another_folder(name, ready, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}
    run(name, tmp_path)  # everything that it makes is there already
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing written beside itself


@pytest.mark.parametrize("name", NAMES)
def test_cells_run_again_in_any_order(name, ready):
    with Kernel(name) as kernel:
        first = {cell_id: kernel.run(cell_id) for cell_id in kernel.code()}
        assert not any(map(error_in, first.values()))
        order = kernel.code()
        random.Random(name).shuffle(order)
        for i, cell_id in enumerate(order):
            text = kernel.run(cell_id)
            assert not error_in(text), f"{cell_id} after {order[:i]}: {text}"


def test_swapping_the_head_and_freezing_again_does_not_stack(ready):
    swap, freeze = "05-04", "05-07"
    with Kernel("05_classification_head") as kernel:
        for cell_id in kernel.code()[:3]:
            once = kernel.run(cell_id)
        assert kernel.code()[1:3] == [swap, freeze]
        modules = kernel.value("len(list(classifier.modules()))")
        for cell_id in (swap, swap, freeze, freeze, swap, freeze):
            again = kernel.run(cell_id)
        assert again == once and "trained" in once
        assert kernel.value("len(list(classifier.modules()))") == modules


# --- files lost, files that cannot be written -----------------------------------------


def test_after_make_clean(ready):
    """Downloads stay; what was made is gone, and the notebooks say what to run.

    That `make clean` runs this very command is in tests/test_main.py.
    """
    (ready / "cache").mkdir(exist_ok=True)
    (ready / "cache" / "SMSSpamCollection").write_text("downloaded")
    (ready / "training").mkdir()
    subprocess.run([sys.executable, "-m", "spamgpt", "clean"], check=True)
    assert [path.name for path in ready.iterdir()] == ["cache"]
    with pytest.raises(CellExecutionError, match=f"run notebook {MAKES_CLASSIFIER} first"):
        run("07_evaluate")
    with pytest.raises(CellExecutionError, match=f"run notebook {MAKES_SPLITS} first"):
        run("02_dataloaders")


READ_ONLY = """
import os, sys

def refuse(event, args):
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        if str(args[0]).startswith(os.environ["SPAMGPT_WORKSPACE"]):
            raise PermissionError(13, "Permission denied", str(args[0]))

sys.addaudithook(refuse)  # permissions would not stop root
"""


def stored(folder):
    """Every file and folder, with the moment it was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_a_data_folder_that_cannot_be_written(name, ready):
    """Whatever only reads works; whatever saves says which folder, and what to do."""
    files = stored(ready)
    notebook = read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(READ_ONLY))
    unwritten = {"01": "sms", "06": "classifier", "07": "work", "10": "classifier"}.get(name[:2])
    if unwritten is None:
        runner.client(notebook).execute()
    else:
        advice = f"cannot be written to \\S*{unwritten} .*set SPAMGPT_WORKSPACE"
        with pytest.raises(CellExecutionError, match=advice):
            runner.client(notebook).execute()
    if name == MAKES_CLASSIFIER:  # the training itself went well
        assert "Epoch 1 could not be kept" in printed(training_cell(notebook.cells))
        assert " records, " in printed(training_cell(notebook.cells))
    assert stored(ready) == files


# --- interrupted in the middle of training --------------------------------------------


def when_an_epoch_is_kept(action):
    """Call `action` a moment after notebook 06 has kept its first epoch."""

    def wait():
        until = time.monotonic() + 300
        while not (workspace() / "training" / FILE).exists() and time.monotonic() < until:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def training_cell(cells):
    (cell,) = (c for c in cells if c.cell_type == "code" and "resume=" in c.source)
    return cell


def assert_trained_alike(folder, other):
    """The same weights, but for sums that another process may do in another order."""
    mine, theirs = (load_file(f / "classifier" / "model.safetensors") for f in (folder, other))
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, atol=1e-3, rtol=0)


@needs_posix
def test_the_kernel_is_killed_in_the_middle_of_training(untrained, finished, tmp_path):
    notebook, pid = read(MAKES_CLASSIFIER), tmp_path / "pid"
    tell = f"import os, pathlib\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(tell))
    when_an_epoch_is_kept(lambda: os.kill(int(pid.read_text()), signal.SIGKILL))
    with pytest.raises(DeadKernelError):
        runner.client(notebook).execute()
    again = run(MAKES_CLASSIFIER)
    assert "Continuing after epoch" in printed(training_cell(again.cells))
    assert_trained_alike(untrained, finished)
    assert not (untrained / "training").exists()


@needs_posix
def test_the_training_cell_is_stopped_and_run_again(untrained, finished):
    with Kernel(MAKES_CLASSIFIER) as kernel:
        training = training_cell(kernel.cells).id
        before, after = kernel.code(), []
        while before[-1] != training:
            after.insert(0, before.pop())
        for cell_id in before[:-1]:
            kernel.run(cell_id)
        pid = int(kernel.value("__import__('os').getpid()"))
        when_an_epoch_is_kept(lambda: os.kill(pid, signal.SIGINT))
        stopped = kernel.run(training)
        assert "KeyboardInterrupt: stopped; " in stopped
        assert "of 4 epochs are kept in" in stopped and "run this again" in stopped
        assert "Continuing after epoch" in kernel.run(training)
        for cell_id in after:
            assert not error_in(kernel.run(cell_id))
    assert_trained_alike(untrained, finished)


# --- a model of GPT-2's size ----------------------------------------------------------

RANDOM_124M = """
import tiktoken
import torch
from spamgpt.models import base
from spamgpt.models.gpt2 import GPT2, GPT2Config

torch.manual_seed(0)
model = GPT2(GPT2Config()).eval()
pocket = base.load_tokenizer("pocket")
ranks = {pocket.decode_single_token_bytes(i): i for i in range(pocket.n_vocab - 1)}
ranks |= {f"filler {i}".encode(): i for i in range(len(ranks), 50256)}
tokenizer = tiktoken.Encoding(
    "padded", pat_str=base.r50k_pat_str, mergeable_ranks=ranks, special_tokens={base.END: 50256}
)
base.load_base = lambda name=None: base.Base("gpt2", model, tokenizer, base.GPT2_RECIPE)
"""


def test_inside_gpt2_agrees_with_the_package_at_124m_too():
    """Each of its cells compares; here with other weights, sizes and numbers of heads."""
    (path,) = runner.NOTEBOOKS.glob("0?_inside_gpt2.ipynb")
    notebook = read(path.stem)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(RANDOM_124M))
    runner.client(notebook).execute()
    shown = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "gpt2: 12 blocks, C = 768, V = 50,257" in shown
    assert "144 heads in 12 blocks" in shown
