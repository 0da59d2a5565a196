"""A task: label names, where its texts come from, how they are balanced and split, and kept.

`sms.TASK` is the lecture's. `Task.from_csv` makes one of a file of your own.
"""

import csv
import hashlib
import io
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from spamgpt.files.messages import SEPARATORS, decode, encoding_of, separator_of
from spamgpt.files.workspace import atomic, read_json, show_path, workspace, write_json
from spamgpt.tasks.splits import SPLITS, Splits, balance, random_split, stratified_split

# "NA" and "0800" are messages, not a missing value and a number.
AS_TEXT = {"keep_default_na": False, "dtype": {"label": str, "text": str}}
WRITTEN = "written.json"  # beside the splits: the digests of all that was ever written there
OWN = "own"  # the folder, in the workspace, of tasks made by `Task.from_csv`


@dataclass(frozen=True)
class Task:
    """What is to be learned from which texts.

    `label_names[i]` is the name of class i; `positive` is the label that is looked for, where
    there is one (thresholds, precision and recall ask for it). `source()` says which data
    can be had, as (name, path of the file), `load(path)` reads a file into a table with the
    columns label and text, `data_names` has each name for people. `splitter` cuts a table
    in three; `balanced` says whether as many messages of each label are drawn before.
    """

    name: str
    label_names: tuple[str, ...]
    source: Callable[[], tuple[str, Path]]
    load: Callable[[Path], pd.DataFrame]
    data_names: dict[str, str]
    positive: str | None = None
    balanced: bool = True
    splitter: Callable[..., Splits] = random_split
    folder_of: Callable[[], Path] | None = field(default=None, compare=False)
    made_by: str = "notebook 01_download_balance_split"

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        text: str = "text",
        label: str = "label",
        name: str | None = None,
        positive: str | None = None,
        balanced: bool = False,
    ) -> "Task":
        """A task of your own: a CSV file with a column of texts and one of labels.

        The file is only read. Splits are kept in the workspace under own/NAME (default: the
        file's name), where no notebook writes and `make clean` deletes nothing. Labels are
        numbered in alphabetical order; the split is stratified.

        Raises FileNotFoundError, or ValueError that says what is wrong with the table.
        """
        path = Path(path)

        def load(path: Path) -> pd.DataFrame:
            return read_csv(path, text, label)

        label_names = tuple(sorted(set(load(path)["label"])))
        name = name or path.stem
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name = {name!r}: use letters, digits, - and _ only")
        if positive is not None and positive not in label_names:
            raise ValueError(
                f"positive = {positive!r} is none of the labels ({', '.join(label_names)})"
            )
        return cls(
            name=name,
            label_names=label_names,
            source=lambda: (path.name, path),
            load=load,
            data_names={path.name: path.name},
            positive=positive,
            balanced=balanced,
            splitter=stratified_split,
            folder_of=lambda: workspace() / OWN / name,
            made_by=f"Task.from_csv({path.name!r}, …).make_splits()",
        )

    @property
    def labels(self) -> dict[str, int]:
        """The number of each label."""
        return {name: i for i, name in enumerate(self.label_names)}

    @property
    def positive_class(self) -> int:
        """The number of the label that is looked for; ValueError if there is none."""
        if self.positive is None:
            raise ValueError(f"the task {self.name!r} has no positive label: name one")
        return self.labels[self.positive]

    @property
    def folder(self) -> Path:
        """Where the workspace keeps the three CSV files."""
        return self.folder_of() if self.folder_of else workspace() / self.name

    def split(self, table: pd.DataFrame) -> Splits:
        """Balance (if the task does) and cut: train, validation and test."""
        if self.balanced:
            table = balance(table, self.label_names)
        return self.splitter(table, self.label_names)

    def make_splits(self) -> Splits:
        """Load, balance, split and save, in one call."""
        data_name, path = self.source()
        splits = self.split(self.load(path))
        self.save_splits(splits, data_name)
        return splits

    # --- kept as files -------------------------------------------------------------------

    def save_splits(self, splits: Splits, data_name: str) -> Path:
        """Write train.csv, validation.csv, test.csv and what they were made of; their folder.

        Files that somebody has put or changed there are never overwritten: ValueError. So is a
        NUL character on Python 3.10, which cannot write it.
        """
        folder = self.folder
        if foreign := foreign_files(folder):
            raise ValueError(
                f"{show_path(folder)} holds files that this series did not write, or that were "
                f"changed since ({', '.join(foreign)}); they are left as they are. To train on "
                'data of your own see README, "Your own data"; to have the files written '
                "again, move these elsewhere first"
            )
        digests = []
        with ExitStack() as stack:  # the three are moved into place together, once all are written
            for name in SPLITS:
                temporary = stack.enter_context(atomic(folder / f"{name}.csv"))
                try:
                    splits[name].to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
                except csv.Error as error:
                    raise ValueError(
                        f"{name}.csv cannot be written ({error}): use Python 3.11 or newer, or "
                        "remove the NUL characters from the messages"
                    ) from error
                digests.append(_digest(temporary))
            # Before they are moved: a process killed between leaves files that are known as ours.
            known = {*digests, *_written(folder), *map(_digest, folder.glob("*.csv"))}
            write_json(folder / WRITTEN, {"sha256": sorted(known)})
            (folder / "source.json").unlink(missing_ok=True)  # comes last: none, no set of three
        write_json(folder / "source.json", {"data": data_name})
        return folder

    def split_source(self) -> str:
        """What the saved splits were made of: a key of `data_names`."""
        return read_json(self.folder / "source.json")["data"]

    def load_splits(self) -> Splits:
        """The three saved tables.

        Raises FileNotFoundError that says what to run if one of them is missing, ValueError if
        one is not a table of label, text and target.
        """
        files = {name: self.folder / f"{name}.csv" for name in SPLITS}
        needed = (*files.values(), self.folder / "source.json")
        if missing := [path.name for path in needed if not path.exists()]:
            raise FileNotFoundError(
                f"{missing[0]} is not in {show_path(self.folder)} yet: run {self.made_by} first"
                + (" (`make run` runs them all)" if self.folder_of is None else "")
            )
        return {name: self._load_split(path) for name, path in files.items()}

    def _load_split(self, path: Path) -> pd.DataFrame:
        """One saved table; ValueError if it is none."""
        try:
            table = pd.read_csv(path, **AS_TEXT)
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
            table = pd.DataFrame()
        good = (
            {"label", "text", "target"} <= set(table.columns)
            and not table.empty
            and pd.api.types.is_integer_dtype(table["target"])
            and table["target"].isin(range(len(self.label_names))).all()
        )
        if not good:
            if found := _saved_otherwise(path):
                raise ValueError(
                    f"{show_path(path)} was saved by another program {found}: save it with commas "
                    'and in UTF-8 (spreadsheets call that "CSV UTF-8"), or move it away and run '
                    f"{self.made_by} again"
                )
            columns = ", ".join(map(str, table.columns)) or "nothing"
            raise ValueError(
                f"{show_path(path)} must be a CSV file with the columns label, text and target (0 "
                f"to {len(self.label_names) - 1}), and has {len(table):,} rows of {columns:.80}: "
                f"run {self.made_by} again, or mend it"
            )
        return table


