"""Look inside a GPT-2 while it reads a text."""

import math

import torch
from torch import Tensor

from spamgpt.models.gpt2 import GPT2


@torch.no_grad()
def attention_weights(model: GPT2, ids: Tensor) -> Tensor:
    """How each head of each block divides its attention: (T,) ids -> (n_layer, nh, T, T).

    Row i of the last two axes says from which tokens the token i collects; it adds up to 1.
    The blocks themselves never hold these tables: their fused attention is faster without.
    """
    x, weights = model.embed(ids[None]), []  # (1, T, C)
    later = torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).triu(1)
    for block in model.h:
        q, k, _ = (
            part.unflatten(2, (block.attn.n_head, -1)).transpose(1, 2)[0]  # (nh, T, hs)
            for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2)
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # (nh, T, T)
        weights.append(scores.masked_fill(later, -math.inf).softmax(dim=-1))
        x = block(x)
    return torch.stack(weights)
