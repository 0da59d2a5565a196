"""How fast is it? Training, inference and growth, measured in one run on one machine.

    python scripts/benchmark.py --out docs/benchmark.md        # all of it, about 45 minutes
    python scripts/benchmark.py --shape pocket --epochs 1      # a quick look

Training, all with the lecture's recipe (last block, ln_f and head; AdamW; batches of 8) on
the training messages of the workspace's data:

    A   the textbook loop: every batch padded to the longest training message, all blocks
        forward at every step, position -1 read
    B   transformers' GPT2ForSequenceClassification, padded to the batch's longest message,
        the same parameters frozen, a plain PyTorch loop
    B2  the same with batches of like length, as its trainer's `group_by_length` makes them
    C   ours in fp32
    D   ours as it decides by itself

Then inference over the collection against other libraries (scripts/rivals.py), each as a good
engineer would run it, and the labels that each precision changes on a fine-tuned Pocket GPT;
and training on 2, 4 and 8 times the messages.

Each row runs in a process of its own, so that its peak memory is its own; that includes
interpreter and libraries. Weights are random where GPT-2's are not at hand: the work is the
same.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from rivals import RIVALS, length_grouped, reference

from spamgpt import objectives
from spamgpt.batches import Messages, data_loader, distinct
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.fast.precision import Precision, decide
from spamgpt.fast.products import inference_linear
from spamgpt.files import assets
from spamgpt.files.workspace import POCKET, atomic
from spamgpt.hardware import shortest_seconds
from spamgpt.inference import all_but_last, logits
from spamgpt.models.base import load_pocket, load_tokenizer
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.published import load_config, load_weights, read_weights
from spamgpt.recipes import GPT2_RECIPE
from spamgpt.tasks import sms
from spamgpt.training import fit

CPU = torch.device("cpu")
RUNS = 3  # of the short rows: other programs disturb
FEW = 1000  # messages for the slowest row of inference
TRAINING = {
    "A": "A textbook loop",
    "B": "B transformers, dynamic padding",
    "B2": "B2 transformers, batches of like length",
    "C": "C ours, fp32",
    "D": "D ours, as it decides",
}
OURS = {"ours, fp32": "fp32", "ours, bf16": "bf16", "ours, int8": "int8"}
LIMITS = ("C", "D", *OURS)  # rows that are compared with the rate of products


class PeakMemory:
    """Peak resident memory of this process while the block runs, in bytes."""

    def __enter__(self):
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        process = psutil.Process()
        while not self._done.wait(0.05):
            self.peak = max(self.peak, process.memory_info().rss)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


# --- what is measured -----------------------------------------------------------------


def tokenizer_and_config(shape: str):
    """GPT-2's where they can be had; Pocket GPT's tokenizer has the smaller vocabulary."""
    if shape == "pocket":
        return load_tokenizer("pocket"), load_config(POCKET)
    try:
        return load_tokenizer("gpt2"), GPT2Config()
    except assets.AssetError:
        return load_tokenizer("pocket"), GPT2Config()


def build(shape: str) -> Classifier:
    """A classifier of this shape, pretrained if the weights are here, else random."""
    torch.manual_seed(123)
    tokenizer, config = tokenizer_and_config(shape)
    body = GPT2(config)
    if shape == "pocket":
        load_weights(body, read_weights(POCKET / "model.safetensors"))
    elif assets.available("gpt2"):
        load_weights(body, read_weights(assets.fetch("gpt2")))
    return Classifier(body, tokenizer, sms.LABEL_NAMES, shape).eval()


def messages_of(table, classifier: Classifier) -> Messages:
    n_ctx = classifier.transformer.config.n_ctx
    return Messages(table["text"], table["target"], classifier.tokenizer, n_ctx)


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    weights = [p for p in model.parameters() if p.requires_grad]
    recipe = GPT2_RECIPE
    return torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def train_textbook(classifier: Classifier, train: Messages, epochs: int) -> dict:
    """Row A."""
    classifier.prepare(GPT2_RECIPE)
    longest = max(map(len, train.ids))
    optimizer = adamw(classifier)
    classifier.train()
    began = time.perf_counter()
    for _ in range(epochs):
        for batch in data_loader(train, 8, shuffle=True, drop_last=True):
            room = longest - batch.ids.shape[1]
            ids = F.pad(batch.ids, (0, room), value=train.pad_id)
            hidden = classifier.transformer.hidden(ids)  # (B, T, C)
            loss = F.cross_entropy(classifier.score(hidden)[:, -1], batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"seconds": time.perf_counter() - began}


def train_reference(classifier: Classifier, train: Messages, epochs: int, grouped: bool) -> dict:
    """Rows B and B2."""
    model = reference(classifier)
    model.requires_grad_(False)
    for module in (model.transformer.h[-1], model.transformer.ln_f, model.score):
        module.requires_grad_(True)
    optimizer, draw = adamw(model), torch.Generator().manual_seed(123)
    lengths = [len(ids) for ids in train.ids]
    model.train()
    began = time.perf_counter()
    for _ in range(epochs):
        loader = data_loader(train, 8, shuffle=True, drop_last=True)
        if grouped:
            batches = length_grouped(lengths, 8, draw)
            loader = (train.collate([train[row] for row in rows]) for rows in batches)
        for ids, true, targets in loader:
            mask = torch.arange(ids.shape[1]) < true[:, None]
            loss = model(input_ids=ids, attention_mask=mask.long(), labels=targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"seconds": time.perf_counter() - began}


def train_ours(classifier: Classifier, train: Messages, epochs: int) -> dict:
    """Rows C and D."""
    few = Messages(["one"], [0], classifier.tokenizer, 8)  # validation is not part of the race
    recipe, cached = replace(GPT2_RECIPE, epochs=epochs), []
    hidden_states = objectives.hidden_states

    def timed(*args, **kwargs):
        began = time.perf_counter()
        states = hidden_states(*args, **kwargs)
        cached.append(time.perf_counter() - began)
        return states

    objectives.hidden_states = timed
    began = time.perf_counter()
    fit(classifier.prepare(recipe), train, few, recipe, progress=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "frozen": sum(cached), "trainable": seconds - sum(cached)}


def infer(classifier: Classifier, messages: Messages, row: str) -> dict:
    """A row of the table of inference: the median of RUNS calls after the first.

    What is made once (casting and packing here, export and session there) is not timed.
    """
    if row in OURS:
        packed = decide(CPU, classifier.transformer.config.n_embd).packed
        frozen = all_but_last(classifier, Precision(OURS[row], packed))

        def run(ids):
            return logits(classifier, ids, frozen=frozen)
    else:
        try:
            run = RIVALS[row](classifier)
        except ImportError as error:
            return {"skipped": str(error)}
    run(messages.ids[:8])
    times = []
    for _ in range(1 if row.startswith("transformers") else RUNS):
        began = time.perf_counter()
        run(messages.ids)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times)}


def labels_changed() -> dict:
    """Pocket GPT, fine-tuned by its recipe: test labels that differ from fp32's, row by row."""
    base = load_pocket(POCKET)
    classifier = build_classifier(base, sms.LABEL_NAMES).prepare(base.recipe)
    data = {name: messages_of(part, classifier) for name, part in sms.TASK.load_splits().items()}
    history = fit(classifier, data["train"], data["validation"], base.recipe, progress=False)
    exact, targets = logits(classifier, data["test"]), torch.tensor(data["test"].targets)
    changed, packed = {}, decide(CPU, base.model.config.n_embd).packed
    for row in (*RIVALS, *OURS):
        try:
            if row in OURS:
                found = logits(classifier, data["test"], Precision(OURS[row], packed))
            else:
                found = RIVALS[row](classifier)(data["test"].ids)
        except (ImportError, RuntimeError, AttributeError) as error:
            changed[row] = {"skipped": str(error)}
            continue
        apart = (exact.softmax(dim=1) - found.softmax(dim=1)).abs().max().item()
        n = int((exact.argmax(dim=1) != found.argmax(dim=1)).sum())
        changed[row] = {"changed": n, "apart": apart}
    return {
        "seconds": history["seconds"].iloc[-1],
        "messages": len(exact),
        "accuracy": (exact.argmax(dim=1) == targets).float().mean().item(),
        "rows": changed,
    }


