"""The last block of a GPT-2 where one token of each message is read, and trained so.

`gpt2.Block` says what is computed. Nothing reads the last block's other tokens, so they are left
out, and of the one left in a batch gives a few rows: too few for the way a matrix product is
usually computed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spamgpt.gpt2 import Attention, Block

FEW, PARTS = 16, 4  # rows; parts of a layer's weights


def at(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row's last real token: (B, T, C) and true lengths (B,) -> (B, C)."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


def block_at_end(block: Block, x: Tensor, lengths: Tensor) -> Tensor:
    """What `block` makes of each last real token: (B, T, C), (B,) -> (B, C)."""
    x = at(x, lengths) + block.drop(attention_at_end(block.attn, block.ln_1(x), lengths))
    y = F.gelu(linear(block.mlp.c_fc, block.ln_2(x)), approximate="tanh")
    return x + block.drop(linear(block.mlp.c_proj, y))


def attention_at_end(attention: Attention, x: Tensor, lengths: Tensor) -> Tensor:
    """What `attention` makes of each last real token: (B, T, C), (B,) -> (B, C).

    No token's key or value is computed: q . W_k x = (W_k' q) . x, and a sum of values W_v x is
    W_v times a sum of x. So there is one product a message, not one a token. Softmax ignores the
    keys' bias, which is the same in all of a row.
    """
    C, pad = x.shape[2], torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
    w_q, w_k, w_v = attention.c_attn.weight.view(3, attention.n_head, -1, C)  # (nh, hs, C) each
    b_q, _, b_v = attention.c_attn.bias.view(3, attention.n_head, -1)  # (nh, hs) each
    q = torch.einsum("bc,hsc->bhs", at(x, lengths), w_q) + b_q  # (B, nh, hs)
    scores = torch.einsum("bhs,hsc->bhc", q, w_k) @ x.mT / math.sqrt(q.shape[2])  # (B, nh, T)
    weights = attention.drop(scores.masked_fill(pad[:, None], -math.inf).softmax(dim=2))
    y = torch.einsum("bhc,hsc->bhs", weights @ x, w_v)  # (B, nh, hs)
    sums = weights.sum(dim=2, keepdim=True)  # 1 each, but for dropout
    return linear(attention.c_proj, (y + sums * b_v).flatten(1))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, (B, in) -> (B, out), faster for a few rows on a CPU."""
    if x.device.type != "cpu" or len(x) > FEW or len(layer.weight) % PARTS:
        return layer(x)
    return _FewRows.apply(x, layer.weight, layer.bias)


class _FewRows(torch.autograd.Function):
    """x W' + b with W in parts that are multiplied beside each other.

    A product of large matrices first copies each into an order that is fast to read again and
    again. With a few rows of x, W is read once, and the copy would be most of the work. Batched
    products of smaller matrices go without.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = _repeated(x) @ _parts(weight).mT  # (PARTS, B, out / PARTS)
        return y.transpose(0, 1).flatten(1) + bias

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grads = grad.reshape(len(grad), PARTS, -1)  # (B, PARTS, out / PARTS)
        dx = (grads.transpose(0, 1) @ _parts(weight)).sum(dim=0)
        dw = (grads.permute(1, 2, 0) @ _repeated(x)).view_as(weight)
        return dx, dw, grad.sum(dim=0)


def _parts(weight: Tensor) -> Tensor:  # (out, in) -> (PARTS, out / PARTS, in)
    return weight.view(PARTS, -1, weight.shape[1])


def _repeated(x: Tensor) -> Tensor:  # (B, in) -> (PARTS, B, in), in no more memory
    return x.expand(PARTS, *x.shape)
