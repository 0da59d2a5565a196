"""A task: its files, files of yours beside them, and tasks made of a file of your own."""

import csv
import os
import sys
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamgpt.files.workspace import PROJECT, SAMPLE
from spamgpt.tasks import sms
from spamgpt.tasks.sms import TASK
from spamgpt.tasks.splits import SPLITS
from spamgpt.tasks.task import Task, foreign_files

NUL = "\0" if sys.version_info < (3, 11) else ""  # Python 3.10 cannot write it to a CSV file
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=NUL)

# --- the three CSV files --------------------------------------------------------------

ODD_TEXTS = [
    "",
    "NA",
    "None",
    "null",
    "a, b, c",
    'say "hi"',
    'a lone " mark',
    "two\nlines",
    "two\r\nlines",
    "a lone\rreturn",
    "tab\there",
    "emoji 😀 العربية",
    " spaces around ",
    "'",
    "\\n",
    "#1",
]


def splits_of(texts):
    part = pd.DataFrame({"label": "ham", "text": texts, "target": 0})
    return dict.fromkeys(SPLITS, part)


def test_saved_splits_come_back_the_same():
    splits = TASK.split(sms.load(SAMPLE))
    TASK.save_splits(splits, "sample")
    loaded = TASK.load_splits()
    assert list(loaded) == list(splits)
    for name, part in splits.items():
        pd.testing.assert_frame_equal(loaded[name], part)
    assert TASK.split_source() == "sample"


@pytest.mark.parametrize("text", ODD_TEXTS, ids=repr)
def test_odd_texts_survive_saving(text):
    TASK.save_splits(splits_of([text, "plain"]), "sample")
    for part in TASK.load_splits().values():
        assert part["text"].tolist() == [text, "plain"]


def test_splits_whose_texts_are_all_numbers_survive_saving():
    TASK.save_splits(splits_of(["007", "42"]), "sample")
    assert TASK.load_splits()["test"]["text"].tolist() == ["007", "42"]


