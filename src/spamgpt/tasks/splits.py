"""Balance a table of labelled texts, split it, find its copies. Every table has the columns
`label` and `text`; splits have `target`, the label's number, besides.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.model_selection import train_test_split

from spamgpt import SEED

SPLITS = ("train", "validation", "test")
Splits = dict[str, pd.DataFrame]


def balance(table: pd.DataFrame, label_names: Sequence[str], seed: int = SEED) -> pd.DataFrame:
    """As many messages of each label as the rarest has, drawn at random (`sample` with `seed`).

    The labels follow each other in the order of `label_names`; all of the rarest label's
    messages are kept in their order. Raises ValueError if a label has no messages.
    """
    parts = [table[table["label"] == name] for name in label_names]
    fewest = min(map(len, parts))
    if not fewest:
        missing = next(name for name, part in zip(label_names, parts, strict=True) if part.empty)
        raise ValueError(f"there is no {missing} among {len(table):,} messages: nothing to balance")
    return pd.concat(
        [p if len(p) == fewest else p.sample(fewest, random_state=seed) for p in parts]
    )


def _with_targets(table: pd.DataFrame, label_names: Sequence[str]) -> pd.DataFrame:
    numbers = {name: i for i, name in enumerate(label_names)}
    return table.assign(target=table["label"].map(numbers))


def random_split(
    table: pd.DataFrame,
    label_names: Sequence[str],
    train: float = 0.7,
    validation: float = 0.1,
    seed: int = SEED,
) -> Splits:
    """Shuffle, then cut into train / validation / test (the rest); adds the column `target`.

    Raises ValueError unless the two fractions are positive and leave something for test,
    and if there are too few messages to put one in each part.
    """
    first, second = _cuts(len(table), train, validation)
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    table = _with_targets(table, label_names)
    parts = (table[:first], table[first:second], table[second:])
    return {name: part.reset_index(drop=True) for name, part in zip(SPLITS, parts, strict=True)}


def stratified_split(
    table: pd.DataFrame,
    label_names: Sequence[str],
    train: float = 0.7,
    validation: float = 0.1,
    seed: int = SEED,
) -> Splits:
    """As `random_split`, but each label has the same share in all three parts (scikit-learn).

    Raises ValueError besides if a label has fewer than three messages, or a part would have
    fewer messages than there are labels.
    """
    first, second = _cuts(len(table), train, validation)
    counts = table["label"].value_counts()
    if counts.min() < 3:
        raise ValueError(
            f"the label {counts.idxmin()!r} has {counts.min()} messages: at least 3 are needed, "
            "one each for train, validation and test"
        )
    sizes = (first, second - first, len(table) - second)
    if min(sizes) < len(counts):
        raise ValueError(
            f"{len(table):,} messages of {len(counts)} labels are too few: train, validation and "
            "test would get {}, {}, {}".format(*sizes)
        )
    table = _with_targets(table, label_names)
    rest, test = train_test_split(
        table, test_size=len(table) - second, stratify=table["label"], random_state=seed
    )
    parts = (*train_test_split(rest, train_size=first, stratify=rest["label"],
                               random_state=seed), test)  # fmt: skip
    return {name: part.reset_index(drop=True) for name, part in zip(SPLITS, parts, strict=True)}


def _cuts(n: int, train: float, validation: float) -> tuple[int, int]:
    """Where `n` messages are cut: after train, and after validation. ValueError if they cannot."""
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise ValueError(
            f"train = {train} and validation = {validation} must be positive and leave a "
            f"share for test; they add up to {train + validation:g}"
        )
    first = int(n * train)
    second = first + int(n * validation)
    if not 0 < first < second < n:
        raise ValueError(
            f"{n:,} messages are too few: train, validation and test would get "
            f"{first}, {second - first}, {n - second}"
        )
    return first, second


# --- messages that occur more than once -------------------------------------------------


def normalise(texts: pd.Series) -> pd.Series:
    """Texts without what copies of a message differ in: case, digits, punctuation, spaces."""
    return texts.str.lower().str.replace(r"[\W\d_]+", " ", regex=True).str.strip()


def occurs_in(texts: pd.Series, others: pd.Series, normalised: bool = False) -> pd.Series:
    """For each text whether it is also among `others`: verbatim, or after normalising both."""
    if normalised:
        texts, others = normalise(texts), normalise(others)
    return texts.isin(set(others))


def near_duplicates(texts: pd.Series, similarity: float = 0.5) -> np.ndarray:
    """A group number for each text (N,); near-duplicates have the same.

    Two texts are near-duplicates if, normalised, they share at least `similarity` of the
    runs of five characters that occur in either (Jaccard similarity). So is whoever is a
    near-duplicate of a near-duplicate: groups are connected components.
    """
    different, which = np.unique(normalise(texts).to_numpy(dtype=str), return_inverse=True)
    runs = HashingVectorizer(
        analyzer="char", ngram_range=(5, 5), binary=True, norm=None, alternate_sign=False
    )
    has = runs.transform(f" {text} " for text in different)  # (texts, runs)
    sizes = np.asarray(has.sum(axis=1)).ravel()
    shared = (has @ has.T).tocoo()
    either = sizes[shared.row] + sizes[shared.col] - shared.data
    near = shared.data >= similarity * either
    links = coo_array((near[near], (shared.row[near], shared.col[near])), shape=shared.shape)
    return connected_components(links, directed=False)[1][which]


def group_split(
    table: pd.DataFrame,
    label_names: Sequence[str],
    train: float = 0.7,
    validation: float = 0.1,
    seed: int = SEED,
) -> Splits:
    """As `random_split`, but near-duplicates (`near_duplicates`) stay together in one of the sets.

    Large groups are placed first, each in a set drawn by the room that is left; single
    messages fill up the rest, so that the sizes are those of `random_split` wherever the
    groups allow it. Raises ValueError as `random_split` does.
    """
    first, second = _cuts(len(table), train, validation)
    room = np.diff([0, first, second, len(table)])
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    table = _with_targets(table, label_names)
    group = near_duplicates(table["text"])
    sizes = np.bincount(group)
    draw, home = np.random.default_rng(seed), np.empty(len(sizes), dtype=int)
    for g in np.argsort(-sizes, kind="stable"):
        fits = np.where(room >= sizes[g], room, 0)
        home[g] = draw.choice(3, p=fits / fits.sum()) if fits.any() else room.argmax()
        room[home[g]] -= sizes[g]
    return {name: table[home[group] == i].reset_index(drop=True) for i, name in enumerate(SPLITS)}


def at_prevalence(
    table: pd.DataFrame, splits: Splits, positive: str, seed: int = SEED
) -> pd.DataFrame:
    """The test messages, and as many unused others as make `positive` as rare as in `table`.

    For two labels. Unused are messages of the other label that, normalised, are in none of
    the three sets. Raises ValueError if there are too few of them.
    """
    known = pd.concat([part["text"] for part in splits.values()])
    others = table[table["label"] != positive]
    unused = others[~occurs_in(others["text"], known, normalised=True)]
    test, prevalence = splits["test"], (table["label"] == positive).mean()
    n = (test["label"] == positive).sum()
    needed = round(n / prevalence) - len(test)
    if not 0 <= needed <= len(unused):
        raise ValueError(
            f"{needed:,} more messages of another label would make {n:,} {positive} "
            f"{prevalence:.1%} of the test set; there are {len(unused):,}"
        )
    target = test.loc[test["label"] != positive, "target"].iloc[0]
    more = unused.sample(needed, random_state=seed).assign(target=target)
    return pd.concat([test, more], ignore_index=True)
