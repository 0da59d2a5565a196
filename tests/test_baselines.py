"""The baselines: what they are, and that they learn."""

from itertools import pairwise

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from spamgpt.baselines import BASELINES, tf_idf_of_tokens

TEXTS = ["win a prize", "claim your prize", "win cash", "see you at home", "dinner at home", "ok"]
TARGETS = [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["TF-IDF words", "TF-IDF characters"])
def test_a_baseline_learns_an_easy_task(name):
    model = BASELINES[name]().fit(TEXTS, TARGETS)
    assert model.predict([*TEXTS, "a prize", "at home"]).tolist() == [*TARGETS, 1, 0]


def test_a_baseline_learns_more_than_two_labels():
    model = BASELINES["TF-IDF words"]().fit([*TEXTS, "bonjour", "bonsoir"], [*TARGETS, 2, 2])
    assert model.predict(["prize", "home", "bonsoir"]).tolist() == [1, 0, 2]


def test_the_majority_is_what_it_calls_everything():
    model = BASELINES["majority"]().fit(TEXTS, [1, 1, 1, 1, 0, 0])
    assert model.predict(["anything", "at all"]).tolist() == [1, 1]


def test_each_call_makes_an_untrained_one():
    one, other = (BASELINES["TF-IDF words"]() for _ in range(2))
    one.fit(TEXTS, TARGETS)
    assert one is not other and not hasattr(other[-1], "coef_")


def test_words_and_characters_are_counted_alone_and_together():
    words, characters = (
        BASELINES[name]().fit(TEXTS, TARGETS)[0].vocabulary_
        for name in ("TF-IDF words", "TF-IDF characters")
    )
    assert {"prize", "your prize"} <= set(words) and "claim your prize" not in words
    assert {"pr", "prize", " ca"} <= set(characters)


def test_tokens_are_those_of_the_language_model(pocket_tokenizer):
    text = "Win a PRIZE"
    model = tf_idf_of_tokens(pocket_tokenizer).fit([text, "ok"], [1, 0])
    ids = [str(token) for token in pocket_tokenizer.encode_ordinary(text)]
    pairs = [f"{a} {b}" for a, b in pairwise(ids)]
    expected = {*ids, *pairs, *map(str, pocket_tokenizer.encode_ordinary("ok"))}
    assert set(model[0].vocabulary_) == expected


def test_a_rare_word_weighs_more_than_a_frequent_one():
    vectorizer = BASELINES["TF-IDF words"]().fit(TEXTS, TARGETS)[0]
    assert isinstance(vectorizer, TfidfVectorizer)
    weights = dict(zip(vectorizer.get_feature_names_out(), vectorizer.idf_, strict=True))
    assert weights["cash"] > weights["prize"]
