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
from scipy.stats import t as student
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor
from tqdm.auto import tqdm

from spamgpt import SEED, sms
from spamgpt.batching import Batch, Messages, data_loader, pad
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.evaluation import paired_difference, wilson_interval
from spamgpt.gpt2 import GPT2
from spamgpt.hardware import best_device
from spamgpt.pretrained import Base, Recipe
from spamgpt.training import fit
from spamgpt.workspace import PROJECT, atomic, show_path

# Pocket GPT on the collection: the full grid; on the sample: its own recipe (see data/README.md).
FULL = PROJECT / "data" / "bundled" / "experiments.csv"
MAX_EPOCHS = 100
MAX_STATES = 2 * 2**30  # bytes of kept states


@dataclass(frozen=True)
class Setting:
    """One way of making a spam filter; the defaults are what the others are compared with.

    By `method` "fine-tuning": `weights` "pretrained" or "random"; `trained` a key of TRAINED;
    `read` "last" (real token), "first", "mean" (of the real tokens) or "position -1", which is
    a pad in all but the longest message; `padding` to the longest of the "batch", to the
    "longest" of all, or to the full "context". By any method: `split` "lecture", or "random"
    or "groups" (drawn anew by each seed); `share` of the training messages.
    """

    method: str = "fine-tuning"
    weights: str = "pretrained"
    trained: str = "last block"
    read: str = "last"
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
    "recipe": None,  # the base model's own, as notebook 05 follows it
}
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)
SPLITTERS = {"random": sms.random_split, "groups": sms.group_split}


def tf_idf(**options) -> Pipeline:
    """Counts, rare ones weighing more, and a logistic regression on them."""
    return make_pipeline(
        TfidfVectorizer(sublinear_tf=True, **options), LogisticRegression(C=30, max_iter=1000)
    )


BASELINES = {
    "always ham": lambda: DummyClassifier(strategy="constant", constant=0),
    "TF-IDF words": lambda: tf_idf(ngram_range=(1, 2)),
    "TF-IDF characters": lambda: tf_idf(analyzer="char_wb", ngram_range=(2, 5)),
}
# What is compared with what: by name, the first of each group is what the others are held against.
GROUPS = {
    "token read": {
        "last real token": DEFAULT,
        "mean of the real tokens": Setting(read="mean"),
        "first token": Setting(read="first"),
        "position -1": Setting(read="position -1"),
    },
    "padding": {
        f"{read}, padded to the {padding}": Setting(read=read, padding=padding)
        for read in ("last", "position -1")
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
}
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
    return setting.method in BASELINES and setting.split == "lecture" and setting.share == 1


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
        recipe = replace(recipe, trained_blocks=blocks, learning_rate=rate, embedding_rate=None)
    return replace(recipe, epochs=min(MAX_EPOCHS, round(recipe.epochs / share)))


class Padded(Messages):
    """Messages filled up with pads to `n_ctx` tokens, (n_ctx,) ids or (n_ctx, C) states each.

    A batch is cut to its longest message, to the longest of all, or not at all, as `padding`
    says. A classifier that is to read "position -1" is told that the pads are message, too.
    """

    def __init__(self, messages: Messages, n_ctx: int, padding: str, read: str):
        self.targets, self.pad_id = messages.targets, messages.pad_id
        self.lengths = [len(ids) for ids in messages.ids]
        self.ids = [ids + [self.pad_id] * (n_ctx - len(ids)) for ids in messages.ids]
        self.width = {"batch": None, "longest": max(self.lengths), "context": n_ctx}[padding]
        self.read_pads = read == "position -1"

    def __getitem__(self, index: int) -> tuple:
        return self.ids[index], self.lengths[index], self.targets[index]

    def collate(self, items: Sequence[tuple]) -> Batch:
        """Join items to a batch of the width that `padding` asks for."""
        sequences, lengths, targets = zip(*items, strict=True)
        width = self.width or max(lengths)
        x, widths = pad([sequence[:width] for sequence in sequences], self.pad_id)
        return Batch(x, widths if self.read_pads else torch.tensor(lengths), torch.tensor(targets))


class Lab:
    """A base model and a table of messages, with all that runs on them share."""

    def __init__(self, base: Base, table: pd.DataFrame, data_name: str):
        self.base, self.data_name = base, data_name
        balanced = sms.balance(table)
        self.table = balanced.assign(row=range(len(balanced)))  # rows outlive the shuffling
        targets = self.table["label"].map(sms.LABELS)
        n_ctx = base.model.config.n_ctx
        self.messages = Messages(self.table["text"], targets, base.tokenizer, n_ctx)
        self._states: dict[tuple, list[Tensor]] = {}

    def split(self, setting: Setting, seed: int) -> dict[str, pd.DataFrame]:
        """train, validation and test, with the train messages that the setting leaves."""
        if setting.split == "lecture":
            splits = sms.random_split(self.table)
        else:
            splits = SPLITTERS[setting.split](self.table, seed=seed)
        return splits | {"train": part_of(splits["train"], setting.share, seed)}

    def run(self, setting: Setting, seed: int) -> dict:
        """One row of the results."""
        began = perf_counter()
        splits = self.split(setting, seed)
        if setting.method in BASELINES:
            model = BASELINES[setting.method]()
            model.fit(splits["train"]["text"], splits["train"]["target"])
            called = {name: model.predict(splits[name]["text"]) for name in sms.SPLITS[1:]}
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
        model = GPT2(config) if random else copy.deepcopy(self.base.model)
        read = "last" if setting.read == "position -1" else setting.read
        base = replace(self.base, model=model.to(best_device()))
        classifier = build_classifier(base, sms.LABEL_NAMES, read).to(best_device())
        recipe = recipe_for(self.base.recipe, setting.trained, setting.share)
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(splits["train"])))
        everything = self._everything(classifier, recipe, setting)
        parts = {name: _rows(everything, part["row"]) for name, part in splits.items()}
        # Nobody looks at the curves, so a few messages stand in for the validation set.
        few = _rows(self.messages, splits["validation"]["row"][:8])
        fit(
            classifier,
            parts["train"],
            few,
            recipe,
            seed=seed,
            progress=False,
            max_cache_bytes=MAX_STATES,
        )
        return {name: classes(classifier, parts[name]) for name in sms.SPLITS[1:]}

    def _everything(self, classifier: Classifier, recipe: Recipe, setting: Setting) -> Messages:
        """All messages, as the setting pads them; as states of the frozen part if they can be."""
        messages, config = self.messages, self.base.model.config
        if padded := setting.padding != "batch" or setting.read == "position -1":
            messages = Padded(messages, config.n_ctx, setting.padding, setting.read)
        shared = setting.weights == "pretrained" and not recipe.embedding_rate
        n_bytes = sum(map(len, messages.ids)) * config.n_embd * 4  # fp32
        if not shared or recipe.trained_blocks is None or n_bytes > MAX_STATES:
            return messages
        key = (recipe.trained_blocks, padded)
        if key not in self._states:
            classifier.freeze(recipe.trained_blocks)
            self._states[key] = classifier.eval().trunk_states(messages.ids)
        messages = copy.copy(messages)
        messages.ids = self._states[key]
        return messages


