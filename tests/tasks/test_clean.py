"""`make clean` removes what the series made, and nothing of anybody else's."""

import pytest

from spamgpt.tasks import sms
from spamgpt.tasks.clean import clean_workspace
from spamgpt.tasks.task import Task


@pytest.fixture
def full(workspace_folder):
    """A workspace with everything that a run leaves, downloads, and a task of one's own."""
    sms.TASK.make_splits()
    for name in ("training", "classifier", "runs", "cache"):
        (workspace_folder / name).mkdir(exist_ok=True)
        (workspace_folder / name / "file").write_text(name)
    for name in ("results.json", "experiments.csv", "precision.json"):
        (workspace_folder / name).write_text("{}")
    (workspace_folder / "mine.csv").write_text("message,mood\n" + "a,glad\nb,sad\n" * 30)
    own = Task.from_csv(workspace_folder / "mine.csv", text="message", label="mood")
    own.make_splits()
    return workspace_folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_made_is_removed_and_what_is_yours_stays(full):
    yours = ["cache", "own"]
    kept = {path: content for name in yours for path, content in contents(full / name).items()}
    assert len(kept) > 5
    kept[full / "mine.csv"] = (full / "mine.csv").read_bytes()
    assert clean_workspace() == []
    assert contents(full) == kept
    assert sorted(path.name for path in full.iterdir()) == sorted([*yours, "mine.csv"])


def test_files_of_yours_in_the_folder_of_the_splits_stay_and_are_named(full):
    changed, put = full / "sms" / "train.csv", full / "sms" / "customers.csv"
    for path in (changed, put):
        path.write_text("label,text,target\nham,mine,0\n")
    (full / "sms" / "notes.txt").write_text("mine")
    assert sorted(clean_workspace()) == [put, changed]
    assert sorted(path.name for path in (full / "sms").iterdir()) == [
        "customers.csv",
        "notes.txt",
        "train.csv",
    ]
    assert {path.read_text() for path in (changed, put)} == {"label,text,target\nham,mine,0\n"}


def test_what_stayed_is_still_yours_the_next_time(full):
    """Cleaning removes the list of what was written; that makes nobody's file ours."""
    path = full / "sms" / "train.csv"
    path.write_text("label,text,target\nham,mine,0\n")
    for _ in range(2):
        assert clean_workspace() == [path]
    with pytest.raises(ValueError, match=r"train\.csv"):
        sms.TASK.make_splits()
    path.unlink()
    sms.TASK.make_splits()
    assert clean_workspace() == []


def test_an_empty_workspace_is_clean(workspace_folder):
    assert clean_workspace() == []
    assert not workspace_folder.exists()
