"""How good a classifier is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from spamgpt.batches import HiddenStates, Messages, encode
from spamgpt.classifier import Classifier
from spamgpt.files.workspace import read_json, workspace, write_json
from spamgpt.inference import probabilities
from spamgpt.statistics import wilson_interval


@dataclass(frozen=True)
class Report:
    """Metrics of one set.

    `classes` has a row for each label: precision, recall, f1 (0 to 1) and n, its messages.
    `confusion[i][j]` counts messages of class i that were called class j. `positive` is the
    label that is looked for, if there is one.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    classes: pd.DataFrame
    confusion: np.ndarray
    positive: str | None = None

    @property
    def macro_f1(self) -> float:
        """The mean F1 of all labels, the rare ones counting as much as the frequent ones."""
        return float(self.classes["f1"].mean())

    def _of_positive(self, metric: str) -> float:
        if self.positive is None:
            raise ValueError(
                f"{metric} of what? This report has no positive label: see `classes`, or name "
                f"one of {', '.join(self.classes.index)}"
            )
        return float(self.classes.loc[self.positive, metric])

    @property
    def precision(self) -> float:
        """Of what was called positive, the share that is."""
        return self._of_positive("precision")

    @property
    def recall(self) -> float:
        """Of what is positive, the share that was found."""
        return self._of_positive("recall")

    @property
    def f1(self) -> float:
        """The harmonic mean of the two."""
        return self._of_positive("f1")


def predict(classifier: Classifier, data: Messages | HiddenStates) -> tuple[np.ndarray, np.ndarray]:
    """(true classes (N,), probabilities (N, n_labels)) of a data set."""
    return np.array(data.targets), probabilities(classifier, data).numpy()


def report(
    targets: Sequence[int],
    predicted: Sequence[int],
    label_names: Sequence[str],
    positive: str | None = None,
) -> Report:
    """Metrics of predicted against true classes (numbers of labels), by scikit-learn.

    Raises ValueError for a `positive` that is none of the labels.
    """
    if positive is not None and positive not in label_names:
        raise ValueError(f"positive = {positive!r} is none of {', '.join(label_names)}")
    numbers = list(range(len(label_names)))
    precision, recall, f1, n = precision_recall_fscore_support(
        targets, predicted, labels=numbers, zero_division=0
    )
    accuracy = accuracy_score(targets, predicted)
    return Report(
        n=len(targets),
        accuracy=float(accuracy),
        interval=wilson_interval(round(accuracy * len(targets)), len(targets)),
        classes=pd.DataFrame(
            {"precision": precision, "recall": recall, "f1": f1, "n": n}, index=list(label_names)
        ),
        confusion=confusion_matrix(targets, predicted, labels=numbers),
        positive=positive,
    )


def token_effects(classifier: Classifier, text: str, label: str) -> tuple[list[str], np.ndarray]:
    """The tokens of a text, and how far the probability of `label` falls without each: (T,).

    Reads at most the first n_ctx tokens.
    """
    (ids,) = encode([text], classifier.tokenizer)
    ids = ids[: classifier.transformer.config.n_ctx]
    without = [ids[:i] + ids[i + 1 :] or [classifier.tokenizer.eot_token] for i in range(len(ids))]
    which = classifier.label_names.index(label)
    p = probabilities(classifier, [ids, *without])[:, which].numpy()
    tokens = [classifier.tokenizer.decode([token]) for token in ids]
    return tokens, p[0] - p[1:]


def save_results(reports: dict[str, Report], facts: dict) -> None:
    """Keep the accuracies of each set, with the facts of the training, for `run` to print."""
    splits = {
        name: {"n": r.n, "accuracy": r.accuracy, "interval": r.interval}
        for name, r in reports.items()
    }
    write_json(workspace() / "results.json", {**facts, "splits": splits})


def load_results() -> dict | None:
    """What `save_results` wrote, or None."""
    path = workspace() / "results.json"
    return read_json(path) if path.exists() else None
