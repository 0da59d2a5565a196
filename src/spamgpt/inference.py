"""Use a classifier: cached hidden states, logits, probabilities, labels of texts.

Messages of like length share a batch and equal ones are computed once; but for rounding, no
result depends on it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spamgpt import settings
from spamgpt.batches import HiddenStates, Messages, batches_by_length, distinct, encode, pad
from spamgpt.classifier import Classifier
from spamgpt.fast.blocks import frozen_block, is_known
from spamgpt.fast.precision import EXACT, FEW_TOKENS, Decision, Precision, decide
from spamgpt.hardware import tokens_per_batch


class Prediction(NamedTuple):
    """A label, how probable the classifier finds it, and each label (0 to 1; in their order)."""

    label: str
    probability: float
    probabilities: tuple[float, ...]


def decision_for(classifier: Classifier) -> Decision:
    """What is fastest here for this classifier; blocks without a fast path compute in fp32."""
    if not any(is_known(block) for block in classifier.transformer.blocks):
        return Decision("fp32", "fp32", packed=False)
    return decide(classifier.device, classifier.transformer.config.n_embd)


def precision_of_states(classifier: Classifier) -> Precision:
    """The precision, here, of hidden states that are trained on."""
    decided = decision_for(classifier)
    return Precision(decided.states, decided.packed)


def precision_of_labels(classifier: Classifier) -> Precision:
    """The precision, here, of many labels.

    int8 only for weights that were found to bear it (`check_int8`), or where
    SPAMGPT_PRECISION asks for it.
    """
    decided = decision_for(classifier)
    if decided.inference == "int8" and not (classifier.bears_int8 or settings.precision()):
        return Precision(decided.states, decided.packed)
    return Precision(decided.inference, decided.packed)


class Frozen:
    """The first `n_blocks` blocks of a classifier as they are now, for many messages.

    They are cast and laid out at the first use that is large enough to be worth it, so use one
    of these only as long as the weights stay the same.
    """

    def __init__(self, classifier: Classifier, n_blocks: int, precision: Precision):
        self.transformer, self.device = classifier.transformer, classifier.device
        self.n_blocks, self.precision = n_blocks, precision
        self._made: dict[Precision, list] = {}

    def _blocks(self, precision: Precision) -> list:
        if precision not in self._made:
            blocks = self.transformer.blocks[: self.n_blocks]
            self._made[precision] = [frozen_block(block, *precision) for block in blocks]
        return self._made[precision]

    def states(
        self, sequences: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(row numbers, states after the blocks (B, T, C), lengths (B,)), batch by batch."""
        lengths = [len(ids) for ids in sequences]
        precision = EXACT if sum(lengths) < FEW_TOKENS else self.precision
        blocks, most = self._blocks(precision), tokens_per_batch(self.device)
        if precision.name == "int8":  # it makes more tables on the way, which fill the cache sooner
            most //= 2
        for rows in batches_by_length(lengths, most):
            ids, true = (part.to(self.device) for part in pad([sequences[r] for r in rows], 0))
            x = self.transformer.embed(ids)
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
        frozen = Frozen(classifier, n_blocks, precision or precision_of_states(classifier))
        for rows, x, lengths in frozen.states(different):
            for row, state, length in zip(rows, x, lengths, strict=True):
                states[row] = state[:length].clone()  # not a view: it would keep the pads
            bar.update(len(rows))
    return HiddenStates([states[i] for i in which], messages.targets, n_blocks)


def logits(
    classifier: Classifier,
    data: Messages | HiddenStates | Sequence[Sequence[int]],
    precision: Precision = EXACT,
    frozen: Frozen | None = None,
) -> Tensor:
    """Logits of messages, in their order, on the CPU: (N, n_labels).

    `data` may be a data set, or the token ids of each message. Who calls this again and again,
    and trains nothing in between, hands in `frozen` (`all_but_last`), whose weights are cast
    and laid out once.
    """
    with classifier.evaluating():
        if isinstance(data, HiddenStates):
            return _logits_from_states(classifier, data)
        ids = data.ids if isinstance(data, Messages) else data
        return _logits_from_ids(classifier, ids, frozen or all_but_last(classifier, precision))


