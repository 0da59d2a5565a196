"""The command line: python -m spamgpt doctor | fetch | run | classify | experiments | clean."""

# Only the standard library up here: Ctrl-C is answered in a sentence from the first moment, and
# no command waits for what another needs.
import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from spamgpt import __version__

GONE = 141  # 128 + SIGPIPE: what a shell gives for a program whose reader went away
REMEDY = "name the encoding with --encoding, or convert it: iconv -f NAME -t UTF-8"


def doctor(args: argparse.Namespace) -> int:
    """Show whether everything is in place, and how to mend what is not."""
    import json

    from spamgpt.doctor import examine

    checks = examine()
    if args.json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FIX '} {check.name:<10} {check.found}")
            if not check.ok:
                print(f"     {'':<10} -> {check.remedy}")
    return 0 if all(check.ok for check in checks) else 1


def fetch(args: argparse.Namespace) -> int:
    """Download and verify files, and let the notebooks decide again what to use."""
    from spamgpt.files import assets
    from spamgpt.files.workspace import forget_choices, show_path

    forget_choices()
    failed = 0
    for name in args.names or ("sms", "vocab.bpe", "encoder.json", "gpt2"):
        if name not in assets.ASSETS:
            say(f"no file {name!r}; there are: {', '.join(assets.ASSETS)}")
            return 2
        try:
            print(f"{name}: {show_path(assets.fetch(name))}")
        except assets.AssetError as error:
            say(str(error))
            failed += 1
    return 1 if failed else 0


def run(args: argparse.Namespace) -> int:
    """Execute the notebooks in order and print the result."""
    from spamgpt.runner import run_notebooks

    return run_notebooks(args.notebooks, whole=args.all)


# --- classify -------------------------------------------------------------------------


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
            with _named("the results cannot be written"):
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


# --- the other commands ---------------------------------------------------------------


def experiments(args: argparse.Namespace) -> int:
    """Run the grid of notebook 07: what each choice is worth, over several seeds.

    Finished runs are kept in the file --out and not done again; remove it to start from the
    beginning. With --model or --set, a model or recipe of your own is tried: name an --out for
    it. To choose between such, use --only "recipe, folds", which looks at no test message.
    """
    from dataclasses import replace

    from spamgpt.experiments import GRID, Lab, jobs, run_grid, summary
    from spamgpt.files.workspace import show_path, workspace
    from spamgpt.models.base import load_base, load_pocket
    from spamgpt.tasks import sms

    if (args.model or args.set) and not args.out:
        raise ValueError("--model and --set need --out: their runs must not meet those of others")
    wanted = jobs(args.only or GRID, args.seeds)
    data_name, path = sms.source()
    base = load_pocket(args.model) if args.model else load_base()
    base.recipe = replace(base.recipe, **dict(args.set))
    lab = Lab(base, sms.TASK, sms.load(path), data_name)
    out = args.out or workspace() / "experiments.csv"
    runs = run_grid(lab, wanted, out)
    print(summary(runs).to_string())
    print(f"\n{len(runs)} runs, {runs['seconds'].sum() / 60:.0f} minutes: {show_path(out)}")
    return 0


def clean(args: argparse.Namespace) -> int:
    """Remove what was made or trained; downloads and files of your own stay."""
    from spamgpt.files.workspace import show_path
    from spamgpt.tasks.clean import clean_workspace

    for path in clean_workspace():
        print(f"kept, since it is not from this series: {show_path(path)}")
    return 0


def _setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, a field of the recipe and a Python literal."""
    import ast
    from dataclasses import fields

    from spamgpt.recipes import Recipe

    key, _, value = text.partition("=")
    names = [field.name for field in fields(Recipe)]
    if key not in names:
        raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(names)}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"{value!r} is no number, True, False or None") from None


def _probability(text: str) -> float | str:
    """A number from 0 to 1, or "none"."""
    try:
        if text == "none" or 0 <= float(text) <= 1:
            return text if text == "none" else float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no probability from 0 to 1, nor none")


# --- what surrounds every command -----------------------------------------------------


class Usage(ValueError):
    """The command was called in a way that makes no sense; the message says how it does."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it has begun is cleared up."""


