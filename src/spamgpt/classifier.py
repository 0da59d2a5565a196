"""GPT-2 with a classification head: what is frozen, how a text is judged, save and load."""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spamgpt.batching import are_states, batches_by_length, distinct, encode, pad
from spamgpt.gpt2 import GPT2
from spamgpt.pretrained import (
    Base,
    load_config,
    load_tokenizer,
    load_weights,
    published_config,
    read_config,
    read_weights,
    write_checkpoint,
)
from spamgpt.tail import at, block_at_end
from spamgpt.trunk import Trunk
from spamgpt.workspace import show_path, workspace

TRAIN_AGAIN = "train again with notebook 05_finetune"

READS = ("last", "first", "mean")


class Prediction(NamedTuple):
    """A label and how probable the classifier finds it (0 to 1)."""

    label: str
    probability: float


class Classifier(nn.Module):
    """A GPT-2 body and a linear head that reads each message's last real token.

    For comparison, `read` may be "first" (the first token) or "mean" (the mean of all real
    tokens) instead of "last". The body is `transformer` and the head `score`, as in transformers'
    GPT2ForSequenceClassification. The head starts at zero, so that every label is equally
    probable before training.
    """

    def __init__(
        self,
        transformer: GPT2,
        tokenizer: tiktoken.Encoding,
        label_names: Sequence[str],
        base_name: str,
        read: str = "last",
    ):
        super().__init__()
        if read not in READS:
            raise ValueError(f"read = {read!r}: choose one of {', '.join(READS)}")
        self.read = read
        self.transformer = transformer
        self.score = nn.Linear(transformer.config.n_embd, len(label_names))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.tokenizer, self.label_names, self.base_name = tokenizer, list(label_names), base_name
        self.frozen_blocks = 0

    def freeze(self, trained_blocks: int | None, embeddings: bool = False) -> None:
        """Train the last `trained_blocks` blocks, `ln_f` and the head only; None trains all.

        With `embeddings`, train `wte` and `wpe` besides. May be called again with another
        number. Raises ValueError if there are not that many blocks.
        """
        n_layer = self.transformer.config.n_layer
        if trained_blocks is not None and not 0 <= trained_blocks <= n_layer:
            raise ValueError(f"trained_blocks = {trained_blocks}: the model has {n_layer} blocks")
        self.requires_grad_(trained_blocks is None)
        self.frozen_blocks = 0 if trained_blocks is None else n_layer - trained_blocks
        for module in (
            *self.transformer.h[self.frozen_blocks :],
            self.transformer.ln_f,
            self.score,
        ):
            module.requires_grad_(True)
        if embeddings:
            for weight in self.embeddings():
                weight.requires_grad_(True)

    def embeddings(self) -> list[nn.Parameter]:
        """The weights of `wte` and `wpe`."""
        return [self.transformer.wte.weight, self.transformer.wpe.weight]

    @property
    def trains_embeddings(self) -> bool:
        """Whether training changes the embeddings, and with them what every block is given."""
        return self.transformer.wte.weight.requires_grad

    def trainable_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def trunk(self, ids: Tensor) -> Tensor:
        """The frozen part: (B, T) ids -> (B, T, C). What it gives never changes in training."""
        x = self.transformer.embed(ids)
        for block in self.transformer.h[: self.frozen_blocks]:
            x = block(x)
        return x

    def tail(self, x: Tensor, lengths: Tensor, done: int | None = None) -> Tensor:
        """The trained part: (B, T, C) and true lengths (B,) -> label scores (B, n_labels).

        With `done`, what comes after that many blocks.
        """
        blocks = self.transformer.h[self.frozen_blocks if done is None else done :]
        if self.read == "mean":
            for block in blocks:
                x = block(x)
            real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
            mean = (self.transformer.ln_f(x) * real.unsqueeze(2)).sum(dim=1) / lengths[:, None]
            return self.score(mean)
        if self.read == "first":
            lengths = torch.ones_like(lengths)
        for block in blocks[:-1]:
            x = block(x)
        # Nothing reads the last block's other tokens, so they are not computed.
        last = block_at_end(blocks[-1], x, lengths) if len(blocks) else at(x, lengths)  # (B, C)
        return self.score(self.transformer.ln_f(last))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Label scores of padded messages: (B, T) ids, (B,) lengths -> (B, n_labels).

        What `trunk` made of the ids, (B, T, C), may be given in their place.
        """
        return self.tail(x if x.is_floating_point() else self.trunk(x), lengths)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode, without dropout in a frozen part that starts at the token ids.

        What such a part makes of a message must not vary; trained embeddings vary anyway.
        """
        super().train(mode)
        if not self.trains_embeddings:
            self.transformer.drop.eval()
            self.transformer.h[: self.frozen_blocks].eval()
        return self

    def trunk_states(
        self, sequences: Sequence[Sequence[int]], bf16: bool | None = None, progress: bool = False
    ) -> list[Tensor]:
        """What the frozen part makes of encoded messages, computed once: (T, C) in fp32 for each.

        Equal messages share one tensor. With `bf16` matrices are multiplied in bf16 (None: where
        the hardware is faster so and there is enough to do).
        """
        different, which = distinct(sequences)
        result: list[Tensor] = [torch.empty(0)] * len(different)
        with (
            tqdm(
                total=len(different), desc="frozen part", unit="message", disable=not progress
            ) as bar,
            self._evaluating(),
        ):
            for rows, x, lengths in self._states(different, self.frozen_blocks, bf16):
                for row, states, length in zip(rows, x, lengths, strict=True):
                    result[row] = states[:length].clone()  # not a view: it would keep the pads
                bar.update(len(rows))
        return [result[i] for i in which]

    def scores_of(
        self, sequences: Sequence[Sequence[int]] | Sequence[Tensor], bf16: bool | None = False
    ) -> Tensor:
        """Label scores of messages, in their order, on the CPU: (N, n_labels).

        Messages are token ids, or what `trunk_states` made of them. Those of like length share
        a batch, equal ones and equal beginnings are computed once; but for rounding, the result
        does not depend on it. With `bf16` matrices are multiplied in bf16 (None: where the
        hardware is faster so and there is enough to do).
        """
        different, which = distinct(sequences)
        last = self.transformer.config.n_layer - 1
        done = self.frozen_blocks if are_states(different) else last
        result = torch.empty(len(different), len(self.label_names))
        with self._evaluating():
            for rows, x, lengths in self._states(different, done, bf16):
                result[rows] = self.tail(x, lengths, done).cpu()
        return result[which]

    def _states(
        self, sequences: Sequence, n_blocks: int, bf16: bool | None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(row numbers, states after `n_blocks` blocks, lengths) of batches; kept states pass."""
        device = self.score.weight.device
        if are_states(sequences):
            states = partial(pad, pad_id=0)
        else:
            states = Trunk(self.transformer, n_blocks, bf16, sum(map(len, sequences)))
        # A CPU is fastest while a batch's intermediate results stay in its cache.
        for rows in batches_by_length(sequences, 1024 if device.type == "cpu" else 16384):
            x, lengths = states([sequences[row] for row in rows])
            yield rows, x.to(device), lengths.to(device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout and no gradients within."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def probabilities(self, sequences: Sequence[Sequence[int]] | Sequence[Tensor]) -> Tensor:
        """Label probabilities of messages, in their order: (N, n_labels)."""
        return self.scores_of(sequences).softmax(dim=-1)

    def classify(self, texts: Iterable[str], progress: bool = False) -> list[Prediction]:
        """The most probable label of each text.

        Reads at most the first n_ctx tokens of a text and warns if there are more. Computes
        many texts in bf16 where the hardware is faster so; its rounding moves probabilities
        slightly. Raises TypeError for what is not text.
        """
        return list(self.classify_stream(texts, progress))

    def classify_stream(
        self, texts: Iterable[str], progress: bool = False, chunk: int = 1024
    ) -> Iterator[Prediction]:
        """The same for a stream of any length, of which no more than `chunk` texts are held.

        Those are sorted by length and judged together, so the first result comes after them.
        """
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one text: write [text]")
        total = len(texts) if isinstance(texts, Sized) else None
        texts, done, n_ctx = iter(texts), 0, self.transformer.config.n_ctx
        with tqdm(total=total, desc="classify", unit="message", disable=not progress) as bar:
            while held := list(islice(texts, chunk)):
                sequences = encode(held, self.tokenizer, first=done)
                for i, ids in enumerate(sequences, start=done):
                    if len(ids) > n_ctx:
                        warnings.warn(
                            f"message {i} has {len(ids):,} tokens; read its first {n_ctx:,}",
                            stacklevel=3,
                        )
                scores = self.scores_of([ids[:n_ctx] for ids in sequences], bf16=None)
                for row in scores.softmax(dim=-1):
                    yield Prediction(self.label_names[int(row.argmax())], float(row.max()))
                done += len(held)
                bar.update(len(held))


def build_classifier(base: Base, label_names: Sequence[str], read: str = "last") -> Classifier:
    """Swap the language-model head of a base model for a fresh classification head."""
    return Classifier(base.model, base.tokenizer, label_names, base.name, read)


# --- save and load --------------------------------------------------------------------


def classifier_folder() -> Path:
    """Where the workspace keeps its trained classifier."""
    return workspace() / "classifier"


def save_classifier(classifier: Classifier, folder: Path | None = None, **facts) -> Path:
    """Write model.safetensors and config.json, in the published layout; returns the folder.

    A process killed meanwhile leaves the former classifier or the new one, never a mixture.

    `facts` are kept in config.json under "spamgpt" (what it was trained on, how long…).
    """
    folder = folder or classifier_folder()
    names = classifier.label_names
    config = published_config(classifier.transformer.config) | {
        "architectures": ["GPT2ForSequenceClassification"],
        "pad_token_id": classifier.tokenizer.eot_token,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "spamgpt": {"base": classifier.base_name, "read": classifier.read, **facts},
    }
    write_checkpoint(classifier.state_dict(), config, folder)
    return folder


def load_classifier(folder: Path | None = None) -> tuple[Classifier, dict]:
    """The saved classifier and the facts saved with it.

    Raises FileNotFoundError that says what to run if there is none, ValueError if its
    files do not fit together.
    """
    folder = folder or classifier_folder()
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"there is no trained classifier in {show_path(folder)} ({file} is missing): "
                "run notebook 05_finetune first (`make run` runs them all)"
            )
    config = read_config(folder)
    try:
        facts = dict(config["spamgpt"])
        base_name = facts["base"]
        facts.pop("format", None)
        read = facts.pop("read", "last")
        label_names = [
            name for _, name in sorted(config["id2label"].items(), key=lambda kv: int(kv[0]))
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{show_path(folder)}/config.json does not describe a classifier of this series "
            f"({error} is missing or wrong): {TRAIN_AGAIN}"
        ) from None
    body, tokenizer = GPT2(load_config(folder)), load_tokenizer(base_name)
    if tokenizer.n_vocab != body.config.n_vocab:
        raise ValueError(
            f"{show_path(folder)}/config.json has n_vocab = {body.config.n_vocab:,}, but the "
            f"tokenizer of {base_name} has {tokenizer.n_vocab:,} tokens: {TRAIN_AGAIN}"
        )
    classifier = Classifier(body, tokenizer, label_names, base_name, read)
    tensors = read_weights(folder / "model.safetensors")
    if (head := tensors.get("score.weight")) is not None and len(head) != len(label_names):
        raise ValueError(
            f"{show_path(folder)} has weights for {len(head)} labels, but its config.json names "
            f"{len(label_names)} ({', '.join(label_names)}): {TRAIN_AGAIN}"
        )
    try:
        load_weights(
            classifier,
            {k if k.startswith("score.") else f"transformer.{k}": v for k, v in tensors.items()},
        )
    except ValueError as error:
        raise ValueError(f"{show_path(folder)}: {error}: {TRAIN_AGAIN}") from None
    return classifier.eval(), facts
