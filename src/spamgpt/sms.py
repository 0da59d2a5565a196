"""The SMS Spam Collection: load, balance, encode the labels, split, save.

Source: Almeida, Gómez Hidalgo and Yamakami, "Contributions to the study of SMS spam
filtering: new collection and results", DocEng 2011, https://doi.org/10.1145/2034691.2034742
Every table here has the columns `label` ("ham" or "spam") and `text`, splits have
`target` (0 or 1) besides.
"""

import csv
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import HashingVectorizer

from spamgpt import SEED, assets
from spamgpt.workspace import (
    SAMPLE,
    atomic,
    notice,
    read_json,
    remember,
    show_path,
    workspace,
    write_json,
)

LABELS = {"ham": 0, "spam": 1}
LABEL_NAMES = list(LABELS)
SPLITS = ("train", "validation", "test")
# "NA" and "0800" are messages, not a missing value and a number.
AS_TEXT = {"keep_default_na": False, "dtype": {"label": str, "text": str}}
FORM = "each line must be a label, a tab and the message"
DATA_NAMES = {"collection": "SMS Spam Collection", "sample": "bundled sample"}


def source() -> tuple[str, Path]:
    """("collection" or "sample", path of its file): the collection whenever it can be had.

    Says so in a notice if it cannot, and remembers the decision for the workspace.
    """
    if reason := assets.why_stand_in("data", "sample", "sms"):
        notice(_sample_notice(reason))
        return "sample", SAMPLE
    try:
        path = assets.fetch("sms")
    except assets.AssetError as error:
        remember("data", "sample", error.brief)
        notice(_sample_notice(error.brief))
        return "sample", SAMPLE
    remember("data", "collection", f"read from {show_path(path)}")
    return "collection", path


def _sample_notice(reason: str) -> str:
    return (
        "DATA: the bundled sample stands in for the SMS Spam Collection.\n"
        f"{reason}\n"
        "Everything works; figures differ from the lecture's. With internet, run\n"
        "python -m spamgpt fetch"
    )


def load(path: Path) -> pd.DataFrame:
    """The messages as the lecture reads them: 5,572 rows of the collection.

    An unbalanced quotation mark makes pandas join three messages to one;
    `quoting=csv.QUOTE_NONE` would give the file's 5,574. The lecture's count is kept so
    that its other numbers can be found again. Raises ValueError for a file that is not such
    a table, or does not hold the two labels.
    """
    name = show_path(path)
    try:
        table = pd.read_csv(path, sep="\t", header=None, names=["label", "text"], **AS_TEXT)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except pd.errors.ParserError as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        reason = reason.replace("EOF inside string", "a quotation mark that is never closed,")
        raise ValueError(f"{name} cannot be read ({reason}): {FORM}") from None
    _check(table, name)
    return table


def _check(table: pd.DataFrame, name: str) -> None:
    """Raise ValueError unless these are messages of both labels, read from the file `name`."""
    if table.empty:
        raise ValueError(f"{name} holds no messages: {FORM}")
    if not table.index.equals(pd.RangeIndex(len(table))):  # pandas took a column for the index
        raise ValueError(f"{name} has more than two columns: {FORM}")
    wrong = ~table["label"].isin(LABELS)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        hint = "if it is a header line, delete it; " if row == 0 and wrong.sum() == 1 else ""
        raise ValueError(
            f"{name}: row {row + 1:,} has the label {table['label'][row]!r:.40}, which is neither "
            f"'ham' nor 'spam' ({wrong.sum():,} of {len(table):,} rows are like that): {hint}{FORM}"
        )
    if not table["text"].any():
        raise ValueError(f"{name} has labels, but no messages beside them: {FORM}")
    if missing := set(LABELS) - set(table["label"]):
        raise ValueError(
            f"all {len(table):,} messages of {name} are labelled {table['label'][0]!r}: "
            f"a classifier needs some of {missing.pop()!r} too"
        )


