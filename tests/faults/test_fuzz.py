"""A short run of scripts/fuzz.py, and that it finds what it looks for."""

import math
import os
import re

import fuzz
import pytest

from spamgpt.saving import save_classifier
from spamgpt.tasks import sms


def test_nonsense_texts_get_a_label_each(trained_classifier):
    outcomes = fuzz.fuzz_texts(trained_classifier, 1000, seed=7)
    assert outcomes["ham"] + outcomes["spam"] == 1000
    assert outcomes["read in parts"] > 50


def test_nonsense_files_are_loaded_or_refused_in_one_sentence(tmp_path):
    outcomes = fuzz.fuzz_files(tmp_path, 500, seed=7)
    assert outcomes.total() == 500
    assert outcomes["loaded, balanced and split"] > 50 and len(outcomes) > 7


def test_nonsense_commands_end_in_a_result_or_a_sentence(tmp_path, trained_classifier):
    save_classifier(trained_classifier)
    outcomes = fuzz.fuzz_commands(tmp_path, 300, seed=7)
    assert outcomes.total() == 300 and set(outcomes) == {0, 1, 2, 141}
    assert outcomes[0] > 50


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell is needed")
def test_nonsense_commands_in_processes_of_their_own(tmp_path, trained_classifier):
    save_classifier(trained_classifier)
    assert fuzz.fuzz_commands(tmp_path, 20, seed=7, run=fuzz.call_there).total() == 20


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((3, b"", b""), "3"),
        ((1, b"", b""), "exit code 1 without a word"),
        ((0, b"", b"Traceback (most recent call last)"), "Traceback"),
        ((1, b"", b"[Errno 32] Broken pipe"), "Errno 32"),
    ],
)
def test_a_command_that_ends_badly_is_found(answer, sentence, tmp_path):
    with pytest.raises(AssertionError, match=f"seed 7, command 0: .*{re.escape(sentence)}"):
        fuzz.fuzz_commands(tmp_path, 1, seed=7, run=lambda call: answer)


def test_a_text_that_nobody_wrote_is_found():
    fuzz._check_texts(b"\xef\xbb\xbfa\r\nb\n", ["a", "b"], "here")
    with pytest.raises(AssertionError, match="here"):
        fuzz._check_texts("ü\n".encode(), ["Ã¼"], "here")


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
