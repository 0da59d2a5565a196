"""A language model's body with a classification head: pooling, and what is trainable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tiktoken
import torch
from torch import Tensor, nn

from spamgpt.fast.blocks import block_at
from spamgpt.models.base import Base, LanguageModel
from spamgpt.models.gpt2 import at
from spamgpt.recipes import Recipe

POOLINGS = ("last", "first", "mean")


class Classifier(nn.Module):
    """A body and a linear head that reads each message's last real token.

    For comparison, `pooling` may be "first" (the first token) or "mean" (the mean of all real
    tokens) instead of "last". `positive` is the label that is looked for, where there is one, and
    `threshold` (0 to 1) the probability above which a message is given it; None: the most
    probable label is given. The body is `transformer` and the head `score`, as in transformers'
    GPT2ForSequenceClassification. The head starts at zero, so that every label is equally
    probable before training.
    """

    def __init__(
        self,
        transformer: LanguageModel,
        tokenizer: tiktoken.Encoding,
        label_names: Sequence[str],
        base_name: str,
        pooling: str = "last",
        positive: str | None = None,
        threshold: float | None = None,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling = {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if len(label_names) < 2 or len(set(label_names)) < len(label_names):
            raise ValueError(
                f"{len(label_names)} labels ({', '.join(map(str, label_names))}): a classifier "
                "needs at least two, each with a name of its own"
            )
        if positive is not None and positive not in label_names:
            raise ValueError(f"positive = {positive!r} is none of {', '.join(label_names)}")
        self.pooling, self.positive = pooling, positive
        self.set_threshold(threshold)
        self.transformer = transformer
        self.score = nn.Linear(transformer.config.n_embd, len(label_names))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.tokenizer, self.label_names, self.base_name = tokenizer, list(label_names), base_name
        self.bears_int8 = False  # see inference.check_int8

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.score.weight.device

    def set_threshold(self, threshold: float | None) -> None:
        """Give the positive label above this probability only; None: wherever it is likeliest.

        Raises ValueError if there is no positive label, or for what is no probability.
        """
        if threshold is not None and self.positive is None:
            raise ValueError(
                f"threshold = {threshold}: this classifier has no positive label to apply it to"
            )
        number = isinstance(threshold, (int, float))
        if threshold is not None and not (number and 0 <= threshold <= 1):
            raise ValueError(f"threshold = {threshold!r}: it is a probability, from 0 to 1")
        self.threshold = threshold

    # --- what is trainable ---------------------------------------------------------------

    def freeze(self, trained_blocks: int | None, embeddings: bool = False) -> None:
        """Train the last `trained_blocks` blocks, the final norm and the head; None trains all.

        With `embeddings`, train those besides. May be called again with another number. Raises
        ValueError if there are not that many blocks.
        """
        blocks = self.transformer.blocks
        if trained_blocks is not None and not 0 <= trained_blocks <= len(blocks):
            raise ValueError(
                f"trained_blocks = {trained_blocks}: the model has {len(blocks)} blocks"
            )
        self.requires_grad_(trained_blocks is None)
        first = 0 if trained_blocks is None else len(blocks) - trained_blocks
        for module in (*blocks[first:], self.transformer.norm, self.score):
            module.requires_grad_(True)
        if embeddings:
            for weight in self.transformer.embeddings():
                weight.requires_grad_(True)

    def prepare(self, recipe: Recipe) -> "Classifier":
        """Freeze and set the dropout as `recipe` says; returns the classifier itself."""
        self.freeze(recipe.trained_blocks, embeddings=bool(recipe.embedding_lr))
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
        return self

    @property
    def frozen_blocks(self) -> int:
        """How many blocks, counted from the first, give the same states all through a training.

        0 if anything is trained before the blocks.
        """
        t = self.transformer
        later = {id(p) for part in (t.blocks, t.norm) for p in part.parameters()}
        if any(p.requires_grad and id(p) not in later for p in t.parameters()):
            return 0
        trained = [any(p.requires_grad for p in block.parameters()) for block in t.blocks]
        return trained.index(True) if True in trained else len(trained)

    def trainable_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode, without dropout in the frozen blocks and before them.

        What they make of a message must not vary. Where something before the blocks is
        trained, it varies anyway, and dropout is active everywhere.
        """
        super().train(mode)
        if mode:
            self.bears_int8 = False  # other weights may not
        if n := self.frozen_blocks:
            t = self.transformer
            for child in t.children():
                if child is not t.blocks and child is not t.norm:
                    child.eval()
            t.blocks[:n].eval()
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout and no gradients within."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    # --- what is computed ----------------------------------------------------------------

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits of padded messages: (B, T) ids, (B,) true lengths -> (B, n_labels)."""
        return self.from_states(self.transformer.embed(ids), lengths, 0)

    def from_states(self, x: Tensor, lengths: Tensor, n_blocks: int) -> Tensor:
        """Logits from hidden states after `n_blocks` blocks: (B, T, C), (B,) -> (B, n_labels)."""
        blocks = self.transformer.blocks[n_blocks:]
        if self.pooling == "mean":
            for block in blocks:
                x = block(x)
            real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
            mean = (self.transformer.norm(x) * real.unsqueeze(2)).sum(dim=1) / lengths[:, None]
            return self.score(mean)
        last = torch.zeros_like(lengths) if self.pooling == "first" else lengths - 1
        for block in blocks[:-1]:
            x = block(x)
        # Nothing reads the last block's other tokens, so they are not computed.
        x = block_at(blocks[-1], x, last) if len(blocks) else at(x, last)  # (B, C)
        return self.score(self.transformer.norm(x))


def build_classifier(
    base: Base, label_names: Sequence[str], pooling: str = "last", positive: str | None = None
) -> Classifier:
    """Swap the language-model head of a base model for a fresh classification head."""
    return Classifier(base.model, base.tokenizer, label_names, base.name, pooling, positive)
