"""Metrics, against hand-computed numbers and scikit-learn."""

import numpy as np
import pytest
import torch
from randomize import randomize
from sklearn import metrics

from spamgpt.batches import Messages
from spamgpt.classifier import Classifier
from spamgpt.evaluation import load_results, predict, report, save_results, token_effects
from spamgpt.inference import hidden_states, probabilities
from spamgpt.statistics import wilson_interval
from spamgpt.tasks.sms import LABEL_NAMES

#                  spam called spam: 3, ham called spam: 1, spam called ham: 2, ham called ham: 4
TARGETS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
PREDICTED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_report_equals_hand_computed_numbers():
    found = report(TARGETS, PREDICTED, LABEL_NAMES, "spam")
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
        found = report(targets, predicted, LABEL_NAMES, "spam")
        assert found.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
        assert found.f1 == pytest.approx(metrics.f1_score(targets, predicted, zero_division=0))
        assert found.confusion.trace() == (targets == predicted).sum()
        assert found.confusion.sum() == found.n == len(targets)


@pytest.mark.parametrize("called", [0, 1])
def test_a_classifier_that_says_one_thing_only_is_reported_without_complaint(called, recwarn):
    found = report(np.array([0, 0, 1]), np.full(3, called), LABEL_NAMES, "spam")
    assert found.confusion.shape == (2, 2)
    assert found.recall == called
    assert not recwarn.list


def test_report_on_one_class_still_has_a_full_confusion_matrix():
    found = report(np.ones(3, int), np.ones(3, int), LABEL_NAMES)
    assert found.confusion.tolist() == [[0, 0], [0, 3]]


# --- any labels -----------------------------------------------------------------------

NAMES = {
    2: ("no", "yes"),
    3: ("bad", "neutral", "good"),
    7: ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
}


@pytest.mark.parametrize("n_labels", NAMES)
def test_a_report_of_any_labels_equals_scikit_learn_s(n_labels):
    draw, names = np.random.default_rng(1), NAMES[n_labels]
    for _ in range(20):
        targets, predicted = draw.integers(0, n_labels, (2, draw.integers(3, 60)))
        found = report(targets, predicted, names, names[1])
        theirs = metrics.classification_report(
            *(targets, predicted),
            labels=range(n_labels),
            target_names=names,
            output_dict=True,
            zero_division=0,
        )
        assert found.classes.index.tolist() == list(names)
        for name in names:
            row = found.classes.loc[name].rename({"f1": "f1-score", "n": "support"})
            assert row.to_dict() == pytest.approx(theirs[name])
        assert found.macro_f1 == pytest.approx(theirs["macro avg"]["f1-score"])
        assert found.accuracy == pytest.approx((targets == predicted).mean())
        of_positive = [found.precision, found.recall, found.f1]
        assert of_positive == found.classes.loc[names[1]].tolist()[:3]
        assert found.classes["n"].sum() == found.n == len(targets)
        expected = metrics.confusion_matrix(targets, predicted, labels=range(n_labels))
        assert found.confusion.tolist() == expected.tolist()


@pytest.mark.parametrize("metric", ["precision", "recall", "f1"])
def test_a_metric_of_no_label_in_particular_is_refused(metric):
    found = report([0, 1, 2], [0, 1, 1], NAMES[3])
    with pytest.raises(ValueError, match=f"{metric} of what.*bad, neutral, good"):
        getattr(found, metric)


def test_a_positive_label_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'spam' is none of bad, neutral, good"):
        report([0, 1, 2], [0, 1, 1], NAMES[3], positive="spam")


@pytest.mark.parametrize("n_labels", NAMES)
def test_predict_gives_a_probability_of_each_label(n_labels, make_classifier, pocket_tokenizer):
    body = make_classifier().transformer
    classifier = Classifier(body, pocket_tokenizer, NAMES[n_labels], "pocket").eval()
    randomize(classifier.score, seed=1)
    data = Messages(["a", "b c", "d"], [1, 0, n_labels - 1], pocket_tokenizer, 64)
    targets, p = predict(classifier, data)
    assert targets.tolist() == data.targets
    assert p.shape == (3, n_labels) and p.sum(axis=1) == pytest.approx(np.ones(3))
    for label in NAMES[n_labels]:
        _, effects = token_effects(classifier, "win a free prize", label)
        assert np.abs(effects).max() > 0


# --- on a model -----------------------------------------------------------------------


@pytest.fixture
def messages(pocket_tokenizer):
    texts = ["win cash", "ok", "see you at home tonight my dear", "", "claim your free prize"] * 9
    return Messages(texts, [1, 0, 0, 1, 1] * 9, pocket_tokenizer, 64)


def one_by_one(classifier, messages):
    with torch.no_grad():
        found = [classifier(torch.tensor([s]), torch.tensor([len(s)])) for s in messages.ids]
    return torch.cat(found)


@pytest.mark.parametrize("cached", [False, True])
def test_predict_gives_true_classes_and_probabilities(cached, trained_classifier, messages):
    data = hidden_states(trained_classifier, messages, 2) if cached else messages
    targets, p = predict(trained_classifier, data)
    assert targets.tolist() == messages.targets
    expected = one_by_one(trained_classifier, messages).softmax(dim=1)
    assert p == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("which, label", [(0, "ham"), (1, "spam")])
def test_token_effects_are_what_the_probability_loses_without_a_token(
    which, label, trained_classifier
):
    text = "win a free prize"
    tokens, effects = token_effects(trained_classifier, text, label)
    assert "".join(tokens) == text and len(effects) == len(tokens)
    ids = trained_classifier.tokenizer.encode_ordinary(text)
    p = probabilities(trained_classifier, [ids, ids[:1] + ids[2:]])[:, which]
    assert effects[1] == pytest.approx((p[0] - p[1]).item(), abs=1e-6)


@pytest.mark.parametrize("text", ["", "a", "word " * 200])
def test_token_effects_of_very_short_and_very_long_texts(text, trained_classifier):
    tokens, effects = token_effects(trained_classifier, text, "spam")
    assert 1 <= len(tokens) == len(effects) <= 64
    assert np.isfinite(effects).all()


# --- results of a run -----------------------------------------------------------------


def test_results_are_kept_for_the_workspace():
    assert load_results() is None
    save_results({"test": report(TARGETS, PREDICTED, LABEL_NAMES, "spam")}, {"base": "pocket"})
    found = load_results()
    assert found["base"] == "pocket"
    assert found["splits"]["test"]["n"] == 10
    assert found["splits"]["test"]["accuracy"] == pytest.approx(0.7)
    assert found["splits"]["test"]["interval"] == pytest.approx(wilson_interval(7, 10))
