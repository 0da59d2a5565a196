"""What Pocket GPT reaches, and what its pretraining is worth.

    python scripts/pocket_worth.py                      # five seeds, all training messages
    python scripts/pocket_worth.py --fractions 1 0.25 0.1 0.05 --out FILE.csv

Fine-tunes Pocket GPT on the lecture's split by its own recipe, from the pretrained weights
and from random ones, with all that the recipe trains ("recipe") and with the body frozen
("head only"), on all training messages and on parts of them; beside it, always-ham and
TF-IDF with logistic regression on the same messages. Prints the mean and the range over the
seeds. With --out, finished runs are kept in the file and not done again.

The number of steps does not shrink with the training messages: a tenth of them is seen ten
times as often, up to --max-epochs. A seed draws the part, starts the random weights and
orders the batches.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from spamgpt import sms
from spamgpt.batching import Messages
from spamgpt.classifier import build_classifier
from spamgpt.evaluation import loss_and_accuracy
from spamgpt.gpt2 import GPT2
from spamgpt.pretrained import Base, load_base
from spamgpt.training import fit
from spamgpt.workspace import SAMPLE, atomic

BASELINES = {
    "always ham": lambda: DummyClassifier(strategy="constant", constant=0),
    "TF-IDF words": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=30, max_iter=1000),
    ),
    "TF-IDF characters": lambda: make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        LogisticRegression(C=30, max_iter=1000),
    ),
}


def part_of(train: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """A part of the training messages that is as balanced as the whole."""
    if fraction == 1:
        return train
    return train.groupby("target").sample(frac=fraction, random_state=seed)


def fine_tuned_accuracy(splits: dict, weights: str, trained: str, epochs: int, seed: int) -> dict:
    """Fine-tune once; test and validation accuracy, and the seconds it took."""
    base = load_base("pocket")
    recipe = replace(base.recipe, epochs=epochs)
    if trained == "head only":
        recipe = replace(recipe, trained_blocks=0)
    if weights == "random":
        torch.manual_seed(seed)
        base = Base(base.name, GPT2(base.model.config), base.tokenizer, recipe)
    data = {
        name: Messages(part["text"], part["target"], base.tokenizer, base.model.config.n_ctx)
        for name, part in splits.items()
    }
    classifier = build_classifier(base, sms.LABEL_NAMES)
    history = fit(classifier, data["train"], data["validation"], recipe, seed=seed, progress=False)
    return {
        "test": loss_and_accuracy(classifier, data["test"])[1],
        "validation": history["validation_accuracy"].iloc[-1],
        "seconds": history["seconds"].iloc[-1],
    }


def run(splits: dict, job: tuple, max_epochs: int) -> dict:
    """One row of the table: a method, a fraction and a seed."""
    method, trained, fraction, seed = job
    part = part_of(splits["train"], fraction, seed)
    row = {"method": method, "trained": trained, "fraction": fraction, "seed": seed}
    row["messages"] = len(part)
    if method in BASELINES:
        model = BASELINES[method]().fit(part["text"], part["target"])
        for name in ("validation", "test"):
            row[name] = model.score(splits[name]["text"], splits[name]["target"])
        return row
    epochs = min(max_epochs, round(load_base("pocket").recipe.epochs / fraction))
    return row | fine_tuned_accuracy(splits | {"train": part}, method, trained, epochs, seed)


def jobs(fractions: list[float], seeds: int, only_recipe: bool) -> list[tuple]:
    """Everything to be run, the cheap things first."""
    found = []
    for fraction in fractions:
        part_seeds = range(seeds) if fraction < 1 else range(1)  # baselines have no randomness
        found += [(method, "", fraction, seed) for method in BASELINES for seed in part_seeds]
        kinds = [("pretrained", "recipe")]
        if not only_recipe:
            kinds += [("random", "recipe"), ("pretrained", "head only"), ("random", "head only")]
        found += [(*kind, fraction, seed) for kind in kinds for seed in range(seeds)]
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and range of the test accuracy, in per cent, and the mean seconds."""
    keys = ["fraction", "messages", "method", "trained"]
    groups = table.fillna({"trained": ""}).groupby(keys, sort=False)
    percent = (groups["test"].agg(["mean", "min", "max", "count"]) * 100).round(2)
    percent["count"] = groups.size()
    percent["seconds"] = groups["seconds"].mean().round(0) if "seconds" in table else float("nan")
    return percent.reset_index().sort_values(["fraction"], ascending=False, kind="stable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=["collection", "sample"], default="collection")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-epochs", type=int, default=25)
    parser.add_argument("--only-recipe", action="store_true", help="the recipe alone")
    parser.add_argument("--out", type=Path, help="CSV file of all runs")
    args = parser.parse_args()
    data_name, path = ("sample", SAMPLE) if args.data == "sample" else sms.source()
    if data_name != args.data:
        parser.error("the real collection cannot be had; --data sample uses the bundled one")
    splits = sms.random_split(sms.balance(sms.load(path)))
    rows = []
    if args.out and args.out.exists():
        rows = pd.read_csv(args.out).fillna({"trained": ""}).to_dict("records")
    done = {(r["method"], r["trained"], r["fraction"], r["seed"]) for r in rows}
    for job in jobs(args.fractions, args.seeds, args.only_recipe):
        if job in done:
            continue
        rows.append(run(splits, job, args.max_epochs))
        print(" ".join(map(str, job)), f"test {rows[-1]['test']:.2%}", flush=True)
        if args.out:
            with atomic(args.out) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
    print(summary(pd.DataFrame(rows)).to_string(index=False))


if __name__ == "__main__":
    main()
