"""The objective of classification: its loss, its measure, and the states it caches."""

import random

import pytest
import torch
import torch.nn.functional as F
from counting import count
from torch.testing import assert_close

from spamgpt import objectives
from spamgpt.batches import HiddenStates, Messages, collate
from spamgpt.inference import hidden_states
from spamgpt.objectives import Classification, logits_by_batch, loss_and_accuracy
from spamgpt.recipes import Recipe
from spamgpt.training import fit

RECIPE = Recipe(trained_blocks=1, learning_rate=1e-3, batch_size=8, epochs=3)


def some(n, tokenizer, seed=0):
    """n messages of many lengths, no two of them equal."""
    draw = random.Random(seed)
    texts = [f"{seed} {i} " + "word " * draw.randint(0, 30) for i in range(n)]
    return Messages(texts, [i % 2 for i in range(n)], tokenizer, 64)


@pytest.fixture
def data(pocket_tokenizer):
    return some(24, pocket_tokenizer)


@pytest.fixture
def validation(pocket_tokenizer):
    return some(10, pocket_tokenizer, seed=1)


def one_by_one(classifier, messages):
    with torch.no_grad():
        found = [classifier(torch.tensor([s]), torch.tensor([len(s)])) for s in messages.ids]
    return torch.cat(found)


# --- the loss of a batch --------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_the_batch(cached, trained_classifier, data):
    found, targets = one_by_one(trained_classifier, data), torch.tensor(data.targets)
    if cached:
        data = hidden_states(trained_classifier, data, 2)
    batch = data.collate([data[i] for i in range(len(data))])
    loss, right = Classification().loss(trained_classifier, batch)
    assert loss.requires_grad
    assert loss.item() == pytest.approx(F.cross_entropy(found, targets).item(), abs=1e-5)
    assert right == pytest.approx((found.argmax(dim=1) == targets).float().mean().item())


def test_the_gradients_are_those_of_the_whole_padded_batch(trained_classifier, data):
    classifier, weights = trained_classifier, list(trained_classifier.parameters())
    batch = collate([data[i] for i in range(len(data))], data.pad_id)
    whole = F.cross_entropy(classifier(batch.ids, batch.lengths), batch.targets)
    ours, _ = Classification().loss(classifier, batch)
    found, expected = (torch.autograd.grad(loss, weights) for loss in (ours, whole))
    assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_short_messages_of_a_batch_are_not_computed_as_wide_as_the_longest(
    trained_classifier, pocket_tokenizer, monkeypatch
):
    data = Messages(
        ["word " * n for n in (1, 40, 2, 38, 3, 36, 1, 39)], [0] * 8, pocket_tokenizer, 64
    )
    calls = count(monkeypatch)
    Classification().loss(trained_classifier, data.collate([data[i] for i in range(8)]))
    lengths = sorted(map(len, data.ids))
    assert calls["embedded"] == [(4, lengths[3]), (4, lengths[7])]


# --- cached states --------------------------------------------------------------------


@pytest.mark.parametrize("trained_blocks, cached", [(0, 3), (1, 2), (3, None), (None, None)])
def test_states_are_cached_if_blocks_are_frozen(trained_blocks, cached, trained_classifier, data):
    trained_classifier.freeze(trained_blocks)
    prepared = Classification().prepare(trained_classifier, data)
    if cached is None:
        assert prepared is data
    else:
        assert isinstance(prepared, HiddenStates) and prepared.n_blocks == cached


def test_states_that_are_given_are_taken_as_they_are(trained_classifier, data):
    trained_classifier.freeze(1)
    states = hidden_states(trained_classifier, data, 1)
    assert Classification().prepare(trained_classifier, states) is states


@pytest.mark.parametrize("room, cached", [(0, True), (-1, False)])
def test_states_are_cached_as_long_as_they_fit(room, cached, trained_classifier, data, capsys):
    """Equal messages need room once; the bound is that of all bytes that are kept."""
    data.ids = data.ids * 2
    data.targets = data.targets * 2
    trained_classifier.freeze(1)
    states = hidden_states(trained_classifier, data, 2).states
    n_bytes = sum(x.numel() * 4 for x in states) // 2
    prepared = Classification(max_cache_bytes=n_bytes + room).prepare(trained_classifier, data)
    assert isinstance(prepared, HiddenStates) is cached
    assert ("computed again at each step" in capsys.readouterr().out) is not cached


