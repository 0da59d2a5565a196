"""Interrupted trainings: what is kept, what continues, and what is never taken up."""

import math
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from spamgpt import inference, objectives, resume, training
from spamgpt.batches import Messages
from spamgpt.recipes import Recipe
from spamgpt.resume import FILE
from spamgpt.saving import save_classifier
from spamgpt.training import fit

ALL = Recipe(
    trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=4, lr_decay=True, dropout=0.2
)
RECIPES = {
    "cached states": replace(ALL, trained_blocks=1),
    "all trained": ALL,
    "embeddings": replace(ALL, trained_blocks=1, embedding_lr=1e-2),
    "head only": replace(ALL, trained_blocks=0, lr_decay=False, dropout=0.0),
}
N_STEPS = 5  # of an epoch


@pytest.fixture
def folder(workspace_folder):
    return workspace_folder / "training"


def messages(tokenizer):
    """43 training messages (five batches of eight and a rest) and 11 others."""
    texts = [f"{'free prize' if i % 2 else 'see you at home'} {'ok ' * (i % 7)}" for i in range(54)]
    targets = [i % 2 for i in range(54)]
    return tuple(
        Messages(texts[part], targets[part], tokenizer, 64) for part in (slice(43), slice(43, None))
    )


@pytest.fixture
def data(pocket_tokenizer):
    return messages(pocket_tokenizer)


@pytest.fixture
def train(make_classifier, data):
    """train(recipe, **options) is the history and the weights of a training from the start."""

    def train(recipe, seed=123, **options):
        classifier = make_classifier(options.pop("start", 0)).prepare(recipe)
        options.pop("change", lambda _: None)(classifier)
        history = fit(classifier, *data, recipe, seed=seed, progress=False, **options)
        return history, classifier.state_dict()

    return train


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(step, error) raises `error` in that step of the next training only."""

    def interrupt(step, error=KeyboardInterrupt):
        steps = training._steps

        def broken(loader, done, *rest):
            monkeypatch.setattr(training, "_steps", steps)
            for number, batch in enumerate(steps(loader, done, *rest), done * len(loader) + 1):
                if number == step:
                    raise error
                yield batch

        monkeypatch.setattr(training, "_steps", broken)

    return interrupt


def assert_same(found, expected, atol=0.0):
    """The same rows and weights to the last bit, or rows to `atol` (AdamW spreads the weights)."""
    (history, weights), (expected_history, expected_weights) = found, expected
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), expected_history.drop(columns="seconds"), atol=atol, rtol=0
    )
    for key, value in expected_weights.items():
        torch.testing.assert_close(weights[key], value, atol=1000 * atol, rtol=0)


# --- continuing -----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    recipe, train, interrupt, folder, capsys
):
    whole = train(recipe)
    interrupt(2 * N_STEPS + 3)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 epochs are kept in .*run this again"):
        train(recipe, resume=folder)
    torch.manual_seed(99)  # what happens in between has no say
    capsys.readouterr()
    resumed = train(recipe, resume=folder)
    assert "Continuing after epoch 2 of 4" in capsys.readouterr().out
    assert_same(resumed, whole)
    assert resumed[0]["seconds"].is_monotonic_increasing
    assert not folder.exists()


def test_it_may_be_stopped_again_and_again(train, interrupt, folder):
    for step in (N_STEPS + 1, N_STEPS + 2, 3 * N_STEPS, 4 * N_STEPS):
        interrupt(step)
        with pytest.raises(KeyboardInterrupt):
            train(ALL, resume=folder)
    assert_same(train(ALL, resume=folder), train(ALL))


def test_stopped_in_the_first_epoch_it_starts_again_and_says_so(train, interrupt, folder, capsys):
    interrupt(N_STEPS)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        train(ALL, resume=folder)
    assert_same(train(ALL, resume=folder), train(ALL))
    assert capsys.readouterr().out == ""


def test_stopped_before_it_continues_it_still_knows_what_is_kept(
    train, interrupt, folder, monkeypatch
):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    recipe = RECIPES["cached states"]
    interrupt(N_STEPS + 1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, resume=folder)
    with monkeypatch.context() as patch:
        patch.setattr(objectives, "hidden_states", stopped)
        with pytest.raises(KeyboardInterrupt, match="1 of 4 epochs are kept"):
            train(recipe, resume=folder)
    assert_same(train(recipe, resume=folder), train(recipe))


def test_any_other_error_leaves_the_checkpoint(train, interrupt, folder):
    interrupt(N_STEPS + 1, MemoryError("no room"))
    with pytest.raises(MemoryError):
        train(ALL, resume=folder)
    assert (folder / FILE).exists()


def test_without_a_folder_nothing_is_written(train, interrupt, workspace_folder):
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(ALL)
    assert not workspace_folder.exists()


CHILD = """
import sys, time
from pathlib import Path

sys.path.insert(0, {tests!r})
from test_resume import ALL, messages
from spamgpt import training
from spamgpt.saving import load_classifier

classifier = load_classifier(Path({start!r}))[0].prepare(ALL)
steps = training._steps


def counted(*args):
    for batch in steps(*args):
        print("step", flush=True)
        time.sleep(0.05)  # or it would be done before it is killed
        yield batch


