"""The command line, called as a user calls it."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from spamgpt import __version__
from spamgpt.__main__ import main
from spamgpt.files import assets
from spamgpt.files.workspace import PROJECT
from spamgpt.inference import classify
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.tasks.sms import TASK


@pytest.fixture
def saved_classifier(trained_classifier):
    trained_classifier.positive = "spam"
    save_classifier(trained_classifier)
    return trained_classifier


@pytest.fixture
def stdin(monkeypatch):
    """stdin(data) lets standard input hold these bytes."""

    def hold(data):
        data = data.encode() if isinstance(data, str) else data
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return hold


@pytest.fixture
def run(capsys):
    """run(*arguments) is (exit code, standard output, standard error) of the command."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_doctor_names_the_base_model_and_the_data_it_would_use(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["ok", "base", "pocket"] for line in lines)
    assert any(line.split()[:2] == ["ok", "data"] for line in lines)


def test_doctor_speaks_json(capsys):
    main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    names = "python packages kernel disk memory device proxy cache base data"
    assert set(names.split()) <= set(checks)
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
    assert "06_finetune" in capsys.readouterr().err


def test_classify_prints_label_probability_and_text_in_order(saved_classifier, capsys):
    assert main(["classify", "first", "second"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    for line, text in ((first, "first"), (second, "second")):
        label, probability, rest = line.split(maxsplit=2)
        assert label in {"ham", "spam"} and 50 <= float(probability.rstrip("%")) <= 100
        assert rest == text


def test_classify_reads_one_message_per_line(saved_classifier, capsys, stdin):
    texts = [f"message {i}" for i in range(3000)] + [""]  # more than one portion, an empty line
    stdin("\n".join(texts) + "\n")
    assert main(["classify", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%", 1)[1].strip() for line in lines] == texts


# --- classify: what it reads ----------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_classify_judges_what_was_written_in_whatever_encoding(
    saved_classifier, run, stdin, encoding
):
    texts = ["Win £900 now", "ça va?"]
    stdin("\n".join(texts).encode(encoding))
    code, out, err = run("classify", "-", "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["text"] for row in rows] == texts
    for row, one in zip(rows, classify(saved_classifier, texts), strict=True):
        assert row["probabilities"]["spam"] == pytest.approx(one.probabilities[1], abs=1e-5)
    assert ("taken for cp1252" in err and "--encoding" in err) == (encoding == "cp1252")


def test_classify_is_told_an_encoding(saved_classifier, run, stdin):
    stdin("Да\n".encode("cp866"))
    code, out, err = run("classify", "-", "--encoding", "cp866")
    assert code == 0 and out.endswith("  Да\n") and err == ""
    stdin(b"x")
    code, out, err = run("classify", "-", "--encoding", "utf-9")
    assert code == 1 and out == "" and err.startswith("there is no encoding 'utf-9'")


def test_classify_prints_what_it_judged_before_a_line_it_cannot_read(saved_classifier, run, stdin):
    stdin("sch\u00f6n\nfine\n".encode() + b"caf\xe9\nnever\n")
    code, out, err = run("classify", "-")
    assert code == 1 and [line.split()[-1] for line in out.splitlines()] == ["schön", "fine"]
    assert err.startswith("standard input: line 3 is not UTF-8") and err.count("\n") == 1


def test_arguments_that_the_locale_could_not_read_are_judged_as_they_were_written(
    saved_classifier, run
):
    text = "Win £900 🎁 ünï"
    code, out, _ = run("classify", text.encode().decode("ascii", "surrogateescape"))
    assert code == 0 and out == run("classify", text)[1]
    code, out, err = run("classify", "caf\udce9 is open today")
    assert code == 0 and out.endswith("café is open today\n") and "message 1 is not UTF-8" in err
    code, out, err = run("classify", "half \ud83d")
    assert code == 1 and out == "" and "message 1 holds half a character" in err


def test_classify_reads_a_file_of_lines(saved_classifier, run, tmp_path):
    (tmp_path / "notes.txt").write_text("one\n\ntwo")
    code, out, _ = run("classify", "--file", tmp_path / "notes.txt")
    assert code == 0 and [line[16:] for line in out.splitlines()] == ["one", "", "two"]


def test_classify_reads_a_column_of_a_table(saved_classifier, run, tmp_path, stdin):
    texts = ["a, b", "two\nlines", 'say "hi"']
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([["id", "message", "note"], *([1, text, "x"] for text in texts)])
    (tmp_path / "t.CSV").write_text(rows.getvalue(), newline="")
    code, out, err = run("classify", "--file", tmp_path / "t.CSV", "--format", "jsonl")
    assert code == 0 and [json.loads(line)["text"] for line in out.splitlines()] == texts
    assert err == "t.CSV: the messages are read from the column 'message'\n"
    code, out, err = run("classify", "--file", tmp_path / "t.CSV", "--column", "note")
    assert code == 0 and out.count("  x\n") == 3 and err == ""
    code, out, err = run("classify", "--file", tmp_path / "t.CSV", "--column", "text")
    assert code == 1 and out == "" and "'id', 'message', 'note'" in err
    stdin(rows.getvalue())
    code, out, _ = run("classify", "-", "--input-format", "csv", "--quiet")
    assert code == 0 and [line[16:] for line in out.splitlines()][1] == "two␊lines"


def test_classify_reads_json_lines(saved_classifier, run, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"sms": "one"}\n{"sms": "two"}\n')
    code, out, err = run("classify", "--file", tmp_path / "m.jsonl")
    assert code == 0 and [line.split()[-1] for line in out.splitlines()] == ["one", "two"]
    assert "'sms'" in err


def test_a_file_name_is_not_judged_as_a_message(saved_classifier, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "two words").write_text("hello")
    code, out, err = run("classify", "notes.txt")
    assert code == 2 and out == "" and "--file notes.txt" in err and "echo notes.txt |" in err
    code, out, err = run("classify", "notes.txt", "hello")  # two messages: less likely a mistake
    assert code == 0 and out.count("\n") == 2 and "--file notes.txt" in err
    assert run("classify", "two words")[0] == 0
    assert run("classify", "other.txt")[0] == 0


CONTRADICTIONS = {
    "- and a text": (["-", "hi"], "- reads standard input"),
    "a text and -": (["hi", "-"], "- reads standard input"),
    "a text and a file": (["hi", "--file", "x"], "either texts or --file"),
    "nothing": ([], "no message"),
    "a column of texts": (["hi", "--column", "x"], "not for texts"),
    "a column of lines": (["-", "--column", "x"], "--column is for tables"),
    "no probability": (["hi", "--threshold", "1.5"], "no probability from 0 to 1"),
    "no number": (["hi", "--threshold", "high"], "no probability from 0 to 1"),
}


@pytest.mark.parametrize(("arguments", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_loaded(
    arguments, sentence, run, stdin
):
    stdin("x")
    code, out, err = run("classify", *arguments)  # no classifier is saved here
    assert code == 2 and out == "" and sentence in err


def test_a_file_that_is_not_there(saved_classifier, run, tmp_path):
    code, out, err = run("classify", "--file", "nothere.txt")
    assert (code, out, err) == (1, "", "nothere.txt: No such file or directory\n")


# --- classify: what it says -----------------------------------------------------------

TEXTS = ["Win £900", 'a, "b"', "two\nlines", "lone\rreturn", "ü"]


@pytest.fixture
def json_input(stdin):
    """TEXTS on standard input, one JSON string a line."""
    stdin("\n".join(map(json.dumps, TEXTS)))
    return ["classify", "-", "--input-format", "jsonl"]


def test_the_csv_of_results_is_read_back_the_same(saved_classifier, run, json_input):
    code, out, _ = run(*json_input, "--format", "csv")
    header, *rows = csv.reader(io.StringIO(out, newline=""), strict=True)
    assert code == 0 and header == ["text", "label", "probability_ham", "probability_spam"]
    assert [row[0] for row in rows] == TEXTS
    for row, one in zip(rows, classify(saved_classifier, TEXTS), strict=True):
        assert row[1] == one.label
        assert list(map(float, row[2:])) == pytest.approx(one.probabilities, abs=1e-5)


def test_the_text_of_results_has_one_row_a_message_and_nothing_a_terminal_obeys(
    saved_classifier, run, stdin
):
    nasty = ["a\nb", "red \x1b[31m", "\x9b2J", "bell\a", "tab\tstays", "\u2028", "\x85", "\r\n"]
    stdin("\n".join(map(json.dumps, nasty)))
    code, out, _ = run("classify", "-", "--input-format", "jsonl")
    assert code == 0 and len(out.splitlines()) == len(nasty)
    assert not set(out) & set("\x1b\x9b\a\r\x85\u2028") and "tab\tstays" in out


def test_probabilities_that_differ_in_the_fourth_digit_can_be_told_apart(saved_classifier, run):
    _, out, _ = run("classify", "hi")
    assert re.fullmatch(r"(ham|spam) +\d+\.\d{3}%  hi\n", out)


def test_a_saved_threshold_is_in_force_and_said(saved_classifier, run):
    p = classify(saved_classifier, ["hello"])[0].probabilities[1]
    for threshold, label in ((p - 0.01, "spam"), (p + 0.01, "ham")):
        saved_classifier.set_threshold(threshold)
        save_classifier(saved_classifier)
        code, out, err = run("classify", "hello")
        assert code == 0 and out == f"{label:<5} {p:8.3%}  hello\n"  # of spam, whatever is given
        assert err == (
            f"threshold {threshold:g} for spam, saved with the classifier; --threshold none "
            "ignores it; shown is the probability of spam\n"
        )
        other = run("classify", "hello", "--threshold", p - 0.01)
        assert other[1].startswith("spam") and "from --threshold" in other[2]
        plain = run("classify", "hello", "--threshold", "none")
        assert plain[2] == "" and plain[1].startswith("spam" if p > 0.5 else "ham ")
    assert load_classifier()[0].threshold == pytest.approx(p + 0.01)  # left as it was


def test_a_threshold_needs_a_label_to_look_for(trained_classifier, run):
    save_classifier(trained_classifier)
    code, out, err = run("classify", "hello", "--threshold", "0.9")
    assert code == 1 and out == "" and "no positive label" in err


def test_another_model(saved_classifier, run, make_classifier, tmp_path):
    save_classifier(make_classifier(seed=5), tmp_path / "other")
    code, out, _ = run("classify", "hello", "--model", tmp_path / "other")
    assert code == 0 and "50.000%" in out  # a fresh head
    code, _, err = run("classify", "hello", "--model", tmp_path / "none")
    assert code == 1 and "no trained classifier in none" in err


def test_quiet_leaves_results_and_errors(saved_classifier, run, stdin):
    saved_classifier.set_threshold(0.5)
    save_classifier(saved_classifier)
    stdin(b"hello\n" + b"word " * 500 + b"\nx\0")
    loud = run("classify", "-")
    assert loud[2].count("\n") == 3 and "parts that overlap" in loud[2]
    stdin(b"hello\n" + b"word " * 500 + b"\nx\0")
    code, out, err = run("classify", "-", "--quiet")
    assert (code, out) == loud[:2] and code == 1
    assert err.startswith("standard input: line 3 holds a NUL") and err.count("\n") == 1


def test_version(run):
    assert run("--version") == (0, f"spamgpt {__version__}\n", "")


def test_help_names_every_exit_code(run):
    code, out, _ = run("classify", "--help")
    assert code == 0
    assert [int(n) for n in re.findall(r"^  (\d+) +\S", out, re.M)] == [0, 1, 2, 130, 141, 143]


def test_nothing_heavy_is_imported_to_show_help():
    """Ctrl-C within the first second would be a traceback out of the imports."""
    program = """
import sys
from spamgpt.__main__ import main
for command in ("doctor", "fetch", "run", "classify", "experiments", "clean"):
    try:
        main([command, "--help"])
    except SystemExit:
        continue
print(*{"torch", "pandas", "requests", "safetensors"} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "" and "exit code" in done.stdout


# --- clean, and what the others say ---------------------------------------------------


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
