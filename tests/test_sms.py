"""The SMS Spam Collection: the lecture's numbers, and what holds for any data."""

import csv
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamgpt import assets, sms
from spamgpt.batching import encode
from spamgpt.workspace import SAMPLE, chosen

NUL = "\0" if sys.version_info < (3, 11) else ""  # Python 3.10 cannot write it to a CSV file
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=NUL)


def table(n_ham, n_spam):
    labels = ["ham"] * n_ham + ["spam"] * n_spam
    return pd.DataFrame({"label": labels, "text": [f"{x} {i}" for i, x in enumerate(labels)]})


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
    return sms.random_split(sms.balance(collection))


def test_the_collection_is_balanced_and_split_as_in_the_lecture(collection, lecture_splits):
    assert sms.balance(collection)["label"].value_counts().to_dict() == {"ham": 747, "spam": 747}
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
    """The notebooks tell readers so: 37 test messages, 33 of them spam, stand in train."""
    train, validation, test = (lecture_splits[name] for name in sms.SPLITS)
    seen = test[sms.stands_in(test["text"], train["text"])]
    assert len(seen) == 37
    assert (seen["label"] == "spam").sum() == 33
    known = pd.concat([train["text"], validation["text"]])
    assert sms.stands_in(test["text"], known, normalised=True).sum() == 57


@pytest.mark.parametrize("seed", [123, 124])
def test_a_group_split_of_the_collection_does_not_leak_and_keeps_the_sizes(collection, seed):
    splits = sms.group_split(sms.balance(collection), seed=seed)
    assert [len(splits[name]) for name in sms.SPLITS] == [1045, 149, 300]
    known = pd.concat([splits["train"]["text"], splits["validation"]["text"]])
    assert not sms.stands_in(splits["test"]["text"], known, normalised=True).any()
    assert not sms.stands_in(splits["validation"]["text"], splits["train"]["text"], True).any()
    assert all(0.35 < part["target"].mean() < 0.65 for part in splits.values())


# --- any data -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return sms.load(SAMPLE)


def test_balance_keeps_all_spam_and_draws_as_much_ham(sample):
    balanced = sms.balance(sample)
    spam, ham = (balanced[balanced["label"] == label]["text"] for label in ("spam", "ham"))
    assert sorted(spam) == sorted(sample[sample["label"] == "spam"]["text"])
    assert len(ham) == len(spam)
    assert ham.is_unique and set(ham) <= set(sample[sample["label"] == "ham"]["text"])


@pytest.mark.parametrize("split", [sms.random_split, sms.group_split])
def test_the_parts_of_a_split_are_the_whole(split, sample):
    parts = split(sample)
    assert list(parts) == ["train", "validation", "test"]
    joined = pd.concat(parts.values())
    assert sorted(joined["text"]) == sorted(sample["text"])
    assert (joined["target"] == (joined["label"] == "spam")).all()


def test_a_split_is_shuffled(sample):
    ordered = sample.sort_values("label", ignore_index=True)
    train = sms.random_split(ordered)["train"]
    share = (sample["label"] == "spam").mean()
    assert (train["label"] == "spam").mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        sms.balance,
        lambda t, **kw: sms.random_split(t, **kw)["test"],
        lambda t, **kw: sms.group_split(t, **kw)["test"],
    ],
)
def test_a_seed_fixes_the_draw_and_another_changes_it(make, sample):
    first, again, other = (make(sample, seed=s)["text"].tolist() for s in (1, 1, 2))
    assert first == again != other


any_text = st.text(CHARACTERS, max_size=5)  # few, so some repeat


