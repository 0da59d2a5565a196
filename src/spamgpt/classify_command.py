"""The command `classify`: messages from arguments, streams and files, judged as they come."""

# Only the standard library up here: no command waits for what another needs.
import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

from spamgpt.terminal import Usage, named, say

REMEDY = "name the encoding with --encoding, or convert it: iconv -f NAME -t UTF-8"


def classify(args: argparse.Namespace) -> int:
    """Print label, probability and text of each message."""
    import warnings
    from itertools import tee

    note = (lambda text: None) if args.quiet else say
    with ExitStack() as stack:
        portions = _portions(args, note, stack)

        from spamgpt.inference import classify_chunks
        from spamgpt.saving import load_classifier

        classifier, _ = load_classifier(args.model)
        _set_threshold(classifier, args, note)
        write = _writer(classifier, args.format)
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        bar = stack.enter_context(_progress(args))
        portions, judged = tee(portions)
        for texts, predictions in zip(portions, classify_chunks(classifier, judged), strict=True):
            with named("the results cannot be written"):
                for text, prediction in zip(texts, predictions, strict=True):
                    write(text, prediction)
                sys.stdout.flush()
            if bar is not None:
                bar.update(len(texts))
    return 0


def _portions(
    args: argparse.Namespace, note: Callable[[str], None], stack: ExitStack
) -> Iterator[list[str]]:
    """The messages that were asked for; raises Usage for what makes no sense together."""
    from spamgpt.files.messages import SUFFIXES, read_messages

    path = args.file
    if args.texts == ["-"] and path is None:
        path = "-"
    elif path is not None and args.texts:
        raise Usage("give either texts or --file, not both")
    elif "-" in args.texts:
        raise Usage("- reads standard input and cannot be mixed with texts")
    elif path is None and not args.texts:
        raise Usage("no message: give texts, - for standard input, or --file FILE")
    if path is None:
        if args.input_format or args.column:
            raise Usage("--input-format and --column are for --file and -, not for texts")
        return iter([_from_arguments(args.texts, args.encoding, note)])
    form = args.input_format or SUFFIXES.get(Path(path).suffix.lower(), "text")
    if form == "text" and args.column:
        raise Usage(f"--column is for tables: is {path} one? Say so with --input-format csv")
    if path == "-":
        stream, name = getattr(sys.stdin, "buffer", None), "standard input"
        if stream is None or stream.closed:
            raise OSError("standard input is closed: there is nothing to read")
        if sys.stdin.isatty():
            note("one message a line; Ctrl-D on a line of its own ends")
    else:
        stream = stack.enter_context(open(path, "rb"))  # noqa: SIM115
        name = Path(path).name
    return read_messages(stream, name, note, form, args.column, args.encoding, REMEDY)


def _from_arguments(
    texts: list[str], encoding: str | None, note: Callable[[str], None]
) -> list[str]:
    """Messages as the shell passed them, whatever the locale made of their bytes.

    Raises Usage for a single argument that names a file: it would be judged by its name.
    """
    from shlex import quote

    from spamgpt.files.messages import decode

    for text in texts:
        if text.split() == [text] and os.path.isfile(text):
            if len(texts) == 1:
                raise Usage(
                    f"{text} is a file: --file {quote(text)} judges what is in it. To judge its "
                    f"name as a message: echo {quote(text)} | python -m spamgpt classify -"
                )
            note(f"{text} is judged as a message; it is a file too: --file {quote(text)} reads it")
    found = []
    for i, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # bytes that the locale could not read, as lone surrogates
            try:
                text = decode(os.fsencode(text), f"message {i}", note, encoding, remedy=REMEDY)
            except UnicodeEncodeError:
                raise ValueError(f"message {i} holds half a character: {text!a:.60}") from None
        found.append(text)
    return found


def _set_threshold(classifier, args: argparse.Namespace, note: Callable[[str], None]) -> None:
    """Put --threshold into force, or the saved one, and say which."""
    origin = "saved with the classifier; --threshold none ignores it"
    if args.threshold is not None:
        classifier.set_threshold(None if args.threshold == "none" else args.threshold)
        origin = "from --threshold"
    if classifier.threshold is not None:
        shown = f"; shown is the probability of {classifier.positive}"
        note(
            f"threshold {classifier.threshold:g} for {classifier.positive}, {origin}"
            + (shown if args.format == "text" else "")
        )


def _writer(classifier, form: str) -> Callable:
    """write(text, prediction) prints one row; a header comes at once if the format has one."""
    names = classifier.label_names
    if form == "jsonl":
        import json

        def write(text: str, prediction) -> None:
            each = dict(zip(names, map(_rounded, prediction.probabilities), strict=True))
            row = {"text": text, "label": prediction.label, "probabilities": each}
            print(json.dumps(row, ensure_ascii=False))

        return write
    if form == "csv":
        import csv

        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(newline="\n")  # a text keeps its own line ends
        # All texts in quotes, so that a lone "\r" in one ends no row.
        out = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        out.writerow(["text", "label", *(f"probability_{name}" for name in names)])
        return lambda text, one: out.writerow([text, one.label, *map(_rounded, one.probabilities)])
    shown = None
    if classifier.threshold is not None:
        shown = names.index(classifier.positive)
    width = max(5, *map(len, names))
    # One row a message, and nothing that a terminal would obey: control characters as pictures.
    controls = {c: 0x2400 + c for c in range(32) if c != 9} | {127: 0x2421}
    controls |= {c: 0xFFFD for c in range(128, 160)} | {0x2028: 0x2424, 0x2029: 0x2424}

    def write(text: str, one) -> None:
        p = one.probability if shown is None else one.probabilities[shown]
        print(f"{one.label:<{width}} {p:8.3%}  {text.translate(controls)}")

    return write


def _rounded(p: float) -> float:
    """A probability with the digits that fp32 has."""
    return round(p, 7)


def _progress(args: argparse.Namespace):
    """A progress bar (a context), None in it where it would disturb or nobody looks at it."""
    if args.quiet or (args.texts and args.texts != ["-"]) or sys.stdout.isatty():
        return nullcontext()
    from tqdm import tqdm

    return tqdm(desc="classify", unit="message", disable=None)
