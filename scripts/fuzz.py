"""Feed nonsense to `classify` and to the loader: each piece ends in a result or a clear error.

    python scripts/fuzz.py [--texts 100000] [--files 10000] [--pocket 3000] [--seed 1]
                           [--commands 10000] [--processes 300]

Texts go through a tiny classifier with random weights, so that many are judged in a few
minutes, and some through Pocket GPT. Commands get nonsense as arguments, standard input and
environment, and streams that are closed or break; some run in processes of their own. Every
input is made from the seed and its number alone: an AssertionError names both, and
`--first NUMBER` starts there. Whatever takes more than a minute counts as a hang and ends the
program with a traceback.
"""

import argparse
import errno
import faulthandler
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from spamgpt.__main__ import main as spamgpt_main
from spamgpt.batches import encode
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.files.workspace import SAMPLE
from spamgpt.inference import classify
from spamgpt.models import base
from spamgpt.models.base import load_base, load_tokenizer
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.saving import save_classifier
from spamgpt.tasks import sms

BATCH = 250  # texts that are classified in one call
HANG_SECONDS = 60
LINES = SAMPLE.read_bytes().splitlines()
MESSAGES = [line.decode().partition("\t")[2] for line in LINES]
BLOCKS = [  # first and last code point
    (0x00, 0x20),  # control characters
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x370),  # combining marks
    (0x590, 0x700),  # Hebrew, Arabic
    (0x900, 0x980),
    (0x2000, 0x2070),  # spaces, joiners, marks that turn the direction
    (0x4E00, 0x4F00),
    (0xD800, 0xE000),  # lone surrogates
    (0xFE00, 0x10000),  # variation selectors, byte order mark, no characters
    (0x1F300, 0x1F700),  # emoji
    (0, 0x110000),
]
PIECES = ["<|endoftext|>", "\ufeff", "\r\n", "http://", "£1000", "👩‍👩‍👧", "'", '"', "\t", "  "]


# --- texts ----------------------------------------------------------------------------


