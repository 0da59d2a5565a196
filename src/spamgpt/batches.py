"""Messages -> normalised -> token ids -> padded batches with their true lengths -> data loaders.

Padding is on the right. With causal attention nothing to the right can reach a
token, so the hidden state at a message's last real token is the same in every batch,
and no attention mask is needed. What a batch must carry is where that token is.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from spamgpt import SEED
from spamgpt.texts import normalise


class Batch(NamedTuple):
    """Padded messages: ids (B, T), true lengths (B,), targets (B,), all int64."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


class StateBatch(NamedTuple):
    """Padded hidden states (B, T, C) after `n_blocks` blocks, lengths (B,), targets (B,)."""

    states: Tensor
    lengths: Tensor
    targets: Tensor
    n_blocks: int


def encode(texts: Sequence[str], tokenizer: tiktoken.Encoding, first: int = 0) -> list[list[int]]:
    """Token ids of each text, normalised; an empty text becomes a single <|endoftext|>.

    The one way from a text to tokens, in training and in use. Text that spells a special token
    is read as ordinary characters. Raises TypeError if something is not text; it counts the
    texts from `first`.
    """
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one text: write [text]")
    for i, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(
                f"message {i} is not text but {type(text).__name__} ({text!r:.40}): "
                "pass strings only"
            )
    sequences = tokenizer.encode_ordinary_batch([normalise(text) for text in texts])
    return [ids or [tokenizer.eot_token] for ids in sequences]


class Messages(Dataset):
    """Encoded messages with their targets; item i is (token ids, target).

    Messages longer than `max_tokens` keep their first `max_tokens`; `truncated` counts them.
    """

    def __init__(
        self,
        texts: Sequence[str],
        targets: Sequence[int],
        tokenizer: tiktoken.Encoding,
        max_tokens: int,
    ):
        if len(texts) != len(targets):
            raise ValueError(f"{len(texts):,} texts but {len(targets):,} targets")
        sequences = encode(list(texts), tokenizer)
        self.truncated = sum(len(ids) > max_tokens for ids in sequences)
        self.ids = [ids[:max_tokens] for ids in sequences]
        self.targets = [int(target) for target in targets]
        self.pad_id = tokenizer.eot_token

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[list[int], int]:
        return self.ids[index], self.targets[index]

    def collate(self, items: Sequence[tuple[Sequence[int], int]]) -> Batch:
        """Join items to a batch that is as wide as its longest message."""
        return collate(items, self.pad_id)


class HiddenStates(Dataset):
    """Cached hidden states of messages after the first `n_blocks` blocks, with their targets.

    Item i is (states (T, C) in fp32, target). Where those blocks are frozen, this stands for
    the messages: whatever is trained on it gets what it would get from the token ids.
    """

    def __init__(self, states: Sequence[Tensor], targets: Sequence[int], n_blocks: int):
        self.states, self.targets, self.n_blocks = list(states), list(targets), n_blocks

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.states[index], self.targets[index]

    def collate(self, items: Sequence[tuple[Tensor, int]]) -> StateBatch:
        """Join items to a batch, padded with zeros, that is as wide as its longest message."""
        states, targets = zip(*items, strict=True)
        lengths = torch.tensor([len(state) for state in states])
        x = pad_sequence(states, batch_first=True)
        return StateBatch(x, lengths, torch.tensor(targets), self.n_blocks)


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad on the right to the longest: ids (B, T) and true lengths (B,)."""
    lengths = torch.tensor([len(ids) for ids in sequences])  # (B,)
    ids = torch.full((len(sequences), int(lengths.max())), pad_id)  # (B, T)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return ids, lengths


def collate(items: Sequence[tuple[Sequence[int], int]], pad_id: int) -> Batch:
    """Join dataset items to a batch that is as wide as its longest message."""
    sequences, targets = zip(*items, strict=True)
    ids, lengths = pad(sequences, pad_id)
    return Batch(ids, lengths, torch.tensor(targets))


def distinct(sequences: Sequence[Sequence[int]]) -> tuple[list, list[int]]:
    """(the different sequences, for each sequence which of them it is)."""
    number = {key: i for i, key in enumerate(dict.fromkeys(map(tuple, sequences)))}
    return list(number), [number[tuple(s)] for s in sequences]


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers of batches for which order does not matter: short with short, long with long.

    No batch is larger than `max_tokens` with its pads, unless a single message is.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def data_loader(
    messages: Messages | HiddenStates,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = SEED,
) -> DataLoader:
    """Batches of `messages`; with `shuffle`, in an order that `seed` fixes."""
    return DataLoader(
        messages,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        collate_fn=messages.collate,
        generator=torch.Generator().manual_seed(seed),
    )
