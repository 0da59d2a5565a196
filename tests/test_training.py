"""The training loop and its history: it trains what the caller left trainable."""

import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from randomize import randomize
from wrappers import LoRA

from spamgpt.batches import Messages, collate, data_loader
from spamgpt.inference import hidden_states
from spamgpt.objectives import Classification
from spamgpt.recipes import Recipe
from spamgpt.training import fit

SPAM = ["win", "free", "prize", "cash", "claim", "urgent"]
HAM = ["home", "dinner", "sorry", "love", "mum", "work"]
FAST = Recipe(trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=1)


def toy(n, tokenizer, seed=0):
    """n messages; every other one is spam, and tells so by its words."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(SPAM if i % 2 else HAM, k=draw.randint(1, 8))) for i in range(n)]
    return Messages(texts, [i % 2 for i in range(n)], tokenizer, 64)


def prepared(classifier, train, validation, recipe, *objective, **options):
    """Prepare by the recipe, as every notebook does, and fit; the history."""
    classifier.prepare(recipe)
    return fit(classifier, train, validation, recipe, *objective, progress=False, **options)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changes(model, before):
    """The names of the weights that are not what they were."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.fixture
def train(pocket_tokenizer):
    return toy(40, pocket_tokenizer)


@pytest.fixture
def validation(pocket_tokenizer):
    return toy(11, pocket_tokenizer, seed=1)


def test_an_easy_task_is_learned(make_classifier, train, validation):
    recipe = Recipe(trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=6)
    history = prepared(make_classifier(), train, validation, recipe)
    first, last = history.iloc[0], history.iloc[-1]
    assert last["train_loss"] < 0.3 * first["train_loss"]
    assert last["validation_loss"] < 0.3 * math.log(2)
    assert last["train_accuracy"] == last["validation_accuracy"] == 1.0


# --- repeatable -----------------------------------------------------------------------


def run(make_classifier, train, validation, seed, dropout=0.2):
    classifier = make_classifier()
    recipe = replace(FAST, dropout=dropout)
    history = prepared(classifier, train, validation, recipe, seed=seed)
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
    history = prepared(make_classifier(), train, validation, recipe)
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
    history = prepared(make_classifier(), train, validation, recipe)
    assert {1.0, 2.0} <= set(history["epoch"])
    assert history["examples"].iloc[-1] == 2 * 4 * batches
    assert history.notna().all(axis=None)


def test_without_learning_the_loss_stays_ln_2(make_classifier, train, validation):
    """The figures of the history are means over messages, in nats, of an unchanged zero head."""
    recipe = Recipe(trained_blocks=None, learning_rate=0.0, batch_size=8, epochs=1)
    history = prepared(make_classifier(), train, validation, recipe)
    for column in ("train_loss", "validation_loss"):
        assert history[column].tolist() == pytest.approx([math.log(2)] * len(history), abs=1e-6)
    # All logits are equal, and ties are called ham: six of the eleven.
    assert history["validation_accuracy"].tolist() == pytest.approx([6 / 11] * len(history))
    messages = history["examples"].diff().fillna(history["examples"].iloc[0])
    hits = (history["train_accuracy"] * messages).sum()
    assert hits == pytest.approx(20)  # of all forty messages, half of them ham


def test_fit_leaves_the_classifier_ready_for_use(make_classifier, train, validation):
    classifier = make_classifier(dropout=0.5)
    prepared(classifier, train, validation, FAST)
    assert not classifier.training


def test_progress_can_be_silenced(make_classifier, train, validation, capfd):
    prepared(make_classifier(), train, validation, FAST)
    assert capfd.readouterr() == ("", "")


# --- the recipe -----------------------------------------------------------------------


def test_dropout_is_the_recipes_if_the_classifier_is_prepared(make_classifier, train, validation):
    plain, _ = run(make_classifier, train, validation, seed=7, dropout=0.0)
    noisy, _ = run(make_classifier, train, validation, seed=7, dropout=0.5)
    assert not plain["train_loss"].equals(noisy["train_loss"])
    by_hand = make_classifier()  # its own dropout is 0, and that is what counts
    history = fit(by_hand, train, validation, replace(FAST, dropout=0.5), seed=7, progress=False)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), plain)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("trained_blocks", [0, 1])