@settings(max_examples=60)
@given(st.lists(st.text(CHARACTERS, max_size=12), min_size=1))
def test_any_text_survives_saving(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("csv", numbered=True)
    task = replace(TASK, folder_of=lambda: folder)
    task.save_splits(splits_of([*texts, "x"]), "sample")
    assert task.load_splits()["test"]["text"].tolist() == [*texts, "x"]


def test_a_text_that_cannot_be_written_leaves_the_old_splits(monkeypatch):
    TASK.save_splits(splits_of(["kept"]), "sample")

    def fail(*args, **kwargs):
        raise csv.Error("need to escape, but no escapechar set")  # Python 3.10, on NUL

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(ValueError, match=r"Python 3\.11 or newer"):
        TASK.save_splits(splits_of(["x"]), "sample")
    assert TASK.load_splits()["test"]["text"].tolist() == ["kept"]


@pytest.mark.parametrize("lost", [None, "validation"])
def test_missing_splits_name_the_notebook_that_makes_them(lost):
    if lost:
        (TASK.save_splits(splits_of(["x"]), "sample") / f"{lost}.csv").unlink()
    with pytest.raises(FileNotFoundError, match="01_download_balance_split"):
        TASK.load_splits()


# --- files of yours in the folder of the splits ---------------------------------------


def older(folder):
    """The folder as versions before 0.2 left it: without a list of what was written."""
    (folder / "written.json").unlink()
    after = (folder / "source.json").stat().st_mtime
    for name in SPLITS:
        os.utime(folder / f"{name}.csv", (after - 1, after - 1))


def put_train(folder):
    (folder / "train.csv").write_text("label,text,target\nham,mine,0\n")
    return "train.csv"


def append_to_validation(folder):
    with open(folder / "validation.csv", "a") as file:
        file.write("ham,mine,0\n")
    return "validation.csv"


def put_another(folder):
    (folder / "customers.csv").write_text("label,text\nham,mine\n")
    return "customers.csv"


def put_on_a_later_day(folder):
    older(folder)
    name = put_train(folder)
    later = (folder / "source.json").stat().st_mtime + 60
    os.utime(folder / name, (later, later))
    return name


FOREIGN = [put_train, append_to_validation, put_another, put_on_a_later_day]


@pytest.mark.parametrize("change", FOREIGN)
def test_files_that_somebody_put_or_changed_are_not_overwritten(change):
    folder = TASK.save_splits(splits_of(["ours"]), "sample")
    name = change(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="Your own data") as error:
        TASK.save_splits(splits_of(["new"]), "collection")
    assert f"({name})" in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_all_files_that_are_not_overwritten_are_named():
    folder = TASK.folder
    folder.mkdir(parents=True)
    put_train(folder), put_another(folder)
    with pytest.raises(ValueError, match=r"\(customers\.csv, train\.csv\)"):
        TASK.save_splits(splits_of(["new"]), "sample")
    assert sorted(path.name for path in folder.iterdir()) == ["customers.csv", "train.csv"]


def test_the_readme_has_the_section_that_the_message_names():
    assert "Your own data" in (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("age", [older, lambda folder: None], ids=["older version", "this one"])
def test_files_of_ours_are_overwritten(age):
    for text in ("first", "second"):
        age(TASK.save_splits(splits_of([text]), "sample"))
    TASK.save_splits(splits_of(["third"]), "sample")
    assert TASK.load_splits()["test"]["text"].tolist() == ["third"]


@pytest.mark.parametrize("age", [older, lambda folder: None], ids=["older version", "this one"])
@pytest.mark.parametrize("moves", range(5))
def test_after_a_kill_between_two_moves_the_files_still_count_as_ours(age, moves, monkeypatch):
    """written.json, the three sets and source.json, in this order."""
    folder = TASK.save_splits(splits_of(["old"]), "sample")
    age(folder)
    move, left = os.replace, iter(range(moves))

    def killed(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            TASK.save_splits(splits_of(["new"]), "sample")
    assert (folder / "source.json").exists() == (moves == 0)
    assert foreign_files(folder) == []
    TASK.save_splits(splits_of(["newer"]), "sample")
    assert TASK.load_splits()["train"]["text"].tolist() == ["newer"]


# --- a task of your own ---------------------------------------------------------------

MOODS = ("sad", "angry", "glad")


def moods(n=60):
    """n texts, a third of each mood, as the rows of a CSV file with a column too many."""
    rows = [(i, f'text {i}, "quoted"', MOODS[i % 3]) for i in range(n)]
    return pd.DataFrame(rows, columns=["id", "message", "mood"])


@pytest.fixture
def own(tmp_path):
    """own(table) writes a CSV file; a table, or its content as text or bytes."""

    def write(content):
        path = tmp_path / "moods.csv"
        if isinstance(content, pd.DataFrame):
            content = content.to_csv(index=False)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def from_csv(path, **more):
    return Task.from_csv(path, text="message", label="mood", **more)


def test_a_file_of_your_own_becomes_a_task_and_stays_as_it_is(own, workspace_folder):
    path = own(moods())
    before = path.read_bytes(), path.stat().st_mtime_ns
    task = from_csv(path, positive="glad")
    assert task.name == "moods"
    assert task.label_names == ("angry", "glad", "sad")
    assert task.labels == {"angry": 0, "glad": 1, "sad": 2}
    assert task.positive_class == 1
    splits = task.make_splits()
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 42,
        "validation": 6,
        "test": 12,
    }
    for part in splits.values():  # stratified
        assert part["target"].value_counts().tolist() == [len(part) // 3] * 3
        assert part["label"].map(task.labels).tolist() == part["target"].tolist()
    whole = moods().set_index("message")["mood"]
    joined = pd.concat(splits.values()).set_index("text")["label"]
    assert joined.sort_index().to_dict() == whole.sort_index().to_dict()
    assert task.folder == workspace_folder / "own" / "moods"
    assert sorted(path.name for path in task.folder.glob("*.csv")) == [
        "test.csv",
        "train.csv",
        "validation.csv",
    ]
    loaded = task.load_splits()
    for name, part in splits.items():
        pd.testing.assert_frame_equal(loaded[name], part)
    assert task.split_source() == "moods.csv"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert not TASK.folder.exists()


def test_a_task_without_a_positive_label_says_so_when_one_is_asked_for(own):
    with pytest.raises(ValueError, match="'moods' has no positive label"):
        from_csv(own(moods())).positive_class  # noqa: B018


def test_a_task_of_your_own_may_be_balanced_and_have_a_name(own, workspace_folder):
    table = pd.concat([moods(), moods().assign(message="again", mood="sad")])
    task = from_csv(own(table), name="my-own_1", balanced=True)
    counts = pd.concat(task.make_splits().values())["label"].value_counts()
    assert counts.to_dict() == {"angry": 20, "glad": 20, "sad": 20}
    assert task.folder == workspace_folder / "own" / "my-own_1"


def test_missing_splits_of_your_own_name_the_call_that_makes_them(own):
    with pytest.raises(FileNotFoundError, match=r"Task\.from_csv\('moods\.csv', .*make_splits"):
        from_csv(own(moods())).load_splits()


@pytest.mark.parametrize("text", ["NA", "null", "", "007", " x ", "a\nb", "'"], ids=repr)
def test_every_text_of_your_own_stays_text(text, own):
    table = moods()
    table.loc[7, "message"] = text
    splits = from_csv(own(table)).make_splits()
    assert text in pd.concat(splits.values())["text"].tolist()


def test_labels_that_are_numbers_are_names(own):
    table = moods().assign(mood=[i % 2 for i in range(60)])
    assert from_csv(own(table)).label_names == ("0", "1")


def test_spaces_around_a_label_make_no_other_label(own):
    table = moods()
    table.loc[0, "mood"] = " sad "
    assert from_csv(own(table)).label_names == ("angry", "glad", "sad")


REFUSED = {
    "missing column": (
        moods().drop(columns="mood"),
        r"moods\.csv has no column 'mood', only 'id', 'message'",
    ),
    "other separator": ("message;tone\na;b\n", r"has no column 'mood', only 'message', 'tone'"),
    "empty labels": (
        moods().assign(mood=lambda t: t["mood"].where(t["id"] % 10 != 4, " ")),
        r"moods\.csv: row 5 has no label \(6 of 60 rows",
    ),
    "one label": (moods().assign(mood="sad"), r"moods\.csv has 60 rows and 1 labels \(sad\)"),
    "no rows": ("message,mood\n", r"moods\.csv has 0 rows"),
    "empty": (b"", r"moods\.csv cannot be read \(No columns"),
    "encoding that cannot be told": (
        b"message,mood\n\xff\x80\xfe,sad\n",
        r"moods\.csv: line 2 is not UTF-8, .* cannot be told .*: save it as UTF-8",
    ),
    "UTF-8 and then not": (
        "message,mood\nsch\u00f6n,sad\n".encode() + b"na j\xe4,glad\n",
        r"moods\.csv: line 3 is not UTF-8 \(byte 0xe4\): save it as UTF-8",
    ),
    "NUL": ("message,mood\na,sad\nb\0,glad\n", r"moods\.csv: line 3 holds a NUL character"),
    "unquoted commas": (
        "message,mood\nwell, yes,glad\noh, no,sad\n",
        r"moods\.csv has rows with more fields than its header",
    ),
    "unquoted semicolons": (
        "message;mood\nwell; yes;glad\noh; no;sad\n",
        r"more fields than its header .* texts that hold a semicolon",
    ),
    "some unquoted commas": (
        "message,mood\nyes,glad\noh, no,sad\n",
        r"moods\.csv cannot be read \(Expected 2 fields in line 3, saw 3\)",
    ),
    "open quotation mark": ('message,mood\n"yes,glad\n', r"moods\.csv cannot be read \(EOF"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_table_of_labelled_texts_is_refused(content, message, own):
    with pytest.raises(ValueError, match=message) as error:
        from_csv(own(content))
    assert type(error.value) is ValueError
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.filterwarnings("ignore:.*no byte order mark")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_as_another_program_saves_it_is_read_the_same(encoding, separator, own):
    table = moods().assign(message=lambda t: t["message"] + " £5 ça va; тест, 🎁")
    path = own(table.to_csv(index=False, sep=separator, lineterminator="\r\n").encode(encoding))
    splits = from_csv(path).make_splits()
    assert sorted(pd.concat(splits.values())["text"]) == sorted(table["message"])


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251"])
def test_an_encoding_that_is_guessed_is_said(encoding, own):
    text = {"cp1252": "ça va “bien”, £5", "cp1251": "Позвони мне завтра вечером"}[encoding]
    table = moods().assign(message=lambda t: t["message"] + text)
    with pytest.warns(UserWarning, match=rf"moods\.csv is not UTF-8; taken for {encoding}"):
        task = from_csv(own(table.to_csv(index=False).encode(encoding)))
    with pytest.warns(UserWarning):
        splits = task.make_splits()
    assert sorted(pd.concat(splits.values())["text"]) == sorted(table["message"])


RESAVED = {
    "semicolons": (";", "utf-8", "with semicolons between the columns"),
    "tabs": ("\t", "utf-8", "with tabs between the columns"),
    "UTF-16": (",", "utf-16", "as UTF-16-LE"),
    "Excel's Unicode text": ("\t", "utf-16", "as UTF-16-LE and with tabs between the columns"),
    "cp1252": (",", "cp1252", "as CP1252"),
}


@pytest.mark.parametrize(("separator", "encoding", "how"), RESAVED.values(), ids=RESAVED)
def test_a_split_that_another_program_saved_again_is_told_how(separator, encoding, how):
    folder = TASK.save_splits(splits_of(["£5, or not", "plain"]), "sample")
    table = TASK.load_splits()["test"]
    data = table.to_csv(index=False, sep=separator).encode(encoding)
    (folder / "test.csv").write_bytes(data)
    with pytest.raises(ValueError) as error:
        TASK.load_splits()
    sentence = str(error.value)
    assert f"test.csv was saved by another program {how}: " in sentence
    assert "CSV UTF-8" in sentence and "move it away and run notebook 01" in sentence
    assert "\n" not in sentence and (folder / "test.csv").read_bytes() == data


@pytest.mark.parametrize(
    ("n", "rare", "message"),
    [
        (60, 2, r"the label 'rare' has 2 messages: at least 3 are needed"),
        (20, 4, r"24 messages of 4 labels are too few: .* 16, 2, 6"),
        (4, 3, r"7 messages are too few: .* 4, 0, 3|7 messages of 4 labels are too few"),
    ],
)
def test_too_few_rows_for_three_parts_are_refused_with_the_numbers(n, rare, message, own):
    table = pd.concat([moods(n), moods(rare).assign(mood="rare")])
    with pytest.raises(ValueError, match=message) as error:
        from_csv(own(table)).make_splits()
    assert type(error.value) is ValueError and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*moods\.csv"):
        from_csv(tmp_path / "moods.csv")


@pytest.mark.parametrize("name", ["../sms", "a/b", "with space", ".", "-"])
def test_a_name_that_is_no_folder_name_is_refused(name, own):
    with pytest.raises(ValueError, match=r"name = .*use letters, digits, - and _ only"):
        from_csv(own(moods()), name=name)


def test_a_positive_label_that_does_not_exist_is_refused(own):
    with pytest.raises(ValueError, match=r"positive = 'happy' .* \(angry, glad, sad\)"):
        from_csv(own(moods()), positive="happy")
