"""Choose a recipe or a base model for Pocket GPT; what its recipe reaches with fewer messages.

What each choice is worth, one thing changed at a time, is `python -m spamgpt experiments`.

    python scripts/pocket_worth.py --weights pretrained --trained recipe
    python scripts/pocket_worth.py --fractions 1 0.25 0.1 0.05 --out FILE.csv
    python scripts/pocket_worth.py --cross-validate --trained recipe --set learning_rate=1e-3

Fine-tunes Pocket GPT (or the model in the folder --model) on the lecture's split by its own
recipe, from the pretrained weights and from random ones (then everything is trained), with
all that the recipe trains ("recipe") and with the body frozen ("head only": ln_f and the
head, ten times the learning rate), on all training messages and on parts of them. Beside it
on the same messages: always-ham, and TF-IDF of words, of characters and of Pocket GPT's own
tokens with logistic regression. Prints the mean and the range over the seeds. With --out,
finished runs are kept in the file and not done again.

To choose between recipes (--set) or base models without a look at the test messages, use
--cross-validate: training and validation messages together are cut into as many folds as
there are seeds, and each fold is judged by the classifier trained on the others.

The number of steps does not shrink with the training messages: a tenth of them is seen ten
times as often, up to --max-epochs. A seed draws the part, starts the random weights and
orders the batches.
"""

import argparse
import ast
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold

from spamgpt import SEED, experiments, sms
from spamgpt.batching import Messages
from spamgpt.classifier import build_classifier
from spamgpt.evaluation import loss_and_accuracy
from spamgpt.experiments import part_of, recipe_for, tf_idf
from spamgpt.gpt2 import GPT2
from spamgpt.pretrained import Base, load_pocket, load_tokenizer
from spamgpt.training import fit
from spamgpt.workspace import POCKET, SAMPLE, atomic

TOKENIZER = load_tokenizer("pocket")


def tokens_of(text: str) -> list[str]:
    """What Pocket GPT is given, as words for scikit-learn."""
    return [str(token) for token in TOKENIZER.encode_ordinary(text)]


BASELINES = experiments.BASELINES | {
    "TF-IDF tokens": lambda: tf_idf(
        tokenizer=tokens_of, token_pattern=None, lowercase=False, ngram_range=(1, 2)
    )
}
WEIGHTS = ["pretrained", "random"]
TRAINED = ["recipe", "head only"]


def folds(splits: dict, n: int) -> list[dict]:
    """`n` ways to cut training and validation messages into the two; no test messages."""
    known = pd.concat([splits["train"], splits["validation"]], ignore_index=True)
    cut = StratifiedKFold(n, shuffle=True, random_state=SEED).split(known, known["target"])
    return [{"train": known.iloc[rest], "validation": known.iloc[fold]} for rest, fold in cut]


def fine_tune(base: Base, splits: dict, weights: str, trained: str, epochs: int, seed: int) -> dict:
    """Fine-tune once; accuracy on all but the training messages, and the seconds it took."""
    recipe = replace(base.recipe, epochs=epochs)
    if weights == "random":  # holds nothing worth freezing
        torch.manual_seed(seed)
        base = replace(base, model=GPT2(base.model.config))
        recipe = replace(recipe, trained_blocks=None)
    if trained == "head only":  # a thousand numbers, not millions: they need larger steps
        recipe = recipe_for(recipe, "head only, 10x rate")
    data = {
        name: Messages(part["text"], part["target"], base.tokenizer, base.model.config.n_ctx)
        # Nobody looks at the curves, so "few" stands in for the validation set while training.
        for name, part in (splits | {"few": splits["validation"][:8]}).items()
    }
    classifier = build_classifier(base, sms.LABEL_NAMES)
    history = fit(classifier, data["train"], data["few"], recipe, seed=seed, progress=False)
    row = {"seconds": history["seconds"].iloc[-1]}
    for name in set(splits) - {"train"}:
        row[f"{name}_loss"], row[name] = loss_and_accuracy(classifier, data[name])
    return row


def run(base: Base, splits: dict, job: tuple, max_epochs: int) -> dict:
    """One row of the table: a method, a fraction and a seed."""
    method, trained, fraction, seed = job
    part = part_of(splits["train"], fraction, seed)
    row = {"method": method, "trained": trained, "fraction": fraction, "seed": seed}
    row["messages"] = len(part)
    if method in BASELINES:
        model = BASELINES[method]().fit(part["text"], part["target"])
        for name in set(splits) - {"train"}:
            row[name] = model.score(splits[name]["text"], splits[name]["target"])
        return row
    epochs = min(max_epochs, round(base.recipe.epochs / fraction))
    return row | fine_tune(base, splits | {"train": part}, method, trained, epochs, seed)


def jobs(args: argparse.Namespace) -> list[tuple]:
    """Everything to be run, the cheap things first."""
    found, seeds = [], range(args.seeds)
    for fraction in args.fractions:
        # Baselines have no randomness but the messages that they see.
        draws = seeds if fraction < 1 or args.cross_validate else range(1)
        found += [(method, "", fraction, seed) for method in BASELINES for seed in draws]
        found += product(args.weights, args.trained, [fraction], seeds)
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and range of the accuracy, in per cent, the mean loss and the mean seconds."""
    judged = "test" if "test" in table else "validation"
    groups = table.groupby(["fraction", "method", "trained"], sort=False)
    result = (groups[judged].agg(["mean", "min", "max"]) * 100).round(2)
    result["runs"] = groups.size()
    result["messages"] = groups["messages"].mean().round().astype(int)
    for column, digits in ((f"{judged}_loss", 3), ("seconds", 0)):
        if column in table:
            result[column] = groups[column].mean().round(digits)
    return result.reset_index().sort_values("fraction", ascending=False, kind="stable")


def setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value a Python literal."""
    key, value = text.split("=", 1)
    return key, ast.literal_eval(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=["collection", "sample"], default="collection")
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of the base model")
    parser.add_argument("--set", type=setting, nargs="+", default=[], metavar="KEY=VALUE",
                        help="change the recipe")  # fmt: skip
    parser.add_argument("--cross-validate", action="store_true", help="leave the test messages")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5, help="as many folds, if cross-validated")
    parser.add_argument("--max-epochs", type=int, default=25)
    parser.add_argument("--weights", nargs="*", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--trained", nargs="*", choices=TRAINED, default=TRAINED)
    parser.add_argument("--out", type=Path, help="CSV file of all runs")
    args = parser.parse_args()
    data_name, path = ("sample", SAMPLE) if args.data == "sample" else sms.source()
    if data_name != args.data:
        parser.error("the real collection cannot be had; --data sample uses the bundled one")
    splits = sms.random_split(sms.balance(sms.load(path)))
    cuts = folds(splits, args.seeds) if args.cross_validate else [splits] * args.seeds
    rows = []
    if args.out and args.out.exists():
        rows = pd.read_csv(args.out).fillna({"trained": ""}).to_dict("records")
    done = {(r["method"], r["trained"], r["fraction"], r["seed"]) for r in rows}
    for job in jobs(args):
        if job in done:
            continue
        base = load_pocket(args.model)  # anew: training changes it
        base.recipe = replace(base.recipe, **dict(args.set))
        rows.append(run(base, cuts[job[-1]], job, args.max_epochs))
        print(" ".join(map(str, job)), f"{rows[-1].get('test', rows[-1]['validation']):.2%}",
              flush=True)  # fmt: skip
        if args.out:
            with atomic(args.out) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
    print(summary(pd.DataFrame(rows)).to_string(index=False))


if __name__ == "__main__":
    main()