def test_the_steps_are_those_of_adamw_with_the_recipes_weight_decay(
    trained_blocks, weight_decay, make_classifier, train, validation
):
    """The rate is large, so that a decay of a tenth of it shows."""
    recipe = replace(
        FAST, trained_blocks=trained_blocks, learning_rate=0.01, weight_decay=weight_decay
    )
    ours, plain = (make_classifier().prepare(recipe) for _ in range(2))
    for classifier in (ours, plain):
        randomize(classifier.score, seed=1)
    fit(ours, train, validation, recipe, progress=False)

    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=weight_decay)
    for batch in data_loader(train, 8, shuffle=True, drop_last=True):
        loss = F.cross_entropy(plain(batch.ids, batch.lengths), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in ("score", "transformer.ln_f", "transformer.h.2.mlp.c_fc", "transformer.wte"):
        a, b = (c.get_submodule(layer).weight for c in (ours, plain))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_decaying_learning_rate_makes_smaller_steps_and_ends_at_zero(
    make_classifier, train, validation, monkeypatch
):
    rates, optimizers = [], []
    step = torch.optim.AdamW.step

    def record(optimizer, *args, **kwargs):
        optimizers.append(optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    for decay in (False, True):
        recipe = replace(FAST, lr_decay=decay, learning_rate=1e-3)
        prepared(make_classifier(), train, validation, recipe)
        rates.append(optimizers[-1].param_groups[0]["lr"])  # of the step that would follow
    assert rates[:6] == [1e-3] * 6
    assert rates[6:] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4, 0], abs=1e-12)


@pytest.mark.parametrize("trained_blocks", [1, None])
def test_embeddings_may_learn_at_their_own_rate(trained_blocks, make_classifier, train, validation):
    """AdamW's first step moves a weight by the learning rate, whatever the gradient."""
    classifier = make_classifier()
    randomize(classifier.score, seed=1)  # a head of zeros passes no gradient on
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    recipe = replace(FAST, learning_rate=1e-4, batch_size=40, weight_decay=0, embedding_lr=1e-3)
    recipe = replace(recipe, trained_blocks=trained_blocks)
    prepared(classifier, train, validation, recipe)
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
        prepared(classifier, train, validation, FAST)


def test_an_absurd_learning_rate_stops_training(make_classifier, train, validation):
    recipe = Recipe(trained_blocks=None, learning_rate=1e30, epochs=3)
    with pytest.raises(FloatingPointError, match=r"1e\+30"):
        prepared(make_classifier(), train, validation, recipe)


def test_fewer_messages_than_a_batch_are_refused(make_classifier, validation, pocket_tokenizer):
    with pytest.raises(ValueError, match=r"7 messages .* batch of 8"):
        prepared(make_classifier(), toy(7, pocket_tokenizer), validation, FAST)


# --- less padding ---------------------------------------------------------------------


