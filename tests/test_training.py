"""The training loop and its history."""

import copy
import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from randomize import randomize

from spamgpt.batching import Messages, collate
from spamgpt.pretrained import Recipe
from spamgpt.training import fit

SPAM = ["win", "free", "prize", "cash", "claim", "urgent"]
HAM = ["home", "dinner", "sorry", "love", "mum", "work"]
FAST = Recipe(trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=1)


def toy(n, tokenizer, seed=0):
    """n messages; every other one is spam, and tells so by its words."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(SPAM if i % 2 else HAM, k=draw.randint(1, 8))) for i in range(n)]
    return Messages(texts, [i % 2 for i in range(n)], tokenizer, 64)


@pytest.fixture
def train(pocket_tokenizer):
    return toy(40, pocket_tokenizer)


@pytest.fixture
def validation(pocket_tokenizer):
    return toy(11, pocket_tokenizer, seed=1)


def test_an_easy_task_is_learned(make_classifier, train, validation):
    recipe = Recipe(trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=6)
    history = fit(make_classifier(), train, validation, recipe, progress=False)
    first, last = history.iloc[0], history.iloc[-1]
    assert last["train_loss"] < 0.3 * first["train_loss"]
    assert last["validation_loss"] < 0.3 * math.log(2)
    assert last["train_accuracy"] == last["validation_accuracy"] == 1.0


# --- repeatable -----------------------------------------------------------------------


def run(make_classifier, train, validation, seed, dropout=0.2):
    classifier = make_classifier()
    recipe = replace(FAST, dropout=dropout)
    history = fit(classifier, train, validation, recipe, seed=seed, progress=False)
    return history.drop(columns="seconds"), classifier.state_dict()


def test_one_seed_gives_one_result(make_classifier, train, validation):
    torch.manual_seed(1)
    first, weights = run(make_classifier, train, validation, seed=7)
    torch.manual_seed(2)  # what happened before in the notebook has no say
    second, again = run(make_classifier, train, validation, seed=7)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_another_seed_gives_another_order(make_classifier, train, validation):
    first, _ = run(make_classifier, train, validation, seed=7, dropout=0.0)
    second, _ = run(make_classifier, train, validation, seed=8, dropout=0.0)
    assert not first["train_loss"].equals(second["train_loss"])


# --- the history ----------------------------------------------------------------------


def test_the_history_has_a_row_for_each_half_of_an_epoch(
    make_classifier, validation, pocket_tokenizer
):
    recipe = Recipe(trained_blocks=0, learning_rate=1e-3, batch_size=4, epochs=2)
    train = toy(4 * 8 + 3, pocket_tokenizer)  # eight full batches and a rest, which is dropped
    history = fit(make_classifier(), train, validation, recipe, progress=False)
    assert history["epoch"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert history["examples"].tolist() == [16, 32, 48, 64]
    assert history["seconds"].is_monotonic_increasing
    assert history.columns.tolist() == [
        "epoch",
        "examples",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "seconds",
    ]


@pytest.mark.parametrize("batches", [1, 3, 5, 7])
def test_every_epoch_ends_with_a_row(batches, make_classifier, validation, pocket_tokenizer):
    recipe = Recipe(trained_blocks=0, learning_rate=1e-3, batch_size=4, epochs=2)
    train = toy(4 * batches, pocket_tokenizer)
    history = fit(make_classifier(), train, validation, recipe, progress=False)
    assert {1.0, 2.0} <= set(history["epoch"])
    assert history["examples"].iloc[-1] == 2 * 4 * batches
    assert history.notna().all(axis=None)


def test_without_learning_the_loss_stays_ln_2(make_classifier, train, validation):
    """The figures of the history are means over messages, in nats, of an unchanged zero head."""
    recipe = Recipe(trained_blocks=None, learning_rate=0.0, batch_size=8, epochs=1)
    history = fit(make_classifier(), train, validation, recipe, progress=False)
    for column in ("train_loss", "validation_loss"):
        assert history[column].tolist() == pytest.approx([math.log(2)] * len(history), abs=1e-6)
    # Every score is a tie, and ties are called ham: six of the eleven.
    assert history["validation_accuracy"].tolist() == pytest.approx([6 / 11] * len(history))
    messages = history["examples"].diff().fillna(history["examples"].iloc[0])
    hits = (history["train_accuracy"] * messages).sum()
    assert hits == pytest.approx(20)  # of all forty messages, half of them ham


def test_fit_leaves_the_classifier_ready_for_use(make_classifier, train, validation):
    classifier = make_classifier(dropout=0.5)
    fit(classifier, train, validation, FAST, progress=False)
    assert not classifier.training


def test_progress_can_be_silenced(make_classifier, train, validation, capfd):
    fit(make_classifier(), train, validation, FAST, progress=False)
    assert capfd.readouterr() == ("", "")


# --- the recipe -----------------------------------------------------------------------


def test_dropout_is_the_recipes(make_classifier, train, validation):
    plain, _ = run(make_classifier, train, validation, seed=7, dropout=0.0)
    noisy, _ = run(make_classifier, train, validation, seed=7, dropout=0.5)
    assert not plain["train_loss"].equals(noisy["train_loss"])


def test_a_decaying_learning_rate_makes_smaller_steps_and_ends_at_zero(
    make_classifier, train, validation, monkeypatch
):
    rates = []
    step = torch.optim.AdamW.step

    def record(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    for decay in (False, True):
        recipe = replace(FAST, decay=decay, learning_rate=1e-3)
        fit(make_classifier(), train, validation, recipe, progress=False)
    assert rates[:5] == [1e-3] * 5
    assert rates[5:] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])


@pytest.mark.parametrize("trained_blocks", [1, None])
def test_embeddings_may_learn_at_their_own_rate(trained_blocks, make_classifier, train, validation):
    """AdamW's first step moves a weight by the learning rate, whatever the gradient."""
    classifier = make_classifier()
    randomize(classifier.score, seed=1)  # a head of zeros passes no gradient on
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    recipe = replace(FAST, learning_rate=1e-4, batch_size=40, weight_decay=0, embedding_rate=1e-3)
    recipe = replace(recipe, trained_blocks=trained_blocks)
    fit(classifier, train, validation, recipe, progress=False)
    after = classifier.state_dict()
    moved = {key: (after[key] - before[key]).abs().max().item() for key in after}
    for key, expected in (
        ("transformer.wte.weight", 1e-3),
        ("transformer.wpe.weight", 1e-3),
        ("transformer.h.0.mlp.c_fc.weight", 1e-4 if trained_blocks is None else 0.0),
        ("transformer.h.2.mlp.c_fc.weight", 1e-4),
        ("score.weight", 1e-4),
    ):
        assert moved[key] == pytest.approx(expected, rel=0.05), key


