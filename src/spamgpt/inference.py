"""Use a classifier: cached hidden states, logits, probabilities, labels of texts.

Messages of like length share a batch and equal ones are computed once; but for rounding, no
result depends on it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spamgpt.batches import HiddenStates, Messages, batches_by_length, distinct, encode, pad
from spamgpt.classifier import Classifier
from spamgpt.fast.blocks import frozen_block
from spamgpt.fast.precision import EXACT, FEW_TOKENS, Precision, decide
from spamgpt.hardware import tokens_per_batch


class Prediction(NamedTuple):
    """A label and how probable the classifier finds it (0 to 1)."""

    label: str
    probability: float


def decided(classifier: Classifier) -> Precision:
    """The precision that this machine uses for a classifier of this width."""
    return decide(classifier.device, classifier.transformer.config.n_embd)


def _states(
    classifier: Classifier, sequences: Sequence[Sequence[int]], n_blocks: int, precision: Precision
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(row numbers, states after `n_blocks` blocks (B, T, C), lengths (B,)) batch by batch."""
    transformer, device = classifier.transformer, classifier.device
    lengths = [len(ids) for ids in sequences]
    if sum(lengths) < FEW_TOKENS:
        precision = EXACT
    blocks = [frozen_block(block, *precision) for block in transformer.blocks[:n_blocks]]
    for rows in batches_by_length(lengths, tokens_per_batch(device)):
        ids, true = (part.to(device) for part in pad([sequences[row] for row in rows], 0))
        x = transformer.embed(ids)
        for block in blocks:
            x = block(x)
        yield rows, x, true


def hidden_states(
    classifier: Classifier,
    messages: Messages,
    n_blocks: int | None = None,
    precision: Precision | None = None,
    progress: bool = False,
) -> HiddenStates:
    """What the first `n_blocks` blocks (default: the frozen ones) make of messages.

    Equal messages share one tensor. `precision` None: as this machine decides.
    """
    n_blocks = classifier.frozen_blocks if n_blocks is None else n_blocks
    different, which = distinct(messages.ids)
    states: list[Tensor] = [torch.empty(0)] * len(different)
    bar = tqdm(total=len(different), desc="frozen blocks", unit="message", disable=not progress)
    with bar, classifier.evaluating():
        precision = precision or decided(classifier)
        for rows, x, lengths in _states(classifier, different, n_blocks, precision):
            for row, state, length in zip(rows, x, lengths, strict=True):
                states[row] = state[:length].clone()  # not a view: it would keep the pads
            bar.update(len(rows))
    return HiddenStates([states[i] for i in which], messages.targets, n_blocks)


def logits(
    classifier: Classifier,
    data: Messages | HiddenStates | Sequence[Sequence[int]],
    precision: Precision = EXACT,
) -> Tensor:
    """Logits of messages, in their order, on the CPU: (N, n_labels).

    `data` may be a data set, or the token ids of each message.
    """
    with classifier.evaluating():
        if isinstance(data, HiddenStates):
            return _logits_from_states(classifier, data)
        different, which = distinct(data.ids if isinstance(data, Messages) else data)
        result = torch.empty(len(different), len(classifier.label_names))
        n_blocks = len(classifier.transformer.blocks) - 1  # the last one at one token only
        for rows, x, lengths in _states(classifier, different, n_blocks, precision):
            result[rows] = classifier.from_states(x, lengths, n_blocks).cpu()
    return result[which]


def _logits_from_states(classifier: Classifier, data: HiddenStates) -> Tensor:
    result, device = torch.empty(len(data), len(classifier.label_names)), classifier.device
    lengths = [len(state) for state in data.states]
    for rows in batches_by_length(lengths, tokens_per_batch(device)):
        batch = data.collate([data[row] for row in rows])
        states, true = batch.states.to(device), batch.lengths.to(device)
        result[rows] = classifier.from_states(states, true, data.n_blocks).cpu()
    return result


def probabilities(
    classifier: Classifier, data: Messages | HiddenStates | Sequence[Sequence[int]]
) -> Tensor:
    """Label probabilities of messages, in their order: (N, n_labels)."""
    return logits(classifier, data).softmax(dim=-1)


def classify(
    classifier: Classifier, texts: Iterable[str], progress: bool = False
) -> list[Prediction]:
    """The most probable label of each text.

    Reads at most the first n_ctx tokens of a text and warns if there are more. Computes
    many texts in the precision that is fastest here; its rounding moves probabilities
    slightly. Raises TypeError for what is not text.
    """
    return list(classify_stream(classifier, texts, progress))


def classify_stream(
    classifier: Classifier, texts: Iterable[str], progress: bool = False, chunk: int = 1024
) -> Iterator[Prediction]:
    """The same for a stream of any length, of which no more than `chunk` texts are held.

    Those are sorted by length and judged together, so the first result comes after them.
    """
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one text: write [text]")
    total = len(texts) if isinstance(texts, Sized) else None
    texts, done, n_ctx = iter(texts), 0, classifier.transformer.config.n_ctx
    precision = decided(classifier)
    with tqdm(total=total, desc="classify", unit="message", disable=not progress) as bar:
        while held := list(islice(texts, chunk)):
            sequences = encode(held, classifier.tokenizer, first=done)
            for i, ids in enumerate(sequences, start=done):
                if len(ids) > n_ctx:
                    warnings.warn(
                        f"message {i} has {len(ids):,} tokens; read its first {n_ctx:,}",
                        stacklevel=3,
                    )
            found = logits(classifier, [ids[:n_ctx] for ids in sequences], precision)
            for row in found.softmax(dim=-1):
                yield Prediction(classifier.label_names[int(row.argmax())], float(row.max()))
            done += len(held)
            bar.update(len(held))
