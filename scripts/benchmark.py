"""How fast is it? Training, inference and growth, measured in one run on one machine.

    python scripts/benchmark.py --out docs/benchmark.md        # all of it, about 45 minutes
    python scripts/benchmark.py --shape pocket --epochs 1      # a quick look

Training, all with the lecture's recipe (last block, ln_f and head; AdamW; batches of 8) on
the training messages of the workspace's data:

    A  the textbook loop: every batch padded to the longest training message, all blocks
       forward at every step, position -1 read
    B  transformers' GPT2ForSequenceClassification, padded to the batch's longest message,
       the same parameters frozen, a plain PyTorch loop
    C  ours in fp32
    D  ours as it decides by itself

Then inference over the whole collection; training on 2, 4 and 8 times the messages; and
whether bf16 changes what a fine-tuned Pocket GPT says of the test messages.

Each row runs in a process of its own, so that its peak memory is its own; that includes
interpreter and libraries. Weights are random where GPT-2's are not at hand: the work is the
same.
"""

import argparse
import json
import platform
import re
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

from spamgpt import assets, sms
from spamgpt.batching import Messages, data_loader, distinct, pad
from spamgpt.classifier import Classifier, build_classifier
from spamgpt.gpt2 import GPT2, GPT2Config
from spamgpt.hardware import bf16_pays, packing_pays, product, shortest_seconds
from spamgpt.pretrained import (
    GPT2_RECIPE,
    load_config,
    load_pocket,
    load_tokenizer,
    load_weights,
    published_config,
    read_weights,
)
from spamgpt.training import fit
from spamgpt.trunk import merge
from spamgpt.workspace import POCKET, atomic

CPU = torch.device("cpu")
RUNS = 3  # of the short rows: other programs disturb


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
    return Classifier(body, tokenizer, sms.LABEL_NAMES, shape)


def messages_of(table, classifier: Classifier) -> Messages:
    n_ctx = classifier.transformer.config.n_ctx
    return Messages(table["text"], table["target"], classifier.tokenizer, n_ctx)


def reference(classifier: Classifier):
    """The same model as transformers builds it, with the same parameters frozen."""
    import transformers

    config = transformers.GPT2Config(
        **published_config(classifier.transformer.config),
        num_labels=2,
        pad_token_id=classifier.tokenizer.eot_token,
    )
    model = transformers.GPT2ForSequenceClassification(config)
    model.requires_grad_(False)
    for module in (model.transformer.h[-1], model.transformer.ln_f, model.score):
        module.requires_grad_(True)
    return model


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    weights = [p for p in model.parameters() if p.requires_grad]
    recipe = GPT2_RECIPE
    return torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def train_textbook(classifier: Classifier, train: Messages, epochs: int) -> dict:
    """Row A."""
    classifier.freeze(1)
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


def train_reference(classifier: Classifier, train: Messages, epochs: int) -> dict:
    """Row B."""
    model = reference(classifier)
    optimizer = adamw(model)
    model.train()
    began = time.perf_counter()
    for _ in range(epochs):
        for ids, lengths, targets in data_loader(train, 8, shuffle=True, drop_last=True):
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            loss = model(input_ids=ids, attention_mask=mask.long(), labels=targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"seconds": time.perf_counter() - began}


def train_ours(classifier: Classifier, train: Messages, epochs: int, bf16: bool | None) -> dict:
    """Rows C and D."""
    few = Messages(["one"], [0], classifier.tokenizer, 8)  # validation is not part of the race
    recipe = replace(GPT2_RECIPE, epochs=epochs)
    trunk_states, trunk = classifier.trunk_states, []

    def timed(*args):
        began = time.perf_counter()
        states = trunk_states(*args)
        trunk.append(time.perf_counter() - began)
        return states

    classifier.trunk_states = timed
    began = time.perf_counter()
    fit(classifier, train, few, recipe, progress=False, bf16=bf16)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "trunk": sum(trunk), "tail": seconds - sum(trunk)}


def infer_reference(classifier: Classifier, texts: Messages) -> dict:
    """All messages in batches of 64 as they come, as a user of transformers would."""
    model = reference(classifier).eval()
    began = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, len(texts), 64):
            ids, lengths = pad(texts.ids[i : i + 64], texts.pad_id)
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            model(input_ids=ids, attention_mask=mask.long())
    return {"seconds": time.perf_counter() - began}


