"""GPT-2's block sooner, with the signature of `gpt2.Block`, which says what is computed.

A block is replaced only if every module in it is known by type and nobody listens (no hook).
Anything else, such as LoRA, a wrapper or another architecture, is called as it is.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spamgpt.fast.products import inference_linear
from spamgpt.models.architectures import ARCHITECTURES, smallest
from spamgpt.models.gpt2 import Attention, Block, at

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
FEW, PARTS = 16, 4  # rows; parts of a layer's weights


def _types(block: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in block.named_modules()}


def _types_of_block(name: str) -> dict[str, type]:
    """The modules in a block of the architecture called `name`."""
    config = replace(ARCHITECTURES[name].config(), n_layer=1)
    return _types(smallest(config).blocks[0])


KNOWN = _types_of_block("gpt2")
ALL_KNOWN = [_types_of_block(name) for name in ARCHITECTURES]


def is_known(block: nn.Module) -> bool:
    """Whether calling `block` does what gpt2.Block does, and nothing besides."""
    return _types(block) == KNOWN and not _is_observed(block)


def _is_observed(block: nn.Module) -> bool:
    """Whether somebody hooked into one of its modules, or gave one a forward of its own."""
    return any(
        "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS)
        for module in block.modules()
    )


def _takes_last(block: nn.Module) -> bool:
    """Whether all but the linear layers is known: then block(x, last) may be called."""
    types = _types(block)
    known = any(
        all(types.get(name) is kind for name, kind in kinds.items() if kind is not nn.Linear)
        for kinds in ALL_KNOWN
    )
    return known and not _is_observed(block)


# --- blocks that are not trained ----------------------------------------------------------


def frozen_block(block: nn.Module, precision: str, packed: bool) -> Callable[[Tensor], Tensor]:
    """`block` as it is now, (B, T, C) -> (B, T, C), without gradients and dropout."""
    return FrozenBlock(block, precision, packed) if is_known(block) else block


class FrozenBlock:
    """A block whose weights are cast and laid out once (see `inference_linear`).

    Sums, norms and attention are in fp32.
    """

    def __init__(self, block: Block, precision: str, packed: bool):
        def linear(layer, gelu=False):
            return inference_linear(layer, precision, packed, gelu)

        self.ln_1, self.ln_2, self.n_head = block.ln_1, block.ln_2, block.attn.n_head
        self.c_attn, self.attn_c_proj = linear(block.attn.c_attn), linear(block.attn.c_proj)
        self.c_fc, self.mlp_c_proj = linear(block.mlp.c_fc, gelu=True), linear(block.mlp.c_proj)

    def __call__(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        qkv = self.c_attn(self.ln_1(x)).float().unflatten(2, (3, self.n_head, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_c_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp_c_proj(self.c_fc(self.ln_2(x)))


# --- the last block, at one token, trained or not -----------------------------------------


def block_at(block: nn.Module, x: Tensor, last: Tensor) -> Tensor:
    """What `block` makes of one token a row, (B, T, C) and positions (B,) -> (B, C)."""
    if not is_known(block):
        return block(x, last) if _takes_last(block) else at(block(x), last)
    x = at(x, last) + block.drop(one_query_attention(block.attn, block.ln_1(x), last))
    y = F.gelu(few_rows(block.mlp.c_fc, block.ln_2(x)), approximate="tanh")
    return x + block.drop(few_rows(block.mlp.c_proj, y))


def one_query_attention(attention: Attention, x: Tensor, last: Tensor) -> Tensor:
    """attention(x, last), (B, T, C) and positions (B,) -> (B, C).

    No token's key or value is computed: q . W_k x = (W_k' q) . x, and a sum of values W_v x is
    W_v times a sum of x. So there is one product a message, not one a token. Softmax ignores the
    keys' bias, which is the same in all of a row.
    """
    C, right = x.shape[2], torch.arange(x.shape[1], device=x.device) > last[:, None]  # (B, T)
    w_q, w_k, w_v = attention.c_attn.weight.view(3, attention.n_head, -1, C)  # (nh, hs, C) each
    b_q, _, b_v = attention.c_attn.bias.view(3, attention.n_head, -1)  # (nh, hs) each
    q = torch.einsum("bc,hsc->bhs", at(x, last), w_q) + b_q  # (B, nh, hs)
    scores = torch.einsum("bhs,hsc->bhc", q, w_k) @ x.mT / math.sqrt(q.shape[2])  # (B, nh, T)
    weights = attention.drop(scores.masked_fill(right[:, None], -math.inf).softmax(dim=2))
    y = torch.einsum("bhc,hsc->bhs", weights @ x, w_v)  # (B, nh, hs)
    sums = weights.sum(dim=2, keepdim=True)  # 1 each, but for dropout
    return few_rows(attention.c_proj, (y + sums * b_v).flatten(1))


def few_rows(layer: nn.Linear, x: Tensor) -> Tensor:
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