def random_text(draw: random.Random) -> str:
    """A changed message, characters of a few blocks, or one piece over and over."""
    size = int(draw.choices((8, 80, 800), (4, 5, 1))[0] * draw.random())
    kind = draw.randrange(4)
    if draw.random() < 0.0005:
        size = 100_000
    if kind == 0:
        return draw.choice([*PIECES, random_characters(draw, 2)]) * (size // 2)
    if kind == 1:
        return random_characters(draw, size)
    text = draw.choice(MESSAGES)
    for _ in range(draw.randrange(6)):
        start, end = sorted(draw.choices(range(len(text) + 1), k=2))
        inserted = draw.choice([random_characters(draw, 4), draw.choice(PIECES), text[start:end]])
        text = text[:start] + inserted + text[draw.choice((start, end)) :]
    return unicodedata.normalize(draw.choice(("NFC", "NFD")), text)


def random_characters(draw: random.Random, size: int) -> str:
    """`size` characters out of one or two blocks."""
    blocks = draw.choices(BLOCKS, k=2)
    return "".join(chr(draw.randrange(*draw.choice(blocks))) for _ in range(size))


def tiny_classifier(seed: int) -> Classifier:
    """A classifier of two narrow blocks with random weights, head included."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer("pocket")
    body = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_ctx=64, n_vocab=tokenizer.n_vocab))
    classifier = Classifier(body, tokenizer, sms.LABEL_NAMES, "pocket", positive="spam")
    torch.nn.init.normal_(classifier.score.weight)
    return classifier.eval()


def fuzz_texts(classifier: Classifier, n: int, seed: int, first: int = 0) -> Counter:
    """Classify `n` texts; how often each label was given, and how many had to be read in parts.

    Raises AssertionError that names seed and number of the first text of a batch that
    crashes, gets no proper result, or is judged otherwise than alone.
    """
    outcomes = Counter()
    for start in range(first, n, BATCH):
        texts = [
            random_text(random.Random(f"{seed}/{i}")) for i in range(start, min(start + BATCH, n))
        ]
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        where = f"seed {seed}, texts {start} to {start + len(texts) - 1}"
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                predictions = classify(classifier, texts)
                (alone,) = classify(classifier, texts[:1])
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert len(predictions) == len(texts), where
        for one in predictions:
            assert one.label in classifier.label_names, where
            assert 0.4999 < one.probability <= 1.0001, where
        difference = abs(alone.probability - predictions[0].probability)
        assert difference < 0.02, f"{where}: {difference}"  # as much as bf16 may round
        n_ctx = classifier.transformer.config.n_ctx
        long = sum(len(ids) > n_ctx for ids in encode(texts, classifier.tokenizer))
        assert sum("parts that overlap" in str(w.message) for w in caught) >= long, where
        outcomes.update(one.label for one in predictions)
        outcomes["read in parts"] += long
    return outcomes


# --- files ----------------------------------------------------------------------------


def random_file(draw: random.Random) -> bytes:
    """Some lines of the sample, with up to four things wrong with them."""
    lines = draw.choices(LINES, k=draw.choice((0, 1, 2, 20, 60)))
    content = b"\n".join(lines) + b"\n" * draw.randrange(2)
    for _ in range(draw.randrange(5)):
        content = draw.choice(DAMAGES)(draw, content)
    return content


def _cut(draw: random.Random, content: bytes) -> tuple[bytes, bytes, bytes]:
    """The content in three parts; the one in the middle is short, as a rule."""
    start = draw.randint(0, len(content))
    end = min(len(content), start + draw.choice((0, 1, 10, 1000)))
    return content[:start], content[start:end], content[end:]


def _replace(draw: random.Random, content: bytes) -> bytes:
    before, _, after = _cut(draw, content)
    return before + draw.randbytes(draw.randrange(4)) + after


def _repeat(draw: random.Random, content: bytes) -> bytes:
    before, middle, after = _cut(draw, content)
    return before + middle * draw.randrange(5) + after


def _insert(draw: random.Random, content: bytes) -> bytes:
    before, _, after = _cut(draw, content)
    pieces = (
        b'"',
        b'"\n',
        b"\t",
        b"\r",
        b"\r\n",
        b"\0",
        b"\xef\xbb\xbf",
        b"ham\t",
        b"spam",
        b"#",
        b",",
    )
    return before + draw.choice(pieces) + after


def _exchange(draw: random.Random, content: bytes) -> bytes:
    old = draw.choice((b"\n", b"\t", b"ham", b"spam", b" ", b"e"))
    new = draw.choice((b"\r\n", b"\r", b"\t", b",", b"", b'"', b"HAM", b"\n", b"spam"))
    return content.replace(old, new, draw.choice((-1, 1, 3)))


def _encode(draw: random.Random, content: bytes) -> bytes:
    text = content.decode(errors="replace")
    return text.encode(draw.choice(("utf-16", "utf-8-sig", "latin-1", "utf-7")), "replace")


DAMAGES = (
    _replace,
    _repeat,
    _insert,
    _exchange,
    _encode,
    lambda draw, content: _cut(draw, content)[0],
    lambda draw, content: b"label\ttext\n" + content,
    lambda draw, content: draw.randbytes(200),
)


def fuzz_files(folder: Path, n: int, seed: int, first: int = 0) -> Counter:
    """Load, balance and split `n` files; how many went well, and how often each error came.

    Raises AssertionError that names seed and number of a file that crashes, makes a wrong
    table, or whose error is not one readable sentence of ours.
    """
    outcomes = Counter()
    path = folder / "messages.tsv"
    for i in range(first, n):
        content = random_file(random.Random(f"{seed}/{i}"))
        path.write_bytes(content)
        where = f"seed {seed}, file {i}"
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            table = sms.load(path)
            assert list(table.columns) == ["label", "text"], where
            assert set(table["label"]) == set(sms.LABEL_NAMES), where
            assert all(isinstance(text, str) for text in table["text"]), where
            assert len(table) <= 1 + content.count(b"\n") + content.count(b"\r"), where
            parts = sms.TASK.split(table)
            fewest = table["label"].value_counts().min()
            assert sum(map(len, parts.values())) == 2 * fewest, where
            outcomes["loaded, balanced and split"] += 1
        except ValueError as error:
            assert type(error) is ValueError, f"{where}: {error!r}"
            assert "\n" not in str(error) and 20 < len(str(error)) < 400, f"{where}: {error!r}"
            outcomes[_kind(str(error))] += 1
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
    return outcomes


def _kind(message: str) -> str:
    """An error without what differs from file to file."""
    kinds = (
        "holds no messages",
        "more than two columns",
        "has the label",
        "no messages beside them",
        "a classifier needs",
        "not UTF-8",
        "Expected 2 fields",
        "never closed",
        "cannot be read",
        "too few",
    )
    return next((kind for kind in kinds if kind in message), message)


# --- commands -------------------------------------------------------------------------

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "koi8-r", "cp932")
VARIABLES = (
    *("SPAMGPT_BASE", "SPAMGPT_MIRROR", "SPAMGPT_OFFLINE", "SPAMGPT_PRECISION"),
    *("HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HOME", "HTTPS_PROXY", "NO_PROXY"),
    *("http_proxy", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "MPLBACKEND", "LC_ALL", "LANG"),
    *("TERM", "COLUMNS", "TQDM_DISABLE", "OMP_NUM_THREADS", "TZ"),
)
GARBAGE = ("", "1", "-1", "nonsense", "ünï 🎁", "/nowhere/at/all", "http://127.0.0.1:9", "%s{}\\n")
OPTIONS = {
    "--format": ("text", "csv", "jsonl", "xml"),
    "--input-format": ("text", "csv", "tsv", "jsonl"),
    "--encoding": (*ENCODINGS, "hex", "nonsense"),
    "--column": ("text", "label", "ünï"),
    "--threshold": ("0.5", "none", "2", "nan"),
    "--model": ("nowhere",),
}
OTHERS = (["--version"], ["fetch", "nonsense"], ["run", "99"], ["classify", "--help"], ["fly"])
RANKS_READ_ONCE = cache(base.tokenizer_from_ranks)
JUDGE_LINES = ["classify", "--format", "jsonl", "-"]
ENDS = {0, 1, 2, 141}


class Call(NamedTuple):
    """A command: its arguments and what surrounds it. `None` is a closed stream."""

    arguments: list[str]
    data: bytes | None
    out: str | None  # "", or what breaks it: "pipe" or "full"
    err: str | None
    environment: dict[str, str]


def random_data(draw: random.Random) -> bytes:
    """Standard input, or a file: messages of a kind in an encoding, perhaps damaged."""
    texts = [random_text(draw)[:2000] for _ in range(draw.choice((0, 1, 3, 30)))]
    kind = draw.randrange(4)
    if kind == 0:
        texts = [json.dumps(draw.choice((text, {"text": text}))) for text in texts]
    elif kind == 1:
        mark, sep = draw.choice(('"', "")), draw.choice(",;\t")
        texts = [f"{mark}{text}{mark}{sep}ham" for text in ("text", *texts)]
    data = "\n".join(texts).encode(draw.choice(ENCODINGS), "ignore")
    for _ in range(draw.choice((0, 0, 1, 2))):
        data = draw.choice(DAMAGES[:4])(draw, data)
    return data


def random_call(draw: random.Random, folder: Path) -> Call:
    """A command, most often `classify`; a file that it reads is in `folder`."""
    data = random_data(draw)
    path = folder / draw.choice(("m.txt", "m.csv", "m.tsv", "m.jsonl", "m"))
    path.write_bytes(random_data(draw))
    # As the system hands bytes over that are not UTF-8; no argument can hold NUL.
    words = random_data(draw)[:500].replace(b"\0", b"").decode("utf-8", "surrogateescape")
    source = draw.choice((["-"], ["--file", str(path)], [words], words.split(" ")[:9], [str(path)]))
    names = draw.sample([*OPTIONS], draw.choice((0, 0, 1, 2)))
    options = [word for name in names for word in (name, draw.choice(OPTIONS[name]))]
    arguments = ["classify", *options, *source]
    if draw.random() < 0.3:
        arguments.append("--quiet")
    if draw.random() < 0.3:
        arguments = JUDGE_LINES if draw.random() < 0.8 else draw.choice(OTHERS)
    garbage = {name: draw.choice(GARBAGE) for name in draw.sample(VARIABLES, draw.choice((0, 2)))}
    return Call(
        arguments,
        None if draw.random() < 0.05 else data,
        draw.choices(("", None, "pipe", "full"), (16, 1, 1, 1))[0],
        draw.choices(("", None, "pipe", "full"), (16, 1, 1, 1))[0],
        garbage | {"SPAMGPT_OFFLINE": "1"},
    )


class Broken(io.RawIOBase):
    """A stream that takes nothing: nobody reads it, or the disk is full."""

    def __init__(self, how: str):
        self.number = errno.EPIPE if how == "pipe" else errno.ENOSPC

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        raise OSError(self.number, os.strerror(self.number))


def call_here(call: Call) -> tuple[int, bytes, bytes]:
    """(exit code, output, errors) of a command, within this process."""

    def stream(how: str | None) -> io.TextIOWrapper | None:
        raw = io.BytesIO() if how == "" else how and Broken(how)
        return how if how is None else io.TextIOWrapper(raw, write_through=True)

    kept = sys.stdin, sys.stdout, sys.stderr, dict(os.environ), base.tokenizer_from_ranks
    out, err = stream(call.out), stream(call.err)
    try:
        base.tokenizer_from_ranks = RANKS_READ_ONCE  # else half of the time goes there
        sys.stdin = None if call.data is None else io.TextIOWrapper(io.BytesIO(call.data))
        sys.stdout, sys.stderr = out, err
        os.environ.update(call.environment)
        try:
            code = spamgpt_main(call.arguments)
        except SystemExit as error:
            code = error.code
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept[:3]
        os.environ.clear()
        os.environ.update(kept[3])
        base.tokenizer_from_ranks = kept[4]
    found = [
        s.buffer.getvalue() if how == "" else b"" for s, how in ((out, call.out), (err, call.err))
    ]
    return code, *found


def call_there(call: Call) -> tuple[int, bytes, bytes]:
    """The same in a process of its own."""
    ends = {"": "", None: "{}>&-", "full": "{}>/dev/full", "pipe": "{}>&3"}
    line = " ".join(
        (ends[call.out].format(1), ends[call.err].format(2), "<&-" if call.data is None else "")
    )
    read, write = os.pipe()
    os.close(read)  # nobody reads
    shell = [
        "sh",
        "-c",
        f'exec 3>&{write}; exec "$@" {line}',
        "sh",
        sys.executable,
        "-m",
        "spamgpt",
    ]
    try:
        done = subprocess.run(
            [*shell, *(os.fsencode(a) for a in call.arguments)],
            input=call.data or b"",
            capture_output=True,
            env=os.environ | call.environment,
            pass_fds=[write],
            timeout=HANG_SECONDS,
        )
    finally:
        os.close(write)
    return done.returncode, done.stdout, done.stderr


def fuzz_commands(
    folder: Path, n: int, seed: int, first: int = 0, run: Callable = call_here
) -> Counter:
    """Run `n` commands; how often each exit code came.

    Raises AssertionError that names seed and number of one that ends in a traceback or another
    exit code, fails without a word, or judges another text than the one that was written.
    """
    outcomes = Counter()
    for i in range(first, n):
        call = random_call(random.Random(f"{seed}/{i}"), folder)
        where = f"seed {seed}, command {i}: {call.arguments!a:.300}"
        faulthandler.dump_traceback_later(HANG_SECONDS + 5, exit=True)
        try:
            code, out, err = run(call)
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
        said = err.decode()
        assert code in ENDS and "Traceback" not in said, f"{where}: {code} {said}"
        assert "Exception ignored" not in said and "Errno" not in said, f"{where}: {said}"
        assert len(said) < 4000, f"{where}: {said}"
        if code in (1, 2) and call.err == "":
            assert said.strip(), f"{where}: exit code {code} without a word"
        if code == 0 and call.arguments == JUDGE_LINES and call.out == "":
            _check_texts(call.data, [json.loads(line)["text"] for line in out.splitlines()], where)
        outcomes[code] += 1
    return outcomes


def _check_texts(data: bytes, judged: list[str], where: str) -> None:
    """What was judged must be the lines of `data`, as far as that is UTF-8."""
    try:
        lines = re.split("\r\n|\r|\n", data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return
    if "\0" not in "".join(lines):
        assert judged == lines[: len(lines) - (lines[-1] == "")], where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--pocket", type=int, default=3_000, help="texts for Pocket GPT")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=10_000, help="within this process")
    parser.add_argument("--processes", type=int, default=300, help="commands in one of their own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="skip the inputs before this one")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPAMGPT_WORKSPACE"] = folder
        pocket = build_classifier(load_base("pocket"), sms.LABEL_NAMES).eval()
        torch.nn.init.normal_(pocket.score.weight, std=0.1)
        save_classifier(tiny_classifier(1))
        os.chdir(folder)
        for name, n, fuzz in (
            ("files", args.files, lambda *a: fuzz_files(Path(folder), *a)),
            ("texts, tiny classifier", args.texts, lambda *a: fuzz_texts(tiny_classifier(1), *a)),
            ("texts, Pocket GPT", args.pocket, lambda *a: fuzz_texts(pocket, *a)),
            ("commands", args.commands, lambda *a: fuzz_commands(Path(folder), *a)),
            ("processes", args.processes, lambda *a: fuzz_commands(Path(folder), *a, call_there)),
        ):
            began = time.perf_counter()
            outcomes = fuzz(n, args.seed, args.first)
            print(f"\n{n:,} {name}: {time.perf_counter() - began:.0f} s", flush=True)
            for outcome, count in outcomes.most_common():
                shown = f"exit code {outcome}" if isinstance(outcome, int) else outcome
                print(f"{count:>9,}  {shown}", flush=True)


if __name__ == "__main__":
    main()