def infer_ours(classifier: Classifier, texts: Messages, bf16: bool | None) -> dict:
    began = time.perf_counter()
    classifier.scores_of(texts.ids, bf16)
    return {"seconds": time.perf_counter() - began}


def what_bf16_changes() -> dict:
    """Pocket GPT, fine-tuned by its recipe: test messages that fp32 and bf16 label differently."""
    base = load_pocket(POCKET)
    classifier = build_classifier(base, sms.LABEL_NAMES)
    data = {name: messages_of(part, classifier) for name, part in sms.load_splits().items()}
    history = fit(classifier, data["train"], data["validation"], base.recipe, progress=False)
    exact, rounded = (classifier.scores_of(data["test"].ids, bf16) for bf16 in (False, True))
    right = exact.argmax(dim=1) == torch.tensor(data["test"].targets)
    apart = (exact.softmax(dim=1) - rounded.softmax(dim=1)).abs().max()
    return {
        "seconds": history["seconds"].iloc[-1],
        "messages": len(exact),
        "accuracy": right.float().mean().item(),
        "changed": int((exact.argmax(dim=1) != rounded.argmax(dim=1)).sum()),
        "apart": apart.item(),
    }


def least_seconds(classifier: Classifier, messages: Messages, bf16: bool | None) -> dict:
    """The multiplications of all blocks but the last over the measured rate of matrix products.

    What cannot be avoided: every beginning of a message, however many share it, passes once.
    """
    config = classifier.transformer.config
    blocks, C = config.n_layer - 1, config.n_embd
    _, place = merge(messages.ids)
    flops = blocks * len(place) * 2 * 12 * C * C
    for ids in distinct(messages.ids)[0]:
        flops += blocks * 2 * len(ids) * (len(ids) + 1) * C  # attention
    dtype = torch.bfloat16 if (bf16_pays(CPU) if bf16 is None else bf16) else torch.float32
    layer, rate = torch.nn.Linear(C, 4 * C), 0.0
    for packed in {False, packing_pays()}:
        multiply = product(layer, dtype, packed)
        for rows in (512, 1024, 2048, 4096):  # the fastest of these
            seconds = shortest_seconds(multiply, torch.randn(rows, C))
            rate = max(rate, 2 * rows * C * 4 * C / seconds)
    return {"flops": flops, "rate": rate, "seconds": flops / rate}


# --- one row in one process -----------------------------------------------------------


def run_row(args: argparse.Namespace) -> dict:
    """Measure the row that --row names; memory includes interpreter and libraries."""
    if args.row == "bf16":
        return what_bf16_changes()
    classifier = build(args.shape)
    inference, ours = args.row.startswith("inference"), args.row[-1] in "CD"
    bf16 = False if args.row[-1] == "C" else None
    if inference:
        _, path = sms.source()
        messages = messages_of(sms.load(path).assign(target=0)[: args.messages], classifier)
    else:
        messages = messages_of(sms.load_splits()["train"], classifier)
        # Equal messages would be computed once: each copy begins with another token.
        copies = range(args.times)
        messages.ids = [[(ids[0] + k) % 5000, *ids[1:]] for k in copies for ids in messages.ids]
        messages.targets = messages.targets * args.times
    torch.optim.AdamW([torch.zeros(1)])  # torch imports a second's worth of modules with the first
    with PeakMemory() as memory:
        if inference and ours:
            result = infer_ours(classifier, messages, bf16)
        elif inference:
            result = infer_reference(classifier, messages)
        elif ours:
            result = train_ours(classifier, messages, args.epochs, bf16)
        else:
            loop = train_textbook if args.row == "A" else train_reference
            epochs = args.reference_epochs or args.epochs
            result = loop(classifier, messages, epochs)
            result["seconds"] *= args.epochs / epochs  # all epochs are the same work
    if ours:
        result["least"] = least_seconds(classifier, messages, bf16)
    return result | {"messages": len(messages), "memory": memory.peak}


