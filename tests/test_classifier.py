"""The classifier: its zero head, what is frozen, judging texts, save and load."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from randomize import randomize
from torch.nn import functional as F
from torch.testing import assert_close

from spamgpt.batching import Messages, batches_by_length, encode, pad
from spamgpt.classifier import (
    Classifier,
    build_classifier,
    classifier_folder,
    load_classifier,
    save_classifier,
)
from spamgpt.pretrained import Recipe, load_base
from spamgpt.training import fit
from spamgpt.trunk import merge

TEXTS = [
    "WIN a free prize, call now!",
    "ok",
    "",
    "see you at home after dinner, I am going to be a little late tonight",
    "😀👩‍👩‍👧",
    "مرحبا بالعالم",
]


# --- before training ------------------------------------------------------------------


def test_a_fresh_head_finds_both_labels_equally_likely(make_classifier):
    classifier = make_classifier()
    probabilities = classifier.probabilities(encode(TEXTS, classifier.tokenizer))
    assert torch.equal(probabilities, torch.full((len(TEXTS), 2), 0.5))


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


def test_there_may_be_more_than_two_labels(pocket_tokenizer):
    classifier = build_classifier(load_base("pocket"), ["ham", "spam", "phishing"])
    probabilities = classifier.probabilities([[1, 2], [3]])
    assert torch.equal(probabilities, torch.full((2, 3), 1 / 3))


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
    recipe = Recipe(trained_blocks, learning_rate=1e-2, batch_size=2, epochs=2)
    fit(classifier, data, data, recipe, progress=False)
    changed = {n for n, p in classifier.named_parameters() if not torch.equal(p, before[n])}
    if trained_blocks is None:
        assert changed == before.keys()
    else:
        assert changed == expected_trainable(classifier, trained_blocks)


@pytest.mark.parametrize("trained_blocks", [None, 0, 1, 2, 3])
def test_trunk_and_tail_make_the_whole(trained_blocks, trained_classifier):
    classifier = trained_classifier
    ids, lengths = pad(encode(TEXTS, classifier.tokenizer), 0)
    whole = classifier(ids, lengths)
    classifier.freeze(trained_blocks)
    x = classifier.trunk(ids)
    assert x.requires_grad is (trained_blocks is None or trained_blocks > 3)
    assert_close(classifier.tail(x, lengths), whole)
    last = classifier.transformer.hidden(ids)[torch.arange(len(ids)), lengths - 1]
    assert_close(classifier.score(last), whole)


# --- judging texts --------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_probabilities_come_in_the_order_of_the_messages(
    max_tokens, trained_classifier, monkeypatch
):
    monkeypatch.setattr(
        "spamgpt.classifier.batches_by_length", lambda ids, _: batches_by_length(ids, max_tokens)
    )
    sequences = encode(TEXTS, trained_classifier.tokenizer)
    found = trained_classifier.probabilities(sequences)
    alone = torch.cat([trained_classifier.probabilities([ids]) for ids in sequences])
    assert alone[:, 1].unique().numel() == len(TEXTS)  # so that an exchange would show
    assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert_close(found.sum(dim=1), torch.ones(len(TEXTS)))


def test_judging_is_done_without_dropout_and_leaves_the_mode(make_classifier):
    classifier = make_classifier(dropout=0.5)
    torch.nn.init.normal_(classifier.score.weight)
    expected = classifier.eval().classify(TEXTS)
    classifier.train()
    assert classifier.classify(TEXTS) == expected
    assert classifier.training


def test_classify_names_the_more_probable_label(trained_classifier):
    probabilities = trained_classifier.probabilities(encode(TEXTS, trained_classifier.tokenizer))
    found = trained_classifier.classify(TEXTS)
    assert [p.label for p in found] == [("ham", "spam")[int(row.argmax())] for row in probabilities]
    assert {p.label for p in found} == {"ham", "spam"}
    for prediction, row in zip(found, probabilities, strict=True):
        assert prediction.probability == pytest.approx(row.max().item())
        assert 0.5 <= prediction.probability <= 1


def test_nothing_to_classify_gives_nothing(trained_classifier):
    assert trained_classifier.classify([]) == []


def test_a_stream_is_judged_in_order_and_never_held_as_a_whole(trained_classifier):
    taken = []

    def stream():
        for i in range(50):
            taken.append(i)
            yield TEXTS[i % len(TEXTS)]

    expected = trained_classifier.classify([TEXTS[i % len(TEXTS)] for i in range(50)])
    found = []
    for prediction in trained_classifier.classify_stream(stream(), chunk=8):
        found.append(prediction)
        assert len(taken) - len(found) < 8
    assert [p.label for p in found] == [p.label for p in expected]
    assert [p.probability for p in found] == pytest.approx([p.probability for p in expected])


def test_a_text_further_down_a_stream_is_named_by_its_number(trained_classifier):
    stream = trained_classifier.classify_stream(["ok"] * 5 + [None], chunk=2)
    with pytest.raises(TypeError, match="message 5 is not text"):
        list(stream)
    with pytest.warns(UserWarning, match="message 3 has"):
        list(trained_classifier.classify_stream(["ok"] * 3 + ["word " * 99], chunk=2))


def test_equal_messages_are_computed_once(trained_classifier, monkeypatch):
    seen = []
    monkeypatch.setattr("spamgpt.trunk.merge", lambda ids: (seen.extend(ids), merge(ids))[1])
    sequences = encode(["again", "once", "again", "again"], trained_classifier.tokenizer)
    scores = trained_classifier.scores_of(sequences)
    assert len(seen) == 2
    assert_close(scores[0], scores[2])
    assert not torch.allclose(scores[0], scores[1])
    states = trained_classifier.trunk_states(sequences, bf16=False)
    assert len(seen) == 4
    assert [len(x) for x in states] == [len(ids) for ids in sequences]
    assert_close(states[0], states[3])


def test_a_long_text_is_cut_with_both_numbers_in_a_warning(trained_classifier):
    text = "word " * 10_000
    n_tokens = len(encode([text], trained_classifier.tokenizer)[0])
    with pytest.warns(UserWarning, match=rf"message 1 has {n_tokens:,} tokens.* 64"):
        _, long = trained_classifier.classify(["ok", text])
    (first,) = encode([text], trained_classifier.tokenizer)
    expected = trained_classifier.probabilities([first[:64]])[0].max().item()
    assert long.probability == pytest.approx(expected, abs=1e-5)


def test_a_text_that_just_fits_gives_no_warning(trained_classifier, recwarn):
    ids = encode(["word " * 100], trained_classifier.tokenizer)[0][:64]
    trained_classifier.classify([trained_classifier.tokenizer.decode(ids)])
    assert not recwarn.list


@pytest.mark.parametrize("texts", ["one text", ["ok", None], [b"ok"]], ids=repr)
def test_classify_refuses_what_is_not_a_list_of_texts(texts, trained_classifier):
    with pytest.raises(TypeError):
        trained_classifier.classify(texts)


# --- other tokens than the last --------------------------------------------------------


@pytest.mark.parametrize("trained_blocks", [0, 1, None])
@pytest.mark.parametrize("read", ["first", "mean"])
def test_the_first_or_the_mean_of_the_real_tokens_can_be_read(
    read, trained_blocks, make_classifier
):
    tiny = make_classifier()
    classifier = Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", read)
    randomize(classifier.score, seed=1)
    classifier.freeze(trained_blocks)
    sequences = encode(TEXTS, classifier.tokenizer)
    for ids, found in zip(sequences, classifier.eval().scores_of(sequences), strict=True):
        hidden = classifier.transformer.hidden(torch.tensor([ids]))[0]  # (T, C)
        wanted = hidden[0] if read == "first" else hidden.mean(dim=0)
        torch.testing.assert_close(found, classifier.score(wanted), atol=1e-5, rtol=1e-4)


def test_reading_an_unknown_token_is_refused(make_classifier):
    tiny = make_classifier()
    with pytest.raises(ValueError, match="'middle': choose one of last, first, mean"):
        Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", "middle")


def test_what_a_classifier_reads_is_saved_with_it(make_classifier):
    tiny = make_classifier()
    save_classifier(Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", "mean"))
    assert load_classifier()[0].read == "mean"


# --- save and load --------------------------------------------------------------------


def test_a_saved_classifier_comes_back_the_same(trained_classifier):
    save_classifier(trained_classifier, data="sample", epochs=3)
    loaded, facts = load_classifier()
    ids, lengths = pad(encode(TEXTS, loaded.tokenizer), 0)
    assert torch.equal(loaded(ids, lengths), trained_classifier(ids, lengths))
    assert facts == {"base": "pocket", "data": "sample", "epochs": 3}
    assert loaded.label_names == ["ham", "spam"]
    assert not loaded.training
    assert loaded.classify(TEXTS) == trained_classifier.classify(TEXTS)


@settings(max_examples=10)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.sampled_from([1, 2, 4]),
    n_ctx=st.integers(8, 40),
    n_labels=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_any_classifier_gives_the_same_scores_after_saving(
    tmp_path_factory, make_classifier, n_layer, n_head, n_ctx, n_labels, seed
):
    body = make_classifier(seed, n_layer=n_layer, n_head=n_head, n_ctx=n_ctx).transformer
    names = [f"label {i}" for i in range(n_labels)]
    classifier = Classifier(body, make_classifier().tokenizer, names, "pocket").eval()
    randomize(classifier.score, seed)
    folder = save_classifier(classifier, tmp_path_factory.mktemp("saved"))
    loaded, _ = load_classifier(folder)
    sequences = [ids[:n_ctx] for ids in encode(TEXTS, classifier.tokenizer)]
    assert torch.equal(loaded.scores_of(sequences), classifier.scores_of(sequences))
    assert loaded.label_names == names


def test_more_than_ten_labels_keep_their_order(pocket_tokenizer, make_classifier, tmp_path):
    """JSON keys are text: "10" sorts before "2"."""
    body = make_classifier().transformer
    names = [f"label {i}" for i in range(12)]
    classifier = type(make_classifier())(body, pocket_tokenizer, names, "pocket")
    loaded, _ = load_classifier(save_classifier(classifier, tmp_path / "many"))
    assert loaded.label_names == names


def test_saving_twice_keeps_the_second(make_classifier, trained_classifier):
    save_classifier(make_classifier(), run=1)
    save_classifier(trained_classifier, run=2)
    loaded, facts = load_classifier()
    assert facts["run"] == 2
    assert torch.equal(loaded.score.weight, trained_classifier.score.weight)


def test_a_missing_classifier_names_the_notebook_that_makes_it():
    with pytest.raises(FileNotFoundError, match="05_finetune"):
        load_classifier()


def test_transformers_reads_the_saved_classifier(trained_classifier):
    folder = save_classifier(trained_classifier)
    theirs, info = transformers.GPT2ForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"score.bias"}  # theirs has no such thing
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    sequences = encode([t for t in TEXTS if t], trained_classifier.tokenizer)
    ids, lengths = pad(sequences, theirs.config.pad_token_id)
    with torch.no_grad():
        expected = theirs.eval()(ids).logits + trained_classifier.score.bias
        assert_close(trained_classifier(ids, lengths), expected, atol=1e-4, rtol=1e-4)


def test_the_classifier_lies_in_the_workspace(trained_classifier, workspace_folder):
    assert save_classifier(trained_classifier) == classifier_folder()
    assert classifier_folder().is_relative_to(workspace_folder)


# --- the frozen part, computed once ---------------------------------------------------


@pytest.mark.parametrize("trained_blocks", [0, 1, 2])
def test_scores_from_kept_trunk_states_equal_the_full_model(trained_blocks, trained_classifier):
    sequences = encode(TEXTS, trained_classifier.tokenizer)
    trained_classifier.freeze(trained_blocks)
    states = trained_classifier.trunk_states(sequences, bf16=False)
    n_embd = trained_classifier.transformer.config.n_embd
    assert [tuple(x.shape) for x in states] == [(len(ids), n_embd) for ids in sequences]
    kept, full = trained_classifier.scores_of(states), trained_classifier.scores_of(sequences)
    torch.testing.assert_close(kept, full, atol=1e-4, rtol=1e-4)


def test_the_frozen_part_has_no_dropout_in_training(make_classifier):
    classifier = make_classifier(dropout=0.5)
    classifier.freeze(1)
    classifier.train()
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(classifier.trunk(ids), classifier.trunk(ids))
    block = classifier.transformer.h[-1]
    assert not torch.equal(block(torch.ones(1, 4, 16)), block(torch.ones(1, 4, 16)))


def test_bf16_in_the_trunk_changes_states_by_its_rounding_only(trained_classifier):
    sequences = encode(TEXTS, trained_classifier.tokenizer)
    trained_classifier.freeze(1)
    exact, rounded = (trained_classifier.trunk_states(sequences, bf16) for bf16 in (False, True))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert_close(a, b, atol=0.05 * a.abs().max().item(), rtol=0)


def test_classify_in_bf16_differs_by_rounding_only(trained_classifier, monkeypatch):
    texts = [f"{text} {i}" for text in TEXTS for i in range(100)]  # enough for bf16 to pay
    exact = trained_classifier.classify(texts)
    monkeypatch.setattr("spamgpt.trunk.bf16_pays", lambda device: True)
    rounded = trained_classifier.classify(texts)
    assert [p.probability for p in rounded] != [p.probability for p in exact]  # it was bf16
    for a, b in zip(exact, rounded, strict=True):
        assert b.probability == pytest.approx(a.probability, abs=0.02)
