"""What a learner's file of messages, or a message, may have wrong with it."""

import errno
import os

import pandas as pd
import pytest

from spamgpt.batches import Messages, encode
from spamgpt.inference import classify
from spamgpt.objectives import loss_and_accuracy
from spamgpt.tasks import sms
from spamgpt.tasks.sms import LABEL_NAMES, TASK
from spamgpt.tasks.splits import balance, random_split

GOOD = [["ham", "hello"], ["spam", "win"]]
FORM = "each line must be a label, a tab and the message"


@pytest.fixture
def load(tmp_path):
    """load(content) are the rows that `sms.load` makes of a file with these bytes."""

    def load(content):
        path = tmp_path / "messages.tsv"
        path.write_bytes(content)
        return sms.load(path).to_numpy().tolist()

    return load


def refused(call, *args):
    """The message of the ValueError: one line, which a learner reads to its end."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    message = str(caught.value)
    assert type(caught.value) is ValueError  # and not a library's own, with its own words
    assert "\n" not in message and len(message) < 300
    return message


# --- files that are read all the same -------------------------------------------------


def test_a_copy_with_windows_line_ends(load):
    assert load(b"ham\thello\r\nspam\twin\r\n") == GOOD


def test_a_copy_with_old_macintosh_line_ends(load):
    assert load(b"ham\thello\rspam\twin\r") == GOOD


def test_a_byte_order_mark(load):
    assert load(b"\xef\xbb\xbfham\thello\nspam\twin\n") == GOOD


def test_no_line_end_at_the_end(load):
    assert load(b"ham\thello\nspam\twin") == GOOD


def test_blank_lines_between(load):
    assert load(b"ham\thello\n\n\nspam\twin\n\n") == GOOD


def test_messages_in_quotation_marks(load):
    assert load(b'ham\t"hello"\nspam\t"win"\n') == GOOD


def test_a_quoted_message_over_two_lines(load):
    assert load(b'ham\t"hel\nlo"\nspam\twin\n') == [["ham", "hel\nlo"], ["spam", "win"]]


def test_quotation_marks_inside_a_message(load):
    assert load(b'ham\tsay "hi"\nspam\twin a 7" pizza\n') == [
        ["ham", 'say "hi"'],
        ["spam", 'win a 7" pizza'],
    ]


def test_duplicate_rows_are_all_kept(load):
    assert load(b"ham\thello\nham\thello\nspam\twin\n") == [GOOD[0], *GOOD]


def test_a_message_that_is_empty_after_stripping(load, trained_classifier):
    """It is a message all the same: one <|endoftext|> at least, so that it has a last token."""
    rows = load(b"ham\t   \nham\t\nspam\twin\n")
    assert [text for _, text in rows] == ["   ", "", "win"]
    messages = Messages([text for _, text in rows], [0, 0, 1], trained_classifier.tokenizer, 64)
    assert min(map(len, messages.ids)) >= 1
    loss, _ = loss_and_accuracy(trained_classifier, messages)
    assert loss > 0


def test_a_nul_in_a_message(load):
    assert load(b"ham\the\0llo\nspam\twin\n") == [["ham", "he\0llo"], ["spam", "win"]]


# --- files that are refused -----------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n\n", b" "], ids=["nothing", "line ends", "a space"])
def test_an_empty_file(content, load):
    assert refused(load, content) == f"messages.tsv holds no messages: {FORM}"


def test_a_header_line(load):
    message = refused(load, b"label\ttext\nham\thello\nspam\twin\n")
    assert "row 1 has the label 'label'" in message and "(1 of 3 rows" in message
    assert "header line, delete it" in message


def test_an_unknown_label(load):
    message = refused(load, b"ham\thello\nspam\twin\neggs\tand bacon\n")
    assert "row 3 has the label 'eggs'" in message and "(1 of 3 rows" in message
    assert "header" not in message


def test_labels_in_capitals(load):
    assert "'HAM', which is neither 'ham' nor 'spam' (2 of 2" in refused(
        load, b"HAM\thello\nSPAM\twin\n"
    )


def test_commas_in_place_of_tabs(load):
    message = refused(load, b"ham,hello\nspam,win\n")
    assert "'ham,hello'" in message and message.endswith(FORM)


@pytest.mark.parametrize("label, other", [("ham", "spam"), ("spam", "ham")])
def test_one_class_only(label, other, load):
    content = f"{label}\ta\n{label}\tb\n".encode()
    assert refused(load, content) == (
        f"all 2 messages of messages.tsv are labelled '{label}': "
        f"a classifier needs some of '{other}' too"
    )


def test_a_missing_column(load):
    assert "has labels, but no messages" in refused(load, b"ham\nspam\nham\n")


@pytest.mark.parametrize("content", [b"1\tham\thello\n2\tspam\twin\n", b"ham\ta\tb\nspam\tc\td\n"])
def test_a_column_too_many(content, load):
    assert "more than two columns" in refused(load, content)


def test_a_tab_in_one_message(load):
    assert "Expected 2 fields in line 2, saw 3" in refused(load, b"ham\thello\nspam\twin\tnow\n")


def test_a_quotation_mark_that_is_never_closed(load):
    message = refused(load, b'ham\thello\nspam\t"win\nham\tbye\n')
    assert "a quotation mark that is never closed, starting at row 1" in message


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding(encoding, load):
    message = refused(load, "ham\thellö\nspam\twin £100\n".encode(encoding))
    assert message.startswith("messages.tsv is not UTF-8 text") and "save it as UTF-8" in message


def test_thousands_of_wrong_rows_make_one_short_sentence(load):
    assert "(5,000 of 5,000 rows" in refused(load, b"%s\n" % b"\n".join([b"x" * 900] * 5000))


# --- balance and split ----------------------------------------------------------------


def table(n_ham, n_spam):
    labels = ["ham"] * n_ham + ["spam"] * n_spam
    return pd.DataFrame({"label": labels, "text": [f"message {i}" for i in range(len(labels))]})


def test_fewer_ham_than_spam():
    """Then it is the spam that is drawn from."""
    balanced = balance(table(3, 5), LABEL_NAMES)
    assert balanced["label"].value_counts().to_dict() == {"ham": 3, "spam": 3}
    assert balanced["text"].tolist()[:3] == ["message 0", "message 1", "message 2"]


def test_no_spam_to_balance():
    message = refused(balance, table(4, 0), LABEL_NAMES)
    assert message == "there is no spam among 4 messages: nothing to balance"


@pytest.mark.parametrize(
    "train, validation, total",
    [(0.9, 0.1, "1"), (0.7, 0.4, "1.1"), (70, 10, "80"), (0.7, -0.1, "0.6"), (0, 0.5, "0.5")],
)
def test_fractions_that_do_not_add_up(train, validation, total):
    message = refused(random_split, table(50, 50), LABEL_NAMES, train, validation)
    assert message.endswith(f"they add up to {total}")


def test_too_few_messages_for_three_parts():
    message = refused(random_split, table(2, 2), LABEL_NAMES)
    assert message == "4 messages are too few: train, validation and test would get 2, 0, 2"


def test_duplicate_rows_survive_balance_and_split():
    doubled = pd.concat([table(20, 20)] * 2, ignore_index=True)
    parts = TASK.split(doubled)
    assert (pd.concat(parts.values())["text"].value_counts() == 2).all()


@pytest.mark.slow
def test_a_million_messages(tmp_path):
    path = tmp_path / "large.tsv"
    row = "{}\tmessage number {} of very many, see you at home or win a prize\n"
    with path.open("w") as file:
        file.writelines(row.format("spam" if i % 4 == 0 else "ham", i) for i in range(1_000_000))
    splits = TASK.split(sms.load(path))
    TASK.save_splits(splits, "sample")
    assert {name: len(part) for name, part in TASK.load_splits().items()} == {
        "train": 350_000,
        "validation": 50_000,
        "test": 100_000,
    }


# --- the saved splits -----------------------------------------------------------------


@pytest.fixture
def saved():
    return TASK.save_splits(random_split(table(20, 20), LABEL_NAMES), "sample")


@pytest.mark.parametrize(
    "content",
    ["", "text\nhello\n", "label,text,target\n", "label,text,target\nham,hello,no\n", "\0\0", '"'],
    ids=["empty", "column missing", "no rows", "no number", "zeros", "torn"],
)
def test_a_damaged_split_is_named_with_its_columns(content, saved):
    (saved / "validation.csv").write_text(content)
    message = refused(TASK.load_splits)
    assert "sms/validation.csv must be a CSV file with the columns label, text" in message
    assert "run notebook 01_download_balance_split again, or mend it" in message


@pytest.mark.parametrize("moved", [0, 1, 2, 3, 4])
def test_saving_that_is_killed_midway_never_mixes_two_data_sets(moved, saved, monkeypatch):
    """Else train might hold messages that test of the other data set holds too.

    The list of what was written is moved first, source.json last.
    """
    before = TASK.load_splits()
    replace, moves = os.replace, iter(range(moved))

    def killed(source, target):
        if next(moves, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            TASK.save_splits(random_split(table(30, 30), LABEL_NAMES), "collection")
    if moved == 0:
        assert TASK.load_splits()["test"].equals(before["test"])
    else:
        with pytest.raises(FileNotFoundError, match=r"source\.json is not in .* run notebook 01"):
            TASK.load_splits()
    TASK.save_splits(before, "sample")
    assert TASK.load_splits()["test"].equals(before["test"])


def test_saving_to_a_full_disk_leaves_the_old_splits(saved, monkeypatch):
    before = TASK.load_splits()
    texts = iter(["train.csv", "validation.csv"])
    to_csv = pd.DataFrame.to_csv

    def full(self, *args, **kwargs):
        if next(texts, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return to_csv(self, *args, **kwargs)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left"):
        TASK.save_splits(random_split(table(30, 30), LABEL_NAMES), "collection")
    assert all(part.equals(before[name]) for name, part in TASK.load_splits().items())
    assert TASK.split_source() == "sample"


# --- messages to classify -------------------------------------------------------------

ODD_TEXTS = {
    "lone surrogates": "win \ud800 a \udfff prize",
    "NUL": "win\0 a prize\0",
    "right to left": "مبروك لقد ربحت جائزة \u202eabc\u202c שלום",
    "emoji": "🎉👩‍👩‍👧🇮🇪👍🏽" * 5,
    "combining marks": "e" + "\u0301" * 60,
    "private use": "\ue000\U0010ffff\ufffe",
    "spaces only": " \t\r\n\u00a0\u2003",
    "special token": "<|endoftext|>" * 3,
    "nothing": "",
}


@pytest.mark.filterwarnings("ignore:message 0 has")  # the emoji make more tokens than fit
@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_an_odd_message_gets_a_label_and_leaves_its_neighbours_alone(text, trained_classifier):
    plain = "see you at home"
    (alone,) = classify(trained_classifier, [plain])
    odd, beside = classify(trained_classifier, [text, plain])
    assert odd.label in ("ham", "spam") and 0.5 <= odd.probability <= 1
    assert beside.label == alone.label
    assert beside.probability == pytest.approx(alone.probability, abs=1e-5)


@pytest.mark.parametrize("character", ["a", "😀", "\0", "é", "1", "'"], ids=repr)
def test_a_line_of_100_000_characters(character, trained_classifier):
    text = character * 99_999 + "x"
    n_tokens = len(encode([text], trained_classifier.tokenizer)[0])
    with pytest.warns(UserWarning, match=rf"message 0 has {n_tokens:,} tokens, the model reads 64"):
        (prediction,) = classify(trained_classifier, [text])
    assert 0.5 <= prediction.probability <= 1


@pytest.mark.parametrize("character", [" ", "\n", "\u200b"], ids=repr)
def test_a_line_of_100_000_characters_that_say_nothing(character, trained_classifier):
    (expected, found) = classify(trained_classifier, ["x", character * 99_999 + "x"])
    assert found == expected
