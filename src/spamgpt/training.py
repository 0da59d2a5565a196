"""One training loop."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from spamgpt import SEED
from spamgpt.batching import Batch, Messages, are_states, data_loader, distinct
from spamgpt.checkpoints import Checkpoint, identity
from spamgpt.classifier import Classifier
from spamgpt.evaluation import loss_and_accuracy
from spamgpt.pretrained import Recipe

RECORDS_PER_EPOCH = 2
PART = 4  # messages that go through the model together


def fit(
    classifier: Classifier,
    train: Messages,
    validation: Messages,
    recipe: Recipe,
    seed: int = SEED,
    progress: bool = True,
    max_cache_bytes: int = 2 * 2**30,
    bf16: bool | None = None,
    resume: Path | None = None,
) -> pd.DataFrame:
    """Fine-tune `classifier` in place by `recipe`; returns its history.

    One row for each half of an epoch: epoch (a fraction), examples (messages seen),
    train_loss and train_accuracy (means since the row before, in training mode),
    validation_loss and validation_accuracy (the whole set), seconds since the start.
    Losses are cross-entropies in nats, accuracies shares from 0 to 1.

    The seed fixes the order of the messages and the dropout. Where the embeddings are frozen,
    what the frozen part makes of a message never changes, so it is computed once and kept,
    unless that takes more than `max_cache_bytes`; the result is the same. Who has what
    `trunk_states` made of the messages may give it in place of their ids. That part runs in
    bf16 where the hardware is faster with it (`bf16` decides otherwise), the trained part
    always in fp32.

    With a folder to `resume` in, each finished epoch is kept there until the last one. After
    an interruption the same call, on a classifier that starts from the same weights, goes on
    with the next epoch; history and weights are what they would have been.

    Raises FloatingPointError as soon as a loss is not a number, ValueError if there are
    fewer messages than one batch needs.
    """
    checkpoint = nullcontext()
    if resume is not None:
        run = identity(classifier, train, validation, recipe, seed=seed, bf16=bf16)
        checkpoint = Checkpoint(resume, run, recipe.epochs)
    with checkpoint as kept:
        return _fit(
            classifier, train, validation, recipe, seed, progress, max_cache_bytes, bf16, kept
        )


def _fit(
    classifier: Classifier,
    train: Messages,
    validation: Messages,
    recipe: Recipe,
    seed: int,
    progress: bool,
    max_cache_bytes: int,
    bf16: bool | None,
    checkpoint: Checkpoint | None,
) -> pd.DataFrame:
    """`fit`, with a checkpoint that is already open."""
    began = time.perf_counter()
    device = classifier.score.weight.device
    classifier.freeze(recipe.trained_blocks, embeddings=bool(recipe.embedding_rate))
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = recipe.dropout
    if len(train) < recipe.batch_size:
        raise ValueError(f"{len(train)} messages do not fill one batch of {recipe.batch_size}")
    optimizer = torch.optim.AdamW(
        _parameter_groups(classifier, recipe), weight_decay=recipe.weight_decay, fused=True
    )
    ready = are_states(train.ids)
    if classifier.frozen_blocks and not classifier.trains_embeddings and not ready:
        train, validation = _run_frozen_part(
            classifier, (train, validation), max_cache_bytes, bf16, progress
        )
    loader = data_loader(train, recipe.batch_size, shuffle=True, drop_last=True, seed=seed)
    record_every = math.ceil(len(loader) / RECORDS_PER_EPOCH)
    n_steps = len(loader) * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / n_steps if recipe.decay else 1.0
    )
    torch.manual_seed(seed)  # dropout draws from the global generator
    done, rows = checkpoint.load(classifier, optimizer, schedule) if checkpoint else (0, [])
    if rows:
        began -= rows[-1]["seconds"]
    losses, hits = [], []
    classifier.train()
    steps = _steps(loader, done, recipe.epochs, progress)
    for step, batch in enumerate(steps, start=done * len(loader) + 1):
        ids, lengths, targets = (part.to(device) for part in batch)
        order = lengths.argsort()
        scores = _scores(classifier, ids[order], lengths[order])  # (B, n_labels)
        targets = targets[order]
        loss = F.cross_entropy(scores, targets)
        _check("loss", loss.item(), step, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        hits.append((scores.argmax(dim=-1) == targets).float().mean().item())
        step_of_epoch = (step - 1) % len(loader) + 1
        if step_of_epoch % record_every == 0 or step_of_epoch == len(loader):
            validation_loss, validation_accuracy = loss_and_accuracy(classifier, validation)
            _check("validation loss", validation_loss, step, recipe)
            rows.append(
                {
                    "epoch": step / len(loader),
                    "examples": step * recipe.batch_size,
                    "train_loss": sum(losses) / len(losses),
                    "train_accuracy": sum(hits) / len(hits),
                    "validation_loss": validation_loss,
                    "validation_accuracy": validation_accuracy,
                    "seconds": time.perf_counter() - began,
                }
            )
            losses, hits = [], []
            epoch = step // len(loader)
            if checkpoint and step_of_epoch == len(loader) and epoch < recipe.epochs:
                checkpoint.save(epoch, rows, classifier, optimizer, schedule)
    classifier.eval()
    return pd.DataFrame(rows)


def _check(name: str, loss: float, step: int, recipe: Recipe) -> None:
    """Raise FloatingPointError unless the loss is a number."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the {name} is {loss} at step {step}: training cannot recover; lower the learning "
            f"rate ({recipe.learning_rate:g}) and start again from a fresh classifier"
        )


