"""The SMS Spam Collection: the lecture's numbers, its form, and where it comes from."""

import csv

import numpy as np
import pandas as pd
import pytest

from spamgpt.batches import encode
from spamgpt.files import assets
from spamgpt.files.workspace import SAMPLE, chosen
from spamgpt.tasks import sms
from spamgpt.tasks.sms import TASK
from spamgpt.tasks.splits import SPLITS, balance, group_split, occurs_in

# --- the real collection --------------------------------------------------------------


def test_the_collection_has_the_lecture_counts(collection):
    assert collection["label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}


def test_a_lone_quotation_mark_swallows_two_rows(published, collection):
    """The file holds 5,574 messages; read as in the lecture, one row holds three of them."""
    path = published("sms")
    full = pd.read_csv(path, sep="\t", header=None, quoting=csv.QUOTE_NONE, keep_default_na=False)
    assert full[0].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    assert len(collection) == 5572
    (joined,) = collection[collection["text"].str.contains("\n")]["text"]
    assert joined.count("\nham\t") == 2


@pytest.fixture(scope="module")
def lecture_splits(collection):
    return TASK.split(collection)


def test_the_collection_is_balanced_and_split_as_in_the_lecture(collection, lecture_splits):
    assert balance(collection, sms.LABEL_NAMES)["label"].value_counts().to_dict() == {
        "ham": 747,
        "spam": 747,
    }
    assert {name: len(part) for name, part in lecture_splits.items()} == {
        "train": 1045,
        "validation": 149,
        "test": 300,
    }


def test_the_very_messages_are_those_of_the_lecture(collection, lecture_splits):
    """Same rows, same order as the lecture's three pandas lines."""
    ham = collection[collection["label"] == "ham"].sample(747, random_state=123)
    balanced = pd.concat([ham, collection[collection["label"] == "spam"]])
    shuffled = balanced.sample(frac=1, random_state=123)["text"].tolist()
    assert [text for part in lecture_splits.values() for text in part["text"]] == shuffled


def test_lengths_in_gpt2_tokens(lecture_splits, gpt2_tokenizer):
    sizes = [len(ids) for ids in encode(lecture_splits["train"]["text"], gpt2_tokenizer)]
    assert max(sizes) == 120
    assert round(np.mean(sizes), 1) == 30.4


def test_403_rows_of_the_collection_repeat_an_earlier_one(collection):
    assert collection.duplicated().sum() == collection["text"].duplicated().sum() == 403


def test_the_lecture_split_leaks(lecture_splits):
    """The notebooks tell readers so: 37 test messages, 33 of them spam, are in train too."""
    train, validation, test = (lecture_splits[name] for name in SPLITS)
    seen = test[occurs_in(test["text"], train["text"])]
    assert len(seen) == 37
    assert (seen["label"] == "spam").sum() == 33
    known = pd.concat([train["text"], validation["text"]])
    assert occurs_in(test["text"], known, normalised=True).sum() == 57


@pytest.mark.parametrize("seed", [123, 124])
def test_a_group_split_of_the_collection_does_not_leak_and_keeps_the_sizes(collection, seed):
    splits = group_split(balance(collection, sms.LABEL_NAMES), sms.LABEL_NAMES, seed=seed)
    assert [len(splits[name]) for name in SPLITS] == [1045, 149, 300]
    known = pd.concat([splits["train"]["text"], splits["validation"]["text"]])
    assert not occurs_in(splits["test"]["text"], known, normalised=True).any()
    assert not occurs_in(splits["validation"]["text"], splits["train"]["text"], True).any()
    assert all(0.35 < part["target"].mean() < 0.65 for part in splits.values())


# --- reading --------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "messages.tsv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_an_unknown_label_is_refused_by_name(write):
    with pytest.raises(ValueError, match="eggs"):
        sms.load(write("ham\thello\nspam\twin\neggs\tand bacon\n"))


def test_a_file_with_one_label_only_is_refused(write):
    with pytest.raises(ValueError, match="spam"):
        sms.load(write("ham\thello\nham\tyou\n"))


def test_a_web_page_instead_of_messages_is_refused(write):
    with pytest.raises(ValueError):
        sms.load(write("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"))


@pytest.mark.parametrize("text", ["NA", "null", "None", "nan", "", "08", "1e5", "True", " x "])
def test_every_text_stays_text(text, write):
    assert sms.load(write(f"ham\t{text}\nspam\twin\n"))["text"].tolist() == [text, "win"]


def test_texts_that_are_all_numbers_stay_text(write):
    assert sms.load(write("ham\t0800\nspam\t123\n"))["text"].tolist() == ["0800", "123"]


# --- where the data comes from --------------------------------------------------------


def test_the_collection_is_taken_from_the_mirror(mirror, capsys):
    name, path = sms.source()
    assert name == "collection"
    assert len(sms.load(path)) == 5572
    assert capsys.readouterr().out == ""
    assert chosen("data")["name"] == "collection"


def test_without_a_network_the_sample_replaces_the_collection_and_says_so(capsys):
    name, path = sms.source()
    printed = capsys.readouterr().out
    assert (name, path) == ("sample", SAMPLE)
    assert "bundled sample" in printed and "SPAMGPT_OFFLINE" in printed
    assert chosen("data")["name"] == "sample"


def test_a_dead_network_is_asked_once_for_a_workspace(monkeypatch, capsys):
    asked = []

    def download(url, *_, **__):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setattr(assets, "download", download)
    assert sms.source() == sms.source() == ("sample", SAMPLE)
    assert asked == list(assets.ASSETS["sms"].urls)
    assert capsys.readouterr().out.count("no network") == 2 * len(asked)  # each notebook says why


def test_a_mirror_that_turns_up_later_is_used(_mirror, monkeypatch):
    assert sms.source()[0] == "sample"
    monkeypatch.setenv("SPAMGPT_MIRROR", _mirror)
    assert sms.source()[0] == "collection"


def test_make_splits_does_all_of_notebook_01():
    splits = TASK.make_splits()
    assert TASK.split_source() == "sample"
    for name, part in TASK.load_splits().items():
        pd.testing.assert_frame_equal(part, splits[name])
    counts = pd.concat(splits.values())["label"].value_counts()
    assert counts["ham"] == counts["spam"]


def test_the_task_looks_for_spam_which_is_class_1():
    assert TASK.labels == {"ham": 0, "spam": 1}
    assert TASK.positive_class == 1