@settings(max_examples=60)
@given(
    ham=st.lists(any_text, min_size=12, max_size=40),
    spam=st.lists(any_text, min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_balanced_table_holds_all_spam_and_as_much_of_the_ham(ham, spam, seed):
    labels = ["ham"] * len(ham) + ["spam"] * len(spam)
    whole = pd.DataFrame({"label": labels, "text": ham + spam})
    balanced = sms.balance(whole, seed)
    assert (balanced["label"] == "ham").sum() == (balanced["label"] == "spam").sum() == len(spam)
    assert balanced.index.is_unique  # no row twice, even if its text occurs twice
    pd.testing.assert_frame_equal(balanced, whole.loc[balanced.index])
    pd.testing.assert_frame_equal(balanced, sms.balance(whole, seed))


@settings(max_examples=60)
@given(
    texts=st.lists(any_text, min_size=20, max_size=60),
    fractions=st.tuples(st.floats(0.1, 0.6), st.floats(0.1, 0.3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_is_a_partition_and_reproducible(texts, fractions, seed):
    labels = [("ham", "spam")[i % 2] for i in range(len(texts))]
    numbered = pd.DataFrame({"label": labels, "text": texts, "row": range(len(texts))})
    parts = sms.random_split(numbered, *fractions, seed)
    joined = pd.concat(parts.values())
    assert sorted(joined["row"]) == list(range(len(texts)))  # every row in exactly one part
    assert joined["text"].tolist() == [texts[row] for row in joined["row"]]
    assert joined["target"].tolist() == [row % 2 for row in joined["row"]]
    again = sms.random_split(numbered, *fractions, seed)
    for name, part in parts.items():
        pd.testing.assert_frame_equal(part, again[name])


@settings(max_examples=50)
@given(st.integers(10, 80), st.sampled_from([(0.7, 0.1), (0.5, 0.25), (0.8, 0.15)]))
def test_fractions_are_kept_to_less_than_a_message(n, fractions):
    parts = sms.random_split(table(n, n), *fractions)
    assert sum(map(len, parts.values())) == 2 * n
    for name, fraction in zip(("train", "validation"), fractions, strict=True):
        assert 0 <= fraction * 2 * n - len(parts[name]) < 1 + 1e-9


@pytest.mark.parametrize("split", [sms.random_split, sms.group_split])
@pytest.mark.parametrize(
    "train, validation", [(0.9, 0.1), (0.7, 0.4), (0, 0.1), (0.7, 0), (-0.1, 0.5), (70, 10)]
)
def test_fractions_that_leave_nothing_are_refused_with_the_numbers(split, train, validation):
    with pytest.raises(ValueError, match=f"train = {train} and validation = {validation}"):
        split(table(10, 10), train, validation)


def test_balance_refuses_more_spam_than_ham():
    with pytest.raises(ValueError, match=r"1 ham .* 2 spam"):
        sms.balance(table(1, 2))


# --- messages that stand more than once -------------------------------------------------

CLAIM = "URGENT! You have won a £{} prize. To claim call {} before Friday"


def test_normalising_forgets_case_digits_punctuation_and_spaces():
    texts = pd.Series(["Call 0800 NOW!!", "call  now", "Ça va?", "12:30", ""])
    assert sms.normalise(texts).tolist() == ["call now", "call now", "ça va", "", ""]


def test_a_copy_is_found_verbatim_or_after_normalising():
    known = pd.Series(["Win 100 now", "hello"])
    texts = pd.Series(["Win 100 now", "WIN 900 now!", "hello you"])
    assert sms.stands_in(texts, known).tolist() == [True, False, False]
    assert sms.stands_in(texts, known, normalised=True).tolist() == [True, True, False]


def test_copies_with_other_numbers_and_small_changes_are_one_group():
    texts = [
        CLAIM.format(900, "09061701461"),
        "see you at home tonight",
        CLAIM.format("2,000", "0800 169 6031").lower(),
        CLAIM.format(100, "09061701461").replace("have won", "are awarded"),
        "could you buy some milk on the way",
    ]
    first, home, second, third, milk = sms.near_duplicates(pd.Series(texts))
    assert first == second == third
    assert len({first, home, milk}) == 3


def test_groups_are_joined_by_who_stands_between():
    """The first is like the second and the second like the third: one group, by default."""
    words = [f"word{letter * 3}" for letter in "abcdefghijkl"]
    texts = pd.Series([" ".join(words[i : i + 8]) for i in (0, 2, 4)])
    assert len(set(sms.near_duplicates(texts))) == 1
    assert len(set(sms.near_duplicates(texts[[0, 2]]))) == 2
    assert len(set(sms.near_duplicates(texts, similarity=0.9))) == 3


@pytest.mark.parametrize("texts", [["", "!", "ok", "OK 2", "no"], ["", ""], ["a"]])
def test_messages_too_short_for_a_run_are_grouped_by_what_is_left(texts):
    texts = pd.Series(texts)
    pairs = pd.DataFrame({"group": sms.near_duplicates(texts), "left": sms.normalise(texts)})
    assert pairs.drop_duplicates().shape[0] == pairs["left"].nunique() == pairs["group"].nunique()


def test_a_group_split_keeps_copies_together():
    texts = [CLAIM.format(i, 10 * i) for i in range(30)] + [f"{w} it is" for w in "abcdefghij"]
    messages = pd.DataFrame({"label": ["spam"] * 30 + ["ham"] * 10, "text": texts})
    for seed in range(5):
        parts = sms.group_split(messages, seed=seed)
        assert sorted((part["label"] == "spam").sum() for part in parts.values()) == [0, 0, 30]
        assert sum(map(len, parts.values())) == 40


def test_a_group_split_of_messages_without_copies_has_the_sizes_of_a_random_one(sample):
    balanced = sms.balance(sample)
    for fractions in ((0.7, 0.1), (0.5, 0.25)):
        groups, random = (f(balanced, *fractions) for f in (sms.group_split, sms.random_split))
        assert {k: len(v) for k, v in groups.items()} == {k: len(v) for k, v in random.items()}


def test_the_test_set_at_the_true_share_adds_unused_ham_only(sample):
    splits = sms.random_split(sms.balance(sample))
    found = sms.at_true_share(sample, splits)
    test, more = found[: len(splits["test"])], found[len(splits["test"]) :]
    assert test["text"].tolist() == splits["test"]["text"].tolist()
    assert set(more["label"]) == {"ham"} and set(more["target"]) == {0}
    for part in splits.values():
        assert not sms.stands_in(more["text"], part["text"], normalised=True).any()
    share = (sample["label"] == "spam").mean()
    assert found["target"].mean() == pytest.approx(share, abs=1 / len(found))


def test_at_the_true_share_of_the_collection_13_4_percent_are_spam(collection, lecture_splits):
    found = sms.at_true_share(collection, lecture_splits)
    assert found["target"].mean() == pytest.approx(0.134, abs=0.0005)
    assert found["target"].sum() == lecture_splits["test"]["target"].sum()


def test_too_little_unused_ham_is_refused_with_the_numbers():
    messages = table(30, 20)
    with pytest.raises(ValueError, match=r"more ham .* there are 0"):
        sms.at_true_share(messages, sms.random_split(messages))


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
    return dict.fromkeys(sms.SPLITS, part)


def test_saved_splits_come_back_the_same():
    splits = sms.random_split(sms.balance(sms.load(SAMPLE)))
    sms.save_splits(splits, "sample")
    loaded = sms.load_splits()
    assert list(loaded) == list(splits)
    for name, part in splits.items():
        pd.testing.assert_frame_equal(loaded[name], part)
    assert sms.split_source() == "sample"


@pytest.mark.parametrize("text", ODD_TEXTS, ids=repr)
def test_odd_texts_survive_saving(text, tmp_path):
    folder = sms.save_splits(splits_of([text, "plain"]), "sample", tmp_path / "odd")
    for part in sms.load_splits(folder).values():
        assert part["text"].tolist() == [text, "plain"]


def test_splits_whose_texts_are_all_numbers_survive_saving(tmp_path):
    folder = sms.save_splits(splits_of(["007", "42"]), "sample", tmp_path / "numbers")
    assert sms.load_splits(folder)["test"]["text"].tolist() == ["007", "42"]


@settings(max_examples=60)
@given(st.lists(st.text(CHARACTERS, max_size=12), min_size=1))
def test_any_text_survives_saving(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("csv", numbered=True)
    sms.save_splits(splits_of([*texts, "x"]), "sample", folder)
    assert sms.load_splits(folder)["test"]["text"].tolist() == [*texts, "x"]


def test_a_text_that_cannot_be_written_leaves_the_old_splits(tmp_path, monkeypatch):
    folder = sms.save_splits(splits_of(["kept"]), "sample", tmp_path / "csv")

    def fail(*args, **kwargs):
        raise csv.Error("need to escape, but no escapechar set")  # Python 3.10, on NUL

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(ValueError, match=r"Python 3\.11 or newer"):
        sms.save_splits(splits_of(["x"]), "sample", folder)
    assert sms.load_splits(folder)["test"]["text"].tolist() == ["kept"]


@pytest.mark.parametrize("lost", [None, "validation"])
def test_missing_splits_name_the_notebook_that_makes_them(lost):
    if lost:
        (sms.save_splits(splits_of(["x"]), "sample") / f"{lost}.csv").unlink()
    with pytest.raises(FileNotFoundError, match="01_download_balance_split"):
        sms.load_splits()


# --- where the data comes from --------------------------------------------------------


def test_the_collection_is_taken_from_the_mirror(mirror, capsys):
    name, path = sms.source()
    assert name == "collection"
    assert len(sms.load(path)) == 5572
    assert capsys.readouterr().out == ""
    assert chosen("data")["name"] == "collection"


def test_without_a_network_the_sample_stands_in_and_says_so(capsys):
    name, path = sms.source()
    printed = capsys.readouterr().out
    assert (name, path) == ("sample", SAMPLE)
    assert "bundled sample" in printed and "SPAMGPT_OFFLINE" in printed
    assert chosen("data")["name"] == "sample"


def test_a_dead_network_is_asked_once_for_a_workspace(monkeypatch, capsys):
    asked = []

    def fetch(name):
        asked.append(name)
        raise assets.AssetError("no network")

    monkeypatch.setattr(assets, "fetch", fetch)
    assert sms.source() == sms.source() == ("sample", SAMPLE)
    assert asked == ["sms"]
    assert capsys.readouterr().out.count("no network") == 2  # each notebook says why


def test_a_mirror_that_turns_up_later_is_used(_mirror, monkeypatch):
    assert sms.source()[0] == "sample"
    monkeypatch.setenv("SPAMGPT_MIRROR", _mirror)
    assert sms.source()[0] == "collection"


def test_make_splits_does_all_of_notebook_01():
    splits = sms.make_splits()
    assert sms.split_source() == "sample"
    for name, part in sms.load_splits().items():
        pd.testing.assert_frame_equal(part, splits[name])
    counts = pd.concat(splits.values())["label"].value_counts()
    assert counts["ham"] == counts["spam"]
