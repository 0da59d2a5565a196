"""Pretrain Pocket GPT, the small base model that the repository carries.

    python scripts/pretrain_pocket.py --corpus FOLDER --tokens 40e6

FOLDER holds books.txt.gz and dialogues.txt.gz: documents of UTF-8 lines, separated by
a line holding only <|endoftext|>. The script trains the tokenizer, encodes the corpus,
trains the model and writes the three files of data/bundled/pocket-gpt/. Each stage is
kept under --work and skipped when its result is there; training saves a checkpoint
every few minutes, and the same command continues from it. The learning rate is a function
of the tokens seen, so a running job can be stopped and ended early by calling the script
again with a smaller --tokens.

It runs on one GPU or on a CPU (bf16 autocast on both where the hardware has it).
"""

import argparse
import base64
import gzip
import json
import math
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from spamgpt.files.workspace import POCKET
from spamgpt.models.base import END, tokenizer_from_ranks
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.published import load_config, load_weights, read_weights, save_checkpoint

# What one window is drawn from. Dialogues weigh more than their 20 % of the corpus, and
# more than half of all windows carry the spelling of text messages: the model will read
# messages, and none of the SMS Spam Collection's may be used here.
MIXTURE = {"books": 0.35, "books-sms": 0.15, "dialogues": 0.2, "dialogues-sms": 0.3}
HELD_OUT = {"books": 4, "dialogues": 400}  # documents that training never sees

SHORT_FORMS = {
    "you": "u",
    "your": "ur",
    "you're": "ur",
    "are": "r",
    "be": "b",
    "see": "c",
    "to": "2",
    "too": "2",
    "for": "4",
    "and": "&",
    "please": "pls",
    "thanks": "thx",
    "tomorrow": "tmr",
    "tonight": "2nite",
    "today": "2day",
    "great": "gr8",
    "later": "l8r",
    "with": "wid",
    "that": "dat",
    "the": "d",
    "this": "dis",
    "because": "cos",
    "about": "abt",
    "okay": "ok",
    "have": "hav",
    "what": "wat",
    "message": "msg",
    "text": "txt",
    "people": "ppl",
    "before": "b4",
    "why": "y",
    "very": "v",
    "number": "no",
    "going to": "gonna",
    "want to": "wanna",
    "yes": "ya",
    "good": "gd",
    "back": "bk",
    "just": "jus",
    "love": "luv",
    "know": "noe",
    "night": "nite",
    "oh": "o",
    "weekend": "wkend",
    "week": "wk",
    "from": "frm",
}
SHORT_FORM = re.compile(r"\b(" + "|".join(map(re.escape, SHORT_FORMS)) + r")\b", re.IGNORECASE)


def like_a_message(line: str, rng: random.Random) -> str:
    """The same line as somebody might have typed it on a phone in 2005."""
    if rng.random() < 0.6:
        rate = rng.random() * 0.7
        line = SHORT_FORM.sub(
            lambda m: SHORT_FORMS[m[0].lower()] if rng.random() < rate else m[0], line
        )
    if rng.random() < 0.4:
        line = line.replace("'", "")
    style = rng.random()
    if style < 0.45:
        line = line.lower()
    elif style < 0.53:
        line = line.upper()
    ending = rng.random()
    if ending < 0.35:
        line = line.rstrip(".")
    elif ending < 0.5:
        line = re.sub(r"[.,;] ?", rng.choice(["...", ".. ", "..."]), line)
    if rng.random() < 0.15:
        line = line.replace("!", "!!").replace("?", "??")
    return line


def documents(path: Path) -> list[list[str]]:
    """The documents of one corpus file, each a list of lines."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    return [doc.strip().splitlines() for doc in text.split(f"\n{END}\n") if doc.strip()]


def split_corpus(corpus: Path) -> tuple[dict, dict]:
    """(training, held-out) documents of both files."""
    train, held = {}, {}
    for name, n in HELD_OUT.items():
        docs = documents(corpus / f"{name}.txt.gz")
        random.Random(123).shuffle(docs)
        held[name], train[name] = docs[:n], docs[n:]
    return train, held


def train_tokenizer(train: dict, n_vocab: int, path: Path) -> None:
    """Learn a byte-level BPE and write it as a .tiktoken rank file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(123)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 1,  # the last id is <|endoftext|>
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Books at a fifth, dialogues plain and as messages: the vocabulary is for messages.
    books = (line for doc in train["books"] for line in doc if rng.random() < 0.2)
    chats = [line for doc in train["dialogues"] for line in doc]
    lines = [*books, *chats]
    bpe.train_from_iterator([*lines, *(like_a_message(line, rng) for line in lines)], trainer)
    to_byte = {c: b for b, c in _byte_alphabet().items()}
    ranks = {
        bytes(to_byte[c] for c in token): rank
        for rank, token in enumerate(
            token for token, _ in sorted(bpe.get_vocab().items(), key=lambda kv: kv[1])
        )
    }
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    path.write_text("".join(lines), encoding="ascii")


