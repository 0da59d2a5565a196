"""A task of one's own, with three labels, from a CSV file to labels of new texts."""

import random

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch

from spamgpt import plots
from spamgpt.batches import Messages
from spamgpt.classifier import build_classifier
from spamgpt.evaluation import predict, report
from spamgpt.inference import classify
from spamgpt.models.base import Base
from spamgpt.recipes import Recipe
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.tasks.task import Task
from spamgpt.training import fit

WORDS = {
    "negative": ["awful", "broken", "refund", "worst", "hate"],
    "neutral": ["arrived", "parcel", "tuesday", "box", "blue"],
    "positive": ["great", "love", "best", "perfect", "happy"],
}
RECIPE = Recipe(trained_blocks=None, learning_rate=3e-3, batch_size=8, epochs=8)


def test_a_csv_file_of_three_labels_becomes_a_classifier(
    tmp_path, workspace_folder, make_classifier, pocket_tokenizer
):
    draw, path = random.Random(0), tmp_path / "reviews.csv"
    rows = [
        (" ".join(draw.choices(WORDS[mood], k=draw.randint(3, 9))), mood)
        for mood in WORDS
        for _ in range(40)
    ]
    draw.shuffle(rows)
    pd.DataFrame(rows, columns=["review", "mood"]).to_csv(path, index=False)

    task = Task.from_csv(path, text="review", label="mood")
    assert task.label_names == tuple(sorted(WORDS))
    splits = task.make_splits()
    for name, part in task.load_splits().items():
        pd.testing.assert_frame_equal(part, splits[name])
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 84,
        "validation": 12,
        "test": 24,
    }

    model = make_classifier().transformer
    base = Base("pocket", model, pocket_tokenizer, RECIPE)
    classifier = build_classifier(base, task.label_names).prepare(RECIPE)
    sets = {
        name: Messages(part["text"], part["target"], pocket_tokenizer, model.config.n_ctx)
        for name, part in splits.items()
    }
    history = fit(classifier, sets["train"], sets["validation"], RECIPE, progress=False)
    assert history["train_loss"].iloc[0] > history["train_loss"].iloc[-1]

    targets, p = predict(classifier, sets["test"])
    found = report(targets, p.argmax(axis=1), task.label_names)
    assert found.accuracy > 0.9 and found.macro_f1 > 0.9
    assert found.classes.index.tolist() == list(task.label_names)
    for ax in (
        plots.class_counts(splits["train"], task.label_names, "t"),
        plots.lengths(splits["train"], task.label_names, "t"),
        plots.split_sizes(splits, task.label_names, "t"),
        plots.confusion(found.confusion, task.label_names, "t"),
    ):
        ax.figure.canvas.draw()
    plt.close("all")

    folder = save_classifier(classifier, task.folder / "classifier", task=task.name)
    assert folder.is_relative_to(workspace_folder)
    loaded, facts = load_classifier(folder)
    assert facts["task"] == "reviews" and loaded.label_names == list(task.label_names)
    called = [one.label for one in classify(loaded, splits["test"]["text"])]
    assert called == [task.label_names[k] for k in p.argmax(axis=1)]
    assert torch.equal(loaded.score.weight, classifier.score.weight)