def say(text: str) -> None:
    """Print a line to standard error, where somebody may read it or nobody."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code. What goes wrong is one sentence on standard error."""
    closed = _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows consoles may not default to UTF-8
            stream.reconfigure(encoding="utf-8", errors="replace")
    kept = "nothing was done yet"
    try:
        with _sigterm_stops():
            try:
                args = _parser().parse_args(argv)
                kept = args.kept
                if "stdin" in closed:
                    sys.stdin.close()
                if "stdout" in closed and args.do in (doctor, classify):
                    raise OSError("standard output is closed: there is nowhere to print results")
                return args.do(args)
            finally:
                with _named("standard output cannot be written"):
                    sys.stdout.flush()
    except KeyboardInterrupt as error:
        if sys.stderr.isatty():
            say("")  # the terminal shows ^C
        terminated = isinstance(error, Terminated)
        say(f"{'ended by SIGTERM' if terminated else 'stopped'}; {kept}")
        return 143 if terminated else 130
    except SystemExit:  # argparse has said what there is to say
        raise
    except BrokenPipeError:
        return GONE
    except _foreseen() as error:
        say(_sentence(error))
        return 2 if isinstance(error, Usage) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _foreseen() -> tuple[type[Exception], ...]:
    """What a command may raise with a sentence for its user."""
    from spamgpt.files.assets import AssetError

    return AssetError, OSError, ValueError


def _sentence(error: Exception) -> str:
    """What an error says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say `what` failed if the system refuses to write; a reader who went away is no failure."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"{what} ({error.strerror})") from None


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Let SIGTERM raise Terminated."""

    def stop(*_) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _open_closed_streams() -> set[str]:
    """Put the null device where a standard stream is closed; the names of those.

    Otherwise the next file that is opened takes its number, and what a library prints is
    written into that file.
    """
    names = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    if names:
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # it is the lowest that is free
            os.set_inheritable(number, True)
        os.close(number)
    for name in names:
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    return set(names)


def _settle(stream) -> None:
    """Give up what cannot be written, lest Python complain about it once more at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    except ValueError:  # closed
        pass


EPILOG = """
A threshold is the probability above which a message gets the label that is looked for (spam).
The one that was saved with the classifier is used unless --threshold says otherwise. The text
format then shows the probability of that label, otherwise that of the label given.

Input is UTF-8, with or without byte order mark, or UTF-16 or UTF-32. Another encoding is
guessed from the first characters that are not ASCII, and named on standard error. A line that
does not fit the text before it ends the program, as does a NUL character or a line of more than
1,000,000 characters, after the results of all messages before it. Output is always UTF-8.

exit code
  0    every message was judged
  1    something was wrong, and a sentence on standard error says what; results printed are right
  2    the command was not called correctly
  130  stopped by Ctrl-C
  141  the program that read the results has ended, as head does
  143  ended by SIGTERM
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spamgpt", description=__doc__)
    parser.add_argument("--version", action="version", version=f"spamgpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("doctor", help=doctor.__doc__)
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(do=doctor, kept="nothing was changed")

    command = commands.add_parser("fetch", help=fetch.__doc__)
    command.add_argument("names", nargs="*", metavar="name", help="default: the data set and GPT-2")
    command.set_defaults(do=fetch, kept="what was fetched or saved so far is kept")

    command = commands.add_parser("run", help=run.__doc__)
    command.add_argument("notebooks", nargs="*", help="numbers or names; default: 00 to 10")
    command.add_argument("--all", action="store_true", help="those of other methods and tasks, too")
    command.set_defaults(do=run, kept="what was fetched or saved so far is kept")

    command = commands.add_parser(
        "classify",
        help=classify.__doc__,
        description=classify.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = command.add_argument
    option("texts", nargs="*", metavar="TEXT", help="- reads standard input, a message a line")
    option("--file", metavar="FILE", help="read the messages of a file")
    option(
        "--input-format",
        choices=("text", "csv", "tsv", "jsonl"),
        help="how a file or standard input holds messages: one a line, a table with a header, or "
        "one JSON object or string a line (default: by the file's suffix, otherwise text)",
    )
    option("--column", metavar="NAME", help="of the messages (default: the obvious column)")
    option("--encoding", metavar="NAME", help="of the input, such as cp1252 (default: detected)")
    option(
        "--format",
        choices=("text", "csv", "jsonl"),
        default="text",
        help="of the output: text for people; csv or jsonl for programs, with every probability",
    )
    option("--threshold", type=_probability, metavar="P", help="a probability, or none")
    option("--model", type=Path, metavar="FOLDER", help="another saved classifier")
    option("--quiet", action="store_true", help="only results and errors, no notes or progress")
    command.set_defaults(do=classify, kept="results printed are right, the rest was not judged")

    command = commands.add_parser(
        "experiments", help="run the grid of notebook 07", description=experiments.__doc__
    )
    command.add_argument("--seeds", type=int, default=5, help="of each setting (default: 5)")
    command.add_argument("--only", nargs="+", metavar="GROUP", help='such as "pooling"')
    command.add_argument("--out", type=Path, help="CSV file of all runs")
    command.add_argument("--model", type=Path, help="folder of another Pocket GPT")
    command.add_argument(
        "--set", type=_setting, nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe"
    )
    command.set_defaults(do=experiments, kept="finished runs are kept and not done again")

    command = commands.add_parser("clean", help=clean.__doc__)
    command.set_defaults(do=clean, kept="run it again to remove the rest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
