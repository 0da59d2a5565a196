"""Balancing and splitting any table of labelled texts, and finding its copies."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamgpt.files.workspace import SAMPLE
from spamgpt.tasks import sms
from spamgpt.tasks.splits import (
    SPLITS,
    at_prevalence,
    balance,
    group_split,
    near_duplicates,
    normalise,
    occurs_in,
    random_split,
    stratified_split,
)

LABELS = ("ham", "spam")
SPLITTERS = (random_split, stratified_split, group_split)
CHARACTERS = st.characters(exclude_categories=["Cs"])


def table(n_ham, n_spam):
    labels = ["ham"] * n_ham + ["spam"] * n_spam
    return pd.DataFrame({"label": labels, "text": [f"{x} {i}" for i, x in enumerate(labels)]})


@pytest.fixture(scope="module")
def lecture_splits(collection):
    return random_split(balance(collection, LABELS), LABELS)


# --- any data -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return sms.load(SAMPLE)


def test_balance_keeps_all_spam_and_draws_as_much_ham(sample):
    balanced = balance(sample, LABELS)
    spam, ham = (balanced[balanced["label"] == label]["text"] for label in ("spam", "ham"))
    assert sorted(spam) == sorted(sample[sample["label"] == "spam"]["text"])
    assert len(ham) == len(spam)
    assert ham.is_unique and set(ham) <= set(sample[sample["label"] == "ham"]["text"])


@pytest.mark.parametrize("split", SPLITTERS)
def test_the_parts_of_a_split_are_the_whole(split, sample):
    parts = split(sample, LABELS)
    assert list(parts) == ["train", "validation", "test"]
    joined = pd.concat(parts.values())
    assert sorted(joined["text"]) == sorted(sample["text"])
    assert (joined["target"] == (joined["label"] == "spam")).all()


def test_a_split_is_shuffled(sample):
    ordered = sample.sort_values("label", ignore_index=True)
    train = random_split(ordered, LABELS)["train"]
    share = (sample["label"] == "spam").mean()
    assert (train["label"] == "spam").mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        balance,
        lambda *args, **kw: random_split(*args, **kw)["test"],
        lambda *args, **kw: stratified_split(*args, **kw)["test"],
        lambda *args, **kw: group_split(*args, **kw)["test"],
    ],
)
def test_a_seed_fixes_the_draw_and_another_changes_it(make, sample):
    first, again, other = (make(sample, LABELS, seed=s)["text"].tolist() for s in (1, 1, 2))
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
    balanced = balance(whole, LABELS, seed)
    assert (balanced["label"] == "ham").sum() == (balanced["label"] == "spam").sum() == len(spam)
    assert balanced.index.is_unique  # no row twice, even if its text occurs twice
    pd.testing.assert_frame_equal(balanced, whole.loc[balanced.index])
    pd.testing.assert_frame_equal(balanced, balance(whole, LABELS, seed))


@settings(max_examples=60)
@given(
    texts=st.lists(any_text, min_size=20, max_size=60),
    fractions=st.tuples(st.floats(0.1, 0.6), st.floats(0.1, 0.3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_is_a_partition_and_reproducible(texts, fractions, seed):
    labels = [("ham", "spam")[i % 2] for i in range(len(texts))]
    numbered = pd.DataFrame({"label": labels, "text": texts, "row": range(len(texts))})
    parts = random_split(numbered, LABELS, *fractions, seed)
    joined = pd.concat(parts.values())
    assert sorted(joined["row"]) == list(range(len(texts)))  # every row in exactly one part
    assert joined["text"].tolist() == [texts[row] for row in joined["row"]]
    assert joined["target"].tolist() == [row % 2 for row in joined["row"]]
    again = random_split(numbered, LABELS, *fractions, seed)
    for name, part in parts.items():
        pd.testing.assert_frame_equal(part, again[name])


@settings(max_examples=50)
@given(st.integers(10, 80), st.sampled_from([(0.7, 0.1), (0.5, 0.25), (0.8, 0.15)]))
def test_fractions_are_kept_to_less_than_a_message(n, fractions):
    parts = random_split(table(n, n), LABELS, *fractions)
    assert sum(map(len, parts.values())) == 2 * n
    for name, fraction in zip(("train", "validation"), fractions, strict=True):
        assert 0 <= fraction * 2 * n - len(parts[name]) < 1 + 1e-9


@pytest.mark.parametrize("split", SPLITTERS)
@pytest.mark.parametrize(
    "train, validation", [(0.9, 0.1), (0.7, 0.4), (0, 0.1), (0.7, 0), (-0.1, 0.5), (70, 10)]
)
def test_fractions_that_leave_nothing_are_refused_with_the_numbers(split, train, validation):
    with pytest.raises(ValueError, match=f"train = {train} and validation = {validation}"):
        split(table(10, 10), LABELS, train, validation)


@pytest.mark.parametrize("counts", [(3, 1, 2), (1, 4, 4), (2, 2, 2)])
def test_any_number_of_labels_is_balanced_to_the_rarest(counts):
    names = ("b", "a", "c")
    labels = [name for name, n in zip(names, counts, strict=True) for _ in range(n)]
    whole = pd.DataFrame({"label": labels, "text": [f"text {i}" for i in range(len(labels))]})
    whole = whole.sample(frac=1, random_state=0)
    balanced = balance(whole, names)
    fewest = min(counts)
    assert balanced["label"].tolist() == [name for name in names for _ in range(fewest)]
    assert balanced["text"].is_unique
    rarest = names[counts.index(fewest)]
    kept = balanced.loc[balanced["label"] == rarest, "text"].tolist()
    assert kept == whole.loc[whole["label"] == rarest, "text"].tolist()  # all, in their order


def test_targets_are_the_numbers_of_the_labels():
    whole = pd.DataFrame({"label": list("cab") * 10, "text": [str(i) for i in range(30)]})
    for split in SPLITTERS:
        for part in split(whole, ("b", "a", "c")).values():
            assert part["target"].tolist() == ["bac".index(label) for label in part["label"]]


def test_a_stratified_split_has_each_labels_share_in_all_parts():
    whole = table(80, 20)
    for seed in range(5):
        parts = stratified_split(whole, LABELS, seed=seed)
        assert {name: len(part) for name, part in parts.items()} == {
            "train": 70,
            "validation": 10,
            "test": 20,
        }
        assert [int((parts[name]["label"] == "spam").sum()) for name in SPLITS] == [14, 2, 4]


def test_a_stratified_split_needs_three_messages_of_each_label():
    with pytest.raises(ValueError, match=r"the label 'spam' has 2 messages: at least 3"):
        stratified_split(table(50, 2), LABELS)


# --- messages that occur more than once -------------------------------------------------

CLAIM = "URGENT! You have won a £{} prize. To claim call {} before Friday"


def test_normalising_forgets_case_digits_punctuation_and_spaces():
    texts = pd.Series(["Call 0800 NOW!!", "call  now", "Ça va?", "12:30", ""])
    assert normalise(texts).tolist() == ["call now", "call now", "ça va", "", ""]


def test_a_copy_is_found_verbatim_or_after_normalising():
    known = pd.Series(["Win 100 now", "hello"])
    texts = pd.Series(["Win 100 now", "WIN 900 now!", "hello you"])
    assert occurs_in(texts, known).tolist() == [True, False, False]
    assert occurs_in(texts, known, normalised=True).tolist() == [True, True, False]


def test_copies_with_other_numbers_and_small_changes_are_one_group():
    texts = [
        CLAIM.format(900, "09061701461"),
        "see you at home tonight",
        CLAIM.format("2,000", "0800 169 6031").lower(),
        CLAIM.format(100, "09061701461").replace("have won", "are awarded"),
        "could you buy some milk on the way",
    ]
    first, home, second, third, milk = near_duplicates(pd.Series(texts))
    assert first == second == third
    assert len({first, home, milk}) == 3


def test_groups_are_joined_by_what_is_between():
    """The first is like the second and the second like the third: one group, by default."""
    words = [f"word{letter * 3}" for letter in "abcdefghijkl"]
    texts = pd.Series([" ".join(words[i : i + 8]) for i in (0, 2, 4)])
    assert len(set(near_duplicates(texts))) == 1
    assert len(set(near_duplicates(texts[[0, 2]]))) == 2
    assert len(set(near_duplicates(texts, similarity=0.9))) == 3


@pytest.mark.parametrize("texts", [["", "!", "ok", "OK 2", "no"], ["", ""], ["a"]])
def test_messages_too_short_for_a_run_are_grouped_by_what_is_left(texts):
    texts = pd.Series(texts)
    pairs = pd.DataFrame({"group": near_duplicates(texts), "left": normalise(texts)})
    assert pairs.drop_duplicates().shape[0] == pairs["left"].nunique() == pairs["group"].nunique()


def test_a_group_split_keeps_copies_together():
    texts = [CLAIM.format(i, 10 * i) for i in range(30)] + [f"{w} it is" for w in "abcdefghij"]
    messages = pd.DataFrame({"label": ["spam"] * 30 + ["ham"] * 10, "text": texts})
    for seed in range(5):
        parts = group_split(messages, LABELS, seed=seed)
        assert sorted((part["label"] == "spam").sum() for part in parts.values()) == [0, 0, 30]
        assert sum(map(len, parts.values())) == 40


def test_a_group_split_of_messages_without_copies_has_the_sizes_of_a_random_one(sample):
    balanced = balance(sample, LABELS)
    for fractions in ((0.7, 0.1), (0.5, 0.25)):
        groups, random = (f(balanced, LABELS, *fractions) for f in (group_split, random_split))
        assert {k: len(v) for k, v in groups.items()} == {k: len(v) for k, v in random.items()}


def test_the_test_set_at_the_true_prevalence_adds_unused_ham_only(sample):
    splits = random_split(balance(sample, LABELS), LABELS)
    found = at_prevalence(sample, splits, "spam")
    test, more = found[: len(splits["test"])], found[len(splits["test"]) :]
    assert test["text"].tolist() == splits["test"]["text"].tolist()
    assert set(more["label"]) == {"ham"} and set(more["target"]) == {0}
    for part in splits.values():
        assert not occurs_in(more["text"], part["text"], normalised=True).any()
    prevalence = (sample["label"] == "spam").mean()
    assert found["target"].mean() == pytest.approx(prevalence, abs=1 / len(found))


def test_at_the_prevalence_of_the_collection_13_4_percent_are_spam(collection, lecture_splits):
    found = at_prevalence(collection, lecture_splits, "spam")
    assert found["target"].mean() == pytest.approx(0.134, abs=0.0005)
    assert found["target"].sum() == lecture_splits["test"]["target"].sum()


def test_too_few_unused_messages_are_refused_with_the_numbers():
    messages = table(30, 20)
    with pytest.raises(ValueError, match=r"more messages of another label .* there are 0"):
        at_prevalence(messages, random_split(messages, LABELS), "spam")