def test_a_step_equals_one_on_the_whole_padded_batch(make_classifier, validation, pocket_tokenizer):
    """Parts of like length change neither the loss nor a weight: one batch, one plain step."""
    train = toy(11, pocket_tokenizer, seed=3)
    recipe = Recipe(trained_blocks=None, learning_rate=1e-3, batch_size=11, epochs=1)
    packaged, plain = make_classifier(), make_classifier()
    history = prepared(packaged, train, validation, recipe)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=recipe.weight_decay)
    batch = collate([train[i] for i in range(11)], train.pad_id)
    loss = F.cross_entropy(plain.train()(batch.ids, batch.lengths), batch.targets)
    loss.backward()
    optimizer.step()
    assert history["train_loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    for a, b in zip(packaged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# --- cached hidden states -------------------------------------------------------------


@pytest.mark.parametrize("trained_blocks", [0, 1, 2])
def test_training_on_cached_states_equals_training_the_full_model(
    trained_blocks, make_classifier, train, validation, capsys
):
    recipe = Recipe(trained_blocks, learning_rate=1e-3, batch_size=8, epochs=2)
    cached, streamed = make_classifier(), make_classifier()
    first = prepared(cached, train, validation, recipe)
    assert capsys.readouterr().out == ""
    second = prepared(streamed, train, validation, recipe, Classification(max_cache_bytes=0))
    assert "more than the 0 MB allowed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(
        first.drop(columns="seconds"), second.drop(columns="seconds"), atol=1e-4, rtol=1e-4
    )
    for a, b in zip(cached.parameters(), streamed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_data_sets_keep_their_token_ids(make_classifier, train, validation):
    before = [list(ids) for ids in train.ids]
    recipe = Recipe(trained_blocks=1, learning_rate=1e-3, batch_size=8, epochs=1)
    prepared(make_classifier(), train, validation, recipe)
    assert train.ids == before


def test_states_of_the_frozen_blocks_may_be_given_in_place_of_messages(
    make_classifier, train, validation
):
    recipe = replace(FAST, trained_blocks=1)
    own, given = make_classifier(), make_classifier()
    prepared(own, train, validation, recipe)
    prepared(given, hidden_states(given, train, 2), validation, recipe)
    weights = given.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in own.state_dict().items())


