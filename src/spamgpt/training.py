"""One training loop."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from spamgpt import SEED
from spamgpt.batches import Batch, data_loader
from spamgpt.objectives import Classification, Objective
from spamgpt.recipes import Recipe
from spamgpt.resume import Checkpoint, fingerprint

RECORDS_PER_EPOCH = 2


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    recipe: Recipe,
    objective: Objective | None = None,
    seed: int = SEED,
    progress: bool = True,
    resume: Path | None = None,
) -> pd.DataFrame:
    """Train what is trainable of `model`, in place, by the numbers of `recipe`.

    What is trainable, and the dropout, are the caller's to say: `classifier.prepare(recipe)`
    does it as the recipe has it. The `objective` (default: `Classification`) says what is made
    smaller; it may replace the data sets by cached hidden states first.

    Returns the history, one row for each half of an epoch: epoch (a fraction), examples
    (seen so far), train_loss and train_accuracy (means since the row before, in training mode),
    validation_loss and validation_accuracy (the whole set), seconds since the start. Losses
    are in nats, accuracies shares from 0 to 1.

    The seed fixes the order of the examples and the dropout. With a folder to `resume` in, each
    finished epoch is kept there until the last one. After an interruption the same call, on a
    model that starts from the same weights, continues with the next epoch; history and weights
    are what they would have been.

    Raises FloatingPointError as soon as a loss is not a number, ValueError if there are
    fewer examples than one batch needs, or if nothing is trainable.
    """
    began, objective = time.perf_counter(), objective or Classification()
    if len(train) < recipe.batch_size:
        raise ValueError(f"{len(train)} messages do not fill one batch of {recipe.batch_size}")
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe), weight_decay=recipe.weight_decay, fused=True
    )
    checkpoint = nullcontext()
    if resume is not None:
        run = fingerprint(model, train, validation, recipe, seed=seed)
        checkpoint = Checkpoint(resume, run | objective.fingerprint(model), recipe.epochs)
    with checkpoint as kept:
        train, validation = (objective.prepare(model, d, progress) for d in (train, validation))
        loader = data_loader(train, recipe.batch_size, shuffle=True, drop_last=True, seed=seed)
        n_steps = len(loader) * recipe.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 1 - step / n_steps if recipe.lr_decay else 1.0
        )
        torch.manual_seed(seed)  # dropout draws from the global generator
        done, rows = kept.load(model, optimizer, schedule) if kept else (0, [])
        if rows:
            began -= rows[-1]["seconds"]
        model.train()
        losses, shares = [], []
        steps = _steps(loader, done, recipe.epochs, progress)
        for step, batch in enumerate(steps, start=done * len(loader) + 1):
            loss, right = objective.loss(model, batch)
            _check("loss", loss.item(), step, recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            shares.append(right)
            if _is_record(step, len(loader)):
                validation_loss, validation_accuracy = objective.measure(model, validation)
                _check("validation loss", validation_loss, step, recipe)
                rows.append(
                    {
                        "epoch": step / len(loader),
                        "examples": step * recipe.batch_size,
                        "train_loss": sum(losses) / len(losses),
                        "train_accuracy": sum(shares) / len(shares),
                        "validation_loss": validation_loss,
                        "validation_accuracy": validation_accuracy,
                        "seconds": time.perf_counter() - began,
                    }
                )
                losses, shares = [], []
                epoch, rest = divmod(step, len(loader))
                if kept and not rest and epoch < recipe.epochs:
                    kept.save(epoch, rows, model, optimizer, schedule)
    model.eval()
    return pd.DataFrame(rows)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """What is trainable, each part with its learning rate; ValueError if nothing is."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "nothing of the model is trainable: call `classifier.prepare(recipe)` first, or set "
            "requires_grad where you want to train"
        )
    body = getattr(model, "transformer", model)
    apart = {id(p) for p in body.embeddings()} if recipe.embedding_lr else set()
    groups = [
        {"params": [p for p in trainable if id(p) not in apart], "lr": recipe.learning_rate},
        {"params": [p for p in trainable if id(p) in apart], "lr": recipe.embedding_lr},
    ]
    return [group for group in groups if group["params"]]


def _is_record(step: int, steps_per_epoch: int) -> bool:
    """Whether validation is measured after this step (they count from 1)."""
    of_epoch = (step - 1) % steps_per_epoch + 1
    every = math.ceil(steps_per_epoch / RECORDS_PER_EPOCH)
    return of_epoch % every == 0 or of_epoch == steps_per_epoch


def _check(name: str, loss: float, step: int, recipe: Recipe) -> None:
    """Raise FloatingPointError unless the loss is a number."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the {name} is {loss} at step {step}: training cannot recover; lower the learning "
            f"rate ({recipe.learning_rate:g}) and start again from a fresh classifier"
        )


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
