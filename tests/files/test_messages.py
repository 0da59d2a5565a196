"""Bytes become the text that was written, or one sentence says why not."""

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spamgpt.files.messages import (
    LONGEST,
    PORTION,
    decode,
    decoded,
    encoding_of,
    read_messages,
    separator_of,
)

TEXT = "Win £900 now\nça va? À bientôt\n"
LANGUAGES = {
    "cp1252": "Schöne Grüße! “Ça va?” – £900, 5 €\nnaïve café\n",
    "latin-1": "Schöne Grüße! £900\n",
    "cp1251": "Привет, как дела? Позвони мне завтра вечером\n",
    "koi8-r": "Привет, как дела? Позвони мне завтра вечером\n",
    "cp1253": "Καλημέρα, πώς είσαι σήμερα φίλε μου\n",
    "shift_jis": "こんにちは、元気ですか？明日また電話してください\n",
}


class Trickle(io.RawIOBase):
    """A stream that gives one piece at a time, as a pipe does; `asked` counts."""

    def __init__(self, *pieces):
        self.pieces, self.asked = list(pieces), 0

    def read1(self, size=-1):
        self.asked += 1
        return self.pieces.pop(0) if self.pieces else b""


def read(data, form="text", **more):
    """(messages, what was said); the portions joined."""
    said = []
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    portions = read_messages(stream, "in", said.append, form, **more)
    return [text for portion in portions for text in portion], said


def until_error(data, form="text", **more):
    """(the messages before the error, its sentence)."""
    found = []
    with pytest.raises(ValueError) as error:
        for portion in read_messages(io.BytesIO(data), "in", lambda text: None, form, **more):
            found += portion
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return found, str(error.value)


# --- encodings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"]
)
@pytest.mark.parametrize("text", [TEXT, "hi\n", "Привет всем £\n", "🎁 free\n"])
def test_unicode_in_every_form_is_read_as_it_was_written(encoding, text):
    lines, said = read(text.encode(encoding))
    assert "\n".join(lines) + "\n" == text
    assert len(said) == (encoding in ("utf-16-le", "utf-16-be", "utf-32-be"))  # no mark: said


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-32-be"])
def test_the_other_byte_order(codec):
    assert read("\ufeffhi ü".encode(codec)) == (["hi ü"], [])


@pytest.mark.parametrize("encoding", LANGUAGES)
def test_another_encoding_is_found_and_said(encoding):
    text = LANGUAGES[encoding]
    messages, said = read(text.encode(encoding), remedy="REMEDY")
    assert "\n".join(messages) + "\n" == text
    assert len(said) == 1 and "is not UTF-8; taken for" in said[0] and "REMEDY" in said[0]


def test_a_last_letter_that_could_begin_a_character_of_utf8():
    messages, said = read("Un café".encode("latin-1"))
    assert messages == ["Un café"] and "cp1252" in said[0]


@pytest.mark.parametrize(
    "data", ["Да\n".encode("cp1251") * 30, "今日は".encode("cp932"), b"\xff\x80x"]
)
def test_what_cannot_be_told_is_one_sentence_not_a_guess(data):
    found, error = until_error(b"first\n" + data)
    assert found == ["first"]
    assert error.startswith("in: line 2 is not UTF-8") and "cannot be told" in error


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *(("cp1251", "cp1251"), ("cp037", "cp037"), ("utf-8", "UTF8"), ("utf-8-sig", "utf-8")),
        *(("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"), ("utf-16", "utf-16-le")),
        *(("utf-16", "utf-16"), ("utf-32", "utf-32")),
    ],
)
def test_an_encoding_that_is_named_is_used(encoding, name):
    assert read("Да, ok\nно".encode(encoding, "replace"), encoding=name)[1] == []
    assert read("yes\nno".encode(encoding), encoding=name) == (["yes", "no"], [])


@pytest.mark.parametrize("name", ["utf-9", "hex", "rot13", "", "a\0b"])
def test_an_encoding_that_does_not_exist_is_said(name):
    assert "there is no encoding" in until_error(b"hi", encoding=name)[1]


def test_bytes_that_do_not_fit_the_named_encoding_end_it_after_what_was_before():
    found, error = until_error(b"one\ntwo\nthr\xffe\n", encoding="ascii")
    assert found == ["one", "two"] and error.startswith("in: line 3 is not ASCII (byte 0xff)")


def test_a_line_that_is_not_utf8_like_those_before_ends_it():
    """It is not decoded in another way than the rest: it names the line, and nothing is lost."""
    found, error = until_error("sch\u00f6n\n\u00a3\n".encode() + b"caf\xe9\nrest\n")
    assert found == ["schön", "£"]
    assert error == "in: line 3 is not UTF-8 (byte 0xe9): save it as UTF-8"


