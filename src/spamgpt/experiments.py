"""What each choice is worth: one thing changed at a time, each over several seeds.

A run is a setting and a seed; it gives a row of a table that says which test messages it got
wrong. What runs have in common is computed once: the tokens of all messages, and what the
frozen part of the pretrained model makes of them.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from spamgpt import SEED
from spamgpt.baselines import BASELINES, tf_idf_of_tokens
from spamgpt.batches import Batch, HiddenStates, Messages, StateBatch
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.files.workspace import BUNDLED, atomic, check_writable, show_path
from spamgpt.hardware import best_device
from spamgpt.inference import hidden_states
from spamgpt.models.base import Base
from spamgpt.objectives import Classification, logits_by_batch
from spamgpt.recipes import Recipe
from spamgpt.statistics import (
    newcombe_difference,
    paired_difference,
    student_half_width,
    wilson_interval,
)
from spamgpt.tasks.splits import SPLITS, balance, group_split, random_split
from spamgpt.tasks.task import Task
from spamgpt.training import fit

# Pocket GPT on the collection: the full grid; on the sample: its own recipe (see data/README.md).
FULL = BUNDLED / "experiments.csv"
MAX_EPOCHS = 100
MAX_CACHE = 2 * 2**30  # bytes of cached hidden states
FOLDS = 5


@dataclass(frozen=True)
class Setting:
    """One way of making a spam filter; the defaults are what the others are compared with.

    By `method` "fine-tuning": `weights` "pretrained" or "random"; `trained` a key of TRAINED;
    `pooling` "last" (real token), "first", "mean" (of the real tokens) or "position -1", which
    is a pad in all but the longest message; `padding` to the longest of the "batch", to the
    "longest" of all, or to the full "context". By any method: `split` "lecture", "random" or
    "groups" (drawn again by each seed), or "folds" (training and validation messages of the
    lecture's split in five parts, each seed judged by another: no test message is looked at);
    `share` of the training messages.
    """

    method: str = "fine-tuning"
    weights: str = "pretrained"
    trained: str = "last block"
    pooling: str = "last"
    padding: str = "batch"
    split: str = "lecture"
    share: float = 1.0


DEFAULT = Setting()
# Blocks that are trained besides ln_f and the head, and what the learning rate is multiplied by.
TRAINED = {
    "last block": (1, 1),
    "head only": (0, 1),
    "head only, 10x rate": (0, 10),
    "last two blocks": (2, 1),
    "all": (None, 1),
    "recipe": None,  # the base model's own, as notebook 06 follows it
}
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)
SPLITTERS = {"random": random_split, "groups": group_split}
TOKENS = "TF-IDF tokens"  # of the base model's tokenizer
METHODS = (*BASELINES, TOKENS)
# What is compared with what, by name. The first of each group is the baseline of the others.
GROUPS = {
    "pooling": {
        "last real token": DEFAULT,
        "mean of the real tokens": Setting(pooling="mean"),
        "first token": Setting(pooling="first"),
        "position -1": Setting(pooling="position -1"),
    },
    "padding": {
        f"{pooling}, padded to the {padding}": Setting(pooling=pooling, padding=padding)
        for pooling in ("last", "position -1")
        for padding in ("batch", "longest", "context")
    },
    "trained part": {name: Setting(trained=name) for name in TRAINED},
    "weights, last block trained": {
        name: Setting(weights=name) for name in ("pretrained", "random")
    },
    "weights, all trained": {
        name: Setting(weights=name, trained="all") for name in ("pretrained", "random")
    },
    "split": {name: Setting(split=name) for name in SPLITTERS},
    "split, TF-IDF": {name: Setting(method="TF-IDF characters", split=name) for name in SPLITTERS},
    **{
        f"messages, {name}": {f"{share:.0%}": replace(setting, share=share) for share in shares}
        for name, setting, shares in (
            ("language model", DEFAULT, SHARES),
            ("the same from scratch", Setting(weights="random", trained="all"), (1.0, 0.1, 0.01)),
            ("TF-IDF words", Setting(method="TF-IDF words"), SHARES),
            ("TF-IDF characters", Setting(method="TF-IDF characters"), SHARES),
        )
    },
    "recipe": {"recipe": Setting(trained="recipe")},
    "recipe, folds": {
        name: replace(setting, split="folds")
        for name, setting in (
            ("recipe", Setting(trained="recipe")),
            *((method, Setting(method=method)) for method in (*list(BASELINES)[1:], TOKENS)),
        )
    },
    # What pretraining is worth with fewer messages (Pocket GPT's model card).
    **{
        f"worth, {share:.0%}": {
            "recipe": Setting(trained="recipe", share=share),
            "recipe, random weights": Setting(weights="random", trained="recipe", share=share),
            "head only": Setting(trained="head only, 10x rate", share=share),
            "head only, random weights": Setting(
                weights="random", trained="head only, 10x rate", share=share
            ),
            **{method: Setting(method=method, share=share) for method in METHODS},
        }
        for share in (1.0, 0.25, 0.1, 0.05)
    },
}
# What notebook 09 draws and `experiments` runs if no group is named.
GRID = tuple(name for name in GROUPS if not name.startswith(("recipe, folds", "worth")))
SETTING = [field.name for field in fields(Setting)]
KEY = ["base", "data", "epochs", *SETTING, "seed"]
COLUMNS = [*KEY, "messages", "tested", "validation", "accuracy", "seconds", "wrong"]


def jobs(groups: Iterable[str], seeds: int) -> list[tuple[Setting, int]]:
    """(setting, seed) of every run, none twice, seed by seed.

    Raises ValueError for a group that does not exist, and for less than one seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds = {seeds}: at least one is needed")
    if unknown := set(groups) - set(GROUPS):
        raise ValueError(f"no group {unknown.pop()!r}; there are: {', '.join(GROUPS)}")
    settings = dict.fromkeys(setting for group in groups for setting in GROUPS[group].values())
    return [
        (setting, seed)
        for seed in range(SEED, SEED + seeds)
        for setting in settings
        if seed == SEED or not _fixed(setting)
    ]


def _fixed(setting: Setting) -> bool:
    """Whether nothing is drawn at random, so that one run says all."""
    return setting.method in METHODS and setting.split == "lecture" and setting.share == 1


def part_of(train: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A part of the training messages that is as balanced as the whole."""
    if share == 1:
        return train
    return train.groupby("target").sample(frac=share, random_state=seed)


def recipe_for(recipe: Recipe, trained: str, share: float = 1.0) -> Recipe:
    """A base model's recipe, changed so that `trained` (a key of TRAINED) is trained.

    The number of steps does not shrink with the training messages: a tenth of them is seen
    ten times as often, up to MAX_EPOCHS times.
    """
    if trained != "recipe":
        blocks, faster = TRAINED[trained]
        rate = faster * recipe.learning_rate
        recipe = replace(recipe, trained_blocks=blocks, learning_rate=rate, embedding_lr=None)
    return replace(recipe, epochs=min(MAX_EPOCHS, round(recipe.epochs / share)))


class Padded(Dataset):
    """Messages, or their cached hidden states, that were filled up with pads to one length.

    A batch is cut to its longest message, to the longest of all, or not at all, as `padding`
    says. A classifier that is to read "position -1" is told that the pads are message, too.
    """

    def __init__(self, full: Messages | HiddenStates, lengths: Sequence[int], setting: Setting):
        self.full, self.lengths = full, lengths
        self.fixed = {"batch": None, "longest": max(lengths), "context": 10**9}[setting.padding]
        self.reads_pads = setting.pooling == "position -1"

    def __len__(self) -> int:
        return len(self.full)

    def __getitem__(self, index: int) -> tuple:
        return (*self.full[index], self.lengths[index])

    def collate(self, items: Sequence[tuple]) -> Batch | StateBatch:
        """Join items to a batch of the width that `padding` asks for."""
        true = [length for _, _, length in items]
        width = self.fixed or max(true)
        batch = self.full.collate([(sequence[:width], target) for sequence, target, _ in items])
        return batch if self.reads_pads else batch._replace(lengths=torch.tensor(true))


class Lab:
    """A base model, a task and a table of messages, with all that runs on them share."""

    def __init__(self, base: Base, task: Task, table: pd.DataFrame, data_name: str):
        self.base, self.task, self.data_name = base, task, data_name
        balanced = balance(table, task.label_names)
        self.table = balanced.assign(row=range(len(balanced)))  # rows outlive the shuffling
        targets = self.table["label"].map(task.labels)
        self.messages = Messages(
            self.table["text"], targets, base.tokenizer, base.model.config.n_ctx
        )
        self._states: dict[tuple, HiddenStates] = {}

    def split(self, setting: Setting, seed: int) -> dict[str, pd.DataFrame]:
        """train, validation and test, with the train messages that the setting leaves."""
        names = self.task.label_names
        if setting.split in SPLITTERS:
            splits = SPLITTERS[setting.split](self.table, names, seed=seed)
        else:
            splits = random_split(self.table, names)
        if setting.split == "folds":
            known = pd.concat([splits["train"], splits["validation"]], ignore_index=True)
            cuts = list(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(
                known, known["target"]))  # fmt: skip
            rest, fold = (known.iloc[rows] for rows in cuts[(seed - SEED) % FOLDS])
            splits = {"train": rest, "validation": fold, "test": fold}
        return splits | {"train": part_of(splits["train"], setting.share, seed)}

    def run(self, setting: Setting, seed: int) -> dict:
        """One row of the results."""
        began = perf_counter()
        splits = self.split(setting, seed)
        if setting.method in METHODS:
            make = BASELINES.get(setting.method)
            model = make() if make else tf_idf_of_tokens(self.base.tokenizer)
            model.fit(splits["train"]["text"], splits["train"]["target"])
            called = {name: model.predict(splits[name]["text"]) for name in SPLITS[1:]}
        else:
            called = self._fine_tune(setting, seed, splits)
        right = {name: called[name] == splits[name]["target"] for name in called}
        return {
            "base": self.base.name,
            "data": self.data_name,
            "epochs": self.base.recipe.epochs,
            **asdict(setting),
            "seed": seed,
            "messages": len(splits["train"]),
            "tested": len(right["test"]),
            "validation": round(right["validation"].mean(), 5),
            "accuracy": round(right["test"].mean(), 5),
            "seconds": round(perf_counter() - began, 2),
            "wrong": " ".join(map(str, np.flatnonzero(~right["test"]))),  # rows of the test set
        }

    def _fine_tune(self, setting: Setting, seed: int, splits: dict) -> dict[str, np.ndarray]:
        """Fine-tune by a setting; the classes of the validation and test messages (N,)."""
        torch.manual_seed(seed)
        config, random = self.base.model.config, setting.weights == "random"
        model = type(self.base.model)(config) if random else copy.deepcopy(self.base.model)
        pooling = "last" if setting.pooling == "position -1" else setting.pooling
        base = replace(self.base, model=model.to(best_device()))
        classifier = build_classifier(base, self.task.label_names, pooling).to(best_device())
        recipe = self._recipe(setting, len(splits["train"]))
        classifier.prepare(recipe)
        everything = self._everything(classifier, setting)
        parts = {name: rows_of(everything, part["row"]) for name, part in splits.items()}
        # Nobody looks at the curves, so a few messages replace the validation set.
        few = rows_of(everything, splits["validation"]["row"][:8])
        objective = Classification(max_cache_bytes=MAX_CACHE)
        fit(classifier, parts["train"], few, recipe, objective, seed=seed, progress=False)
        found = {name: logits_by_batch(classifier, parts[name])[0] for name in SPLITS[1:]}
        return {name: part.argmax(dim=-1).numpy() for name, part in found.items()}

    def _recipe(self, setting: Setting, n_messages: int) -> Recipe:
        """The base model's recipe as a setting changes it."""
        recipe = recipe_for(self.base.recipe, setting.trained, setting.share)
        if setting.weights == "random" and setting.trained == "recipe":
            recipe = replace(recipe, trained_blocks=None)  # nothing there is worth freezing
        return replace(recipe, batch_size=min(recipe.batch_size, n_messages))

    def _everything(self, classifier: Classifier, setting: Setting) -> Dataset:
        """All messages, as the setting pads them; as hidden states if other runs can use them."""
        messages, n_ctx = self.messages, self.base.model.config.n_ctx
        lengths = [len(ids) for ids in messages.ids]
        if padded := setting.padding != "batch" or setting.pooling == "position -1":
            messages = copy.copy(messages)
            messages.ids = [ids + [messages.pad_id] * (n_ctx - len(ids)) for ids in messages.ids]
        full, n_blocks = messages, classifier.frozen_blocks
        n_bytes = sum(map(len, messages.ids)) * self.base.model.config.n_embd * 4  # fp32
        if setting.weights == "pretrained" and n_blocks and n_bytes <= MAX_CACHE:
            key = (n_blocks, padded)
            if key not in self._states:
                self._states[key] = hidden_states(classifier.eval(), messages)
            full = self._states[key]
        return Padded(full, lengths, setting) if padded else full


def rows_of(data: Messages | HiddenStates | Padded, rows: Iterable[int]) -> Dataset:
    """Some of the messages, as a data set of the same kind."""
    part, rows = copy.copy(data), list(rows)
    if isinstance(data, Padded):
        part.full = rows_of(data.full, rows)
    for name in ("ids", "states", "targets", "lengths"):
        if hasattr(data, name):
            setattr(part, name, [getattr(data, name)[row] for row in rows])
    return part


# --- the grid ---------------------------------------------------------------------------


def load_runs(path: Path) -> pd.DataFrame:
    """The finished runs in a CSV file; an empty table if there is none yet."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    runs = pd.read_csv(path, keep_default_na=False)
    runs = runs.rename(columns={"read": "pooling"})  # its name before version 0.2
    if missing := set(COLUMNS) - set(runs):
        raise ValueError(
            f"{show_path(path)} lacks the columns {', '.join(sorted(missing))}: it holds other "
            "things, or runs of an older version; choose another file, or remove it"
        )
    return runs


def run_grid(
    lab: Lab, wanted: Sequence[tuple[Setting, int]], path: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Do the runs that are not in the CSV file `path` yet; returns the wanted ones.

    The file is written again after each run, so that nothing is lost by stopping.
    """
    rows = load_runs(path).to_dict("records") if path else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    names = (lab.base.name, lab.data_name, lab.base.recipe.epochs)
    keys = [(*names, *astuple(setting), seed) for setting, seed in wanted]
    todo = [job for job, key in zip(wanted, keys, strict=True) if key not in done]
    if path and todo:
        check_writable(path.parent)  # before an hour of work is lost
    with tqdm(total=len(todo), desc="runs", unit="run", disable=not progress) as bar:
        for setting, seed in todo:
            rows.append(lab.run(setting, seed))
            if path:
                with atomic(path) as temporary:
                    pd.DataFrame(rows).to_csv(temporary, index=False)
            bar.update()
    of_key = {tuple(row[name] for name in KEY): row for row in rows}
    return pd.DataFrame([of_key[key] for key in keys])


def recipe_runs(base_name: str, data_name: str) -> pd.DataFrame:
    """The repository's own runs of a base model's recipe, each with another seed."""
    runs = runs_of(load_runs(FULL), Setting(trained="recipe"))
    return runs[(runs["base"] == base_name) & (runs["data"] == data_name)]


# --- what the runs say ------------------------------------------------------------------


def runs_of(runs: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The runs of one setting."""
    return runs[(runs[SETTING] == list(astuple(setting))).all(axis=1)]


def accuracy(runs: pd.DataFrame) -> tuple[float, float, float]:
    """Mean accuracy of one setting's runs, with a 95 % interval: (mean, low, high).

    Two things were left to chance: the test messages (Wilson's interval) and the seeds
    (Student's). Their half-widths are added as squares. Where each of several seeds draws a
    test set of its own, the spread over the seeds holds both.
    """
    mean, n = runs["accuracy"].mean(), int(runs["tested"].iloc[0])
    seeds = student_half_width(runs["accuracy"])
    below = above = 0.0
    if len(runs) == 1 or set(runs["split"]) == {"lecture"}:
        correct = round(mean * n)
        low, high = wilson_interval(correct, n)
        below, above = correct / n - low, high - correct / n
    return mean, max(0.0, mean - np.hypot(below, seeds)), min(1.0, mean + np.hypot(above, seeds))


def difference(runs: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, float, float]:
    """Mean accuracy less that of the reference, with a 95 % interval: (mean, low, high).

    On the same test messages, they are compared message by message: what is hard for both
    does not blur the difference. Otherwise the half-widths of the two intervals are added as
    squares (Newcombe 1998, method 10).
    """
    if set(runs["split"]) | set(reference["split"]) == {"lecture"}:
        right, other = (_right(r).mean(axis=0) for r in (runs, reference))  # (test messages,)
        mean, low, _ = paired_difference(right, other)
        seeds = [student_half_width(r["accuracy"]) for r in (runs, reference)]
        half = np.linalg.norm([mean - low, *seeds])
        return mean, mean - half, mean + half
    return newcombe_difference(accuracy(runs), accuracy(reference))


def _right(runs: pd.DataFrame) -> np.ndarray:
    """Which test messages each run got right: (runs, test messages) of 0 and 1."""
    right = np.ones((len(runs), int(runs["tested"].iloc[0])))
    for row, wrong in zip(right, runs["wrong"].astype(str), strict=True):
        row[[int(number) for number in wrong.split()]] = 0
    return right


def compare(runs: pd.DataFrame, group: str) -> pd.DataFrame:
    """The settings of a group that have runs, by name: how good, and against the first.

    Columns: runs, messages (mean), accuracy, low, high; difference, from, to; differs ("better",
    "worse", or "" where the interval of the difference holds 0: inconclusive); seconds (mean).
    """
    rows, reference = {}, None
    for name, setting in GROUPS[group].items():
        these = runs_of(runs, setting)
        if these.empty:
            continue
        row = {"runs": len(these), "messages": these["messages"].mean()}
        row |= zip(("accuracy", "low", "high"), accuracy(these), strict=True)
        if reference is None:
            reference = these
        else:
            row |= zip(("difference", "from", "to"), difference(these, reference), strict=True)
            row["differs"] = "better" if row["from"] > 0 else "worse" if row["to"] < 0 else ""
        rows[name] = row | {"seconds": these["seconds"].mean()}
    columns = ["runs", "messages", "accuracy", "low", "high", "difference", "from", "to", "differs"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, "seconds"])


def sentences(table: pd.DataFrame) -> str:
    """What a table of `compare` allows to say, a line for each row but the first."""
    lines, reference = [], table.index[0]
    for name, row in table.iloc[1:].iterrows():
        gain, low, high = (100 * row[column] for column in ("difference", "from", "to"))
        verdict = f"{row['differs']} than" if row["differs"] else "cannot be told from"
        points = f"{gain:+.1f} points ({low:+.1f} to {high:+.1f})"
        lines.append(f"{name}: {verdict} {reference}, {points}")
    return "\n".join(lines)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """`compare` for every group that has runs; accuracies and differences in per cent."""
    tables = {group: compare(runs, group) for group in GROUPS}
    table = pd.concat({group: part for group, part in tables.items() if len(part)})
    for name in ("accuracy", "low", "high", "difference", "from", "to"):
        table[name] = (100 * table[name].astype(float)).round(1)
    return table.assign(
        messages=table["messages"].round().astype(int),
        differs=table["differs"].fillna(""),
        seconds=table["seconds"].round(1),
    )
