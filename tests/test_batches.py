"""Messages -> token ids -> padded batches."""

from itertools import pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from randomize import randomize
from torch.testing import assert_close

from spamgpt.batches import (
    HiddenStates,
    Messages,
    batches_by_length,
    collate,
    data_loader,
    distinct,
    encode,
    pad,
)
from spamgpt.texts import normalise


@pytest.fixture(scope="module")
def classifier(make_classifier):
    classifier = make_classifier()
    randomize(classifier.score, seed=1)
    return classifier


# --- the promise of the module --------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=30), min_size=1, max_size=6))
def test_logits_do_not_depend_on_what_a_message_is_batched_with(classifier, sequences):
    ids, lengths = pad(sequences, classifier.tokenizer.eot_token)
    with torch.no_grad():
        together = classifier(ids, lengths)
        alone = [classifier(torch.tensor([s]), torch.tensor([len(s)]))[0] for s in sequences]
    assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_logits_do_not_depend_on_what_the_padding_is(classifier):
    sequences = [[1, 2, 3], [4, 5, 6, 7, 8]]
    with torch.no_grad():
        zeros, others = (classifier(*pad(sequences, pad_id)) for pad_id in (0, 77))
    assert_close(zeros, others, atol=1e-5, rtol=1e-5)


# --- pad and collate ------------------------------------------------------------------


def test_pad_fills_on_the_right_and_counts_real_tokens():
    ids, lengths = pad([[5, 6, 7], [8], [9, 9]], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 9, 0]]
    assert lengths.tolist() == [3, 1, 2]


def test_a_real_token_that_equals_the_pad_still_counts():
    _, lengths = pad([[0], [1, 0, 0]], pad_id=0)
    assert lengths.tolist() == [1, 3]


def test_collate_gives_ids_lengths_and_targets():
    batch = collate([([5, 6], 1), ([7], 0)], pad_id=9)
    assert batch.ids.tolist() == [[5, 6], [7, 9]]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.targets.tolist() == [1, 0]
    assert {part.dtype for part in batch} == {torch.int64}


# --- encode ---------------------------------------------------------------------------


def test_an_empty_text_becomes_one_end_token(pocket_tokenizer):
    assert encode(["", "a"], pocket_tokenizer)[0] == [pocket_tokenizer.eot_token]


def test_text_that_spells_the_end_token_is_ordinary_text(pocket_tokenizer):
    (ids,) = encode(["buy <|endoftext|> now"], pocket_tokenizer)
    assert pocket_tokenizer.eot_token not in ids
    assert pocket_tokenizer.decode(ids) == "buy <|endoftext|> now"


@settings(max_examples=200)
@given(st.text(st.characters(), max_size=60))
def test_decoding_gives_the_normalised_text_back(pocket_tokenizer, text):
    (ids,) = encode([text], pocket_tokenizer)
    text = normalise(text)
    if not text:
        assert ids == [pocket_tokenizer.eot_token]
        return
    assert pocket_tokenizer.eot_token not in ids
    # Half of a surrogate pair is no character and has no bytes: it becomes U+FFFD.
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert pocket_tokenizer.decode(ids) == expected


@pytest.mark.parametrize("text", ["😀👩🏽🇮🇪", "مرحبا بالعالم", "你好,世界", "नमस्ते", "\x00\x01"])
def test_any_script_is_encoded_without_loss(text, pocket_tokenizer):
    (ids,) = encode([f"{text}, {text}"], pocket_tokenizer)
    assert pocket_tokenizer.decode(ids) == f"{text}, {text}"


def test_a_bare_text_instead_of_a_list_is_refused(pocket_tokenizer):
    with pytest.raises(TypeError, match=r"\[text\]"):
        encode("free prize", pocket_tokenizer)


@pytest.mark.parametrize("wrong", [None, 3, float("nan"), b"bytes", ["nested"]], ids=repr)
def test_what_is_not_text_is_refused_by_its_index(wrong, pocket_tokenizer):
    with pytest.raises(TypeError, match=f"message 2 .*{type(wrong).__name__}"):
        encode(["a", "b", wrong, "c"], pocket_tokenizer)


# --- Messages -------------------------------------------------------------------------


def test_messages_keep_their_first_tokens_and_count_the_cut_ones(pocket_tokenizer):
    texts = ["one two three four five six", "one", "seven eight nine ten eleven twelve"]
    full = encode(texts, pocket_tokenizer)
    messages = Messages(texts, [0, 1, 0], pocket_tokenizer, max_tokens=4)
    assert messages.truncated == 2
    assert messages.ids == [ids[:4] for ids in full]
    assert messages[1] == (full[1], 1)


def test_a_message_of_exactly_max_tokens_is_not_cut(pocket_tokenizer):
    (ids,) = encode(["see you at home tonight"], pocket_tokenizer)
    messages = Messages(["see you at home tonight"], [0], pocket_tokenizer, len(ids))
    assert messages.truncated == 0
    assert messages.ids == [ids]


