"""The command line: python -m spamgpt doctor | fetch | run | classify | experiments | clean."""

# Only the standard library up here: Ctrl-C is answered in a sentence from the first moment, and
# no command waits for what another needs.
import argparse
import sys
from contextlib import suppress
from pathlib import Path

from spamgpt import __version__
from spamgpt.classify_command import classify
from spamgpt.terminal import (
    GONE,
    Terminated,
    Usage,
    named,
    open_closed_streams,
    say,
    settle,
    sigterm_stops,
)


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


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code. What goes wrong is one sentence on standard error."""
    closed = open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows consoles may not default to UTF-8
            stream.reconfigure(encoding="utf-8", errors="replace")
    kept = "nothing was done yet"
    try:
        with sigterm_stops():
            try:
                args = _parser().parse_args(argv)
                kept = args.kept
                if "stdin" in closed:
                    sys.stdin.close()
                if "stdout" in closed and args.do in (doctor, classify):
                    raise OSError("standard output is closed: there is nowhere to print results")
                code = args.do(args)
            except BaseException:  # which says more than that the rest cannot be written, either
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                raise
            with named("standard output cannot be written"):
                sys.stdout.flush()
            return code
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
            settle(stream)


def _foreseen() -> tuple[type[Exception], ...]:
    """What a command may raise with a sentence for its user."""
    from spamgpt.files.assets import AssetError

    return AssetError, OSError, ValueError


def _sentence(error: Exception) -> str:
    """What an error says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


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
