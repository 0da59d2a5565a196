"""Execute the notebooks in order, keep the executed copies, write one report.

A run ends in one sentence, whatever ends it: a cell's error, a kernel that died, Ctrl-C or
another signal. No kernel is left behind, and what was executed is on the disk.
"""

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from tqdm import tqdm
from traitlets import default

from spamgpt.evaluation import load_results
from spamgpt.files.workspace import PROJECT, atomic, explained, forget_choices, show_path, workspace
from spamgpt.hardware import Memory, memory
from spamgpt.models.base import choose_base
from spamgpt.tasks import sms
from spamgpt.tasks.splits import SPLITS

NOTEBOOKS = PROJECT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
EVALUATION, LAST = "07_evaluate", "10"  # of what a run executes unless it is told otherwise
CELL_SECONDS = 3600  # a download over a slow line is the longest cell
GB = 1e9


# --- signals --------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end, while it was busy with `during`."""

    def __init__(self, signum: int, during: str = "") -> None:
        super().__init__(signum)
        self.signum, self.during = signum, during


class Signals:
    """In a `with` block, the first Ctrl-C, SIGTERM or SIGHUP ends the block by Stopped.

    More of them change nothing, so that they cannot disturb the tidying up.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self.task: asyncio.Task | None = None  # to be cancelled by a signal
        self._held = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # no other may do this
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
                number = getattr(signal, name, None)
                # One that is ignored, as nohup does, stays so.
                if number and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            # A process that is about to end shall do so in peace, to the last moment.
            signal.signal(number, handler if self.came is None else signal.SIG_IGN)

    def _handle(self, signum: int, frame) -> None:
        if self.came is not None:
            return
        self.came = signum
        if self.task is not None:
            self.task.get_loop().call_soon_threadsafe(self._cancel)
        elif not self._held:
            raise Stopped(signum)

    def _cancel(self) -> None:
        if self.task is not None:  # it may have ended, and be tidying up
            self.task.cancel()

    @contextmanager
    def held(self, during: str) -> Iterator[None]:
        """A signal cancels the task if there is one; Stopped is raised at the end of the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.came is not None:
            raise Stopped(self.came, during)


# --- one notebook ---------------------------------------------------------------------


class _ThisPython(KernelSpecManager):
    """Kernels run in this very environment, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(["--log-level=ERROR"]))


class _Kernels(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return _ThisPython(parent=self)


class _Client(NotebookClient):
    """nbclient's, but its kernel is gone in the end even if a signal comes while it starts."""

    signals: Signals | None = None
    cell: nbformat.NotebookNode | None = None  # the one that is executed, for the error message
    exit_status: int | None = None

    @asynccontextmanager
    async def async_setup_kernel(self, **options) -> AsyncIterator[None]:
        """Start the kernel; shut it down when the block ends, at once if that is by an error.

        nbclient's own answers to signals itself, so that its other tasks miss the kernel.
        """
        self.create_kernel_manager()
        try:
            if self.signals is not None:
                self.signals.task = asyncio.current_task()
                if self.signals.came is not None:
                    raise asyncio.CancelledError
            try:
                await self.async_start_new_kernel(**options)
                await self.async_start_new_kernel_client()
            except RuntimeError as error:  # jupyter_client's, if the kernel dies so early
                raise DeadKernelError(str(error)) from error
            yield
        except BaseException:
            self.shutdown_kernel = "immediate"
            came = self.signals is not None and self.signals.came is not None
            if came and self.km is not None and self.km.has_kernel:
                # jupyter_client would interrupt first, and what a cell has started would complain.
                await self.km.provisioner.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            raise
        finally:
            if self.signals is not None:
                self.signals.task = None
            if self.km is not None:
                if self.km.has_kernel:
                    self.exit_status = await self.km.provisioner.poll()
                await self._async_cleanup_kernel()


def client(notebook: nbformat.NotebookNode, folder: Path | None = None, **options) -> _Client:
    """What executes a notebook with this very Python, in `folder` (default: the notebooks')."""
    return _Client(
        notebook,
        kernel_manager_class=_Kernels,
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder or NOTEBOOKS)}},
        **options,
    )


def execute(notebook: nbformat.NotebookNode, name: str, signals: Signals | None = None) -> None:
    """Run all cells in a fresh kernel, in place, showing progress on a terminal.

    Raises nbclient's CellControlSignal for an error in a cell or one that takes too long, and
    DeadKernelError with a sentence about memory. Ends early if one of `signals` comes.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:  # what the repository has stored was not made by this run
        cell.outputs, cell.execution_count = [], None
    before = memory()
    with tqdm(total=len(code), desc=name, unit="cell", leave=False, disable=None) as bar:
        run = client(notebook, on_cell_executed=lambda **_: bar.update())
        run.on_cell_execute = lambda cell, **_: setattr(run, "cell", cell)
        run.signals = signals
        try:
            asyncio.run(run.async_execute())
        except (asyncio.CancelledError, DeadKernelError) as error:
            if signals is None or signals.came is None:
                raise DeadKernelError(_death(name, run, before, error)) from error
        finally:
            for cell in code:  # a live widget is nothing but a broken box on paper
                cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]


def _death(name: str, run: _Client, before: Memory, error: BaseException) -> str:
    """What to say of a kernel that ended without an error of Python's."""
    where, status = f"while it was starting ({error})", run.exit_status
    if run.cell is not None:
        with suppress(TypeError, ValueError):  # an exit code, not a signal's number
            status = signal.Signals(-status).name
        first = run.cell.source.strip().splitlines()[0]
        where = f"({status}) in cell {run.code_cells_executed}: {first}"
    return (
        f"{name}: the kernel, the Python process that runs the cells, ended {where}\n"
        f"The usual reason is too little memory: {before.available / GB:.1f} of "
        f"{before.total / GB:.1f} GB were available when the notebook began. Close other programs, "
        "set SPAMGPT_BASE=pocket if it is not, or give the container more memory if this is one. "
        "`python -m spamgpt doctor` says how much is needed."
    )


