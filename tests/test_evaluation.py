"""Metrics, against hand-computed numbers and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional as F

from spamgpt.batching import Messages
from spamgpt.evaluation import (
    load_results,
    loss_and_accuracy,
    paired_difference,
    predict,
    report,
    save_results,
    token_effects,
    wilson_interval,
)

#                  spam called spam: 3, ham called spam: 1, spam called ham: 2, ham called ham: 4
TARGETS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
PREDICTED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_report_equals_hand_computed_numbers():
    found = report(TARGETS, PREDICTED)
    assert found.n == 10
    assert found.accuracy == pytest.approx(7 / 10)
    assert found.precision == pytest.approx(3 / 4)
    assert found.recall == pytest.approx(3 / 5)
    assert found.f1 == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert found.confusion.tolist() == [[4, 1], [2, 3]]  # rows true, columns called
    assert found.interval == wilson_interval(7, 10)


def test_report_equals_scikit_learn_on_many_random_sets():
    draw = np.random.default_rng(0)
    for _ in range(20):
        targets, predicted = draw.integers(0, 2, (2, draw.integers(3, 60)))
        found = report(targets, predicted)
        assert found.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
        assert found.f1 == pytest.approx(metrics.f1_score(targets, predicted, zero_division=0))
        assert found.confusion.trace() == (targets == predicted).sum()
        assert found.confusion.sum() == found.n == len(targets)


@pytest.mark.parametrize("called", [0, 1])
def test_a_classifier_that_says_one_thing_only_is_reported_without_complaint(called, recwarn):
    found = report(np.array([0, 0, 1]), np.full(3, called))
    assert found.confusion.shape == (2, 2)
    assert found.recall == called
    assert not recwarn.list


def test_report_on_one_class_still_has_a_full_confusion_matrix():
    assert report(np.ones(3, int), np.ones(3, int)).confusion.tolist() == [[0, 0], [0, 3]]


# --- intervals ------------------------------------------------------------------------


@pytest.mark.parametrize("correct, total", [(287, 300), (0, 10), (10, 10), (1, 2), (149, 149)])
def test_wilson_interval_equals_its_formula(correct, total):
    z = 1.959963984540054  # 97.5 % of the normal distribution lie below
    p = correct / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    assert wilson_interval(correct, total) == pytest.approx((middle - half, middle + half))


def test_the_lecture_result_is_known_to_two_points_only():
    low, high = wilson_interval(287, 300)
    assert (round(low, 3), round(high, 3)) == (0.927, 0.975)


def test_more_confidence_needs_a_wider_interval():
    low95, high95 = wilson_interval(287, 300)
    low99, high99 = wilson_interval(287, 300, confidence=0.99)
    assert low99 < low95 < 287 / 300 < high95 < high99


def test_a_paired_difference_forgets_what_is_hard_for_both():
    """Two that fail on the same 20 of 100, but for two messages: known to a few points."""
    right = np.repeat([1, 0], [80, 20])
    other = np.repeat([1, 0], [78, 22])
    mean, low, high = paired_difference(right, other)
    assert mean == pytest.approx(0.02)
    assert -0.01 < low < 0 < high < 0.05
    assert paired_difference(other, right) == pytest.approx((-mean, -high, -low))
    assert paired_difference(right, right) == (0, 0, 0)


# --- on a model -----------------------------------------------------------------------


@pytest.fixture
def messages(pocket_tokenizer):
    texts = ["win cash", "ok", "see you at home tonight my dear", "", "claim your free prize"] * 9
    return Messages(texts, [1, 0, 0, 1, 1] * 9, pocket_tokenizer, 64)


def one_by_one(classifier, messages):
    with torch.no_grad():
        scores = [classifier(torch.tensor([s]), torch.tensor([len(s)])) for s in messages.ids]
    return torch.cat(scores)


def test_loss_and_accuracy_equal_those_of_single_messages(trained_classifier, messages):
    scores, targets = one_by_one(trained_classifier, messages), torch.tensor(messages.targets)
    loss, accuracy = loss_and_accuracy(trained_classifier, messages)
    assert loss == pytest.approx(F.cross_entropy(scores, targets).item(), abs=1e-4)
    assert accuracy == pytest.approx((scores.argmax(1) == targets).float().mean().item())
    assert 0 < accuracy < 1  # so that the comparison says something


def test_predict_gives_true_classes_and_the_probability_of_spam(trained_classifier, messages):
    targets, spam = predict(trained_classifier, messages)
    assert targets.tolist() == messages.targets
    expected = one_by_one(trained_classifier, messages).softmax(dim=1)[:, 1]
    assert spam == pytest.approx(expected.numpy(), abs=1e-5)


def test_token_effects_are_what_the_probability_loses_without_a_token(trained_classifier):
    text = "win a free prize"
    tokens, effects = token_effects(trained_classifier, text)
    assert "".join(tokens) == text and len(effects) == len(tokens)
    ids = trained_classifier.tokenizer.encode_ordinary(text)
    p_spam = trained_classifier.probabilities([ids, ids[:1] + ids[2:]])[:, 1]
    assert effects[1] == pytest.approx((p_spam[0] - p_spam[1]).item(), abs=1e-6)


@pytest.mark.parametrize("text", ["", "a", "word " * 200])
def test_token_effects_of_very_short_and_very_long_texts(text, trained_classifier):
    tokens, effects = token_effects(trained_classifier, text)
    assert 1 <= len(tokens) == len(effects) <= 64
    assert np.isfinite(effects).all()


# --- results of a run -----------------------------------------------------------------


def test_results_are_kept_for_the_workspace():
    assert load_results() is None
    save_results({"test": report(TARGETS, PREDICTED)}, {"base": "pocket"})
    found = load_results()
    assert found["base"] == "pocket"
    assert found["splits"]["test"]["n"] == 10
    assert found["splits"]["test"]["accuracy"] == pytest.approx(0.7)
    assert found["splits"]["test"]["interval"] == pytest.approx(wilson_interval(7, 10))
