"""Kill -9 at random moments of fetching, saving and training; look at what is left each time.

    python scripts/kill_rounds.py              # 1,000 rounds, some minutes
    python scripts/kill_rounds.py 20 --seed 3

Each round a child process fetches a zip and weights from a server on this machine (which
sends a wrong byte in one of ten answers), or saves a classifier over another, or trains one
and saves it. The child is forked from a process that has imported everything, and killed
after a random time of up to 1.2 times what the job takes when left alone. After each round:

- a file under its final name has the right digest, or is not there;
- a job that ended by itself and reported success left the right file;
- the saved classifier can be read, and is the former one or the new one to the last weight;
- an epoch that a killed training has kept can be read; the next training continues from there.

After the last round every job is done once more, left alone: it succeeds, and nothing that
the killed ones left is still there. Exits with 1 at the first violation. Needs os.fork, so not
for Windows.
"""

import argparse
import contextlib
import hashlib
import http.server
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from spamgpt.batches import Messages
from spamgpt.classifier import Classifier
from spamgpt.files import assets
from spamgpt.files.workspace import workspace
from spamgpt.models.base import load_tokenizer
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.recipes import Recipe
from spamgpt.resume import FILE
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.training import fit

OK, NOT_HAD, BROKEN = 0, 3, 1  # how a child ends that was not killed
WRONG = 0.1  # share of the server's answers that have a wrong byte
OVERTIME = 1.2  # a kill may come this much later than the job takes

TABLE = b"ham\thello\nspam\twin\n" * 5_000
DAMAGE = b"damaged between two rounds, by hand"
WEIGHTS = random.Random(0).randbytes(2_000_000)


class Violation(AssertionError):
    """Something that must never be on the disk is there."""


# --- the server -----------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves two files, slowly, from where the client asks, sometimes with a wrong byte."""

    def do_GET(self):
        content = bytearray(self.server.files[self.path])
        if random.random() < WRONG:
            content[random.randrange(len(content))] ^= 1
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client was killed
            for at in range(start, len(content), 2**16):
                self.wfile.write(content[at : at + 2**16])
                time.sleep(0.001)

    def log_message(self, *_):
        pass


def serve(files: dict[str, bytes]) -> tuple[str, int]:
    """Start the server in a process of its own; its address and process id."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = files
    pid = os.fork()
    if not pid:
        server.serve_forever()
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}", pid


# --- the jobs -------------------------------------------------------------------------


def put_into_the_table(url: str) -> None:
    """Two files as the real ones are: a member of a zip, and weights that resume."""

    def entry(content: bytes, name: str, **more) -> assets.Asset:
        digest = hashlib.sha256(content).hexdigest()
        return assets.Asset(name, digest, "CC0", size=len(content), mirror_names=(name,), **more)

    assets.ASSETS["table"] = entry(TABLE, "table.tsv", urls=(f"{url}/zip",), member="table.tsv")
    assets.ASSETS["weights"] = entry(WEIGHTS, "model.safetensors", hub=("some/body", "abc"))
    assets._hub_url = lambda asset: f"{url}/weights"


def fetch_both(_: int) -> None:
    for name in ("table", "weights"):
        assets.fetch(name)


def make(run: int) -> Classifier:
    """A small classifier, of one of two shapes, all of whose weights are the run's number."""
    tokenizer = load_tokenizer("pocket")
    config = GPT2Config(1, 2, (16, 32)[run % 2], 64, tokenizer.n_vocab)
    classifier = Classifier(GPT2(config), tokenizer, ["ham", "spam"], "pocket")
    with torch.no_grad():
        for weight in classifier.parameters():
            weight.fill_(run)
    return classifier


def save_one(run: int) -> None:
    save_classifier(make(run), run=run)


def train_one(run: int) -> None:
    classifier = make(0)
    texts = [f"message {i}" for i in range(32)]
    messages = Messages(texts, [i % 2 for i in range(32)], classifier.tokenizer, 64)
    recipe = Recipe(trained_blocks=None, learning_rate=1e-3, epochs=3)
    classifier.prepare(recipe)
    fit(classifier, messages, messages, recipe, progress=False, resume=workspace() / "training")
    with torch.no_grad():
        for weight in classifier.parameters():
            weight.fill_(run)  # so that the check below holds for it as well
    save_classifier(classifier, run=run)


JOBS: dict[str, Callable[[int], None]] = {"fetch": fetch_both, "save": save_one, "fit": train_one}


# --- what must hold -------------------------------------------------------------------


def check_fetched(complete: bool = False) -> None:
    """Final files have the right content, or what `spoil` gave them; `complete`: both right."""
    for name, content in (("table", TABLE), ("weights", WEIGHTS)):
        path = assets.cached(name)
        if path.exists() and path.read_bytes() not in (content, b"" if complete else DAMAGE):
            raise Violation(f"{path.name} has its final name and wrong content")
        if complete and not path.exists():
            raise Violation(f"{name} was reported as fetched, but {path.name} is not there")


