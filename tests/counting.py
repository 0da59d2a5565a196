"""What is really computed: which way a block takes, and in which precision."""

from spamgpt.fast import blocks
from spamgpt.models.gpt2 import GPT2, Block


def count(monkeypatch) -> dict[str, list]:
    """Lists that grow from now on with each call.

    "embedded", "frozen block", "block" and "one query" list the shapes of what is given to the
    embedding, a fast frozen block, a block itself and the attention at one token; "linear" lists
    (precision, packed) of every inference linear that is made, "dtype" of every product.
    """
    keys = ("embedded", "frozen block", "block", "one query", "linear", "dtype")
    calls = {key: [] for key in keys}

    def counted(key, f):
        def call(first, x, *rest):
            calls[key].append(tuple(x.shape))
            return f(first, x, *rest)

        return call

    make = blocks.inference_linear

    def linear(layer, precision, packed, gelu=False):
        calls["linear"].append((precision, packed))
        multiply = make(layer, precision, packed, gelu)

        def product(x):
            y = multiply(x)
            calls["dtype"].append(y.dtype)
            return y

        return product

    for owner, name, key in (
        (GPT2, "embed", "embedded"),
        (blocks.FrozenBlock, "__call__", "frozen block"),
        (Block, "forward", "block"),
        (blocks, "one_query_attention", "one query"),
    ):
        monkeypatch.setattr(owner, name, counted(key, getattr(owner, name)))
    monkeypatch.setattr(blocks, "inference_linear", linear)
    return calls