def all_but_last(classifier: Classifier, precision: Precision) -> Frozen:
    """All blocks but the last one, which is computed at one token only."""
    return Frozen(classifier, len(classifier.transformer.blocks) - 1, precision)


def _logits_from_ids(
    classifier: Classifier, sequences: Sequence[Sequence[int]], frozen: Frozen
) -> Tensor:
    different, which = distinct(sequences)
    result = torch.empty(len(different), len(classifier.label_names))
    for rows, x, lengths in frozen.states(different):
        result[rows] = classifier.from_states(x, lengths, frozen.n_blocks).cpu()
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


def check_int8(classifier: Classifier, data: Messages) -> int:
    """How many labels of `data` int8 changes; if none, the classifier uses int8 from now on.

    Where this machine does not multiply faster in int8, or `data` is too little to be rounded,
    nothing is tried: 0, and nothing changes.
    """
    decided = decision_for(classifier)
    few = sum(map(len, distinct(data.ids)[0])) < FEW_TOKENS
    if decided.inference != "int8" or few:
        return 0
    exact, rounded = (
        logits(classifier, data, precision).argmax(dim=-1)
        for precision in (EXACT, Precision("int8", decided.packed))
    )
    changed = int((exact != rounded).sum())
    classifier.bears_int8 = changed == 0
    return changed


def classify(
    classifier: Classifier, texts: Iterable[str], progress: bool = False
) -> list[Prediction]:
    """The label of each text: the most probable one, or as the classifier's threshold says.

    A text longer than the model's context is read in parts that overlap (`windows`). Computes
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
    texts = iter(texts)
    chunks = iter(lambda: list(islice(texts, chunk)), [])
    with tqdm(total=total, desc="classify", unit="message", disable=not progress) as bar:
        for predictions in classify_chunks(classifier, chunks):
            yield from predictions
            bar.update(len(predictions))


def classify_chunks(
    classifier: Classifier, chunks: Iterable[Sequence[str]]
) -> Iterator[list[Prediction]]:
    """The same for texts that come in portions: the predictions of each portion, at once."""
    done, n_ctx = 0, classifier.transformer.config.n_ctx
    frozen = all_but_last(classifier, precision_of_labels(classifier))
    for texts in chunks:
        sequences = encode(texts, classifier.tokenizer, first=done)
        parts = [windows(ids, n_ctx) for ids in sequences]
        for i, part in enumerate(parts):
            if len(part) > 1:
                warnings.warn(
                    f"message {done + i} has {len(sequences[i]):,} tokens, the model reads "
                    f"{n_ctx:,}: judged by {len(part):,} parts that overlap",
                    stacklevel=4,
                )
        with classifier.evaluating():
            found = _logits_from_ids(classifier, list(chain(*parts)), frozen).softmax(dim=1)
        each = found.split([len(part) for part in parts]) if parts else []
        yield [_prediction(classifier, _joined(classifier, p)) for p in each]
        done += len(texts)


def windows(ids: Sequence[int], n_ctx: int) -> list[Sequence[int]]:
    """Parts of at most `n_ctx` tokens that cover all of a message, each next one half new."""
    starts = range(0, len(ids) - n_ctx, max(1, n_ctx // 2))
    return [*(ids[i : i + n_ctx] for i in starts), ids[-n_ctx:]]


def _joined(classifier: Classifier, p: Tensor) -> Tensor:
    """Label probabilities of a message from those of its parts: (n_parts, n_labels) -> (n_labels,)

    Those of the part that speaks most for the positive label, which is looked for and may hide
    anywhere; the mean of all parts where there is no such label.
    """
    if classifier.positive is None:
        return p.mean(dim=0)
    return p[p[:, classifier.label_names.index(classifier.positive)].argmax()]


def _prediction(classifier: Classifier, p: Tensor) -> Prediction:
    """What to call a message with these label probabilities (n_labels,)."""
    names, best = classifier.label_names, int(p.argmax())
    if classifier.threshold is not None:
        positive = names.index(classifier.positive)
        if p[positive] > classifier.threshold:
            best = positive
        elif best == positive:
            best = max((i for i in range(len(names)) if i != positive), key=p.__getitem__)
    return Prediction(names[best], float(p[best]), tuple(p.tolist()))