# --- all of them ----------------------------------------------------------------------


def select(wanted: list[str], whole: bool = False) -> list[Path]:
    """The notebooks whose name starts with one of `wanted`, in order.

    If that is empty: from data to a classifier and what it is worth (to 10); with `whole`, those
    of other methods and tasks too.

    Raises ValueError for a name that fits none, and FileNotFoundError if there are none.
    """
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            "there are no notebooks here: they come with the repository, and with the package "
            "if it is installed from there (`pip install .`)"
        )
    for name in wanted:
        if not any(path.name.startswith(name) for path in paths):
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(p.stem for p in paths)}")
    if not wanted:
        return [path for path in paths if whole or path.name[:2] <= LAST]
    return [path for path in paths if any(path.name.startswith(name) for name in wanted)]


def run_notebooks(wanted: list[str], whole: bool = False) -> int:
    """Execute the notebooks; the exit status: 0, 1 if one failed, 128 + n after signal n.

    Raises ValueError for an unknown notebook, and OSError if nothing can be kept.
    """
    paths, folder = select(wanted, whole), _new_folder()
    try:
        with Signals() as signals:
            return _run(paths, folder, signals)
    except Stopped as stopped:
        where = f" in {stopped.during}" if stopped.during else ""
        kept = f"what was executed is kept in {show_path(folder)}/"
        kept = kept if any(folder.iterdir()) else "no notebook was executed"
        name = signal.Signals(stopped.signum).name
        print(f"\nstopped{where} ({name}); {kept}", file=sys.stderr)
        return 128 + stopped.signum
    finally:
        with suppress(OSError):  # it goes only if nothing is in it
            folder.rmdir()


def _new_folder() -> Path:
    """The folder of this run. Made before anything is executed, so as to know that it can be."""
    folder = workspace() / "runs" / datetime.now().strftime("%Y-%m-%d_%H%M%S")
    with explained("the executed notebooks cannot be written to", folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(paths: list[Path], folder: Path, signals: Signals) -> int:
    """As run_notebooks; raises Stopped."""
    forget_choices()
    sms.source()
    choose_base()
    executed, began = [], time.perf_counter()
    for i, path in enumerate(paths, start=1):
        notebook = nbformat.read(path, as_version=4)
        started, failure = time.perf_counter(), None
        with signals.held(path.stem):
            try:
                execute(notebook, path.stem, signals)
            except (CellControlSignal, DeadKernelError) as error:
                failure = error
            finally:
                with atomic(folder / path.name) as temporary:
                    nbformat.write(notebook, temporary)
        executed.append((path.stem, notebook))
        seconds = time.perf_counter() - started
        print(f"[{i}/{len(paths)}] {path.stem:<32} {seconds:6.1f} s", flush=True)
        if failure is not None:
            print(f"\n{failure}\nThe notebook as it stopped: {show_path(folder / path.name)}")
            return 1
    report = write_report(executed, folder / "report.html")
    print(f"\nReport: {show_path(report)}\n")
    # Results of an earlier run are not this one's.
    if any(path.stem == EVALUATION for path in paths) and (results := load_results()) is not None:
        print(result_table(results, time.perf_counter() - began))
    return 0


def write_report(executed: list[tuple[str, nbformat.NotebookNode]], path: Path) -> Path:
    """All executed notebooks as one HTML page, figures included."""
    whole = nbformat.v4.new_notebook(metadata=executed[0][1].metadata)
    for name, notebook in executed:
        for i, cell in enumerate(notebook.cells):
            whole.cells.append(nbformat.from_dict({**cell, "id": f"{name}-{i}"}))
    exporter = HTMLExporter(embed_images=True)
    resources = {"metadata": {"name": "spamgpt", "path": str(NOTEBOOKS)}}
    html, _ = exporter.from_notebook_node(whole, resources=resources)
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def result_table(results: dict, seconds: float) -> str:
    """What notebook 07 measured, as an aligned table."""
    rows = [
        ("data set", sms.TASK.data_names[results["data"]]),
        ("base model", results["base"]),
        ("trainable parameters", f"{results['trainable_parameters']:,}"),
        ("fine-tuning", f"{results['training_seconds']:.0f} s"),
        ("all notebooks", f"{seconds:.0f} s"),
    ]
    for name in SPLITS:
        part = results["splits"][name]
        low, high = part["interval"]
        rows.append(
            (
                f"{name} accuracy",
                f"{part['accuracy']:.2%} of {part['n']:,}  (95 % interval {low:.1%} to {high:.1%})",
            )
        )
    return "\n".join(f"{name:<22} {value}" for name, value in rows)
