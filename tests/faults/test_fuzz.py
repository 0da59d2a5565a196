"""A short run of scripts/fuzz.py, and that it finds what it looks for."""

import math

import fuzz
import pytest

from spamgpt.tasks import sms


def test_nonsense_texts_get_a_label_each(trained_classifier):
    outcomes = fuzz.fuzz_texts(trained_classifier, 1000, seed=7)
    assert outcomes["ham"] + outcomes["spam"] == 1000
    assert outcomes["cut"] > 50


def test_nonsense_files_are_loaded_or_refused_in_one_sentence(tmp_path):
    outcomes = fuzz.fuzz_files(tmp_path, 500, seed=7)
    assert outcomes.total() == 500
    assert outcomes["loaded, balanced and split"] > 50 and len(outcomes) > 7


def test_one_seed_makes_the_same_texts_and_files():
    draws = [fuzz.random.Random("1/5") for _ in range(2)]
    assert len({fuzz.random_text(draw) for draw in draws}) == 1
    assert len({fuzz.random_file(draw) for draw in draws}) == 1


def test_a_classifier_that_gives_no_number_is_found(trained_classifier):
    trained_classifier.score.bias.data[0] = math.nan
    with pytest.raises(AssertionError, match="seed 7, texts 0 to 9"):
        fuzz.fuzz_texts(trained_classifier, 10, seed=7)


@pytest.mark.parametrize("error", [KeyError("label"), ValueError("a\nb"), ValueError("bad")])
def test_an_unclear_error_is_found(error, tmp_path, monkeypatch):
    def load(path):
        raise error

    monkeypatch.setattr(sms, "load", load)
    with pytest.raises(AssertionError, match="seed 7, file 0"):
        fuzz.fuzz_files(tmp_path, 10, seed=7)