def _saved_otherwise(path: Path) -> str:
    """How a CSV file differs from those that are written here, "" if it does not."""
    data = path.read_bytes()
    encoding = encoding_of(data) or "utf-8"
    separator = separator_of(data.decode(encoding, "replace").partition("\n")[0])
    found = [] if encoding == "utf-8" else [f"as {encoding.upper()}"]
    found += [] if separator == "," else [f"with {SEPARATORS[separator]}s between the columns"]
    return " and ".join(found)


def read_csv(path: Path, text: str, label: str) -> pd.DataFrame:
    """The columns `label` and `text` of a CSV file whose columns may have other names.

    They may be separated by commas, semicolons or tabs. The encoding is found out; a guess is a
    warning. Raises FileNotFoundError, or ValueError that says what is wrong with the table.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    columns = f"it must be a CSV file with a header and the columns {label!r} and {text!r}"
    content = decode(path.read_bytes(), path.name, warnings.warn)
    separator = separator_of(content.partition("\n")[0])
    try:
        table = pd.read_csv(io.StringIO(content), sep=separator, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise ValueError(f"{path.name} cannot be read ({reason}): {columns}") from None
    if not table.index.equals(pd.RangeIndex(len(table))):  # pandas took a column for the index
        raise ValueError(
            f"{path.name} has rows with more fields than its header has columns: put quotation "
            f"marks around texts that hold a {SEPARATORS[separator]}"
        )
    if missing := [name for name in (label, text) if name not in table]:
        found = ", ".join(map(repr, table.columns))
        raise ValueError(f"{path.name} has no column {missing[0]!r}, only {found:.200}: {columns}")
    table = table[[label, text]].set_axis(["label", "text"], axis=1)
    table["label"] = table["label"].str.strip()
    if (empty := (table["label"] == "")).any():
        raise ValueError(
            f"{path.name}: row {int(empty.to_numpy().argmax()) + 1:,} has no label "
            f"({empty.sum():,} of {len(table):,} rows are like that): give them one, or leave "
            "them out"
        )
    names = sorted(set(table["label"]))
    if len(names) < 2:
        raise ValueError(
            f"{path.name} has {len(table):,} rows and {len(names)} labels ({', '.join(names)}): a "
            "classifier needs two or more"
        )
    return table


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _written(folder: Path) -> list[str]:
    """The digests of what was written to a folder of splits; none if there is no such list."""
    try:
        return read_json(folder / WRITTEN)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def foreign_files(folder: Path) -> list[str]:
    """The CSV files in a folder of splits that this series did not write as they are now.

    Before version 0.2 no list of digests was kept: there, what is younger than source.json.
    """
    files = sorted(folder.glob("*.csv"))
    if (folder / WRITTEN).exists():
        known = set(_written(folder))
        return [path.name for path in files if _digest(path) not in known]
    source = folder / "source.json"
    since = source.stat().st_mtime if source.exists() else 0
    return [path.name for path in files if path.stat().st_mtime > since]
