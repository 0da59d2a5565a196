"""Messages out of bytes: what encoding they are in, and where one ends and the next begins.

Bytes that are taken for another encoding than theirs give a text that nobody wrote, and a
classifier judges it like any other. So text is decoded strictly: as UTF-8, as what a byte order
mark says, as what somebody named, or as a guess that is said. What cannot be told is an error.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, count
from typing import BinaryIO

FORMS = ("text", "csv", "tsv", "jsonl")
SUFFIXES = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
}
COLUMNS = ("text", "message", "sms", "v2", "body", "content", "msg")  # obviously the text
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
PORTION = 1024  # messages that are judged together, at most
LONGEST = 1_000_000  # characters: what has more is no message, but a file without line ends
PIECE = 1 << 18  # bytes that are read at once, at most
SAMPLE = 1 << 16  # bytes that a guess is made by
MARKS = {  # byte order marks; UTF-32's first, since UTF-16's is how one of them begins
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
WESTERN_SIGNS = "£€’‘“”„–—…«»°§¿¡´`·•ºª²³½©®™\xa0"
FEWEST = 24  # bytes that are not ASCII, for a guess among all of these:
IN_USE = [f"cp{page}" for page in (850, 866, 932, 949, *range(1250, 1259))]
IN_USE += ["iso8859_2", "koi8_r", "mac_roman", "tis_620", "euc_jp", "gb18030", "big5"]
NOT_ASCII = re.compile(rb"[\x80-\xff]")
NO_TEXT = re.compile("[\0\ud800-\udfff]")
REMEDY = "save it as UTF-8"

Say = Callable[[str], None]


# --- bytes -> text --------------------------------------------------------------------


def pieces_of(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """What a stream has to give, as soon as it gives anything. Raises OSError that names it."""
    try:
        while piece := stream.read1(PIECE):
            yield piece
    except OSError as error:
        raise OSError(f"{name} cannot be read ({error.strerror})") from None


def decoded(
    pieces: Iterable[bytes], name: str, say: Say, encoding: str | None = None, remedy: str = REMEDY
) -> Iterator[str]:
    """The text of bytes that come in pieces, without waiting for their end.

    UTF-8, and UTF-16 or UTF-32 if a byte order mark or the pattern of zeros shows it; otherwise
    the encoding is guessed where the first bytes come that are not ASCII, and `say` gets a
    sentence. `encoding` names it instead. Raises ValueError, after the text before it, at bytes
    that do not fit, and at NUL characters, which no text holds: it names the line and `remedy`.
    """
    line = 1
    try:
        for text in _decoded(iter(pieces), name, say, encoding, remedy):
            good, nul, _ = text.partition("\0")
            yield good
            line += good.count("\n")
            if nul:
                raise Undecodable("holds a NUL character, which no text does")
    except Undecodable as error:
        raise ValueError(f"{name}: line {line:,} {error}: {remedy}") from None


class Undecodable(ValueError):
    """What is wrong with the line that comes next."""


def decode(data: bytes, name: str, say: Say, encoding: str | None = None, **more) -> str:
    """The text of all bytes at once; raises what `decoded` raises."""
    return "".join(decoded([data], name, say, encoding, **more))


def encoding_of(data: bytes) -> str | None:
    """The encoding of bytes that are all there, None if it cannot be told."""
    if mark := _mark(data):
        return MARKS[mark]
    if codec := _by_zeros(data[:SAMPLE]):
        return codec
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        return _guess(data)


def _mark(head: bytes) -> bytes:
    """The byte order mark at the beginning, if there is one."""
    return next((mark for mark in MARKS if head.startswith(mark)), b"")


def _decoded(
    pieces: Iterator[bytes], name: str, say: Say, encoding: str | None, remedy: str
) -> Iterator[str]:
    """What `decoded` gives; raises UnicodeDecodeError where bytes do not fit."""
    head = b""
    for piece in pieces:
        head += piece
        if not any(mark.startswith(head) and mark != head for mark in MARKS):
            break
    mark = _mark(head)
    if encoding is not None:
        codec = _codec(encoding)
        if codec in ("utf-16", "utf-32"):  # in which of the two orders
            found = MARKS.get(mark) or _by_zeros(head[:SAMPLE]) or ""
            codec = found if found.startswith(codec) else f"{codec}-le"
        mark = mark if MARKS.get(mark) == codec else b""
    elif mark:
        codec = MARKS[mark]
    elif codec := _by_zeros(head[:SAMPLE]):
        say(f"{name} has no byte order mark; its zeros show that it is {codec.upper()}")
    pieces = chain([head[len(mark) :]], pieces)
    if codec is None:  # ASCII is the same in every encoding that is left: as long as it is ASCII,
        held = b""  # there is nothing to decide
        for piece in pieces:
            held += piece
            other = NOT_ASCII.search(held)
            done = held.rfind(b"\n", 0, other.start()) + 1 if other else len(held)
            yield held[:done].decode("ascii")
            held = held[done:]
            if (b"\n" in held or len(held) > SAMPLE) and not _cut_off(held):
                break
        pieces = chain([held], pieces)
        codec = _utf8_or_guess(held, name, say, remedy)
    yield from _strictly(pieces, codec)


def _strictly(pieces: Iterable[bytes], codec: str) -> Iterator[str]:
    """The text of bytes in a known encoding; Undecodable after all that could be read."""
    decoder = codecs.getincrementaldecoder(codec)()
    for piece in chain(pieces, [b""]):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            yield error.object[: error.start].decode(codec)
            found = error.object[error.start]
            raise Undecodable(f"is not {codec.upper()} (byte 0x{found:02x})") from None
        yield text


def _codec(encoding: str) -> str:
    """Python's name of an encoding; ValueError if there is none for text."""
    try:
        " ".encode(encoding)  # refuses codecs that are not for text
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise ValueError(
            f"there is no encoding {encoding!r}: some are utf-8, utf-16, cp1252, latin-1, shift_jis"
        ) from None


