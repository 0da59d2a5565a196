"""The first blocks of a GPT-2 for many messages at once, where nothing is trained.

`gpt2.Block` says what is computed. This is the same, but

- each beginning once: attention sees nothing to the right of a token, so what a block makes of
  the tokens "Have a" is the same in every message that begins with them;
- no pads: all layers but attention work on one token at a time and are given real ones only;
- with packed weights (see `hardware.product`), in bf16 where that is faster. Sums, norms and
  attention's softmax stay in fp32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spamgpt.batching import pad
from spamgpt.gpt2 import GPT2
from spamgpt.hardware import bf16_pays, packing_pays, product

# Packing, like casting, reads and writes every weight: that costs what it saves on some hundred
# tokens.
WORTH_PACKING = 512


class Trunk:
    """Embeddings and the first `n_blocks` blocks of `transformer`, with its weights of now.

    `n_tokens` is how many tokens are to come: for a few the weights are taken as they are.
    `bf16` None: where it is faster.
    """

    def __init__(self, transformer: GPT2, n_blocks: int, bf16: bool | None, n_tokens: int):
        device, many = transformer.wte.weight.device, n_tokens >= WORTH_PACKING
        packed = many and device.type == "cpu" and packing_pays()
        if bf16 is None:
            bf16 = many and bf16_pays(device)
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.embed, self.device, self.n_head = transformer.embed, device, transformer.config.n_head
        self.blocks = [
            (
                block.ln_1,
                product(block.attn.c_attn, dtype, packed),
                product(block.attn.c_proj, dtype, packed),
                block.ln_2,
                product(block.mlp.c_fc, dtype, packed, gelu=True),
                product(block.mlp.c_proj, dtype, packed),
            )
            for block in transformer.h[:n_blocks]
        ]

    def __call__(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) of encoded messages, in fp32, and true lengths (B,).

        What stands at pads means nothing. Raises ValueError if a message is longer than `n_ctx`.
        """
        ids, lengths = (part.to(self.device) for part in pad(sequences, 0))  # (B, T), (B,)
        nodes, place = (part.to(self.device) for part in merge(sequences))  # (B, T), (N,)
        x, spread = self.embed(ids).flatten(0, 1)[place], nodes.flatten()  # (N, C), (B * T,)
        for ln_1, c_attn, c_proj, ln_2, c_fc, mlp_c_proj in self.blocks:
            qkv = c_attn(ln_1(x)).index_select(0, spread)  # (B * T, 3 * C)
            qkv = qkv.view(*nodes.shape, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
            q, k, v = (part.float() for part in qkv)  # (B, nh, T, hs) each
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = x + c_proj(y.reshape(-1, x.shape[1]).index_select(0, place))
            x = x + mlp_c_proj(c_fc(ln_2(x)))
        return x[nodes], lengths


def merge(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Common beginnings merged: a node is a token with all that stand before it.

    Returns which node each token is, (B, T), with 0 at pads, and for each of the N nodes a place
    where it stands, (N,), counted over all B * T places.
    """
    width, numbers, paths, place = max(map(len, sequences)), {}, [], []
    for row, sequence in enumerate(sequences):
        node, path = -1, []
        for column, token in enumerate(sequence):
            node = numbers.setdefault((node, token), len(numbers))
            if node == len(place):
                place.append(row * width + column)
            path.append(node)
        paths.append(path + [0] * (width - len(path)))
    return torch.tensor(paths), torch.tensor(place)
