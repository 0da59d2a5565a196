"""Execute every notebook in place and store its outputs, cleaned for the repository.

    SPAMGPT_BASE=pocket SPAMGPT_MIRROR=FOLDER python scripts/refresh_notebooks.py [NN ...]

The stored outputs come from Pocket GPT on the real SMS Spam Collection, so the script
refuses to run with anything else. It works in a workspace of its own and prints how long
each notebook took.
"""

import os
import sys
import tempfile
import time

import nbformat


def clean(notebook: nbformat.NotebookNode) -> None:
    """Number the cells from 1 and drop what depends on this machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        kept = ("tags", "jupyter")  # the second hides an output that would answer a prediction
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in kept})
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count


def main() -> None:
    if os.environ.get("SPAMGPT_BASE") != "pocket":
        sys.exit("set SPAMGPT_BASE=pocket: stored outputs come from Pocket GPT")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPAMGPT_WORKSPACE"] = os.path.join(folder, "data")
        from spamgpt import runner
        from spamgpt.tasks import sms

        if sms.source()[0] != "collection":
            sys.exit("stored outputs come from the real collection: set SPAMGPT_MIRROR or connect")
        for path in runner.select(sys.argv[1:], whole=True):
            notebook, began = nbformat.read(path, as_version=4), time.perf_counter()
            runner.execute(notebook, path.stem)
            clean(notebook)
            nbformat.write(notebook, path)
            print(f"{path.stem:<32} {time.perf_counter() - began:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