def least_seconds(classifier: Classifier, messages: Messages, precision: Precision) -> dict:
    """The products of all blocks but the last over the measured rate of such products.

    What cannot be avoided: every different message passes once.
    """
    config = classifier.transformer.config
    blocks, C, different = config.n_layer - 1, config.n_embd, distinct(messages.ids)[0]
    flops = blocks * sum(map(len, different)) * 2 * 12 * C * C
    for ids in different:
        flops += blocks * 2 * len(ids) * (len(ids) + 1) * C  # attention
    layer, rate = torch.nn.Linear(C, 4 * C), 0.0
    multiply = inference_linear(layer, *precision)
    for rows in (512, 1024, 2048):  # the fastest of these
        seconds = shortest_seconds(multiply, torch.randn(rows, C))
        rate = max(rate, 2 * rows * C * 4 * C / seconds)
    return {"flops": flops, "rate": rate, "seconds": flops / rate}


# --- one row in one process -----------------------------------------------------------


def run_row(args: argparse.Namespace) -> dict:
    """Measure the row that --row names; memory includes interpreter and libraries."""
    if args.row == "labels":
        return labels_changed()
    classifier = build(args.shape)
    if args.row in TRAINING:
        messages = messages_of(sms.TASK.load_splits()["train"], classifier)
        # Equal messages would be computed once: each copy begins with another token.
        copies = range(args.times)
        messages.ids = [[(ids[0] + k) % 5000, *ids[1:]] for k in copies for ids in messages.ids]
        messages.targets = messages.targets * args.times
    else:
        n = FEW if args.row.endswith("as they come") else args.messages
        table = sms.load(sms.source()[1]).assign(target=0)[:n]
        messages = messages_of(table, classifier)
    torch.optim.AdamW([torch.zeros(1)])  # torch imports a second's worth of modules with the first
    with PeakMemory() as memory:
        if args.row not in TRAINING:
            result = infer(classifier, messages, args.row)
        elif args.row in "CD":
            result = train_ours(classifier, messages, args.epochs)
        else:
            epochs = args.reference_epochs or args.epochs
            if args.row == "A":
                result = train_textbook(classifier, messages, epochs)
            else:
                result = train_reference(classifier, messages, epochs, args.row == "B2")
            result["seconds"] *= args.epochs / epochs  # all epochs are the same work
    if args.row in LIMITS:
        decided = decide(CPU, classifier.transformer.config.n_embd)
        name = OURS.get(args.row, decided.states)
        precision = Precision(name, decided.packed)
        result["least"] = least_seconds(classifier, messages, precision)
    return result | {"messages": len(messages), "memory": memory.peak}