def _byte_alphabet() -> dict[int, str]:
    """The printable character that BPE files write for each byte (GPT-2's encoder.py)."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def encode(docs: list[list[str]], tokenizer: tiktoken.Encoding) -> tuple[np.ndarray, np.ndarray]:
    """(token ids of all documents in a row, position of each line's first token)."""
    ids, starts, position = [], [], 0
    for doc in docs:
        lines = [line + "\n" for line in doc]
        for line in tokenizer.encode_ordinary_batch(lines, num_threads=2):
            starts.append(position)
            ids.append(np.array(line, dtype=np.uint16))
            position += len(line)
        ids.append(np.array([tokenizer.eot_token], dtype=np.uint16))
        position += 1
    return np.concatenate(ids), np.array(starts)


def prepare(corpus: Path, work: Path, n_vocab: int, init: Path | None) -> None:
    """Everything before training: rank file (`init`'s if given) and encoded streams."""
    ranks = work / "pocket.tiktoken"
    if init and ranks.exists() and ranks.read_bytes() != (init / ranks.name).read_bytes():
        raise ValueError(f"{work} was prepared for another tokenizer than {init}'s")
    if (work / "streams.npz").exists():
        return
    train, held = split_corpus(corpus)
    if init and not ranks.exists():
        ranks.write_bytes((init / ranks.name).read_bytes())
    if not ranks.exists():
        train_tokenizer(train, n_vocab, ranks)
        print(f"tokenizer trained: {ranks}")
    tokenizer = tokenizer_from_ranks(ranks)
    rng = random.Random(123)
    arrays = {}
    for name, docs in train.items():
        arrays[name], arrays[f"{name}-starts"] = encode(docs, tokenizer)
        noisy = [[like_a_message(line, rng) for line in doc] for doc in docs]
        arrays[f"{name}-sms"], arrays[f"{name}-sms-starts"] = encode(noisy, tokenizer)
        arrays[f"{name}-held"], _ = encode(held[name], tokenizer)
        n_bytes = sum(len(line.encode()) + 1 for doc in held[name] for line in doc)
        arrays[f"{name}-held-bytes"] = np.array(n_bytes + len(held[name]))
        print(f"{name}: {len(arrays[name]):,} tokens, held out {len(arrays[f'{name}-held']):,}")
    with open(work / "streams.tmp", "wb") as file:
        np.savez(file, **arrays)
    os.replace(work / "streams.tmp", work / "streams.npz")


class TiedLoss(torch.autograd.Function):
    """Mean next-token cross-entropy of hidden states against tied embeddings, by slices.

    (N, C) hidden, (V, C) embeddings, (N,) targets -> scalar. Never holds more than
    `ROWS` rows of logits, which then stay in the CPU's cache: 2.5 times as fast as
    torch.nn.functional.linear_cross_entropy with its own chunking on two cores.
    """

    ROWS = 512

    @staticmethod
    def forward(ctx, hidden, wte, target):
        dtype = torch.bfloat16
        weight, hidden_low = wte.to(dtype), hidden.to(dtype)
        grad_hidden = torch.empty_like(hidden_low)
        grad_wte = torch.zeros_like(wte)
        total = hidden.new_zeros((), dtype=torch.float32)
        for i in range(0, len(hidden), TiedLoss.ROWS):
            x, y = hidden_low[i : i + TiedLoss.ROWS], target[i : i + TiedLoss.ROWS, None]
            logits = x @ weight.T  # (rows, V)
            norm = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (norm - logits.gather(1, y)).float().sum()
            grad = (logits - norm).exp_()
            grad.scatter_add_(1, y, -torch.ones_like(norm))
            grad_hidden[i : i + TiedLoss.ROWS] = grad @ weight
            grad_wte += grad.T @ x
        ctx.save_for_backward(grad_hidden, grad_wte)
        ctx.n, ctx.dtype = len(hidden), hidden.dtype
        return total / len(hidden)

    @staticmethod
    def backward(ctx, grad_out):
        grad_hidden, grad_wte = ctx.saved_tensors
        scale = grad_out / ctx.n
        return (grad_hidden.float() * scale).to(ctx.dtype), grad_wte * scale, None


class LineBag(torch.nn.Module):
    """Asks one token's hidden state which tokens its line has held so far.

    Predicting the next token needs little of what is far to the left, so a small model
    keeps little of it. A classifier that reads a message's last token needs all of it. The
    target is a distribution over the line's distinct tokens, rare ones weighing more (by
    their surprisal in the corpus); the loss is its cross-entropy with the softmax of a
    linear map of the hidden state times the token embeddings. The map is thrown away.
    """

    PER_WINDOW = 16  # tokens that are asked

    def __init__(self, tokenizer: tiktoken.Encoding, streams: list[np.ndarray], n_embd: int):
        super().__init__()
        self.proj = torch.nn.Linear(n_embd, n_embd)
        counts = sum(np.bincount(stream, minlength=tokenizer.n_vocab) for stream in streams)
        surprisal = -np.log((counts + 1) / counts.sum())
        ends = [b"\n" in tokenizer.decode_single_token_bytes(i) for i in range(tokenizer.eot_token)]
        self.register_buffer("surprisal", torch.from_numpy(surprisal).float())
        self.register_buffer("ends_line", torch.tensor([*ends, True]))  # <|endoftext|> does, too

    def loss(self, hidden: Tensor, ids: Tensor, wte: Tensor, step: int) -> Tensor:
        """(B, T, C) hidden, (B, T) ids, (V, C) embeddings -> scalar, in nats per asked token."""
        B, T = ids.shape
        end = self.ends_line[ids]
        place = torch.arange(T, device=ids.device).expand(B, T)
        after_end = torch.where(end, place + 1, 0).cummax(dim=1).values
        start = F.pad(after_end[:, :-1], (1, 0))  # where each token's line begins
        luck = torch.rand((B, T), generator=torch.Generator().manual_seed(step)).to(ids.device)
        too_early = end | (place - start < 2)
        asked = (luck - too_early.float()).topk(self.PER_WINDOW, dim=1).indices  # (B, P)
        first = start.gather(1, asked)
        in_line = (place[:, None] >= first[..., None]) & (place[:, None] <= asked[..., None])
        tokens = ids[:, None].expand_as(in_line)  # (B, P, T)
        target = hidden.new_zeros((*asked.shape, len(wte)), dtype=torch.float32)  # (B, P, V)
        target.scatter_reduce_(2, tokens, in_line * self.surprisal[tokens], "amax")
        target /= target.sum(dim=2, keepdim=True).clamp(min=1e-6)
        state = hidden.gather(1, asked[..., None].expand(-1, -1, hidden.shape[2]))
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            logits = self.proj(state) @ wte.T
        return -(target * torch.log_softmax(logits.float(), dim=-1)).sum(dim=2).mean()


class Windows:
    """Random windows of the training streams, each starting where a line starts."""

    def __init__(self, work: Path, n_ctx: int, seed: int, mixture: dict[str, float] = MIXTURE):
        self.data = np.load(work / "streams.npz")
        self.streams = {name: self.data[name] for name in MIXTURE}
        self.starts = {
            name: starts[starts < len(self.streams[name]) - n_ctx - 1]
            for name in MIXTURE
            for starts in [self.data[f"{name}-starts"]]
        }
        self.n_ctx, self.seed, self.mixture = n_ctx, seed, mixture

    def batch(self, step: int, size: int) -> Tensor:
        """(size, n_ctx + 1) ids; a function of `step` alone, as a resumed run needs."""
        rng = np.random.default_rng((self.seed, step))
        names = rng.choice(list(self.mixture), size=size, p=list(self.mixture.values()))
        rows = []
        for name in names:
            start = rng.choice(self.starts[name])
            rows.append(self.streams[name][start : start + self.n_ctx + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def held_out(self, name: str) -> tuple[Tensor, float]:
        """((windows, n_ctx + 1) ids, bytes per token) of the untouched held-out text."""
        ids = self.data[f"{name}-held"]
        bytes_per_token = float(self.data[f"{name}-held-bytes"]) / len(ids)
        n = min(len(ids) // (self.n_ctx + 1), 400)
        windows = ids[: n * (self.n_ctx + 1)].reshape(n, -1).astype(np.int64)
        return torch.from_numpy(windows), bytes_per_token


def learning_rate(progress: float, warmup: float = 0.02, decay: float = 0.35) -> float:
    """Warm up, stay, fall linearly to 0 (Hägele et al. 2024, https://arxiv.org/abs/2405.18392)."""
    return min(progress / warmup, 1.0, max(0.0, (1 - progress) / decay))


def losses_of(
    model: GPT2, batch: Tensor, device: torch.device, bag: LineBag | None = None, step: int = 0
) -> tuple[Tensor, Tensor | float]:
    """(next-token loss, line loss or 0.0) of (B, T + 1) ids, in nats."""
    batch = batch.to(device)
    ids, following = batch[:, :-1], batch[:, 1:]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden = model.hidden(ids)  # (B, T, C)
    next_token = TiedLoss.apply(hidden.flatten(0, 1), model.wte.weight, following.flatten())
    return next_token, bag.loss(hidden, ids, model.wte.weight, step) if bag else 0.0


@torch.no_grad()
def bits_per_byte(model: GPT2, windows: Windows, device: torch.device) -> dict[str, float]:
    """Held-out loss of plain books and dialogues, in bits per byte of UTF-8."""
    model.eval()
    result = {}
    for name in HELD_OUT:
        batches, bytes_per_token = windows.held_out(name)
        nats = np.mean([losses_of(model, b, device)[0].item() for b in batches.split(20)])
        result[name] = float(nats / math.log(2) / bytes_per_token)
    model.train()
    return result


def ngram_bits_per_byte(windows: Windows, n_vocab: int, order: int) -> dict[str, float]:
    """Held-out loss of an n-gram model of the same tokens: the bar to clear.

    Counts of the plain training streams, Witten-Bell smoothing down to the uniform
    distribution (Witten and Bell 1991, https://doi.org/10.1109/18.87000), which has
    nothing to tune.
    """
    train = [windows.streams[name].astype(np.int64) for name in HELD_OUT]
    result = {}
    for name in HELD_OUT:
        batches, bytes_per_token = windows.held_out(name)
        ids = batches.numpy().ravel()
        probability = np.full(len(ids), 1 / n_vocab)
        for n in range(1, order + 1):
            grams = np.concatenate([_ngrams(stream, n, n_vocab) for stream in train])
            seen, counts = np.unique(grams, return_counts=True)
            history, first, kinds = np.unique(
                seen // n_vocab, return_index=True, return_counts=True
            )
            total = np.add.reduceat(counts, first)
            query = _ngrams(ids, n, n_vocab)
            c = _look_up(query, seen, counts)
            N = _look_up(query // n_vocab, history, total)
            k = _look_up(query // n_vocab, history, kinds)
            lower = probability[n - 1 :]
            probability[n - 1 :] = np.where(N > 0, (c + k * lower) / np.maximum(N + k, 1), lower)
        result[name] = float(-np.log2(probability[order - 1 :]).mean() / bytes_per_token)
    return result


def _ngrams(ids: np.ndarray, n: int, n_vocab: int) -> np.ndarray:
    """Every run of n ids as one number, the last id in its lowest digits."""
    length = len(ids) - n + 1
    return sum(ids[i : i + length] * n_vocab ** (n - 1 - i) for i in range(n))


def _look_up(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """values[keys == query], 0 where there is no such key; `keys` are sorted."""
    place = np.searchsorted(keys, query).clip(max=len(keys) - 1)
    return np.where(keys[place] == query, values[place], 0)


def optimizers(model: GPT2, bag: LineBag | None, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for k, p in model.named_parameters() if k.startswith("h.") and p.ndim == 2]
    rest = [p for k, p in model.named_parameters() if not (k.startswith("h.") and p.ndim == 2)]
    rest += bag.parameters() if bag else []
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def save(
    path: Path, model: GPT2, bag: LineBag | None, opts: list, step: int, seconds: float
) -> None:
    state = {
        "model": model.state_dict(),
        "bag": bag.state_dict() if bag else {},
        "step": step,
        "seconds": seconds,
        "optimizers": [o.state_dict() for o in opts],
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train(args: argparse.Namespace) -> tuple[GPT2, dict]:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    config = GPT2Config(args.n_layer, args.n_head, args.n_embd, args.n_ctx, args.n_vocab)
    model = GPT2(config).to(device)
    mixture = dict(zip(MIXTURE, args.mixture, strict=True))
    windows = Windows(args.work, args.n_ctx, args.seed, mixture)
    bag = None
    if args.line_weight:
        tokenizer = tokenizer_from_ranks(args.work / "pocket.tiktoken")
        bag = LineBag(tokenizer, [windows.streams[name] for name in HELD_OUT], args.n_embd)
        bag.to(device)
    opts = optimizers(model, bag, args.lr)
    checkpoint, step, seconds = args.work / f"{args.name}.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        if bag:
            bag.load_state_dict(state["bag"])
        for optimizer, saved in zip(opts, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        print(f"resumed at step {step}")
    elif args.init:
        load_weights(model, read_weights(args.init / "model.safetensors"))
        print(f"starting from {args.init}: {bits_per_byte(model, windows, device)}", flush=True)
    per_step = args.batch * args.n_ctx
    steps = math.ceil(args.tokens / per_step)
    last_save = last_print = time.monotonic()
    losses: list[tuple[float, float]] = []
    while step < steps:
        began = time.monotonic()
        for optimizer in opts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * learning_rate((step + 1) / steps)
        batch = windows.batch(step, args.batch)
        next_token, line = losses_of(model, batch, device, bag, step)
        (next_token + args.line_weight * line).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append((next_token.item(), line.item() if bag else 0.0))
        seconds += time.monotonic() - began
        if time.monotonic() - last_print > 20 or step == steps:
            mean = np.mean(losses[-100:], axis=0)
            print(
                f"step {step}/{steps}  loss {mean[0]:.3f}  line {mean[1]:.3f}  "
                f"{step * per_step / 1e6:.2f}M tokens  {step * per_step / seconds:,.0f} tokens/s",
                flush=True,
            )
            last_print = time.monotonic()
        if time.monotonic() - last_save > 120 or step == steps:
            save(checkpoint, model, bag, opts, step, seconds)
            last_save = time.monotonic()
    return model, {"tokens_seen": step * per_step, "seconds": round(seconds)}


def held_out_losses(model: GPT2, args: argparse.Namespace) -> dict:
    """Bits per byte of the model and of two simpler ones."""
    windows = Windows(args.work, args.n_ctx, args.seed)
    uniform, device = math.log2(args.n_vocab), torch.device(args.device)
    return {
        "uniform_bits_per_byte": {name: uniform / windows.held_out(name)[1] for name in HELD_OUT},
        "trigram_bits_per_byte": ngram_bits_per_byte(windows, args.n_vocab, 3),
        "held_out_bits_per_byte": bits_per_byte(model.to(device), windows, device),
    }


def average(folders: list[Path]) -> GPT2:
    """A model whose weights are the mean of others' that were trained from one another.

    Source: Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482
    """
    states = [read_weights(folder / "model.safetensors") for folder in folders]
    model = GPT2(load_config(folders[0]))
    load_weights(model, {k: sum(s[k] for s in states) / len(states) for k in states[0]})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, default=Path("data/pretrain"), help="stages and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=POCKET)
    parser.add_argument("--name", default="pocket", help="name of the checkpoint under --work")
    parser.add_argument("--init", type=Path, help="folder of a model to start from, not at random")
    parser.add_argument(
        "--average", type=Path, nargs="+", help="train nothing: mean of these folders' weights"
    )
    parser.add_argument("--tokens", type=float, default=40e6)
    parser.add_argument("--batch", type=int, default=32, help="windows in a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--line-weight", type=float, default=0.5, help="of the line loss; 0 leaves it out"
    )
    parser.add_argument(
        "--mixture", type=float, nargs=len(MIXTURE), default=[*MIXTURE.values()], metavar="SHARE",
        help=f"shares of {', '.join(MIXTURE)}; they add up to 1",
    )  # fmt: skip
    parser.add_argument("--n-layer", type=int, default=6)
    parser.add_argument("--n-head", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=256)
    parser.add_argument("--n-ctx", type=int, default=256)
    parser.add_argument("--n-vocab", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-export", action="store_true", help="train, but write no model files")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.corpus, args.work, args.n_vocab, args.init)
    model, facts = (average(args.average), {}) if args.average else train(args)
    print(json.dumps(facts | held_out_losses(model, args), indent=2))
    if not args.no_export:
        ranks = (args.work / "pocket.tiktoken").read_bytes()
        save_checkpoint(model.cpu(), args.out, dtype=torch.float16)
        (args.out / "pocket.tiktoken").write_bytes(ranks)


if __name__ == "__main__":
    main()
