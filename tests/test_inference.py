"""Judging texts: one result whatever the batch, whatever was cached."""

import random

import pytest
import torch
from counting import count
from odd_texts import TEXTS
from torch.testing import assert_close

from spamgpt import inference
from spamgpt.batches import Messages, batches_by_length, encode
from spamgpt.classifier import Classifier
from spamgpt.experiments import rows_of
from spamgpt.fast.precision import EXACT, FEW_TOKENS, Decision, Precision
from spamgpt.fast.products import can_int8, can_pack
from spamgpt.hardware import tokens_per_batch
from spamgpt.inference import (
    check_int8,
    classify,
    classify_chunks,
    classify_stream,
    hidden_states,
    logits,
    precision_of_labels,
    precision_of_states,
    probabilities,
    windows,
)
from spamgpt.recipes import Recipe
from spamgpt.training import fit


def messages(texts, classifier):
    return Messages(texts, [i % 2 for i in range(len(texts))], classifier.tokenizer, 64)


@pytest.fixture
def decide(monkeypatch):
    """decide(states, inference, packed) is what this machine is said to decide."""
    monkeypatch.delenv("SPAMGPT_PRECISION")

    def decide(states, labels=None, packed=False):
        decision = Decision(states, labels or states, packed)
        monkeypatch.setattr(inference, "decide", lambda device, width: decision)

    return decide


# --- judging texts --------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_probabilities_come_in_the_order_of_the_messages(
    max_tokens, trained_classifier, monkeypatch
):
    monkeypatch.setattr(
        inference, "batches_by_length", lambda lengths, _: batches_by_length(lengths, max_tokens)
    )
    sequences = encode(TEXTS, trained_classifier.tokenizer)
    found = probabilities(trained_classifier, sequences)
    alone = torch.cat([probabilities(trained_classifier, [ids]) for ids in sequences])
    assert alone[:, 1].unique().numel() == len(TEXTS)  # so that an exchange would show
    assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert_close(found.sum(dim=1), torch.ones(len(TEXTS)))


def test_judging_is_done_without_dropout_and_leaves_the_mode(make_classifier):
    classifier = make_classifier(dropout=0.5)
    torch.nn.init.normal_(classifier.score.weight)
    expected = classify(classifier.eval(), TEXTS)
    classifier.train()
    assert classify(classifier, TEXTS) == expected
    assert classifier.training


def test_classify_names_the_more_probable_label(trained_classifier):
    p = probabilities(trained_classifier, encode(TEXTS, trained_classifier.tokenizer))
    found = classify(trained_classifier, TEXTS)
    assert [one.label for one in found] == [("ham", "spam")[int(row.argmax())] for row in p]
    assert {one.label for one in found} == {"ham", "spam"}
    for prediction, row in zip(found, p, strict=True):
        assert prediction.probability == pytest.approx(row.max().item())
        assert 0.5 <= prediction.probability <= 1


def test_nothing_to_classify_gives_nothing(trained_classifier):
    assert classify(trained_classifier, []) == []
    assert logits(trained_classifier, []).shape == (0, 2)


def test_a_stream_is_judged_in_order_and_never_held_as_a_whole(trained_classifier):
    taken = []

    def stream():
        for i in range(50):
            taken.append(i)
            yield TEXTS[i % len(TEXTS)]

    expected = classify(trained_classifier, [TEXTS[i % len(TEXTS)] for i in range(50)])
    found = []
    for prediction in classify_stream(trained_classifier, stream(), chunk=8):
        found.append(prediction)
        assert len(taken) - len(found) < 8
    assert [p.label for p in found] == [p.label for p in expected]
    assert [p.probability for p in found] == pytest.approx([p.probability for p in expected])


def test_a_text_further_down_a_stream_is_named_by_its_number(trained_classifier):
    stream = classify_stream(trained_classifier, ["ok"] * 5 + [None], chunk=2)
    with pytest.raises(TypeError, match="message 5 is not text"):
        list(stream)
    with pytest.warns(UserWarning, match="message 3 has"):
        list(classify_stream(trained_classifier, ["ok"] * 3 + ["word " * 99], chunk=2))