def in_own_process(args: argparse.Namespace, row: str, times: int = 1) -> dict:
    command = [sys.executable, __file__, "--row", row, "--times", str(times)]
    command += ["--shape", args.shape, "--epochs", str(args.epochs)]
    if args.reference_epochs:
        command += ["--reference-epochs", str(args.reference_epochs)]
    if args.messages:
        command += ["--messages", str(args.messages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"row {row} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{row} x{times}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)
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
    rows = {}
    for row in args.rows:
        runs = [in_own_process(args, row) for _ in range(1 if row in "AB" else RUNS)]
        rows[row] = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    names = {
        "A": "A textbook loop",
        "B": "B transformers, dynamic padding",
        "C": "C ours, fp32",
        "D": "D ours, as it decides",
    }
    parts = [
        f"`python scripts/benchmark.py {' '.join(sys.argv[1:])}`, {date.today()}, "
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"shape {args.shape}, {args.epochs} epochs",
        __doc__[__doc__.index("Training, all") :].strip(),
        "## Training",
    ]
    if args.reference_epochs:
        parts.append(
            f"A and B were measured over {args.reference_epochs} of {args.epochs} epochs, all the "
            "same work, and their seconds scaled up."
        )
    parts.append(f"C and D are the median of {RUNS} runs, A and B one run.")
    cells = []
    for row, r in rows.items():
        ratios = [
            f"{rows[other]['seconds'] / r['seconds']:.1f}x" if other in rows else ""
            for other in "AB"
        ]
        split = [f"{r[k]:.1f}" if k in r else "" for k in ("trunk", "tail")]
        cells.append(
            [names[row], f"{r['seconds']:.1f}", *split, f"{r['memory'] / 1e9:.2f}", *ratios]
        )
    header = ["", "seconds", "trunk", "tail", "peak GB", "faster than A", "than B"]
    parts.append(table(header, cells))
    parts.append("## The limit of the trunk")
    cells = [
        [
            names[row],
            f"{r['least']['flops'] / 1e12:.2f}",
            f"{r['least']['rate'] / 1e9:.0f}",
            f"{r['least']['seconds']:.1f}",
            f"{r['trunk']:.1f}",
            f"{r['least']['seconds'] / r['trunk']:.0%}",
        ]
        for row, r in rows.items()
        if "least" in r
    ]
    header = ["", "TFLOP", "measured GFLOP/s", "least seconds", "taken", "share of the rate"]
    parts.append(table(header, cells))
    if not args.training_only:
        parts.append("## Inference")
        rows = {row[-1]: in_own_process(args, f"inference {row}") for row in "BCD"}
        slow = rows["B"]["seconds"]
        cells = []
        for row, r in rows.items():
            least = r["least"]["seconds"] if "least" in r else None
            cells.append(
                [
                    names[row],
                    f"{r['messages'] / r['seconds']:.1f}",
                    f"{slow / r['seconds']:.1f}x",
                    f"{slow / least:.1f}x" if least else "",
                ]
            )
        parts.append(
            f"{rows['B']['messages']:,} messages, as they come in the collection; B in batches of "
            "64. The last column is the ratio if the blocks' products took all the time, at this "
            "machine's measured rate."
        )
        parts.append(table(["", "messages/s", "faster than B", "at most"], cells))
        parts.append("## Growth of D")
        cells = []
        for times in (1, 2, 4, 8):
            r = in_own_process(args, "D", times)
            cells.append([f"{times}x", f"{r['seconds']:.1f}", f"{r['memory'] / 1e9:.2f}"])
        parts.append(table(["training messages", "seconds", "peak GB"], cells))
        parts.append("## What bf16 changes")
        r = in_own_process(args, "bf16")
        parts.append(
            f"Pocket GPT, fine-tuned by its recipe in {r['seconds']:.0f} s, is right on "
            f"{r['accuracy']:.1%} of {r['messages']} test messages. In bf16 {r['changed']} of its "
            f"labels are different; no probability moves by more than {r['apart']:.3f}."
        )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=["gpt2", "pocket"], default="gpt2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--reference-epochs", type=int, help="of A and B; their time is scaled up")
    parser.add_argument("--rows", nargs="+", default=["A", "B", "C", "D"])
    parser.add_argument("--training-only", action="store_true")
    parser.add_argument("--messages", type=int, help="for inference; default: the whole collection")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_row(args)))
        return
    sms.make_splits()
    text = report(args)
    print(text)
    if args.out:
        with atomic(args.out) as temporary:
            temporary.write_text("# Benchmark\n\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
