"""Write with a language model, token by token."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continue one text with a language model: (1, T) ids -> (1, T + at most max_new_tokens).

    Each new token is drawn from softmax(logits / temperature) over the `top_k` most
    likely ones; temperature 0 always takes the most likely. Stops after the token
    `stop`. Only the last `n_ctx` tokens are read, so the text may grow beyond them.
    """
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
    was_training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(idx[:, -model.config.n_ctx :])[:, -1]  # (1, V)
        if temperature == 0:
            new = logits.argmax(dim=-1, keepdim=True)  # (1, 1)
        else:
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < kth, -math.inf)
            new = (logits / temperature).softmax(dim=-1).multinomial(1, generator=generator)
        idx = torch.cat([idx, new], dim=1)
        if stop is not None and new.item() == stop:
            break
    model.train(was_training)
    return idx
