"""How good a classifier is, and how sure one can be of that."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, norm
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from spamgpt.batching import Messages, encode
from spamgpt.classifier import Classifier
from spamgpt.workspace import read_json, workspace, write_json


def loss_and_accuracy(classifier: Classifier, messages: Messages) -> tuple[float, float]:
    """Mean cross-entropy in nats per message, and the share of correct labels (0 to 1)."""
    scores = classifier.scores_of(messages.ids)  # (N, n_labels)
    targets = torch.tensor(messages.targets)
    loss = F.cross_entropy(scores, targets)
    return loss.item(), (scores.argmax(dim=-1) == targets).float().mean().item()


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true accuracy lies, given `correct` of `total` (Wilson 1927, by scipy)."""
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(right: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """How much more accurate one is than the other on the same messages: (mean, low, high).

    Both are (N,), how far each message was judged rightly (0 to 1). The 95 % interval is the
    normal one of the mean difference: what is hard for both does not blur it.
    """
    gains = np.asarray(right, dtype=float) - np.asarray(other, dtype=float)
    half = norm.ppf(0.975) * gains.std(ddof=1) / np.sqrt(len(gains))
    return gains.mean(), gains.mean() - half, gains.mean() + half


@dataclass(frozen=True)
class Report:
    """Metrics of one set; spam is the class that is looked for.

    `confusion[i][j]` counts messages of class i that were called class j.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    confusion: np.ndarray


def predict(classifier: Classifier, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
    """(true classes (N,), probability of spam (N,)) of a data set."""
    probabilities = classifier.probabilities(messages.ids)
    return np.array(messages.targets), probabilities[:, 1].numpy()


def token_effects(classifier: Classifier, text: str) -> tuple[list[str], np.ndarray]:
    """The tokens of a text, and how far the probability of spam falls without each: (T,).

    Reads at most the first n_ctx tokens.
    """
    (ids,) = encode([text], classifier.tokenizer)
    ids = ids[: classifier.transformer.config.n_ctx]
    without = [ids[:i] + ids[i + 1 :] or [classifier.tokenizer.eot_token] for i in range(len(ids))]
    p_spam = classifier.probabilities([ids, *without])[:, 1].numpy()
    tokens = [classifier.tokenizer.decode([token]) for token in ids]
    return tokens, p_spam[0] - p_spam[1:]


def report(targets: np.ndarray, predicted: np.ndarray) -> Report:
    """Metrics of predicted against true classes (0 and 1), computed by scikit-learn."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets, predicted, average="binary", pos_label=1, zero_division=0
    )
    accuracy = accuracy_score(targets, predicted)
    return Report(
        n=len(targets),
        accuracy=float(accuracy),
        interval=wilson_interval(round(accuracy * len(targets)), len(targets)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        confusion=confusion_matrix(targets, predicted, labels=[0, 1]),
    )


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