def test_windows_cover_a_long_message_and_overlap_by_half():
    assert windows(list(range(10)), 4) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]
    assert windows(list(range(9)), 4)[-2:] == [[4, 5, 6, 7], [5, 6, 7, 8]]
    assert windows([1, 2, 3, 4], 4) == [[1, 2, 3, 4]]
    assert windows([1], 4) == [[1]] and windows([1, 2], 1) == [[1], [2]]


def long_text(classifier):
    """A text of several contexts whose parts differ, and the probabilities of each part."""
    text = " ".join(f"word {i} {TEXTS[i % 4]}" for i in range(60))
    (ids,) = encode([text], classifier.tokenizer)
    p = probabilities(classifier, windows(ids, 64))
    assert len(p) > 5 and p[:, 1].std() > 0.01
    return text, p, len(ids)


def test_a_long_text_is_read_to_its_end_with_both_numbers_in_a_warning(trained_classifier):
    text, p, n_tokens = long_text(trained_classifier)
    with pytest.warns(UserWarning, match=rf"message 1 has {n_tokens:,} tokens.* 64: .* {len(p)} "):
        _, long, _ = classify(trained_classifier, ["ok", text, "no"])
    assert_close(torch.tensor(long.probabilities), p.mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:message")
def test_with_a_positive_label_the_part_that_speaks_most_for_it_decides(trained_classifier):
    text, p, _ = long_text(trained_classifier)
    for number, label in enumerate(("ham", "spam")):
        trained_classifier.positive = label
        (found,) = classify(trained_classifier, [text])
        assert_close(torch.tensor(found.probabilities), p[p[:, number].argmax()], atol=1e-5, rtol=0)


def test_portions_are_judged_as_they_come(trained_classifier):
    taken = []

    def portions():
        for texts in (TEXTS[:1], [], TEXTS[1:]):
            taken.append(texts)
            yield texts

    stream = classify_chunks(trained_classifier, portions())
    assert len(next(stream)) == 1 and len(taken) == 1
    assert [len(portion) for portion in stream] == [0, len(TEXTS) - 1]


def test_a_threshold_decides_about_the_positive_label(trained_classifier):
    exact = classify(trained_classifier, TEXTS)
    p_spam = sorted(one.probabilities[1] for one in exact)
    trained_classifier.positive = "spam"
    for threshold, n_spam in ((p_spam[-2], 1), (p_spam[0], len(TEXTS) - 1), (1, 0), (None, None)):
        trained_classifier.set_threshold(threshold)
        found = classify(trained_classifier, TEXTS)
        called = [one.label == "spam" for one in found]
        if threshold is None:
            assert found == exact
            continue
        assert sum(called) == n_spam
        assert called == [one.probabilities[1] > threshold for one in exact]
        for one in found:  # the probability is that of the label that is given
            assert one.probability == one.probabilities[one.label == "spam"]


def test_below_the_threshold_the_most_probable_other_label_is_given(make_classifier):
    body = make_classifier().transformer
    classifier = Classifier(
        body, make_classifier().tokenizer, "abc", "pocket", positive="c", threshold=0.9
    ).eval()
    torch.nn.init.zeros_(classifier.score.weight)
    classifier.score.bias.data = torch.tensor([0.0, 1.0, 2.0])
    assert [one.label for one in classify(classifier, TEXTS)] == ["b"] * len(TEXTS)
    classifier.set_threshold(0.5)
    assert [one.label for one in classify(classifier, TEXTS)] == ["c"] * len(TEXTS)


def test_a_text_that_just_fits_gives_no_warning(trained_classifier, recwarn):
    ids = encode(["word " * 100], trained_classifier.tokenizer)[0][:64]
    classify(trained_classifier, [trained_classifier.tokenizer.decode(ids)])
    assert not recwarn.list


def test_a_message_beyond_the_context_is_refused_with_both_numbers(trained_classifier):
    with pytest.raises(ValueError, match=r"65 tokens; the model reads at most 64"):
        logits(trained_classifier, [[1] * 65])


@pytest.mark.parametrize("texts", ["one text", ["ok", None], [b"ok"]], ids=repr)
def test_classify_refuses_what_is_not_a_list_of_texts(texts, trained_classifier):
    with pytest.raises(TypeError):
        classify(trained_classifier, texts)


# --- cached hidden states -------------------------------------------------------------


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3])
def test_logits_from_cached_states_equal_those_of_the_full_model(n_blocks, trained_classifier):
    data = messages(TEXTS, trained_classifier)
    states = hidden_states(trained_classifier, data, n_blocks)
    n_embd = trained_classifier.transformer.config.n_embd
    assert [tuple(x.shape) for x in states.states] == [(len(ids), n_embd) for ids in data.ids]
    assert states.n_blocks == n_blocks and states.targets == data.targets
    cached, full = logits(trained_classifier, states), logits(trained_classifier, data)
    assert_close(cached, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained_blocks, expected", [(0, 3), (1, 2), (3, 0), (None, 0)])
def test_the_frozen_blocks_are_those_whose_states_are_cached(
    trained_blocks, expected, trained_classifier
):
    trained_classifier.freeze(trained_blocks)
    states = hidden_states(trained_classifier, messages(TEXTS, trained_classifier))
    assert states.n_blocks == expected


def test_states_hold_no_more_memory_than_their_own(trained_classifier):
    for x in hidden_states(trained_classifier, messages(TEXTS, trained_classifier), 2).states:
        assert x.untyped_storage().nbytes() == x.numel() * 4
        assert x.dtype == torch.float32 and not x.requires_grad


def test_equal_messages_share_one_tensor(trained_classifier):
    data = messages(["again", "once", "again"], trained_classifier)
    first, other, again = hidden_states(trained_classifier, data, 2).states
    assert first is again and first is not other


# --- what is computed, and how often --------------------------------------------------


@pytest.fixture
def many(trained_classifier):
    """Some hundred messages of many lengths in no order, more than FEW_TOKENS, none twice."""
    draw = random.Random(3)
    texts = [f"{i} " + "word " * draw.randint(0, 40) for i in draw.sample(range(1000), 300)]
    data = messages(texts, trained_classifier)
    assert sum(map(len, data.ids)) > 10 * FEW_TOKENS
    return data


def test_logits_take_the_fast_way_through_every_block(trained_classifier, many, monkeypatch):
    calls = count(monkeypatch)
    logits(trained_classifier, many)
    n_batches = len(calls["embedded"])
    assert len(calls["frozen block"]) == 2 * n_batches  # of three blocks
    assert len(calls["one query"]) == n_batches
    assert calls["block"] == []


def test_hidden_states_take_the_fast_way_through_every_block(trained_classifier, many, monkeypatch):
    calls = count(monkeypatch)
    states = hidden_states(trained_classifier, many, 2)
    assert len(calls["frozen block"]) == 2 * len(calls["embedded"])
    assert calls["block"] == calls["one query"] == []
    logits(trained_classifier, states)
    assert len(calls["frozen block"]) == 2 * len(calls["embedded"])  # those ran no more
    assert calls["one query"] and calls["block"] == []


def test_messages_of_like_length_share_a_batch(trained_classifier, many, monkeypatch):
    calls = count(monkeypatch)
    logits(trained_classifier, many)
    hidden_states(trained_classifier, many, 2)
    real, computed = sum(map(len, many.ids)), sum(B * T for B, T in calls["embedded"])
    assert real < computed / 2 < 1.2 * real  # in no order, twice as many
    assert max(B * T for B, T in calls["embedded"]) <= tokens_per_batch(torch.device("cpu"))


def test_equal_messages_are_computed_once(trained_classifier, monkeypatch):
    calls = count(monkeypatch)
    data = messages(["again", "once", "again", "again"], trained_classifier)
    found = logits(trained_classifier, data)
    assert sum(B for B, _ in calls["embedded"]) == 2
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    states = hidden_states(trained_classifier, data, 2)
    assert sum(B for B, _ in calls["embedded"]) == 4
    assert torch.equal(states[0][0], states[3][0])


# --- precision ------------------------------------------------------------------------


def test_many_messages_are_computed_in_the_precision_that_was_decided(
    trained_classifier, many, decide, monkeypatch
):
    decide("bf16")
    exact = hidden_states(trained_classifier, many, 2, EXACT)
    calls = count(monkeypatch)
    rounded = hidden_states(trained_classifier, many, 2)
    assert set(calls["dtype"]) == {torch.bfloat16}
    for a, b in zip(exact.states, rounded.states, strict=True):
        assert b.dtype == torch.float32
        assert_close(a, b, atol=0.05 * a.abs().max().item(), rtol=0)
    calls = count(monkeypatch)
    classify(trained_classifier, map(trained_classifier.tokenizer.decode, many.ids))
    assert set(calls["dtype"]) == {torch.bfloat16}


@pytest.mark.parametrize("n_tokens, dtype", [(511, torch.float32), (512, torch.bfloat16)])
def test_a_few_tokens_are_never_rounded(n_tokens, dtype, trained_classifier, monkeypatch):
    calls, bf16 = count(monkeypatch), Precision("bf16", packed=False)
    sequences = [[i, *range(31)] for i in range(16)]
    sequences[0] = sequences[0][: 32 - 512 + n_tokens]
    assert sum(map(len, sequences)) == n_tokens
    logits(trained_classifier, sequences, bf16)
    data = messages(["x"] * 16, trained_classifier)
    data.ids = sequences
    hidden_states(trained_classifier, data, 2, bf16)
    assert set(calls["dtype"]) == {dtype}


def test_what_is_measured_is_exact_whatever_was_decided(
    trained_classifier, many, decide, monkeypatch
):
    decide("bf16", packed=True)
    calls = count(monkeypatch)
    logits(trained_classifier, many)
    probabilities(trained_classifier, many)
    assert set(calls["linear"]) == {("fp32", False)}


@pytest.mark.parametrize("packed", [False, True])
def test_weights_are_packed_if_that_was_decided(
    packed, trained_classifier, many, decide, monkeypatch
):
    x = torch.randn(4, 16)
    if not can_pack(trained_classifier.transformer.h[0].mlp.c_fc, x):
        pytest.skip("this machine does not pack weights")
    decide("fp32", packed=packed)
    multiplied, ops = [], torch.ops.mkldnn
    plain = ops._linear_pointwise
    monkeypatch.setattr(ops, "_linear_pointwise", lambda *a: multiplied.append(1) or plain(*a))
    calls = count(monkeypatch)
    found = hidden_states(trained_classifier, many, 2)
    assert set(calls["linear"]) == {("fp32", packed)}
    assert len(multiplied) == packed * 8 * len(calls["embedded"])  # four products a block
    exact = hidden_states(trained_classifier, many, 2, EXACT)
    for a, b in zip(found.states, exact.states, strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_classify_in_bf16_differs_by_rounding_only(trained_classifier, decide):
    texts = [f"{text} {i}" for text in TEXTS for i in range(100)]  # enough for bf16 to pay
    exact = classify(trained_classifier, texts)
    decide("bf16")
    rounded = classify(trained_classifier, texts)
    assert [p.probability for p in rounded] != [p.probability for p in exact]  # it was bf16
    for a, b in zip(exact, rounded, strict=True):
        assert b.probability == pytest.approx(a.probability, abs=0.02)


# --- int8 -----------------------------------------------------------------------------


@pytest.fixture
def _int8(trained_classifier):
    layer = trained_classifier.transformer.h[0].mlp.c_fc
    if not can_int8(layer, torch.randn(8, 16)):
        pytest.skip("this machine does not multiply in int8")


@pytest.mark.usefixtures("_int8")
def test_labels_are_computed_in_int8_only_if_the_weights_were_found_to_bear_it(
    trained_classifier, many, decide, monkeypatch
):
    decide("fp32", "int8")
    p = probabilities(trained_classifier, many).amax(dim=1)
    many = rows_of(many, (p > 0.55).nonzero().flatten())  # where rounding exchanges no label
    assert len(many) > 100
    texts = [trained_classifier.tokenizer.decode(ids) for ids in many.ids]
    calls = count(monkeypatch)
    exact = classify(trained_classifier, texts)
    assert set(calls["linear"]) == {("fp32", False)}
    assert check_int8(trained_classifier, many) == 0
    calls = count(monkeypatch)
    rounded = classify(trained_classifier, texts)
    assert set(calls["linear"]) == {("int8", False)}
    assert [one.label for one in rounded] == [one.label for one in exact]
    for a, b in zip(exact, rounded, strict=True):
        assert b.probability == pytest.approx(a.probability, abs=0.05)


@pytest.mark.usefixtures("_int8")
def test_weights_whose_labels_int8_changes_do_without_it(
    trained_classifier, many, decide, monkeypatch
):
    decide("bf16", "int8")
    trained_classifier.bears_int8 = True
    found, flipped = logits(trained_classifier, many), []

    def flip(classifier, data, precision=EXACT):
        flipped.append(precision.name)
        return found if precision.name == "fp32" else found * torch.tensor([[1.0, -1.0]])

    monkeypatch.setattr(inference, "logits", flip)
    assert check_int8(trained_classifier, many) > 0
    assert flipped == ["fp32", "int8"]
    assert trained_classifier.bears_int8 is False
    assert precision_of_labels(trained_classifier).name == "bf16"


@pytest.mark.parametrize("ids", [[[1] * 60] * 3, [[1] * 60] * 50], ids=["few", "equal"])
def test_messages_that_are_too_few_to_be_rounded_prove_nothing(
    ids, trained_classifier, many, decide
):
    decide("fp32", "int8")
    many.ids, many.targets = ids, [0] * len(ids)
    assert check_int8(trained_classifier, many) == 0
    assert not trained_classifier.bears_int8


def test_what_was_found_of_the_weights_is_forgotten_in_training(trained_classifier, many):
    trained_classifier.bears_int8 = True
    logits(trained_classifier, many)
    assert trained_classifier.bears_int8
    recipe = Recipe(trained_blocks=0, learning_rate=1e-3, epochs=1)
    fit(trained_classifier, many, many, recipe, progress=False)
    assert not trained_classifier.bears_int8


def test_where_int8_is_no_faster_nothing_is_tried(trained_classifier, many, decide, monkeypatch):
    decide("bf16")
    calls = count(monkeypatch)
    assert check_int8(trained_classifier, many) == 0
    assert calls["embedded"] == [] and not trained_classifier.bears_int8


def test_states_that_are_trained_on_are_never_in_int8(trained_classifier, monkeypatch):
    trained_classifier.bears_int8 = True
    monkeypatch.setenv("SPAMGPT_PRECISION", "int8")
    assert precision_of_states(trained_classifier).name == "bf16"
    assert precision_of_labels(trained_classifier).name == "int8"


@pytest.mark.usefixtures("_int8")
def test_int8_may_be_asked_for(trained_classifier, many, monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", "int8")
    calls = count(monkeypatch)
    classify(trained_classifier, map(trained_classifier.tokenizer.decode, many.ids))
    assert {name for name, _ in calls["linear"]} == {"int8"}


def test_blocks_are_laid_out_once_for_a_whole_stream(trained_classifier, many, monkeypatch):
    calls = count(monkeypatch)
    texts = map(trained_classifier.tokenizer.decode, many.ids)
    list(classify_stream(trained_classifier, texts, chunk=100))
    assert len(calls["linear"]) == 2 * 4  # of two blocks