def _rows(messages: Messages, rows: Iterable[int]) -> Messages:
    """Some of the messages."""
    part, rows = copy.copy(messages), list(rows)
    for name in ("ids", "targets", *(["lengths"] if isinstance(messages, Padded) else [])):
        everything = getattr(messages, name)
        setattr(part, name, [everything[row] for row in rows])
    return part


@torch.no_grad()
def classes(classifier: Classifier, messages: Messages) -> np.ndarray:
    """The most probable class of each message (N,), in batches as its data set makes them."""
    device = classifier.score.weight.device
    scores = [
        classifier(batch.ids.to(device), batch.lengths.to(device))
        for batch in data_loader(messages, 8)
    ]
    return torch.cat(scores).argmax(dim=-1).cpu().numpy()


# --- the grid ---------------------------------------------------------------------------


def load_runs(path: Path) -> pd.DataFrame:
    """The finished runs in a CSV file; an empty table if there is none yet."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    runs = pd.read_csv(path, keep_default_na=False)
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

    The file is written anew after each run, so that nothing is lost by stopping.
    """
    rows = load_runs(path).to_dict("records") if path else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    names = (lab.base.name, lab.data_name, lab.base.recipe.epochs)
    keys = [(*names, *astuple(setting), seed) for setting, seed in wanted]
    todo = [job for job, key in zip(wanted, keys, strict=True) if key not in done]
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
    mean, n, seeds = runs["accuracy"].mean(), int(runs["tested"].iloc[0]), _of_seeds(runs)
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
        half = np.linalg.norm([mean - low, _of_seeds(runs), _of_seeds(reference)])
        return mean, mean - half, mean + half
    (mine, mine_low, mine_high), (other, other_low, other_high) = map(accuracy, (runs, reference))
    mean = mine - other
    return (
        mean,
        mean - np.hypot(mine - mine_low, other_high - other),
        mean + np.hypot(mine_high - mine, other - other_low),
    )


def _of_seeds(runs: pd.DataFrame) -> float:
    """Half of Student's 95 % interval around the mean accuracy; 0 for a single run."""
    k = len(runs)
    return 0.0 if k == 1 else student.ppf(0.975, k - 1) * runs["accuracy"].std() / np.sqrt(k)


def _right(runs: pd.DataFrame) -> np.ndarray:
    """Which test messages each run got right: (runs, test messages) of 0 and 1."""
    right = np.ones((len(runs), int(runs["tested"].iloc[0])))
    for row, wrong in zip(right, runs["wrong"].astype(str), strict=True):
        row[[int(number) for number in wrong.split()]] = 0
    return right


def compare(runs: pd.DataFrame, group: str) -> pd.DataFrame:
    """The settings of a group that have runs, by name: how good, and against the first of them.

    Columns: runs, messages (mean), accuracy, low, high; difference, from, to; differs ("better",
    "worse", or "" where the interval of the difference holds 0); seconds (mean of a run).
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
        verdict = f"{row['differs']} than" if row["differs"] else "not told apart from"
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
