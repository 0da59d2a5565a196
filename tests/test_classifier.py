"""The classifier: its zero head, its pooling, and what is frozen."""

import math
from dataclasses import replace

import pytest
import torch
from odd_texts import TEXTS
from randomize import randomize
from torch.nn import functional as F
from torch.testing import assert_close

from spamgpt.batches import Messages, encode, pad
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.inference import hidden_states, logits, probabilities
from spamgpt.models.base import load_base
from spamgpt.recipes import Recipe
from spamgpt.training import fit

RECIPE = Recipe(trained_blocks=1, learning_rate=1e-2, batch_size=2, epochs=2)


# --- before training ------------------------------------------------------------------


def test_a_fresh_head_finds_both_labels_equally_likely(make_classifier):
    classifier = make_classifier()
    found = probabilities(classifier, encode(TEXTS, classifier.tokenizer))
    assert torch.equal(found, torch.full((len(TEXTS), 2), 0.5))


def test_the_loss_before_training_is_ln_2(make_classifier):
    classifier = make_classifier()
    ids, lengths = pad(encode(TEXTS, classifier.tokenizer), 0)
    loss = F.cross_entropy(classifier(ids, lengths), torch.tensor([1, 0, 0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_build_classifier_keeps_the_pretrained_body():
    base = load_base("pocket")
    classifier = build_classifier(base, ["ham", "spam"])
    before = load_base("pocket").model.state_dict()
    body = classifier.transformer.state_dict()
    assert body.keys() == before.keys()
    assert all(torch.equal(body[key], before[key]) for key in before)
    assert classifier.score.weight.shape == (2, base.model.config.n_embd)
    assert classifier.base_name == "pocket"


def test_there_may_be_more_than_two_labels():
    classifier = build_classifier(load_base("pocket"), ["ham", "spam", "phishing"])
    assert torch.equal(probabilities(classifier, [[1, 2], [3]]), torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("names", [[], ["ham"], ["ham", "spam", "ham"]], ids=str)
def test_labels_that_cannot_be_told_apart_are_refused(names, make_classifier):
    tiny = make_classifier()
    with pytest.raises(ValueError, match=f"{len(names)} labels .*at least two, each with a name"):
        Classifier(tiny.transformer, tiny.tokenizer, names, "pocket")


# --- what is frozen -------------------------------------------------------------------


def trainable(classifier):
    return {name for name, p in classifier.named_parameters() if p.requires_grad}


def expected_trainable(classifier, trained_blocks):
    n_layer = classifier.transformer.config.n_layer
    parts = ["score.", "transformer.ln_f."]
    parts += [f"transformer.h.{i}." for i in range(n_layer - trained_blocks, n_layer)]
    return {n for n, _ in classifier.named_parameters() if n.startswith(tuple(parts))}


@pytest.mark.parametrize("trained_blocks", [0, 1, 2, 3])
def test_exactly_the_last_blocks_and_head_are_trained(trained_blocks, make_classifier):
    classifier = make_classifier()
    classifier.freeze(trained_blocks)
    assert trainable(classifier) == expected_trainable(classifier, trained_blocks)


def test_none_trains_everything(make_classifier):
    classifier = make_classifier()
    classifier.freeze(1)
    classifier.freeze(None)
    assert trainable(classifier) == {name for name, _ in classifier.named_parameters()}
    assert classifier.trainable_parameters() == sum(p.numel() for p in classifier.parameters())


@pytest.mark.parametrize("first", [None, 0, 1, 3])
@pytest.mark.parametrize("second", [0, 2])
def test_freezing_again_forgets_the_first_time(first, second, make_classifier):
    classifier = make_classifier()
    for number in (first, second, second):
        classifier.freeze(number)
    assert trainable(classifier) == expected_trainable(classifier, second)


@pytest.mark.parametrize("number", [-1, 4])
def test_freeze_refuses_blocks_that_do_not_exist(number, make_classifier):
    with pytest.raises(ValueError, match=f"{number}.* 3 blocks"):
        make_classifier().freeze(number)


@pytest.mark.parametrize("trained_blocks", [None, 0, 1, 3])
def test_training_changes_all_that_is_trained_and_nothing_that_is_frozen(
    trained_blocks, make_classifier
):
    classifier = make_classifier()
    data = Messages(TEXTS, [1, 0, 0, 0, 1, 1], classifier.tokenizer, 64)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    recipe = replace(RECIPE, trained_blocks=trained_blocks)
    fit(classifier.prepare(recipe), data, data, recipe, progress=False)
    changed = {n for n, p in classifier.named_parameters() if not torch.equal(p, before[n])}
    if trained_blocks is None:
        assert changed == before.keys()
    else:
        assert changed == expected_trainable(classifier, trained_blocks)


@pytest.mark.parametrize("trained_blocks", [None, 0, 1])
def test_embeddings_are_trained_besides_if_that_is_asked_for(trained_blocks, make_classifier):
    classifier = make_classifier()
    classifier.freeze(trained_blocks, embeddings=True)
    n = 3 if trained_blocks is None else trained_blocks
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert trainable(classifier) == expected_trainable(classifier, n) | embeddings


def test_prepare_freezes_and_sets_the_dropout_as_the_recipe_says(make_classifier):
    classifier = make_classifier(dropout=0.3)
    assert classifier.prepare(replace(RECIPE, dropout=0.1)) is classifier
    assert trainable(classifier) == expected_trainable(classifier, 1)
    rates = {m.p for m in classifier.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.1}
    classifier.prepare(replace(RECIPE, trained_blocks=0, embedding_lr=1e-3))
    assert "transformer.wte.weight" in trainable(classifier)
    assert {m.p for m in classifier.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    "left_trainable, frozen",
    [
        ("", 3),
        ("score", 3),
        ("transformer.ln_f", 3),
        ("transformer.h.2.mlp.c_fc.bias", 2),
        ("transformer.h.1.ln_1.weight", 1),
        ("transformer.h.0", 0),
        ("transformer.wte", 0),
        ("transformer.wpe", 0),
        ("transformer", 0),
    ],
)
def test_the_frozen_blocks_are_counted_from_what_the_caller_left_trainable(
    left_trainable, frozen, make_classifier
):
    classifier = make_classifier().requires_grad_(False)
    for name, p in classifier.named_parameters():
        p.requires_grad = bool(left_trainable) and name.startswith(left_trainable)
    assert classifier.frozen_blocks == frozen


def test_something_trained_before_the_blocks_leaves_none_frozen(make_classifier):
    """Whatever it is called: its states vary in training."""
    classifier = make_classifier()
    classifier.transformer.adapter = torch.nn.Linear(16, 16)
    classifier.freeze(1)
    assert classifier.frozen_blocks == 2
    classifier.transformer.adapter.requires_grad_(True)
    assert classifier.frozen_blocks == 0


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_from_states_continues_where_the_first_blocks_ended(frozen, trained_classifier):
    classifier = trained_classifier
    ids, lengths = pad(encode(TEXTS, classifier.tokenizer), 0)
    x = classifier.transformer.embed(ids)
    for block in classifier.transformer.h[:frozen]:
        x = block(x)
    whole = classifier(ids, lengths)
    assert_close(classifier.from_states(x, lengths, frozen), whole)
    last = classifier.transformer.hidden(ids)[torch.arange(len(ids)), lengths - 1]
    assert_close(classifier.score(last), whole)


# --- training mode --------------------------------------------------------------------


def test_frozen_blocks_have_no_dropout_in_training(make_classifier):
    classifier = make_classifier(dropout=0.5)
    classifier.freeze(1)
    classifier.train()
    t, ids = classifier.transformer, torch.tensor([[1, 2, 3, 4]])

    def after(n_blocks):
        x = t.embed(ids)
        for block in t.h[:n_blocks]:
            x = block(x)
        return x

    assert torch.equal(after(2), after(2))
    assert not torch.equal(after(3), after(3))


def test_dropout_is_active_everywhere_if_embeddings_are_trained(make_classifier):
    classifier = make_classifier(dropout=0.5)
    classifier.freeze(1, embeddings=True)
    assert all(module.training for module in classifier.train().modules())


@pytest.mark.parametrize("training", [False, True])
def test_evaluating_is_without_dropout_and_gradients_and_leaves_the_mode(training, make_classifier):
    classifier = make_classifier(dropout=0.5).train(training)
    with pytest.raises(ZeroDivisionError), classifier.evaluating():
        assert not any(module.training for module in classifier.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert classifier.training is training
    assert torch.is_grad_enabled()


# --- other tokens than the last -------------------------------------------------------


@pytest.mark.parametrize("frozen", [None, 0, 2, 3])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_first_or_the_mean_of_the_real_tokens_can_be_read(pooling, frozen, make_classifier):
    tiny = make_classifier()
    classifier = Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", pooling)
    randomize(classifier.score, seed=1)
    data = Messages(TEXTS, [0] * len(TEXTS), classifier.tokenizer, 64)
    found = logits(classifier.eval(), data)
    if frozen is not None:
        found = logits(classifier, hidden_states(classifier, data, frozen))
    for ids, row in zip(data.ids, found, strict=True):
        hidden = classifier.transformer.hidden(torch.tensor([ids]))[0]  # (T, C)
        wanted = hidden[0] if pooling == "first" else hidden.mean(dim=0)
        assert_close(row, classifier.score(wanted), atol=1e-5, rtol=1e-4)


def test_an_unknown_pooling_is_refused(make_classifier):
    tiny = make_classifier()
    with pytest.raises(ValueError, match="'middle': choose one of last, first, mean"):
        Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", "middle")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "0.5"])
def test_a_threshold_that_is_no_probability_is_refused(threshold, make_classifier):
    classifier = make_classifier()
    classifier.positive = "spam"
    with pytest.raises(ValueError, match="from 0 to 1"):
        classifier.set_threshold(threshold)
    assert classifier.threshold is None


def test_a_threshold_needs_a_positive_label(make_classifier):
    with pytest.raises(ValueError, match="no positive label"):
        make_classifier().set_threshold(0.9)


def test_a_positive_label_has_to_be_one_of_the_labels(make_classifier):
    part = make_classifier()
    with pytest.raises(ValueError, match="'eggs' is none of ham, spam"):
        Classifier(part.transformer, part.tokenizer, ["ham", "spam"], "pocket", positive="eggs")
