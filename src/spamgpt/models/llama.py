"""Llama, the model and nothing else: what most models since 2023 are built like.

The idea is GPT-2's (`gpt2.py`, whose B, T, C, V, nh and hs are used here), with four other parts:
    RMSNorm              divides by the root mean square; no mean is subtracted, nothing added
    rotary positions     queries and keys are turned by an angle that grows with the position,
                         so that their products depend on the distance; there is no `wpe`
    grouped-query attention   several heads of queries share one of keys and values: nkv < nh
    SwiGLU               an MLP whose inner values are multiplied by a gate
No linear layer has a bias. Module and parameter names are those of the published checkpoints.

Sources: Touvron et al., "LLaMA", 2023, arXiv:2302.13971; Zhang and Sennrich (RMSNorm), 2019,
arXiv:1910.07467; Su et al. (rotary positions), 2021, arXiv:2104.09864; Ainslie et al.
(grouped queries), 2023, arXiv:2305.13245; Shazeer (SwiGLU), 2020, arXiv:2002.05202.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spamgpt.models.gpt2 import at


@dataclass(frozen=True)
class LlamaConfig:
    """What fixes a Llama architecture (defaults: SmolLM2-135M), and training's dropout.

    `n_kv_head` heads of keys and values are shared by `n_head` heads of queries; `n_inner` is
    the width of the MLP; `theta` sets how slowly the slowest angle turns; `eps` is RMSNorm's.
    """

    n_layer: int = 30
    n_head: int = 9
    n_kv_head: int = 3
    n_embd: int = 576
    n_inner: int = 1536
    n_ctx: int = 8192
    n_vocab: int = 49152
    theta: float = 100_000.0
    eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(
                f"n_embd = {self.n_embd} is no multiple of 2 n_head = {2 * self.n_head}: heads "
                "have to share it, and each turns pairs of numbers"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head = {self.n_head} is no multiple of n_kv_head = {self.n_kv_head}"
            )


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Turn pairs of numbers in x (B, nh, T, hs) by position times a frequency of their own.

    `position` is (T,), or (B, 1, 1) where there is one token a row. Number i is paired with
    number i + hs/2, as in the published checkpoints; the paper pairs neighbours.
    """
    hs = x.shape[-1]
    frequency = 1 / theta ** (torch.arange(0, hs, 2, device=x.device) / hs)  # (hs/2,)
    angle = position[..., None] * frequency  # (T, hs/2) or (B, 1, 1, hs/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.hs, self.theta = config.n_embd // config.n_head, config.theta
        self.group = config.n_head // config.n_kv_head  # heads that share keys and values
        self.drop = nn.Dropout(config.dropout)  # of attention weights
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * self.hs, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * self.hs, bias=False)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with `last` -> (B, C)."""
        everywhere, mask = torch.arange(x.shape[1], device=x.device), None
        asking, position = x, everywhere
        if last is not None:
            asking, position = at(x, last).unsqueeze(1), last[:, None, None]  # (B, 1, C)
            mask = (everywhere <= last[:, None])[:, None, None]
        q = rotate(self._heads(self.q_proj(asking)), position, self.theta)
        k = rotate(self._heads(self.k_proj(x)), everywhere, self.theta)  # (B, nkv, T, hs)
        v = self._heads(self.v_proj(x))
        k, v = (part.repeat_interleave(self.group, dim=1) for part in (k, v))  # (B, nh, T, hs)
        p = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None)
        y = y.transpose(1, 2).flatten(2)  # (B, nh, T, hs) -> (B, T, C)
        return self.o_proj(y if last is None else y.squeeze(1))

    def _heads(self, x: Tensor) -> Tensor:  # (B, T, n hs) -> (B, n, T, hs)
        return x.unflatten(2, (-1, self.hs)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: two layers side by side, one the gate of the other, then a third."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One transformer block: attention, then MLP, each added to what came in."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, config.eps)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with `last` -> (B, C)."""
        y = self.drop(self.self_attn(self.input_layernorm(x), last))
        x = y + (x if last is None else at(x, last))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """Token ids in, one logit per vocabulary entry and position out.

    The logits are products with the token embeddings ("weight tying"), as in GPT-2 and in the
    smaller published models of this architecture.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.n_vocab, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.eps)
        self.apply(self._init_weights)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, under the name that every architecture gives them."""
        return self.layers

    def embeddings(self) -> list[nn.Parameter]:
        """The weights of `embed_tokens`."""
        return [self.embed_tokens.weight]

    def _init_weights(self, module: nn.Module) -> None:
        """Start values: normal(0, 0.02), for want of others in the paper; norms start at 1."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def embed(self, idx: Tensor) -> Tensor:
        """Token embedding: (B, T) ids -> (B, T, C). Raises ValueError if T > n_ctx."""
        T, n_ctx = idx.shape[1], self.config.n_ctx
        if n_ctx < T:
            raise ValueError(
                f"the text has {T:,} tokens; the model reads at most {n_ctx:,}: truncate it first"
            )
        return self.drop(self.embed_tokens(idx))

    def hidden(self, idx: Tensor) -> Tensor:
        """Hidden states after the final norm: (B, T) ids -> (B, T, C)."""
        x = self.embed(idx)
        for block in self.layers:
            x = block(x)
        return self.norm(x)

    def forward(self, idx: Tensor) -> Tensor:
        """Next-token logits at every position: (B, T) ids -> (B, T, V)."""
        return F.linear(self.hidden(idx), self.embed_tokens.weight)