def test_ascii_lines_before_do_not_decide():
    """Most text begins with a thousand lines of ASCII, whatever its encoding."""
    data = b"plain\n" * 100_000 + "café £5\n".encode("latin-1")
    messages, said = read(data)
    assert messages[-1] == "café £5" and len(messages) == 100_001 and "cp1252" in said[0]
    assert read(b"plain\n" * 100_000 + "café £5\n".encode()) == (messages, [])


@pytest.mark.parametrize("data", [b"a\0b c\n", b"two\0words\0\n", b"ok\n\0\n", "\0ü".encode()])
def test_nul_is_no_text(data):
    assert "NUL character" in until_error(data)[1]


def test_lines_before_a_nul_are_kept_and_its_line_is_named():
    found, error = until_error(b"one\ntwo\nx\0y\nfour\n")
    assert found == ["one", "two"] and "line 3 holds a NUL" in error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_any_cut_into_pieces_gives_the_same_text(encoding):
    data = TEXT.encode(encoding)
    for size in (1, 2, 3, 5, 7):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert "".join(decoded(pieces, "in", lambda text: None)) == TEXT, size


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example("\ufeff")
@example("þÿ")
def test_utf8_is_never_taken_for_anything_else(text):
    said = []
    assert decode(text.encode(), "in", said.append) == text.removeprefix("\ufeff")
    assert said == []


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_one_sentence(data):
    try:
        decode(data, "in", lambda text: None)
    except ValueError as error:
        assert str(error).startswith("in: line ") and "\n" not in str(error)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_encoding_of_a_whole_file(encoding):
    found = encoding_of(TEXT.encode(encoding))
    assert TEXT.encode(encoding).decode(found).lstrip("\ufeff") == TEXT
    assert encoding_of(bytes(range(256))) is None


# --- lines ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end(end):
    text = end.join(["one", "", " two ", "three\x0bfour\u2028five"])
    expected = ["one", "", " two ", "three\x0bfour\u2028five"]
    assert read(text.encode())[0] == expected
    assert read((text + end).encode())[0] == expected
    assert read(Trickle(*(bytes([b]) for b in text.encode())))[0] == expected


def test_nothing_is_no_message():
    assert [read(b"", form)[0] for form in ("text", "jsonl")] == [[], []]


def test_what_is_there_is_given_before_more_is_asked_for():
    stream = Trickle(b"first\n", b"sec", b"ond\nthird\n", b"no end")
    portions = read_messages(stream, "in", lambda text: None)
    assert next(portions) == ["first"] and stream.asked == 1
    assert next(portions) == ["second", "third"] and stream.asked == 3
    assert list(portions) == [["no end"]]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_other_lines_than_ascii_are_not_held_back_either(encoding):
    stream = Trickle("plain\ncafé\n".encode(encoding), b"third\n")
    portions = read_messages(stream, "in", lambda text: None)
    assert next(portions) == ["plain"] and next(portions) == ["café"] and stream.asked == 1


def test_json_lines_are_given_as_they_come():
    stream = Trickle(b'{"text": "a"}\n', b'"b"\n')
    portions = read_messages(stream, "in", lambda text: None, "jsonl")
    assert next(portions) == ["a"] and stream.asked == 1


@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_portions_are_no_larger_than_one_batch_of_work(form):
    texts = [f"message {i}" for i in range(3 * PORTION + 5)]
    lines = {"csv": ["text", *texts], "jsonl": [json.dumps(text) for text in texts]}
    data = "\n".join(lines.get(form, texts)).encode()
    portions = list(read_messages(io.BytesIO(data), "in", lambda text: None, form))
    assert [text for portion in portions for text in portion] == texts
    assert all(0 < len(portion) <= PORTION for portion in portions)


def test_a_line_without_end_takes_no_more_memory_than_its_limit():
    stream = Trickle(*[b"x" * 65536] * 100)
    portions = read_messages(stream, "in", lambda text: None)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"line 1 has more than {LONGEST:,} characters"):
        list(portions)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * LONGEST and stream.pieces


