"""What a training makes smaller: the loss of a batch, and how it is measured on a data set."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from spamgpt.batches import Batch, HiddenStates, Messages, StateBatch, data_loader, distinct
from spamgpt.classifier import Classifier
from spamgpt.inference import hidden_states, logits, precision_of_states

PART = 4  # messages that go through the model together


class Objective(Protocol):
    """What `training.fit` needs to know of what it makes smaller."""

    def prepare(self, model: torch.nn.Module, data: Dataset, progress: bool) -> Dataset:
        """The data set as training wants it, once before it begins (cached states, say)."""

    def fingerprint(self, model: torch.nn.Module) -> dict[str, str]:
        """What else the result depends on: a word for each thing, and its value."""

    def loss(self, model: torch.nn.Module, batch: tuple) -> tuple[Tensor, float]:
        """(mean loss of a batch in nats, to be differentiated; share that is right, 0 to 1)."""

    def measure(self, model: torch.nn.Module, data: Dataset) -> tuple[float, float]:
        """(mean loss in nats, share that is right) of a whole data set."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of a message's true label.

    What the frozen blocks make of a message never changes in training. So it is computed once
    and cached, unless that takes more than `max_cache_bytes` for a data set.
    """

    max_cache_bytes: int = 2 * 2**30

    def prepare(self, model: Classifier, data: Dataset, progress: bool = False) -> Dataset:
        """Cached hidden states in place of messages, if some blocks are frozen and they fit."""
        if not isinstance(data, Messages) or not model.frozen_blocks:
            return data
        n_tokens = sum(map(len, distinct(data.ids)[0]))
        n_bytes = n_tokens * model.transformer.config.n_embd * 4  # fp32
        if n_bytes > self.max_cache_bytes:
            print(
                f"The hidden states of the frozen blocks would take {math.ceil(n_bytes / 1e6):,} "
                f"MB, more than the {self.max_cache_bytes // 10**6:,} MB allowed: they are "
                "computed again at each step, more slowly."
            )
            return data
        return hidden_states(model, data, progress=progress)

    def fingerprint(self, model: Classifier) -> dict[str, str]:
        """Labels, pooling, and the precision of the frozen blocks."""
        return {
            "labels": ", ".join(map(str, model.label_names)),
            "pooling": model.pooling,
            "precision": precision_of_states(model).name if model.frozen_blocks else "fp32",
        }

    def loss(self, model: Classifier, batch: Batch | StateBatch) -> tuple[Tensor, float]:
        """See `Objective`. Loss and gradients are those of the whole batch, whatever its order."""
        order = batch.lengths.argsort()
        x, lengths, targets = (part.to(model.device)[order] for part in batch[:3])
        if isinstance(batch, StateBatch):
            found = model.from_states(x, lengths, batch.n_blocks)  # (B, n_labels)
        else:  # short messages beside each other, long ones too: fewer pads are computed
            parts = zip(x.split(PART), lengths.split(PART), strict=True)
            found = torch.cat([model(part[:, : n.max()], n) for part, n in parts])
        right = (found.argmax(dim=-1) == targets).float().mean().item()
        return F.cross_entropy(found, targets), right

    def measure(self, model: Classifier, data: Dataset) -> tuple[float, float]:
        """See `Objective`."""
        return loss_and_accuracy(model, data)


def loss_and_accuracy(classifier: Classifier, data: Dataset) -> tuple[float, float]:
    """Mean cross-entropy in nats per message, and the share of correct labels (0 to 1)."""
    if isinstance(data, (Messages, HiddenStates)):
        found, targets = logits(classifier, data), torch.tensor(data.targets)
    else:  # a data set that makes its batches in its own way
        found, targets = logits_by_batch(classifier, data)
    right = (found.argmax(dim=-1) == targets).float().mean().item()
    return F.cross_entropy(found, targets).item(), right


def logits_by_batch(model: Classifier, data: Dataset) -> tuple[Tensor, Tensor]:
    """(logits (N, n_labels), targets (N,)) in batches of 8 as the data set makes them."""
    found, targets = [], []
    with model.evaluating():
        for batch in data_loader(data, 8):
            x, lengths = batch[0].to(model.device), batch.lengths.to(model.device)
            n_blocks = [batch.n_blocks] if isinstance(batch, StateBatch) else []
            forward = model.from_states if n_blocks else model
            found.append(forward(x, lengths, *n_blocks).cpu())
            targets.append(batch.targets)
    return torch.cat(found), torch.cat(targets)