def test_each_frozen_block_runs_once_a_message_not_once_an_epoch(
    make_classifier, data, validation, monkeypatch
):
    calls, asked = count(monkeypatch), []
    states = objectives.hidden_states
    monkeypatch.setattr(
        objectives, "hidden_states", lambda *a, **o: asked.append(len(a[1])) or states(*a, **o)
    )
    classifier = make_classifier().prepare(RECIPE)
    fit(classifier, data, validation, RECIPE, progress=False)
    assert asked == [len(data), len(validation)]
    assert sum(B for B, *_ in calls["frozen block"]) == 2 * (len(data) + len(validation))
    assert sum(B for B, *_ in calls["embedded"]) == len(data) + len(validation)
    assert calls["block"] == []  # the last one runs at one token only
    measured = 2 * RECIPE.epochs * len(validation)
    assert sum(B for B, *_ in calls["one query"]) == RECIPE.epochs * len(data) + measured


def test_equal_messages_run_once_through_the_frozen_blocks(
    make_classifier, data, validation, monkeypatch
):
    data.ids = data.ids[:3] * 8
    calls = count(monkeypatch)
    fit(make_classifier().prepare(RECIPE), data, validation, RECIPE, progress=False)
    assert sum(B for B, *_ in calls["embedded"]) == 3 + len(validation)


def test_where_all_is_trained_the_last_block_still_runs_at_one_token_only(
    make_classifier, data, validation, monkeypatch
):
    recipe = Recipe(trained_blocks=None, learning_rate=1e-3, batch_size=8, epochs=1)
    calls = count(monkeypatch)
    fit(make_classifier().prepare(recipe), data, validation, recipe, progress=False)
    steps = 24 // 4  # batches of eight in parts of four
    assert len(calls["block"]) == 2 * steps  # two of three blocks; none in measuring
    assert len(calls["one query"]) == steps + 2  # validation is measured twice
    assert len(calls["frozen block"]) == 2 * 2


def test_the_head_alone_is_trained_on_states_of_every_block(
    make_classifier, data, validation, monkeypatch
):
    recipe = Recipe(trained_blocks=0, learning_rate=1e-3, batch_size=8, epochs=3)
    calls = count(monkeypatch)
    fit(make_classifier().prepare(recipe), data, validation, recipe, progress=False)
    assert sum(B for B, *_ in calls["frozen block"]) == 3 * (len(data) + len(validation))
    assert calls["block"] == calls["one query"] == []


# --- the loss and accuracy of a set ---------------------------------------------------


@pytest.fixture
def messages(pocket_tokenizer):
    texts = ["win cash", "ok", "see you at home tonight my dear", "", "claim your free prize"] * 9
    return Messages(texts, [1, 0, 0, 1, 1] * 9, pocket_tokenizer, 64)


class Subset(torch.utils.data.Subset):
    """A data set that makes its batches in its own way."""

    def collate(self, items):
        return self.dataset.collate(items)


@pytest.mark.parametrize("kind", ["messages", "states", "of its own", "states of its own"])
def test_loss_and_accuracy_equal_those_of_single_messages(kind, trained_classifier, messages):
    found, targets = one_by_one(trained_classifier, messages), torch.tensor(messages.targets)
    data = hidden_states(trained_classifier, messages, 2) if "states" in kind else messages
    if "own" in kind:
        data = Subset(data, range(len(data)))
    loss, accuracy = loss_and_accuracy(trained_classifier, data)
    assert loss == pytest.approx(F.cross_entropy(found, targets).item(), abs=1e-4)
    assert accuracy == pytest.approx((found.argmax(1) == targets).float().mean().item())
    assert 0 < accuracy < 1  # so that the comparison says something
    assert Classification().measure(trained_classifier, data) == (loss, accuracy)
    by_batch, same_targets = logits_by_batch(trained_classifier, data)
    assert_close(by_batch, found, atol=1e-5, rtol=1e-5)
    assert torch.equal(same_targets, targets)


def test_measuring_is_done_without_dropout_and_leaves_the_mode(make_classifier, messages):
    classifier = make_classifier(dropout=0.5)
    torch.nn.init.normal_(classifier.score.weight)
    expected = loss_and_accuracy(classifier, messages)
    own = Subset(messages, range(len(messages)))
    classifier.train()
    assert loss_and_accuracy(classifier, messages) == expected
    assert loss_and_accuracy(classifier, own) == pytest.approx(expected, abs=1e-5)
    assert classifier.training


# --- what the result depends on -------------------------------------------------------


def test_the_fingerprint_says_how_frozen_blocks_are_computed(trained_classifier, monkeypatch):
    trained_classifier.freeze(1)
    monkeypatch.setenv("SPAMGPT_PRECISION", "bf16")
    found = Classification().fingerprint(trained_classifier)
    assert found == {"labels": "ham, spam", "pooling": "last", "precision": "bf16"}
    trained_classifier.freeze(None)
    assert Classification().fingerprint(trained_classifier)["precision"] == "fp32"