def _by_zeros(head: bytes) -> str | None:
    """UTF-16 or UTF-32 that has no byte order mark, where its first bytes leave no doubt.

    One byte of every UTF-32 character is zero, and the next 0 or 1. The higher byte of a UTF-16
    character is, in most alphabets and for spaces, one that is no character elsewhere: most are,
    and some are zero.
    """
    for width, order in ((4, "le"), (4, "be"), (2, "le"), (2, "be")):
        usable = head[: len(head) // width * width]
        by_place = [usable[i::width] for i in range(width)][:: -1 if order == "le" else 1]
        high = by_place[0]
        rare = sum(byte < 32 and byte not in b"\t\n\r" for byte in high)
        if len(usable) < 4 or 0 not in high or rare < 0.7 * len(high):
            continue
        if width == 4 and (any(high) or max(by_place[1]) > 1):
            continue
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(codec := f"utf-{8 * width}-{order}")().decode(usable)
            return codec
    return None


def _cut_off(data: bytes) -> bool:
    """Whether all that is not ASCII is the beginning of one UTF-8 character, at the end."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data).isascii()
    except UnicodeDecodeError:
        return False


def _utf8_or_guess(data: bytes, name: str, say: Say, remedy: str) -> str:
    """The encoding of the first lines that are not ASCII; Undecodable if it cannot be told."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=_cut_off(data))
        return "utf-8"
    except UnicodeDecodeError as error:
        if not data[: error.start].isascii():
            return "utf-8"  # some of it is: the rest is said to be wrong, not reinterpreted
    guess = _guess(data)
    if b"\0" in data or guess is None:
        raise Undecodable("is not UTF-8, and what else it is cannot be told from its bytes")
    say(f"{name} is not UTF-8; taken for {guess}. If that is wrong: {remedy}")
    return guess


def _guess(data: bytes) -> str | None:
    """The likeliest encoding of text that is not UTF-8, None if that cannot be told.

    Windows' Western encoding where few bytes are not ASCII and all of those are then letters and
    signs: charset-normalizer, asked for a single "£", finds Japanese. It decides the rest, out of
    the encodings that are in use, unless there are too few bytes to tell.
    """
    lines = dict.fromkeys(line for line in data.splitlines(keepends=True) if not line.isascii())
    sample = b"".join(lines)[:SAMPLE]
    n_other = sum(byte > 127 for byte in sample)
    with suppress(UnicodeDecodeError):
        other = {c for c in sample.decode("cp1252") if not c.isascii()}
        if 3 * n_other <= len(sample) and all(c.isalpha() or c in WESTERN_SIGNS for c in other):
            return "cp1252"
    if n_other < FEWEST:
        return None
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=IN_USE).best()
    return None if best is None else best.encoding


# --- text -> messages -----------------------------------------------------------------


