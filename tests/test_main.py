"""The command line, called as a user calls it."""

import io
import json
import re
import sys

import pytest

from spamgpt.__main__ import main
from spamgpt.files import assets
from spamgpt.files.workspace import PROJECT
from spamgpt.saving import save_classifier
from spamgpt.tasks.sms import TASK


@pytest.fixture
def saved_classifier(trained_classifier):
    save_classifier(trained_classifier)


def test_doctor_names_the_base_model_and_the_data_it_would_use(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["ok", "base", "pocket"] for line in lines)
    assert any(line.split()[:2] == ["ok", "data"] for line in lines)


def test_doctor_speaks_json(capsys):
    main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    names = "python packages kernel disk memory device proxy cache base data"
    assert list(checks) == names.split()
    assert all(isinstance(check["ok"], bool) for check in checks.values())


def test_fetch_rejects_an_unknown_name_and_lists_the_known(capsys):
    assert main(["fetch", "gpt5"]) == 2
    err = capsys.readouterr().err
    assert "gpt5" in err and all(name in err for name in assets.ASSETS)


def test_fetch_that_fails_says_so_and_exits_with_1(capsys, monkeypatch):
    monkeypatch.delenv("SPAMGPT_MIRROR", raising=False)
    assert main(["fetch", "sms"]) == 1
    assert "SPAMGPT_OFFLINE" in capsys.readouterr().err


def test_classify_without_a_classifier_says_what_to_run(capsys):
    assert main(["classify", "hello"]) == 1
    assert "05_finetune" in capsys.readouterr().err


def test_classify_prints_label_probability_and_text_in_order(saved_classifier, capsys):
    assert main(["classify", "first", "second"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    for line, text in ((first, "first"), (second, "second")):
        label, probability, rest = line.split(maxsplit=2)
        assert label in {"ham", "spam"} and 50 <= float(probability.rstrip("%")) <= 100
        assert rest == text


def test_classify_reads_one_message_per_line(saved_classifier, capsys, monkeypatch):
    texts = [f"message {i}" for i in range(300)] + [""]  # more than one chunk, and an empty line
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts) + "\n"))
    assert main(["classify", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%", 1)[1].strip() for line in lines] == texts


def test_clean_removes_what_was_made_and_says_what_it_kept(
    saved_classifier, workspace_folder, capsys
):
    TASK.make_splits()
    (workspace_folder / "own" / "mine").mkdir(parents=True)
    (TASK.folder / "test.csv").write_text("label,text,target\nham,mine,0\n")
    capsys.readouterr()
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "kept, since it is not from this series: work/sms/test.csv\n"
    left = {path.relative_to(workspace_folder).as_posix() for path in workspace_folder.glob("*/*")}
    assert {"own/mine", "sms/test.csv"} <= left
    assert not {path for path in left if path.startswith("classifier")}
    assert [path.name for path in TASK.folder.iterdir()] == ["test.csv"]


def test_make_clean_is_this_command():
    """A list of files in the Makefile would know nothing of what is yours."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^clean:.*\n((?:\t.*\n)+)", makefile, re.M)[1]
    assert "-m spamgpt clean" in recipe
    assert "rm -rf data" not in recipe and "rm -f data" not in recipe


def test_a_precision_that_does_not_exist_is_one_line_not_a_traceback(
    saved_classifier, capsys, monkeypatch
):
    monkeypatch.setenv("SPAMGPT_PRECISION", "fp8")
    assert main(["classify", "hello"]) == 1
    assert capsys.readouterr().err.startswith("SPAMGPT_PRECISION=fp8: choose one of auto, fp32")
