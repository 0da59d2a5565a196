"""The series as a whole: its order, its links, and the notebooks that messages name."""

import re

import nbformat
import pytest

from spamgpt import runner
from spamgpt.files.workspace import PROJECT

NOTEBOOKS = {
    p.name: nbformat.read(p, as_version=4) for p in sorted(runner.NOTEBOOKS.glob("*.ipynb"))
}
NUMBERS = [name[:2] for name in NOTEBOOKS]
TEXTS = [
    *(PROJECT / "src").rglob("*.py"),
    *(p for p in (PROJECT / "tests").rglob("*.py") if "test_run" not in p.name),  # they make some
    *(PROJECT / "scripts").glob("*.py"),
    *(PROJECT / "docs").glob("*.md"),
    *(PROJECT / "data").rglob("README.md"),
    PROJECT / "README.md",
    PROJECT / "Makefile",
]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_the_numbers_follow_each_other():
    assert [f"{i:02}" for i in range(len(NUMBERS))] == NUMBERS and len(NUMBERS) > 10


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_link_of_a_notebook_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(NOTEBOOKS[name]))
    for link in links:
        if "://" not in link:
            assert (runner.NOTEBOOKS / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("name", list(NOTEBOOKS)[:-1])
def test_every_notebook_leads_to_the_next(name):
    after = list(NOTEBOOKS)[list(NOTEBOOKS).index(name) + 1]
    (number, link) = re.findall(
        r"\*\*Next:\*\* \[(\d\d) [^]]+\]\(([^)]+)\)", prose(NOTEBOOKS[name])
    )[-1]
    assert (number, link) == (after[:2], after)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_numbered_link_goes_to_the_notebook_of_that_number(name):
    for number, link in re.findall(
        r"\[(?:[Nn]otebook )?(\d\d)[^]]*\]\((\d\d)_", prose(NOTEBOOKS[name])
    ):
        assert number == link


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_notebook_that_a_text_names_exists(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\b(\d\d_[a-z][a-z0-9_]+[a-z0-9])(?:\.ipynb)?\b", text):
        assert f"{name}.ipynb" in NOTEBOOKS, name
    for number in re.findall(r"[Nn]otebook (\d\d)\b", text):
        assert number in NUMBERS


def test_the_readme_lists_every_notebook():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        assert f"[{name[:2]}](notebooks/{name})" in readme
