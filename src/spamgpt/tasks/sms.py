"""The SMS Spam Collection.

Source: Almeida, Gómez Hidalgo and Yamakami, "Contributions to the study of SMS spam
filtering: new collection and results", DocEng 2011, https://doi.org/10.1145/2034691.2034742
"""

from pathlib import Path

import pandas as pd

from spamgpt.files import assets
from spamgpt.files.stand_ins import Choice
from spamgpt.files.workspace import SAMPLE, show_path
from spamgpt.tasks.task import AS_TEXT, Task

LABEL_NAMES = ("ham", "spam")
FORM = "each line must be a label, a tab and the message"
CHOICE = Choice(
    key="data",
    real="collection",
    stand_in="sample",
    files=("sms",),
    notice="DATA: the bundled sample replaces the SMS Spam Collection.",
    consequence="Everything works; figures differ from the lecture's.",
)


def source() -> tuple[str, Path]:
    """("collection" or "sample", path of its file): the collection whenever it can be had.

    Says so in a notice if it cannot, and remembers the decision for the workspace.
    """
    name = CHOICE.decide()
    return name, SAMPLE if name == "sample" else assets.fetch("sms")


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
    wrong = ~table["label"].isin(LABEL_NAMES)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        hint = "if it is a header line, delete it; " if row == 0 and wrong.sum() == 1 else ""
        raise ValueError(
            f"{name}: row {row + 1:,} has the label {table['label'][row]!r:.40}, which is neither "
            f"'ham' nor 'spam' ({wrong.sum():,} of {len(table):,} rows are like that): {hint}{FORM}"
        )
    if not table["text"].any():
        raise ValueError(f"{name} has labels, but no messages beside them: {FORM}")
    if missing := set(LABEL_NAMES) - set(table["label"]):
        raise ValueError(
            f"all {len(table):,} messages of {name} are labelled {table['label'][0]!r}: "
            f"a classifier needs some of {missing.pop()!r} too"
        )


TASK = Task(
    name="sms",
    label_names=LABEL_NAMES,
    positive="spam",
    source=source,
    load=load,
    data_names={"collection": "SMS Spam Collection", "sample": "bundled sample"},
)
