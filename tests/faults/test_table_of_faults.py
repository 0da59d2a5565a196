"""The table of faults names tests that exist, and leaves none out."""

import re

import pytest

from spamgpt.files.workspace import PROJECT

TABLE = (PROJECT / "docs" / "faults.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(test_\w+)`", TABLE))


def names_in(path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M))


def test_every_test_that_the_table_names_exists():
    there = set().union(*(names_in(path) for path in (PROJECT / "tests").rglob("test_*.py")))
    assert len(NAMED) > 50
    assert NAMED - there == set()


WHOLE = ["test_downloads.py", "test_checkpoint_files.py", "test_doors.py", "test_runs.py"]
WHOLE += ["test_streams.py"]


@pytest.mark.parametrize("file", WHOLE)
def test_every_fault_that_is_tested_is_in_the_table(file):
    assert names_in(PROJECT / "tests" / "faults" / file) - NAMED == set()


def test_the_files_that_the_table_names_exist():
    for name in re.findall(r"`((?:tests|scripts)/[\w/]+\.py)`", TABLE):
        assert (PROJECT / name).is_file(), name