training._steps = counted
training.fit(
    classifier, *messages(classifier.tokenizer), ALL, progress=False, resume=Path({folder!r})
)
print("finished", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    train, make_classifier, folder, tmp_path
):
    """kill -9, while the process is running: between two steps, or while it writes."""
    start = save_classifier(make_classifier(), tmp_path / "start")
    script = CHILD.format(tests=str(Path(__file__).parent), start=str(start), folder=str(folder))
    draw, finished = random.Random(5), False
    for n_steps in (N_STEPS + 2, draw.randint(1, 12), draw.randint(1, 12)):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        ) as child:
            while n_steps and (line := child.stdout.readline()):
                n_steps -= line == "step\n"
                finished = finished or line == "finished\n"
            time.sleep(draw.random() * 0.06)
            child.kill()
    assert not finished and (folder / FILE).exists()
    # Another process may sum in another order, where its memory is aligned differently.
    assert_same(train(ALL, resume=folder), train(ALL), atol=1e-6)
    assert not folder.exists()


# --- what is not taken up -------------------------------------------------------------


def dropout(classifier):
    classifier.transformer.h[2].drop.p = 0.3


def leave_a_bias_out(classifier):
    classifier.score.bias.requires_grad_(False)


def pool_the_mean(classifier):
    classifier.pooling = "mean"


def rename_a_label(classifier):
    classifier.label_names[0] = "good"


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 7}, "seed"),
        ({"recipe": replace(ALL, learning_rate=1e-3)}, "recipe"),
        ({"start": 1}, "starting weights"),
        ({"change": dropout}, "dropout"),
        ({"change": leave_a_bias_out}, "trained weights"),
        ({"change": pool_the_mean}, "pooling"),
        ({"change": rename_a_label}, "labels"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_checkpoint_of_another_training_is_left_aside(
    change, named, train, interrupt, folder, capsys
):
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(ALL, resume=folder)
    options = {"recipe": ALL} | change
    found = train(**options, resume=folder)
    printed = capsys.readouterr().out
    assert f"is of another training ({named}): this one starts from the beginning" in printed
    assert_same(found, train(**options))


@pytest.mark.parametrize("decided_by", ["setting", "measurement"])
def test_another_precision_of_the_frozen_blocks_is_another_training(
    decided_by, train, interrupt, folder, capsys, monkeypatch
):
    """Cached states are rounded differently then."""
    recipe = RECIPES["cached states"]
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, resume=folder)
    if decided_by == "setting":
        monkeypatch.setenv("SPAMGPT_PRECISION", "bf16")
    else:
        decide = inference.decide
        monkeypatch.setattr(
            inference, "decide", lambda *args: decide(*args)._replace(states="bf16")
        )
    found = train(recipe, resume=folder)
    assert "is of another training (precision): " in capsys.readouterr().out
    assert_same(found, train(recipe))


def test_where_nothing_is_frozen_the_precision_does_not_matter(
    train, interrupt, folder, capsys, monkeypatch
):
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(ALL, resume=folder)
    monkeypatch.setenv("SPAMGPT_PRECISION", "bf16")
    found = train(ALL, resume=folder)
    assert "Continuing after epoch 2 of 4" in capsys.readouterr().out
    assert_same(found, train(ALL))


def test_the_checkpoint_of_another_version_is_left_aside(
    train, interrupt, folder, capsys, monkeypatch
):
    interrupt(3 * N_STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "FORMAT", resume.FORMAT - 1)
        with pytest.raises(KeyboardInterrupt):
            train(ALL, resume=folder)
    found = train(ALL, resume=folder)
    assert "was kept by another version of spamgpt" in capsys.readouterr().out
    assert_same(found, train(ALL))


def test_other_messages_are_another_training(train, data, interrupt, folder, capsys):
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(ALL, resume=folder)
    data[0].targets[0] = 1 - data[0].targets[0]
    train(ALL, resume=folder)
    assert "another training (messages)" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 7, 1000, -1])
def test_a_damaged_checkpoint_is_not_read(cut, train, interrupt, folder, capsys):
    interrupt(3 * N_STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(ALL, resume=folder)
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:cut])
    found = train(ALL, resume=folder)
    assert "cannot be read: training starts from the beginning" in capsys.readouterr().out
    assert_same(found, train(ALL))


# --- what cannot continue -------------------------------------------------------------


def break_a_weight_in(step, monkeypatch):
    """The optimizer writes a NaN into a weight in that step."""
    real, count = torch.optim.AdamW.step, iter(range(1, 1000))

    def broken(optimizer, *args, **kwargs):
        real(optimizer, *args, **kwargs)
        if next(count) == step:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][-1].fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)


@pytest.mark.parametrize(
    "step, message",
    [
        (2 * N_STEPS + 3, rf"validation loss is nan at step {2 * N_STEPS + 3}"),
        (2 * N_STEPS + 1, rf"the loss is nan at step {2 * N_STEPS + 2}"),
        (2 * N_STEPS, rf"validation loss is nan at step {2 * N_STEPS}"),
        (4 * N_STEPS, rf"validation loss is nan at step {4 * N_STEPS}"),
        (1, r"the loss is nan at step 2"),
    ],
)
def test_after_a_loss_that_is_not_a_number_nothing_continues(
    step, message, train, folder, monkeypatch
):
    break_a_weight_in(step, monkeypatch)
    with pytest.raises(FloatingPointError, match=message):
        train(ALL, resume=folder)
    assert not folder.exists()


def test_a_checkpoint_that_cannot_be_written_does_not_stop_training(train, folder, capsys):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    found = train(ALL, resume=folder)
    printed = capsys.readouterr().out
    assert "Epoch 1 could not be kept" in printed and "training continues" in printed
    assert printed.count("could not") == 1
    assert_same(found, train(ALL))
