"""What a fine-tuned classifier makes of messages that are written differently, over seeds.

    python scripts/attack_table.py                 # five seeds, some minutes
    python scripts/attack_table.py --out docs/attacks.md

Each seed trains the workspace's base model by its recipe on the lecture's split, once on
normalised messages and once on messages as they were written, and is tried on the test messages
after each attack (spamgpt.attacks) with and without normalisation; TF-IDF of characters beside
it. The figures are means over the seeds.
"""

import argparse
import copy
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from spamgpt.attacks import under_attack
from spamgpt.baselines import BASELINES
from spamgpt.batches import Messages
from spamgpt.classifier import build_classifier
from spamgpt.files.workspace import atomic
from spamgpt.inference import classify, probabilities
from spamgpt.models.base import load_base
from spamgpt.statistics import paired_difference
from spamgpt.tasks.sms import TASK
from spamgpt.texts import normalise
from spamgpt.training import fit

HEAD = """# Messages that are written differently

`SPAMGPT_BASE=pocket python scripts/attack_table.py --out docs/attacks.md`. The attacks are in
`src/spamgpt/attacks.py`; notebook 08 shows them for one classifier. *Found* is the share of the
test set's spam that is called spam, *lost* the share of its ham."""


def raw_ids(texts, tokenizer, n_ctx):
    """Token ids of the first `n_ctx` tokens of texts as they were written."""
    return [ids[:n_ctx] or [tokenizer.eot_token] for ids in tokenizer.encode_ordinary_batch(texts)]


def trained(base, splits, seed, raw):
    """A classifier of this seed; `raw` trains on messages as they were written."""
    n_ctx = base.model.config.n_ctx
    classifier = build_classifier(copy.deepcopy(base), TASK.label_names, positive=TASK.positive)
    data = {}
    for part in ("train", "validation"):
        texts = list(splits[part]["text"])
        data[part] = Messages(texts, splits[part]["target"], base.tokenizer, n_ctx)
        if raw:
            data[part].ids = raw_ids(texts, base.tokenizer, n_ctx)
    classifier.prepare(base.recipe)
    fit(classifier, data["train"], data["validation"], base.recipe, seed=seed, progress=False)
    return classifier


def judges(classifier, raw_classifier, baseline):
    """By name, functions from texts to probabilities of the positive label."""
    n_ctx, k = classifier.transformer.config.n_ctx, TASK.positive_class

    def as_written(model):
        def judge(texts):
            return probabilities(model, raw_ids(texts, model.tokenizer, n_ctx))[:, k].numpy()

        return judge

    return {
        "normalised in training and use": lambda texts: np.array(
            [one.probabilities[k] for one in classify(classifier, texts)]
        ),
        "as written in training and use": as_written(raw_classifier),
        "TF-IDF characters": lambda texts: baseline.predict_proba(texts)[:, k],
        "TF-IDF characters, normalised": lambda texts: baseline.predict_proba(
            [normalise(text) for text in texts]
        )[:, k],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="message .* has .* tokens")  # long ones are meant
    splits, base = TASK.make_splits(), load_base()
    texts, targets = list(splits["test"]["text"]), splits["test"]["target"].to_numpy()
    baseline = BASELINES["TF-IDF characters"]().fit(
        splits["train"]["text"], splits["train"]["target"]
    )
    tables, right = [], {}
    for seed in tqdm(range(args.seeds), desc="seeds"):
        models = (trained(base, splits, seed, raw) for raw in (False, True))
        for name, judge in judges(*models, baseline).items():
            table = under_attack(judge, texts, targets == TASK.positive_class)
            tables.append(table.assign(judge=name, seed=seed))
            right.setdefault(name, []).append((judge(texts) > 0.5) == targets)
    whole = pd.concat(tables).rename_axis("attack").reset_index()
    mean = whole.pivot_table(["found", "lost"], "attack", "judge", "mean", sort=False)
    columns = [(share, name) for name in right for share in ("found", "lost")]
    names = [f"{name}: {share}" for share, name in columns]
    rows = [
        f"| {attack} | " + " | ".join(f"{mean.loc[attack, c]:.1%}" for c in columns) + " |"
        for attack in dict.fromkeys(whole["attack"])
    ]
    header = [f"| attack | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    clean = [f"{name}: {np.mean(r):.2%}" for name, r in right.items()]
    ours, raw = (np.array(right[name]) for name in list(right)[:2])
    gain, low, high = paired_difference(ours.mean(axis=0), raw.mean(axis=0))
    text = "\n".join(
        [
            f"{TASK.data_names[TASK.split_source()]}, {base.name}, {args.seeds} seeds, "
            f"{len(texts)} test messages, threshold 0.5\n",
            *header,
            *rows,
            f"\nAccuracy on messages as they are: {'; '.join(clean)}. Normalised against as "
            f"written: {gain * 100:+.2f} points (95 % interval, paired by message, "
            f"{low * 100:+.2f} to {high * 100:+.2f}).",
        ]
    )
    print(text)
    if args.out:
        with atomic(args.out) as temporary:
            temporary.write_text(f"{HEAD}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