def test_a_stream_without_end_stays_flat_in_memory():
    stream, left = Trickle(), iter(range(40, 0, -1))
    stream.read1 = lambda size: b"message\n" * 8192 if next(left, 0) else b""
    tracemalloc.start()
    n = sum(len(portion) for portion in read_messages(stream, "in", lambda text: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 40 * 8192 and peak < 5_000_000


def test_lines_before_one_that_is_too_long_are_kept():
    found, error = until_error(b"one\n" + b"x" * (LONGEST + 1) + b"\nthree\n")
    assert found == ["one"] and error.startswith("in: line 2 has more than")
    assert read(b"x" * (LONGEST - 1) + b"\n")[0] == ["x" * (LONGEST - 1)]


def test_a_stream_that_cannot_be_read_is_named():
    stream = Trickle()

    def fail(size):
        raise OSError(5, "Input/output error")

    stream.read1 = fail
    with pytest.raises(OSError, match=r"^in cannot be read \(Input/output error\)$"):
        read(stream)


# --- tables ---------------------------------------------------------------------------

ODD = ["", "a, b", 'say "hi"', "two\nlines", "two\r\nlines", "a\rb", "tab\there", "; ;", " x ", "ü"]


def table(texts, header=("id", "text"), **dialect):
    out = io.StringIO(newline="")
    rows = csv.writer(out, **dialect)
    rows.writerows([header, *((i, text) for i, text in enumerate(texts))])
    return out.getvalue().encode()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_text_of_a_table_stays_as_it_is(delimiter, end):
    data = table(ODD, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    messages, said = read(data, "csv")
    assert messages == ODD and said == ["in: the messages are read from the column 'text'"]
    assert read(data.replace(b"text", b"note"), "csv", column="note") == (ODD, [])


def test_tab_separated():
    assert read(b"label\tsms\nham\ta, b; c\n", "tsv")[0] == ["a, b; c"]


def test_a_table_in_another_encoding():
    data = b"v1,v2,,,\r\nham,caf\xe9 \xa35,,,\r\n\r\nspam,win,,,\r\n"
    messages, said = read(data, "csv")
    assert messages == ["café £5", "win"]
    assert "cp1252" in said[1] and "'v2'" in said[0]


REFUSED = {
    "two columns that could be it": (b"text,message\na,b\n", None, "say with --column"),
    "none that is obvious": (b"a,b\n1,2\n", None, "has the columns 'a', 'b': say with --column"),
    "no such column": (b"a,text\n1,2\n", "note", "no column 'note'; its columns: 'a', 'text'"),
    "twice the same": (b"text,text\n1,2\n", "text", "has two columns 'text'"),
    "nothing": (b"", None, "say with --column"),
}


@pytest.mark.parametrize(("data", "column", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_column_that_is_not_certain_is_asked_for(data, column, sentence):
    assert sentence in until_error(data, "csv", column=column)[1]


DAMAGED = {
    "an unquoted comma": (b"id,text\n1,a\n2,b, c\n3,d\n", ["a"], "line 3 has 3 fields, the header"),
    "a field is missing": (b"id,text\n1,a\n2\n", ["a"], "line 3 has 1 fields"),
    "an open quotation mark": (b'id,text\n1,a\n2,"b\n3,c\n', ["a"], "quotation mark"),
    "a stray quotation mark": (b'id,text\n1,a\n2,"b"c\n', ["a"], "line 3 cannot be read"),
    "not UTF-8": ("id,text\n1,ü\n2,".encode() + b"\xe9,\n", ["ü"], "line 3 is not UTF-8"),
    "a text without end": (b'text\nok\n"' + b"x\n" * LONGEST, ["ok"], "cannot be read"),
}


@pytest.mark.parametrize(("data", "before", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_row_ends_it_after_the_rows_before(data, before, sentence):
    found, error = until_error(data, "csv")
    assert found == before and sentence in error


def test_json_lines():
    data = b'{"id": 1, "text": "a\\nb \\u00fc"}\n\n{"text": "c"}\r\n"just a string"\n'
    messages, said = read(data, "jsonl")
    assert messages == ["a\nb ü", "c", "just a string"] and len(said) == 1
    assert read(b'{"note": "x", "text": "y"}', "jsonl", column="note") == (["x"], [])


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", "5", "null", '{"other": "x"}', '{"text": null}', '{"text": 5}'),
        *('{"text": "\\ud83d"}', '{"text": "a\\u0000b"}', "[" * 100_000),
    ],
)
def test_a_line_that_is_no_json_text_ends_it_after_the_lines_before(line):
    found, error = until_error(f'{{"text": "good"}}\n{line}\n'.encode(), "jsonl")
    assert found == ["good"] and error.startswith("in: line 2 must be a JSON string")


@pytest.mark.parametrize(
    ("header", "separator"),
    [("a,b", ","), ("a;b;c", ";"), ("a\tb", "\t"), ("text", ","), ('"a;b;c",d', ","), ("", ",")],
)
def test_the_separator_is_what_the_header_has_most_of(header, separator):
    assert separator_of(header) == separator
