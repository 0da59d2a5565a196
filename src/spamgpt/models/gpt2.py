"""GPT-2, the model and nothing else.

Module and parameter names are those of the published checkpoints, so that a state
dict of this model has the keys of OpenAI's files.

Shapes, here and in every notebook:
    B   batch size            T   tokens in a sequence
    C   channels (n_embd)     V   vocabulary size (n_vocab)
    nh  heads (n_head)        hs  head size (C / nh)

A block that is asked for the tokens at `last` (B,) alone gives (B, C) in place of (B, T, C):
where nothing reads the others, as in the last block under a classifier, they need not be
computed.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPT2Config:
    """The five numbers that fix a GPT-2 architecture (defaults: 124M), and training's dropout."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ctx: int = 1024
    n_vocab: int = 50257
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is no multiple of n_head = {self.n_head}")


def at(x: Tensor, position: Tensor) -> Tensor:
    """One token of each row: (B, T, C) and positions (B,) -> (B, C)."""
    return x[torch.arange(len(x), device=x.device), position]


class Attention(nn.Module):
    """Multi-head causal self-attention: a token looks at itself and to its left."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.drop = nn.Dropout(config.dropout)  # of attention weights
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with `last` -> (B, C)."""
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        mask = None
        if last is not None:
            q = at(q, last).unsqueeze(1)  # (B, 1, C)
            mask = (torch.arange(x.shape[1], device=x.device) <= last[:, None])[:, None, None]
        q, k, v = (self._heads(part) for part in (q, k, v))
        p = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None)
        y = y.transpose(1, 2).flatten(2)  # (B, nh, T, hs) -> (B, T, C)
        return self.c_proj(y if last is None else y.squeeze(1))

    def _heads(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, nh, T, hs)
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers, four times as wide in between, applied to each token alone."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        # The tanh form is the one GPT-2 was trained with; the exact GELU changes its logits.
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One transformer block: attention, then MLP, each added to what came in."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with `last` -> (B, C)."""
        y = self.drop(self.attn(self.ln_1(x), last))  # norm first: "pre-norm"
        x = y + (x if last is None else at(x, last))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT2(nn.Module):
    """Token ids in, one logit per vocabulary entry and position out.

    There is no separate output layer: the logits are products with the token
    embeddings `wte` ("weight tying"), as in the published model.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(self._init_weights)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, under the name that every architecture gives them."""
        return self.h

    @property
    def norm(self) -> nn.Module:
        """The norm after the blocks."""
        return self.ln_f

    def embeddings(self) -> list[nn.Parameter]:
        """The weights of `wte` and `wpe`."""
        return [self.wte.weight, self.wpe.weight]

    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's start values (section 2.3): normal(0, 0.02), residual outputs scaled down."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, (Attention, MLP)):
            # Children come before parents in apply(), so this overwrites the 0.02 above.
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def embed(self, idx: Tensor) -> Tensor:
        """Token embedding plus position embedding: (B, T) ids -> (B, T, C).

        Raises ValueError if T is larger than `n_ctx`.
        """
        T, n_ctx = idx.shape[1], self.config.n_ctx
        if n_ctx < T:
            raise ValueError(
                f"the text has {T:,} tokens; the model reads at most {n_ctx:,}: truncate it first"
            )
        position = torch.arange(T, device=idx.device)
        return self.drop(self.wte(idx) + self.wpe(position))

    def hidden(self, idx: Tensor) -> Tensor:
        """Hidden states after the final norm: (B, T) ids -> (B, T, C)."""
        x = self.embed(idx)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def forward(self, idx: Tensor) -> Tensor:
        """Next-token logits at every position: (B, T) ids -> (B, T, V)."""
        return F.linear(self.hidden(idx), self.wte.weight)