def balance(table: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """All spam, and as many ham messages drawn at random (`sample` with `seed`).

    Raises ValueError if there is no spam, or less ham than spam.
    """
    spam, ham = table[table["label"] == "spam"], table[table["label"] == "ham"]
    if not 0 < len(spam) <= len(ham):
        raise ValueError(
            f"{len(ham):,} ham messages are too few for {len(spam):,} spam: balancing draws as "
            "much ham as there is spam; add ham, or leave some spam out"
            if len(spam)
            else f"there is no spam among {len(table):,} messages: nothing to balance"
        )
    return pd.concat([ham.sample(len(spam), random_state=seed), spam])


def random_split(
    table: pd.DataFrame, train: float = 0.7, validation: float = 0.1, seed: int = SEED
) -> dict[str, pd.DataFrame]:
    """Shuffle, then cut into train / validation / test (the rest); adds the column `target`.

    Raises ValueError unless the two fractions are positive and leave something for test,
    and if there are too few messages to put one in each part.
    """
    first, second = _cuts(len(table), train, validation)
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    table = table.assign(target=table["label"].map(LABELS))
    parts = (table[:first], table[first:second], table[second:])
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


# --- messages that stand more than once -------------------------------------------------


def normalise(texts: pd.Series) -> pd.Series:
    """Texts without what copies of a message differ in: case, digits, punctuation, spaces."""
    return texts.str.lower().str.replace(r"[\W\d_]+", " ", regex=True).str.strip()


def stands_in(texts: pd.Series, others: pd.Series, normalised: bool = False) -> pd.Series:
    """For each text whether it also stands in `others`: verbatim, or after normalising both."""
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
    table: pd.DataFrame, train: float = 0.7, validation: float = 0.1, seed: int = SEED
) -> dict[str, pd.DataFrame]:
    """As `random_split`, but near-duplicates (`near_duplicates`) stay together in one of the sets.

    Large groups are placed first, each in a set drawn by the room that is left; single
    messages fill up the rest, so that the sizes are those of `random_split` wherever the
    groups allow it. Raises ValueError as `random_split` does.
    """
    first, second = _cuts(len(table), train, validation)
    room = np.diff([0, first, second, len(table)])
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    table = table.assign(target=table["label"].map(LABELS))
    group = near_duplicates(table["text"])
    sizes = np.bincount(group)
    draw, home = np.random.default_rng(seed), np.empty(len(sizes), dtype=int)
    for g in np.argsort(-sizes, kind="stable"):
        fits = np.where(room >= sizes[g], room, 0)
        home[g] = draw.choice(3, p=fits / fits.sum()) if fits.any() else room.argmax()
        room[home[g]] -= sizes[g]
    return {name: table[home[group] == i].reset_index(drop=True) for i, name in enumerate(SPLITS)}


def at_true_share(
    table: pd.DataFrame, splits: dict[str, pd.DataFrame], seed: int = SEED
) -> pd.DataFrame:
    """The test messages, and as much unused ham as makes spam as rare as it is in `table`.

    Unused is ham that, normalised, stands in none of the three sets. Raises ValueError if
    there is too little of it.
    """
    known = pd.concat([part["text"] for part in splits.values()])
    ham = table[table["label"] == "ham"]
    unused = ham[~stands_in(ham["text"], known, normalised=True)]
    test, share = splits["test"], (table["label"] == "spam").mean()
    spam = (test["label"] == "spam").sum()
    needed = round(spam / share) - len(test)
    if not 0 <= needed <= len(unused):
        raise ValueError(
            f"{needed:,} more ham messages would make {spam:,} spam {share:.1%} of the test set; "
            f"there are {len(unused):,}"
        )
    more = unused.sample(needed, random_state=seed).assign(target=LABELS["ham"])
    return pd.concat([test, more], ignore_index=True)


def split_folder() -> Path:
    """Where the three CSV files of the workspace lie."""
    return workspace() / "sms"


def save_splits(
    splits: dict[str, pd.DataFrame], data_name: str, folder: Path | None = None
) -> Path:
    """Write train.csv, validation.csv, test.csv and what they were made of; returns the folder.

    Raises ValueError for a NUL character on Python 3.10, which cannot write it.
    """
    folder = folder or split_folder()
    with ExitStack() as stack:  # the three are moved into place together, once all are written
        for name in SPLITS:
            temporary = stack.enter_context(atomic(folder / f"{name}.csv"))
            try:
                splits[name].to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
            except csv.Error as error:
                raise ValueError(
                    f"{name}.csv cannot be written ({error}): use Python 3.11 or newer, or remove "
                    "the NUL characters from the messages"
                ) from error
        (folder / "source.json").unlink(missing_ok=True)  # comes last: none, no set of three
    write_json(folder / "source.json", {"data": data_name})
    return folder


def split_source(folder: Path | None = None) -> str:
    """What the saved splits were made of: "collection" or "sample"."""
    return read_json((folder or split_folder()) / "source.json")["data"]


def load_splits(folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """The three tables that notebook 01 saved.

    Raises FileNotFoundError that says what to run if one of them is missing, ValueError if
    one is not a table of label, text and target.
    """
    folder = folder or split_folder()
    files = {name: folder / f"{name}.csv" for name in SPLITS}
    missing = [path.name for path in (*files.values(), folder / "source.json") if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not in {show_path(folder)} yet: "
            "run notebook 01_download_balance_split first (`make run` runs them all)"
        )
    return {name: _load_split(path) for name, path in files.items()}


def _load_split(path: Path) -> pd.DataFrame:
    """One saved table; ValueError if it is none."""
    try:
        table = pd.read_csv(path, **AS_TEXT)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
        table = pd.DataFrame()
    good = (
        {"label", "text", "target"} <= set(table.columns)
        and not table.empty
        and pd.api.types.is_integer_dtype(table["target"])
        and table["target"].min() >= 0
    )
    if not good:
        columns = ", ".join(map(str, table.columns)) or "nothing"
        raise ValueError(
            f"{show_path(path)} must be a CSV file with the columns label, text and target (0, 1 "
            f"…), and has {len(table):,} rows of {columns:.80}: "
            "run notebook 01_download_balance_split again, or mend it"
        )
    return table


def make_splits() -> dict[str, pd.DataFrame]:
    """What notebook 01 does, in one call: load, balance, split and save."""
    data_name, path = source()
    splits = random_split(balance(load(path)))
    save_splits(splits, data_name)
    return splits