def check_saved(*runs: int) -> int:
    """The saved classifier is one of `runs`, wholly; returns which."""
    try:
        classifier, facts = load_classifier()
    except (OSError, ValueError) as error:
        raise Violation(f"the classifier cannot be read: {error}") from error
    if facts["run"] not in runs:
        raise Violation(f"the classifier is of run {facts['run']}, not of one of {runs}")
    for name, weight in classifier.named_parameters():
        if not bool((weight == facts["run"]).all()):
            raise Violation(f"{name} is not of run {facts['run']}, but config.json is")
    return facts["run"]


def check_kept() -> None:
    """If an epoch of a training is kept, its file is whole."""
    path = workspace() / "training" / FILE
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    file.get_tensor(key)
        except SafetensorError as error:
            raise Violation(f"{path.name} cannot be read: {error}") from error


def check_tidy(folder: Path) -> None:
    """Nothing is there that a killed process left."""
    if parts := [path.name for path in folder.rglob("*.part")]:
        raise Violation(f"left behind: {', '.join(parts)}")


# --- the rounds -----------------------------------------------------------------------


def in_a_child(job: Callable[[int], None], run: int, seconds: float | None) -> tuple[int, float]:
    """How the job ends in a forked process (exit status, or -9), and how long it took.

    It is killed after `seconds`, unless that is None or it was faster.
    """
    began, pid = time.perf_counter(), os.fork()
    if not pid:
        status = OK
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(None):
                job(run)
        except assets.AssetError:
            status = NOT_HAD
        except BaseException:
            traceback.print_exc()
            status = BROKEN
        os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # a process that has ended waits for us to ask for its status
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - began


def until_done(name: str, run: int) -> float:
    """The seconds that a job takes when it is left alone; repeated where the server lied."""
    while True:
        status, seconds = in_a_child(JOBS[name], run, None)
        if status == OK:
            return seconds
        if status != NOT_HAD:
            raise Violation(f"{name} failed although nobody killed it")


def play(rounds: int, seed: int) -> Counter:
    """All rounds in the workspace; counts (job, how it ended). Raises Violation."""
    dice, counts, run = random.Random(seed), Counter(), 1
    until_done("save", run)
    takes = {}
    for name in JOBS:
        seconds = []
        for _ in range(3):  # the shortest: a first time is slow, and late kills show nothing
            for path in map(assets.cached, ("table", "weights")):
                path.unlink(missing_ok=True)
            run += 1
            seconds.append(until_done(name, run))
            run = check_saved(run, run - 1)
        takes[name] = min(seconds)
    print("alone: " + ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in takes.items()))
    for number in range(rounds):
        name = list(JOBS)[number % len(JOBS)]
        if name == "fetch":
            for path in map(assets.cached, ("table", "weights")):
                spoil(path, dice)
        status, _ = in_a_child(JOBS[name], number + 100, dice.uniform(0, OVERTIME * takes[name]))
        counts[name, {OK: "done", NOT_HAD: "refused", -9: "killed"}.get(status, "broken")] += 1
        if status == BROKEN:
            raise Violation(f"{name} raised an error of its own in round {number}")
        if name == "fetch":
            check_fetched(complete=status == OK)
        else:
            new = number + 100
            run = check_saved(new) if status == OK else check_saved(run, new)
            check_kept()
            counts[name, "left the new one" if run == new else "left the former one"] += 1
    return counts


def spoil(path: Path, dice: random.Random) -> None:
    """Mostly remove a fetched file, so that there is something to fetch; or damage it."""
    if not path.exists():
        return
    throw = dice.random()
    if throw < 0.7:
        path.unlink()
    elif throw < 0.8:
        path.write_bytes(DAMAGE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", nargs="?", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (the clock is not)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports a second's worth of torch
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("table.tsv", TABLE)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="spamgpt-kill-") as folder:
        os.environ["SPAMGPT_WORKSPACE"] = folder
        os.environ.pop("SPAMGPT_OFFLINE", None)
        os.environ.pop("SPAMGPT_MIRROR", None)
        url, server = serve({"/zip": archive.getvalue(), "/weights": WEIGHTS})
        try:
            put_into_the_table(url)
            counts = play(args.rounds, args.seed)
            for run, name in enumerate(JOBS, start=10**6):
                until_done(name, run)
            check_fetched(complete=True)
            check_saved(10**6 + len(JOBS) - 1)
            check_tidy(Path(folder))
        except Violation as violation:
            print(f"VIOLATION: {violation}")
            return 1
        finally:
            os.kill(server, signal.SIGTERM)
            os.waitpid(server, 0)
    for name in JOBS:
        print(f"{name:<6}" + ", ".join(f"{n} {k[1]}" for k, n in counts.items() if k[0] == name))
    seconds = time.perf_counter() - began
    print(f"{args.rounds} rounds in {seconds:.0f} s: never a wrong or unreadable file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
