"""Save and load a classifier."""

from pathlib import Path

from spamgpt.classifier import Classifier
from spamgpt.files.workspace import show_path, workspace
from spamgpt.inference import precision_of_labels
from spamgpt.models.architectures import architecture_of, new_model, published_config, smallest
from spamgpt.models.base import load_tokenizer
from spamgpt.models.published import (
    load_config,
    load_weights,
    read_config,
    read_weights,
    write_checkpoint,
)

TRAIN_AGAIN = "train again with notebook 06_finetune"


def classifier_folder() -> Path:
    """Where the workspace keeps the classifier that notebook 06 trains."""
    return workspace() / "classifier"


def save_classifier(classifier: Classifier, folder: Path | None = None, **facts) -> Path:
    """Write model.safetensors and config.json, in the published layout; returns the folder.

    A process killed meanwhile leaves the former classifier or the new one, never a mixture.

    `facts` are kept in config.json under "spamgpt" (what it was trained on, how long…). Raises
    ValueError for a body with layers of another kind, which could not be loaded again.
    """
    folder = folder or classifier_folder()
    _check_plain(classifier)
    names = classifier.label_names
    ours = {
        "base": classifier.base_name,
        "pooling": classifier.pooling,
        "positive": classifier.positive,
        "threshold": classifier.threshold,
        "precision": precision_of_labels(classifier).name,
        "bears_int8": classifier.bears_int8,
    }
    body = classifier.transformer.config
    config = published_config(body) | {
        "architectures": [architecture_of(body).classifier],
        "pad_token_id": classifier.tokenizer.eot_token,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "spamgpt": ours | facts,
    }
    write_checkpoint(classifier.state_dict(), config, folder)
    return folder


def _check_plain(classifier: Classifier) -> None:
    """Raise ValueError unless the body has the weights of its architecture, and no others."""
    expected = smallest(classifier.transformer.config).state_dict()
    if other := [key for key in classifier.transformer.state_dict() if key not in expected]:
        raise ValueError(
            f"{len(other)} weights would not be known when they are loaded ({other[0]} …): call "
            "lora.merge for adapters and nf4.dequantize_layers for weights in 4 bits first, or "
            "save adapters alone with lora.save_adapters"
        )


def load_classifier(folder: Path | None = None) -> tuple[Classifier, dict]:
    """The saved classifier and the facts saved with it.

    Raises FileNotFoundError that says what to run if there is none, ValueError if its
    files do not fit together.
    """
    folder = folder or classifier_folder()
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"there is no trained classifier in {show_path(folder)} ({file} is missing): "
                "run notebook 06_finetune first (`make run` runs them all)"
            )
    label_names, facts = _described(read_config(folder), folder)
    base_name, pooling = facts["base"], facts.pop("pooling")
    bears_int8 = facts.pop("bears_int8", False) is True
    positive, threshold = facts.pop("positive", None), facts.pop("threshold", None)
    body, tokenizer = new_model(load_config(folder)), load_tokenizer(base_name)
    if tokenizer.n_vocab != body.config.n_vocab:
        raise ValueError(
            f"{show_path(folder)}/config.json has n_vocab = {body.config.n_vocab:,}, but the "
            f"tokenizer of {base_name} has {tokenizer.n_vocab:,} tokens: {TRAIN_AGAIN}"
        )
    try:
        classifier = Classifier(
            body, tokenizer, label_names, base_name, pooling, positive, threshold
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{show_path(folder)}/config.json: {error}: {TRAIN_AGAIN}") from None
    tensors = read_weights(folder / "model.safetensors")
    if (head := tensors.get("score.weight")) is not None and len(head) != len(label_names):
        raise ValueError(
            f"{show_path(folder)} has weights for {len(head)} labels, but its config.json names "
            f"{len(label_names)} ({', '.join(label_names)}): {TRAIN_AGAIN}"
        )
    try:
        load_weights(
            classifier,
            {k if k.startswith("score.") else f"transformer.{k}": v for k, v in tensors.items()},
        )
    except ValueError as error:
        raise ValueError(f"{show_path(folder)}: {error}: {TRAIN_AGAIN}") from None
    classifier.bears_int8 = bears_int8
    return classifier.eval(), facts


def _described(config: dict, folder: Path) -> tuple[list[str], dict]:
    """(label names, facts) of a saved classifier's config; ValueError if it is none."""
    try:
        facts = dict(config["spamgpt"])
        facts["base"]
        facts.pop("format", None)
        # Before version 0.2 it was called "read", and before that always "last".
        facts["pooling"] = facts.pop("pooling", facts.pop("read", "last"))
        id2label = sorted(config["id2label"].items(), key=lambda kv: int(kv[0]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{show_path(folder)}/config.json does not describe a classifier of this series "
            f"({error} is missing or wrong): {TRAIN_AGAIN}"
        ) from None
    return [name for _, name in id2label], facts