def test_messages_take_the_columns_of_a_table(pocket_tokenizer):
    """Even if its index does not start at 0."""
    table = pd.DataFrame({"text": ["a", "b"], "target": [1, 0]}, index=[7, 3])
    messages = Messages(table["text"], table["target"], pocket_tokenizer, 10)
    assert [target for _, target in messages] == [1, 0]


def test_texts_and_targets_must_be_equally_many(pocket_tokenizer):
    with pytest.raises(ValueError, match="2 texts but 1 targets"):
        Messages(["a", "b"], [0], pocket_tokenizer, 10)


# --- data loaders ---------------------------------------------------------------------


def numbered(n, tokenizer):
    """n messages whose target is their number."""
    return Messages([f"message {i}" for i in range(n)], range(n), tokenizer, 20)


def order(loader):
    return [target for batch in loader for target in batch.targets.tolist()]


@pytest.mark.parametrize(
    "n, drop_last, batches", [(1045, True, 130), (149, False, 19), (300, False, 38)]
)
def test_batches_of_the_lecture(n, drop_last, batches, pocket_tokenizer):
    messages = numbered(n, pocket_tokenizer)
    assert len(list(data_loader(messages, 8, drop_last=drop_last))) == batches


def test_a_shuffled_epoch_holds_every_message_once(pocket_tokenizer):
    loader = data_loader(numbered(30, pocket_tokenizer), 8, shuffle=True)
    found = order(loader)
    assert sorted(found) == list(range(30))
    assert found != list(range(30))


def test_without_shuffle_the_order_is_kept(pocket_tokenizer):
    assert order(data_loader(numbered(30, pocket_tokenizer), 8)) == list(range(30))


def test_drop_last_gives_full_batches_only(pocket_tokenizer):
    loader = data_loader(numbered(30, pocket_tokenizer), 8, shuffle=True, drop_last=True)
    assert [len(batch.ids) for batch in loader] == [8, 8, 8]


def test_the_seed_alone_fixes_the_order(pocket_tokenizer):
    messages = numbered(30, pocket_tokenizer)
    first = order(data_loader(messages, 8, shuffle=True, seed=1))
    torch.manual_seed(99)  # the global generator has no say
    assert order(data_loader(messages, 8, shuffle=True, seed=1)) == first
    assert order(data_loader(messages, 8, shuffle=True, seed=2)) != first


def test_each_epoch_has_another_order(pocket_tokenizer):
    loader = data_loader(numbered(30, pocket_tokenizer), 8, shuffle=True)
    assert order(loader) != order(loader)


def test_ids_and_lengths_stay_with_their_message(pocket_tokenizer):
    messages = numbered(30, pocket_tokenizer)
    for batch in data_loader(messages, 8, shuffle=True):
        for ids, length, target in zip(*batch, strict=True):
            assert ids[:length].tolist() == messages.ids[target]
            assert (ids[length:] == pocket_tokenizer.eot_token).all()


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("ab ", max_size=12), min_size=1, max_size=40),
    batch_size=st.integers(1, 12),
)
def test_batching_keeps_order_and_content(pocket_tokenizer, texts, batch_size):
    messages = Messages(texts, range(len(texts)), pocket_tokenizer, 6)
    found = []
    for ids, lengths, targets in data_loader(messages, batch_size):
        assert ids.shape[1] == max(lengths) and len(ids) <= batch_size
        found += [
            (row[:n].tolist(), int(target))
            for row, n, target in zip(ids, lengths, targets, strict=True)
        ]
    assert found == [messages[i] for i in range(len(texts))]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), max_tokens=st.integers(1, 300)
)
def test_batches_by_length_hold_every_message_once_and_keep_their_bound(lengths, max_tokens):
    batches = list(batches_by_length(lengths, max_tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    widths = [lengths[row] for batch in batches for row in batch]
    assert widths == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens
    for batch, following in pairwise(batches):  # each is filled: its bound leaves no room
        assert (len(batch) + 1) * lengths[following[0]] > max_tokens


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=30))
def test_distinct_sequences_give_back_all_of_them(sequences):
    different, which = distinct(sequences)
    assert len(set(different)) == len(different) == len({tuple(s) for s in sequences})
    assert [list(different[i]) for i in which] == sequences


# --- cached hidden states -------------------------------------------------------------


def test_a_batch_of_hidden_states_is_padded_with_zeros_to_its_longest():
    long, short = torch.ones(3, 4), torch.full((1, 4), 2.0)
    data = HiddenStates([long, short, long], [1, 0, 1], n_blocks=5)
    assert len(data) == 3
    batch, rest = data_loader(data, 2)
    assert rest.states.shape == (1, 3, 4)
    assert batch.states.tolist() == [long.tolist(), [[2.0] * 4, [0.0] * 4, [0.0] * 4]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.targets.tolist() == [1, 0]
    assert batch.n_blocks == 5
