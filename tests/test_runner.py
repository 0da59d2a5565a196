"""Executing notebooks: copies, report, failures, result table."""

import nbformat
import pytest

from spamgpt import runner

V4 = nbformat.v4


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of two small notebooks in place of the real ones."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    for name, source in (("00_one", "print('one', 6 * 7)"), ("01_two", "print('two', 6 * 8)")):
        notebook = V4.new_notebook(cells=[V4.new_markdown_cell(name), V4.new_code_cell(source)])
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def test_notebooks_run_in_order_and_the_sources_stay_untouched(notebooks, workspace_folder, capsys):
    before = {path: path.read_bytes() for path in notebooks.glob("*.ipynb")}
    assert runner.run_notebooks([]) == 0
    assert {path: path.read_bytes() for path in notebooks.glob("*.ipynb")} == before
    out = capsys.readouterr().out
    assert out.index("00_one") < out.index("01_two")
    (folder,) = (workspace_folder / "runs").iterdir()
    executed = nbformat.read(folder / "01_two.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "two 48\n"
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "one 42" in report and "two 48" in report


def test_a_failing_notebook_is_kept_named_and_stops_the_run(notebooks, workspace_folder, capsys):
    path = notebooks / "00_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(V4.new_code_cell("raise RuntimeError('no such luck')"))
    nbformat.write(notebook, path)
    assert runner.run_notebooks([]) == 1
    out = capsys.readouterr().out
    assert "no such luck" in out and "01_two" not in out
    (folder,) = (workspace_folder / "runs").iterdir()
    assert [file.name for file in folder.iterdir()] == ["00_one.ipynb"]


def test_some_notebooks_can_be_chosen_by_number_or_name(notebooks):
    assert [path.stem for path in runner.select(["01"])] == ["01_two"]
    assert [path.stem for path in runner.select(["01_two", "00"])] == ["00_one", "01_two"]
    with pytest.raises(ValueError, match=r"'02'.*00_one, 01_two"):
        runner.select(["02"])


def test_other_methods_and_tasks_are_executed_when_all_are_asked_for(notebooks):
    (notebooks / "01_two.ipynb").rename(notebooks / "11_more.ipynb")
    assert [path.stem for path in runner.select([])] == ["00_one"]
    assert [path.stem for path in runner.select([], whole=True)] == ["00_one", "11_more"]
    assert [path.stem for path in runner.select(["11"])] == ["11_more"]


def test_result_table_shows_what_was_measured():
    part = {"n": 300, "accuracy": 0.97, "interval": (0.944, 0.984)}
    results = {
        "data": "sample",
        "base": "pocket",
        "trainable_parameters": 6902274,
        "training_seconds": 12.3,
        "splits": dict.fromkeys(("train", "validation", "test"), part),
    }
    table = runner.result_table(results, seconds=99)
    for expected in ("bundled sample", "pocket", "6,902,274", "12 s", "99 s", "97.00% of 300"):
        assert expected in table
    assert "94.4% to 98.4%" in table


def test_results_of_an_earlier_run_are_not_shown_as_this_runs(
    notebooks, workspace_folder, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "load_results", lambda: {"of": "another run"})
    monkeypatch.setattr(runner, "result_table", lambda results, seconds: "THE TABLE")
    runner.run_notebooks([])
    assert "THE TABLE" not in capsys.readouterr().out
    (notebooks / "00_one.ipynb").rename(notebooks / "07_evaluate.ipynb")
    (notebooks / "01_two.ipynb").rename(notebooks / "09_experiments.ipynb")
    runner.run_notebooks([])
    assert "THE TABLE" in capsys.readouterr().out


def test_kernels_are_of_this_very_python_whatever_else_is_installed(
    notebooks, tmp_path, monkeypatch
):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["no-such-python"], "display_name": "Mine", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert runner.run_notebooks([]) == 0


def test_outputs_that_the_repository_stored_do_not_pass_for_this_runs(notebooks, workspace_folder):
    path = notebooks / "00_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(V4.new_code_cell("raise RuntimeError('here')"))
    later = V4.new_code_cell("1", execution_count=3, outputs=[V4.new_output("stream", text="old")])
    notebook.cells.append(later)
    nbformat.write(notebook, path)
    assert runner.run_notebooks([]) == 1
    (kept,) = (workspace_folder / "runs").glob("*/00_one.ipynb")
    last = nbformat.read(kept, as_version=4).cells[-1]
    assert (last.outputs, last.execution_count) == ([], None)