def _parameter_groups(classifier: Classifier, recipe: Recipe) -> list[dict]:
    """What is trained, each part with its learning rate."""
    embeddings = classifier.embeddings() if classifier.trains_embeddings else []
    apart = set(embeddings)
    others = [p for p in classifier.parameters() if p.requires_grad and p not in apart]
    groups = [{"params": others, "lr": recipe.learning_rate}]
    if embeddings:
        groups.append({"params": embeddings, "lr": recipe.embedding_rate or recipe.learning_rate})
    return groups


def _scores(classifier: Classifier, x: Tensor, lengths: Tensor) -> Tensor:
    """What `classifier(x, lengths)` gives, for less work, if x is sorted by length.

    The short messages of a batch go through the model beside each other, the long ones too,
    so that fewer pads are computed. Loss and gradients are those of the whole batch.
    """
    if x.is_floating_point():  # kept states: one block of 124M at 8 messages is slower in parts
        return classifier(x, lengths)
    parts = zip(x.split(PART), lengths.split(PART), strict=True)
    return torch.cat([classifier(part[:, : n.max()], n) for part, n in parts])


def _run_frozen_part(
    classifier: Classifier,
    parts: Sequence[Messages],
    max_bytes: int,
    bf16: bool | None,
    progress: bool,
) -> list[Messages]:
    """The data sets with the trunk's states in place of token ids, if there is room for them."""
    n_tokens = sum(len(ids) for part in parts for ids in distinct(part.ids)[0])
    n_bytes = n_tokens * classifier.transformer.config.n_embd * 4  # fp32
    if n_bytes > max_bytes:
        print(
            f"The frozen part's results would take {n_bytes / 1e6:,.0f} MB, more than the "
            f"{max_bytes / 1e6:,.0f} MB allowed: they are computed anew at each step, more slowly."
        )
        return list(parts)
    cached = [copy.copy(part) for part in parts]
    for part in cached:
        part.ids = classifier.trunk_states(part.ids, bf16, progress)
    return cached


def _steps(loader: DataLoader, done: int, epochs: int, progress: bool) -> Iterator[Batch]:
    """The batches of all epochs after the first `done`, with a progress bar for each epoch."""
    for _ in range(done):
        for _ in loader:  # draws the order of the epoch, so that the next one gets its own
            pass
    for epoch in range(done + 1, epochs + 1):
        # Not tqdm(loader): its asyncio flavour asks the loader for a second iterator, and
        # that would move the seeded order of the messages on.
        title = f"epoch {epoch}/{epochs}"
        with tqdm(total=len(loader), desc=title, unit="batch", disable=not progress) as bar:
            for batch in loader:
                yield batch
                bar.update()