def read_messages(
    stream: BinaryIO,
    name: str,
    say: Say,
    form: str = "text",
    column: str | None = None,
    encoding: str | None = None,
    remedy: str = REMEDY,
) -> Iterator[list[str]]:
    """Portions of 1 to PORTION messages, in order; what is there is not held back for more.

    `form` is "text" (a message a line), "jsonl" (a JSON string or object a line), "csv" or "tsv"
    (with a header; these come in full portions). `column` names the text in a table or object;
    the default is guessed, which `say` is told. Raises ValueError of one sentence, after all
    messages before the mistake, OSError if the stream cannot be read.
    """
    lines = _lines(decoded(pieces_of(stream, name), name, say, encoding, remedy), name)
    if form == "text":
        return ([line.rstrip("\r\n") for line in portion] for portion in lines)
    if form == "jsonl":
        return _in_portions(_json_lines(lines, name, column, say))
    return _in_portions(_rows(lines, name, form, column, say))


def _lines(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """Portions of complete lines with their ends (any of three kinds), as soon as they are there.

    Raises ValueError for a line of more than LONGEST characters.
    """
    held, before = "", 0
    for text in chain(texts, [None]):
        lines = list(io.StringIO(held if text is None else held + text, newline=""))
        held = ""
        if text is not None and lines and not lines[-1].endswith("\n"):  # "\r" may be half of it
            held = lines.pop()
        good = next((i for i, line in enumerate([*lines, held]) if len(line) > LONGEST), None)
        lines = lines[:good]
        for start in range(0, len(lines), PORTION):
            yield lines[start : start + PORTION]
        before += len(lines)
        if good is not None:
            raise ValueError(
                f"{name}: line {before + 1:,} has more than {LONGEST:,} characters: a message is "
                "one line; is this a text file?"
            )


def _in_portions(messages: Iterable[str | None]) -> Iterator[list[str]]:
    """Portions of messages: full ones, or what there is at None, at the end or at an error."""
    held: list[str] = []
    try:
        for message in messages:
            if message is not None:
                held.append(message)
            if held and (message is None or len(held) == PORTION):
                yield held
                held = []
    except ValueError:
        if held:
            yield held
        raise
    if held:
        yield held


def _json_lines(
    portions: Iterable[list[str]], name: str, column: str | None, say: Say
) -> Iterator[str | None]:
    """The messages of JSON lines, None where the next line may have to be waited for."""
    numbers = count(1)
    for lines in portions:
        for line, number in zip(lines, numbers, strict=False):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                column = column or choose_column(list(value), None, name, say)
                value = value.get(column)
            if not isinstance(value, str) or NO_TEXT.search(value):
                where = f" under {column!r}" if column else ""
                raise ValueError(
                    f"{name}: line {number:,} must be a JSON string, or an object with one"
                    f"{where}, that holds neither NUL nor half of a character"
                )
            yield value
        yield None


def _rows(
    portions: Iterable[list[str]], name: str, form: str, column: str | None, say: Say
) -> Iterator[str]:
    """The messages of a table with a header."""
    lines = chain.from_iterable(portions)
    header = next(lines, "")
    separator = "\t" if form == "tsv" else separator_of(header)
    csv.field_size_limit(LONGEST)
    reader = csv.reader(chain([header], lines), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        k = names.index(choose_column(names, column, name, say))
        for row in reader:
            if row and (len(row) <= k or any(row[len(names) :])):
                raise ValueError(
                    f"{name}: line {reader.line_num:,} has {len(row)} fields, the header has "
                    f"{len(names)}: put quotation marks around texts that hold a "
                    f"{SEPARATORS[separator]}"
                )
            if row:  # else a blank line
                yield row[k]
    except csv.Error as error:
        raise ValueError(
            f"{name}: line {reader.line_num:,} cannot be read ({error}): is a quotation mark "
            "missing or too many? Inside a quoted text it is written twice"
        ) from None


class ColumnError(ValueError):
    """There is no column of that name, or none that is obviously the text."""


def choose_column(names: Sequence[str], column: str | None, name: str, say: Say) -> str:
    """The column that is asked for, or else the one that is obviously the text, which is said.

    Raises ColumnError that lists the columns.
    """
    found = ", ".join(map(repr, names))
    if column is None:
        obvious = [one for one in names if one.strip().casefold() in COLUMNS]
        if len(obvious) == 1:
            say(f"{name}: the messages are read from the column {obvious[0]!r}")
            return obvious[0]
        raise ColumnError(
            f"{name} has the columns {found:.200}: say with --column which one holds the messages"
        )
    if list(names).count(column) != 1:
        raise ColumnError(
            f"{name} has {'two columns' if column in names else 'no column'} {column!r}; its "
            f"columns: {found:.200}"
        )
    return column


def separator_of(header: str) -> str:
    """What separates the columns of a CSV file: what its header has most of, outside quotes."""
    outside = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=outside.count)