def in_own_process(args: argparse.Namespace, row: str, times: int = 1) -> dict:
    command = [sys.executable, __file__, "--row", row, "--times", str(times)]
    command += ["--shape", args.shape, "--epochs", str(args.epochs)]
    if args.reference_epochs:
        command += ["--reference-epochs", str(args.reference_epochs)]
    if args.messages:
        command += ["--messages", str(args.messages)]
    environment = os.environ | ({"SPAMGPT_PRECISION": "fp32"} if row == "C" else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"row {row} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    said = f"{result['seconds']:.1f} s" if "seconds" in result else result["skipped"]
    print(f"{row} x{times}: {said}", file=sys.stderr, flush=True)
    return result


def processor() -> str:
    """The CPU's name and the widest instructions that torch uses on it."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        named = re.search(r"model name\s*: (.*)", info.read_text())
        name = named[1] if named else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def report(args: argparse.Namespace) -> str:
    """The whole benchmark as Markdown."""
    parts = [
        f"`python scripts/benchmark.py {' '.join(sys.argv[1:])}`, {date.today()}, "
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"shape {args.shape}, {args.epochs} epochs",
        __doc__[__doc__.index("Training, all") :].strip(),
    ]
    parts += training(args)
    if not args.training_only:
        parts += inference(args)
    if not args.training_only and not args.no_growth:
        parts += growth(args)
    return "\n\n".join(parts) + "\n"


def training(args: argparse.Namespace) -> list[str]:
    """The table of training, and how far the frozen blocks are from the rate of products."""
    rows = {}
    for row in args.rows:
        runs = [in_own_process(args, row) for _ in range(RUNS if row in "CD" else 1)]
        rows[row] = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    parts = ["## Training"]
    if args.reference_epochs:
        parts.append(
            f"A, B and B2 were measured over {args.reference_epochs} of {args.epochs} epochs, all "
            "the same work, and their seconds scaled up."
        )
    parts.append(f"C and D are the median of {RUNS} runs, the others one run.")
    others, cells = [row for row in ("A", "B", "B2") if row in rows], []
    for row, r in rows.items():
        ratios = [f"{rows[other]['seconds'] / r['seconds']:.1f}x" for other in others]
        split = [f"{r[k]:.1f}" if k in r else "" for k in ("frozen", "trainable")]
        cells.append(
            [TRAINING[row], f"{r['seconds']:.1f}", *split, f"{r['memory'] / 1e9:.2f}", *ratios]
        )
    header = ["", "seconds", "frozen layers", "trainable layers", "peak GB"]
    parts.append(table([*header, *(f"faster than {other}" for other in others)], cells))
    cells = [
        [
            TRAINING[row],
            f"{r['least']['flops'] / 1e12:.2f}",
            f"{r['least']['rate'] / 1e9:.0f}",
            f"{r['least']['seconds']:.1f}",
            f"{r['frozen']:.1f}",
            f"{r['least']['seconds'] / r['frozen']:.0%}",
        ]
        for row, r in rows.items()
        if "least" in r
    ]
    header = ["", "TFLOP", "measured GFLOP/s", "least seconds", "taken", "share of the rate"]
    return [*parts, "## The limit of the frozen layers", table(header, cells)]


def inference(args: argparse.Namespace) -> list[str]:
    """The table of inference, with the labels that each row changes."""
    rows = {row: in_own_process(args, row) for row in (*RIVALS, *OURS)}
    labels = in_own_process(args, "labels")
    speed = {k: r["messages"] / r["seconds"] for k, r in rows.items() if "seconds" in r}
    best = max((row for row in RIVALS if row in speed), key=speed.get)
    cells = []
    for row, r in rows.items():
        if row not in speed:
            cells.append([row, "skipped", "", "", "", r["skipped"]])
            continue
        change = labels["rows"][row]
        least = f"{r['messages'] / r['least']['seconds']:.0f}" if "least" in r else ""
        cells.append(
            [
                row,
                f"{speed[row]:.1f}",
                f"{speed[row] / speed[best]:.2f}x",
                least,
                f"{r['memory'] / 1e9:.2f}",
                change.get("changed", "not run"),
                f"{change['apart']:.3f}" if "apart" in change else "",
            ]
        )
    header = ["", "messages/s", f"to {best}", "at most", "peak GB", "labels", "probability"]
    n = rows["ours, fp32"]["messages"]
    return [
        "## Inference",
        f"{n:,} messages of the collection (as they come: the first {FEW:,}, in batches of 64). "
        'Sorted: by length. "At most" is the speed if the products of different messages took '
        "all the time, at this machine's measured rate. The last two columns are of Pocket GPT, "
        f"fine-tuned by its recipe in {labels['seconds']:.0f} s and right on "
        f"{labels['accuracy']:.1%} of {labels['messages']} test messages: how many labels are not "
        "those of fp32, and the largest change of a probability.",
        table(header, cells),
    ]


def growth(args: argparse.Namespace) -> list[str]:
    """Seconds and memory of row D as the training messages grow."""
    cells = []
    for times in (1, 2, 4, 8):
        r = in_own_process(args, "D", times)
        cells.append([f"{times}x", f"{r['seconds']:.1f}", f"{r['memory'] / 1e9:.2f}"])
    return ["## Growth of D", table(["training messages", "seconds", "peak GB"], cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=["gpt2", "pocket"], default="gpt2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--reference-epochs", type=int, help="of A, B and B2; scaled up")
    parser.add_argument("--rows", nargs="+", default=list(TRAINING), choices=list(TRAINING))
    parser.add_argument("--training-only", action="store_true")
    parser.add_argument("--no-growth", action="store_true", help="leave the last table out")
    parser.add_argument("--messages", type=int, help="for inference; default: the whole collection")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_row(args)))
        return
    sms.TASK.make_splits()
    text = report(args)
    print(text)
    if args.out:
        with atomic(args.out) as temporary:
            temporary.write_text("# Benchmark\n\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
