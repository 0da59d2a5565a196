"""Execute the notebooks in order, keep the executed copies, write one report."""

import time
from datetime import datetime
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from tqdm import tqdm

from spamgpt.evaluation import load_results
from spamgpt.files.workspace import PROJECT, atomic, forget_choices, show_path, workspace
from spamgpt.models.base import choose_base
from spamgpt.tasks import sms
from spamgpt.tasks.splits import SPLITS

NOTEBOOKS = PROJECT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
EVALUATION = "06_evaluate"
CELL_SECONDS = 3600  # a download over a slow line is the longest cell


class _ThisPython(KernelSpecManager):
    """Kernels run in this very environment, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(["--log-level=ERROR"]))


def client(
    notebook: nbformat.NotebookNode, folder: Path | None = None, **options
) -> NotebookClient:
    """What executes a notebook with this very Python, in `folder` (default: the notebooks')."""
    return NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=_ThisPython()),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder or NOTEBOOKS)}},
        **options,
    )


def execute(notebook: nbformat.NotebookNode, name: str) -> None:
    """Run all cells in a fresh kernel, in place, showing progress on a terminal.

    Raises nbclient's CellExecutionError or DeadKernelError.
    """
    n_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=n_cells, desc=name, unit="cell", leave=False, disable=None) as bar:
        client(notebook, on_cell_executed=lambda **_: bar.update()).execute()
    for cell in notebook.cells:  # a live widget is nothing but a broken box on paper
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]


def select(wanted: list[str]) -> list[Path]:
    """The notebooks whose name starts with one of `wanted` (all if empty), in order.

    Raises ValueError for a name that fits none.
    """
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for name in wanted:
        if not any(path.name.startswith(name) for path in paths):
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(p.stem for p in paths)}")
    return [p for p in paths if not wanted or any(p.name.startswith(name) for name in wanted)]


def run_notebooks(wanted: list[str]) -> int:
    """Execute the notebooks; returns 0, or 1 if one of them failed."""
    paths = select(wanted)
    forget_choices()
    sms.source()
    choose_base()
    folder = workspace() / "runs" / datetime.now().strftime("%Y-%m-%d_%H%M%S")
    executed, began = [], time.perf_counter()
    for i, path in enumerate(paths, start=1):
        notebook = nbformat.read(path, as_version=4)
        started, failure = time.perf_counter(), None
        try:
            execute(notebook, path.stem)
        except (CellExecutionError, DeadKernelError) as error:
            failure = error
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
    """What notebook 06 measured, as an aligned table."""
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