# --- what goes wrong ------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_training(make_classifier, train, validation):
    classifier = make_classifier()
    with torch.no_grad():
        classifier.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1:.*learning rate"):
        fit(classifier, train, validation, FAST, progress=False)


def test_an_absurd_learning_rate_stops_training(make_classifier, train, validation):
    recipe = Recipe(trained_blocks=None, learning_rate=1e30, epochs=3)
    with pytest.raises(FloatingPointError, match=r"1e\+30"):
        fit(make_classifier(), train, validation, recipe, progress=False)


def test_fewer_messages_than_a_batch_are_refused(make_classifier, validation, pocket_tokenizer):
    with pytest.raises(ValueError, match=r"7 messages .* batch of 8"):
        fit(make_classifier(), toy(7, pocket_tokenizer), validation, FAST, progress=False)


# --- less padding ---------------------------------------------------------------------


def test_a_step_equals_one_on_the_whole_padded_batch(make_classifier, validation, pocket_tokenizer):
    """Parts of like length change neither the loss nor a weight: one batch, one plain step."""
    train = toy(11, pocket_tokenizer, seed=3)
    recipe = Recipe(trained_blocks=None, learning_rate=1e-3, batch_size=11, epochs=1)
    packaged, plain = make_classifier(), make_classifier()
    history = fit(packaged, train, validation, recipe, progress=False)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=recipe.weight_decay)
    batch = collate([train[i] for i in range(11)], train.pad_id)
    loss = F.cross_entropy(plain.train()(batch.ids, batch.lengths), batch.targets)
    loss.backward()
    optimizer.step()
    assert history["train_loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    for a, b in zip(packaged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# --- the frozen part, computed once ---------------------------------------------------


@pytest.mark.parametrize("trained_blocks", [0, 1, 2])
def test_training_on_kept_states_equals_training_the_full_model(
    trained_blocks, make_classifier, train, validation, capsys
):
    recipe = Recipe(trained_blocks, learning_rate=1e-3, batch_size=8, epochs=2)
    kept, streamed = make_classifier(), make_classifier()
    first = fit(kept, train, validation, recipe, progress=False, bf16=False)
    assert capsys.readouterr().out == ""
    second = fit(streamed, train, validation, recipe, progress=False, max_cache_bytes=0)
    assert "more than the 0 MB allowed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(
        first.drop(columns="seconds"), second.drop(columns="seconds"), atol=1e-4, rtol=1e-4
    )
    for a, b in zip(kept.parameters(), streamed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_data_sets_keep_their_token_ids(make_classifier, train, validation):
    before = [list(ids) for ids in train.ids]
    recipe = Recipe(trained_blocks=1, learning_rate=1e-3, batch_size=8, epochs=1)
    fit(make_classifier(), train, validation, recipe, progress=False)
    assert train.ids == before


def test_states_of_the_frozen_part_may_be_given_in_place_of_ids(make_classifier, train, validation):
    recipe = replace(FAST, trained_blocks=1)
    own, given = make_classifier(), make_classifier()
    fit(own, train, validation, recipe, progress=False)
    given.freeze(1)
    states = copy.copy(train)
    states.ids = given.trunk_states(train.ids)
    fit(given, states, validation, recipe, progress=False)
    weights = given.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in own.state_dict().items())
