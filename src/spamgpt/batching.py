"""Messages -> token ids -> padded batches with their true lengths -> data loaders.

Padding stands on the right. With causal attention nothing to the right can reach a
token, so the hidden state at a message's last real token is the same in every batch,
and no attention mask is needed. What a batch must carry is where that token stands.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from spamgpt import SEED


class Batch(NamedTuple):
    """Padded messages: ids (B, T), true lengths (B,), targets (B,), all int64."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


def encode(texts: Sequence[str], tokenizer: tiktoken.Encoding, first: int = 0) -> list[list[int]]:
    """Token ids of each text; an empty text becomes a single <|endoftext|>.

    Text that spells a special token is read as ordinary characters. Raises TypeError if
    something is not text; it counts the texts from `first`.
    """
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one text: write [text]")
    for i, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(
                f"message {i} is not text but {type(text).__name__} ({text!r:.40}): "
                "pass strings only"
            )
    sequences = tokenizer.encode_ordinary_batch(list(texts))
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


def are_states(sequences: Sequence) -> bool:
    """Whether these are hidden states (T, C) of messages rather than their token ids."""
    return len(sequences) > 0 and isinstance(sequences[0], Tensor)


def pad(
    sequences: Sequence[Sequence[int]] | Sequence[Tensor], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Pad on the right to the longest: ids (B, T) and true lengths (B,).

    Hidden states (T, C) in place of ids are padded with zeros to (B, T, C).
    """
    lengths = torch.tensor([len(ids) for ids in sequences])  # (B,)
    if are_states(sequences):
        return pad_sequence(sequences, batch_first=True), lengths
    ids = torch.full((len(sequences), int(lengths.max())), pad_id)  # (B, T)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return ids, lengths


def collate(items: Sequence[tuple[Sequence[int], int]], pad_id: int) -> Batch:
    """Join dataset items to a batch that is as wide as its longest message."""
    sequences, targets = zip(*items, strict=True)
    ids, lengths = pad(sequences, pad_id)
    return Batch(ids, lengths, torch.tensor(targets))


def distinct(sequences: Sequence) -> tuple[list, list[int]]:
    """(the different sequences, for each sequence which of them it is).

    Token ids are compared by value, tensors by identity.
    """
    keys = [s if isinstance(s, Tensor) else tuple(s) for s in sequences]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return list(number), [number[key] for key in keys]


def batches_by_length(
    sequences: Sequence[Sequence[int]] | Sequence[Tensor], max_tokens: int
) -> Iterator[list[int]]:
    """Row numbers of batches for which order does not matter: short with short, long with long.

    Token ids of about the same length stand in alphabetical order, as it were, so that messages
    with the same beginning meet. No batch is larger than `max_tokens` with its pads, unless a
    single message is.
    """

    def key(row: int) -> tuple:
        sequence = sequences[row]
        if isinstance(sequence, Tensor):
            return (len(sequence),)
        return math.ceil(len(sequence) / 8), tuple(sequence)  # 1 to 8 tokens, 9 to 16, ...

    batch: list[int] = []
    width = 0
    for row in sorted(range(len(sequences)), key=key):
        width = max(width, len(sequences[row]))
        if batch and (len(batch) + 1) * width > max_tokens:
            yield batch
            batch, width = [], len(sequences[row])
        batch.append(row)
    if batch:
        yield batch


def data_loader(
    messages: Messages,
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