def test_states_of_fewer_blocks_than_are_frozen_may_be_given(make_classifier, train, validation):
    recipe = replace(FAST, trained_blocks=1)
    own, given = make_classifier(), make_classifier()
    prepared(own, train, validation, recipe)
    prepared(given, hidden_states(given, train, 1), validation, recipe)
    for a, b in zip(own.parameters(), given.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


# --- what the caller left trainable ---------------------------------------------------


def test_weights_of_ones_own_are_trained_and_nothing_else(make_classifier, train, validation):
    """LoRA by hand: the recipe says one block, but nothing of that block is trainable."""
    classifier = make_classifier().requires_grad_(False)
    randomize(classifier.score, seed=1)
    block = classifier.transformer.h[1]
    block.mlp.c_fc = LoRA(block.mlp.c_fc)
    before = weights_of(classifier)
    n = classifier.trainable_parameters()
    assert n == block.mlp.c_fc.A.numel() + block.mlp.c_fc.B.numel()
    fit(classifier, train, validation, replace(FAST, trained_blocks=1), progress=False)
    assert changes(classifier, before) == {f"transformer.h.1.mlp.c_fc.{name}" for name in "AB"}
    assert classifier.trainable_parameters() == n


def test_the_head_alone_may_be_trained(make_classifier, train, validation):
    classifier = make_classifier().requires_grad_(False)
    classifier.score.requires_grad_(True)
    before = weights_of(classifier)
    fit(classifier, train, validation, replace(FAST, trained_blocks=1), progress=False)
    assert changes(classifier, before) == {"score.weight", "score.bias"}
    assert classifier.trainable_parameters() == 16 * 2 + 2


@pytest.mark.parametrize("trained_blocks", [0, 1, None])
@pytest.mark.parametrize("left_trainable", ["score", "transformer.h.1", ""])
def test_what_the_recipe_says_of_blocks_changes_nothing_after_preparing(
    left_trainable, trained_blocks, make_classifier, train, validation
):
    found = []
    for recipe in (FAST, replace(FAST, trained_blocks=trained_blocks)):
        classifier = make_classifier()
        for name, p in classifier.named_parameters():
            p.requires_grad = name.startswith(left_trainable)
        history = fit(classifier, train, validation, recipe, progress=False)
        found.append((history.drop(columns="seconds"), weights_of(classifier)))
    (history, weights), (other, other_weights) = found
    pd.testing.assert_frame_equal(history, other, check_exact=True)
    assert all(torch.equal(weights[name], p) for name, p in other_weights.items())


def test_nothing_trainable_is_refused(make_classifier, train, validation):
    classifier = make_classifier().requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing .* is trainable: call `classifier\.prepare"):
        fit(classifier, train, validation, FAST, progress=False)


def test_an_embedding_rate_trains_no_embedding_that_is_frozen(make_classifier, train, validation):
    classifier = make_classifier()
    classifier.freeze(0)
    before = weights_of(classifier)
    fit(classifier, train, validation, replace(FAST, embedding_lr=1e-2), progress=False)
    assert {name.partition(".")[0] for name in changes(classifier, before)} == {
        "score",
        "transformer",
    }
    assert torch.equal(classifier.transformer.wte.weight, before["transformer.wte.weight"])


# --- an objective of one's own --------------------------------------------------------


class Squares:
    """Makes the squares of the logits smaller; keeps a list of what it was asked."""

    def __init__(self):
        self.asked = []

    def prepare(self, model, data, progress):
        self.asked.append("prepare")
        return data

    def fingerprint(self, model):
        return {"objective": "squares"}

    def loss(self, model, batch):
        self.asked.append("loss")
        return model(batch.ids, batch.lengths).square().mean(), 0.25

    def measure(self, model, data):
        self.asked.append("measure")
        return 7.0, 0.75


def test_an_objective_of_ones_own_is_what_becomes_smaller(make_classifier, train, validation):
    classifier, objective = make_classifier(), Squares()
    randomize(classifier.score, seed=1)
    recipe = replace(FAST, epochs=4)
    history = prepared(classifier, train, validation, recipe, objective)
    assert history["train_loss"].iloc[-1] < 0.1 * history["train_loss"].iloc[0]
    assert set(history["train_accuracy"]) == {0.25}
    assert set(history["validation_loss"]) == {7.0}
    assert set(history["validation_accuracy"]) == {0.75}
    assert objective.asked[:2] == ["prepare", "prepare"]  # once for each data set
    assert objective.asked[2:].count("loss") == 20
    assert objective.asked[2:].count("measure") == len(history)


def test_what_an_objective_names_is_part_of_a_checkpoint(
    make_classifier, train, validation, workspace_folder, monkeypatch, capsys
):
    folder, objective = workspace_folder / "training", Squares()
    loss, recipe = objective.loss, replace(FAST, epochs=3)

    def stopped(model, batch):
        if objective.asked.count("loss") == 7:
            raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setattr(objective, "loss", stopped)
    with pytest.raises(KeyboardInterrupt, match="1 of 3 epochs"):
        prepared(make_classifier(), train, validation, recipe, objective, resume=folder)
    capsys.readouterr()
    other, nameless = make_classifier(), Squares()
    nameless.fingerprint = lambda model: {}
    history = prepared(other, train, validation, recipe, nameless, resume=folder)
    assert "is of another training (objective): " in capsys.readouterr().out
    assert history["epoch"].iloc[0] == 0.6  # from the beginning


class NextToken:
    """The objective of pretraining, on a model without a head."""

    def prepare(self, model, data, progress):
        return data

    def fingerprint(self, model):
        return {}

    def loss(self, model, batch):
        logits = model(batch.ids)[:, :-1]
        mask = torch.arange(1, batch.ids.shape[1]) < batch.lengths[:, None]
        loss = F.cross_entropy(logits[mask], batch.ids[:, 1:][mask])
        return loss, (logits[mask].argmax(dim=-1) == batch.ids[:, 1:][mask]).float().mean().item()

    def measure(self, model, data):
        with torch.no_grad():
            loss, right = self.loss(model, data.collate([data[i] for i in range(len(data))]))
        return loss.item(), right


@pytest.mark.parametrize("embedding_lr", [None, 1e-2])
def test_the_loop_trains_a_language_model_as_well(embedding_lr, make_classifier, train, validation):
    model = make_classifier().transformer
    recipe = replace(FAST, learning_rate=1e-2, epochs=4, embedding_lr=embedding_lr)
    history = fit(model, train, validation, recipe, NextToken(), progress=False)
    assert history["validation_loss"].iloc[-1] < 0.7 * history["validation_loss"].iloc[0]
