"""The command line: python -m spamgpt doctor | fetch | run | classify | experiments | clean."""

import argparse
import json
import sys
from pathlib import Path

from spamgpt.files import assets


def doctor(args: argparse.Namespace) -> int:
    """Show whether everything is in place, and how to mend what is not."""
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
    from spamgpt.files.workspace import forget_choices, show_path

    forget_choices()
    failed = 0
    for name in args.names or ("sms", "vocab.bpe", "encoder.json", "gpt2"):
        if name not in assets.ASSETS:
            print(f"no file {name!r}; there are: {', '.join(assets.ASSETS)}", file=sys.stderr)
            return 2
        try:
            print(f"{name}: {show_path(assets.fetch(name))}")
        except assets.AssetError as error:
            print(error, file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def run(args: argparse.Namespace) -> int:
    """Execute the notebooks in order and print the result."""
    from spamgpt.runner import run_notebooks

    return run_notebooks(args.notebooks)


def classify(args: argparse.Namespace) -> int:
    """Print label, probability and text of each message."""
    from itertools import tee

    from spamgpt.inference import classify_stream
    from spamgpt.saving import load_classifier

    classifier, _ = load_classifier()
    many = args.texts == ["-"]
    texts = (line.rstrip("\r\n") for line in sys.stdin) if many else iter(args.texts)
    texts, judged = tee(texts)
    predictions = classify_stream(
        classifier,
        judged,
        progress=many and not sys.stdout.isatty(),
        chunk=1 if sys.stdin.isatty() else 1024,  # somebody who types waits for an answer
    )
    for text, (label, probability) in zip(texts, predictions, strict=True):
        print(f"{label:<5} {probability:6.1%}  {text}")
        if sys.stdin.isatty():
            sys.stdout.flush()
    return 0


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


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Windows consoles may not default to UTF-8
            stream.reconfigure(encoding="utf-8", errors="replace")
    parser = argparse.ArgumentParser(prog="python -m spamgpt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("doctor", help=doctor.__doc__)
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(do=doctor)

    command = commands.add_parser("fetch", help=fetch.__doc__)
    command.add_argument("names", nargs="*", metavar="name", help=", ".join(assets.ASSETS))
    command.set_defaults(do=fetch)

    command = commands.add_parser("run", help=run.__doc__)
    command.add_argument("notebooks", nargs="*", help="numbers or names; default: all")
    command.set_defaults(do=run)

    command = commands.add_parser("classify", help=classify.__doc__)
    command.add_argument("texts", nargs="+", metavar="TEXT", help="- reads one message per line")
    command.set_defaults(do=classify)

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
    command.set_defaults(do=experiments)

    command = commands.add_parser("clean", help=clean.__doc__)
    command.set_defaults(do=clean)

    args = parser.parse_args(argv)
    try:
        return args.do(args)
    except (assets.AssetError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was fetched or saved so far is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
