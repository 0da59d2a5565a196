"""Linear layers of a model by their names: find them, and put others in their place."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn


def body_of(model: nn.Module) -> nn.Module:
    """The body under a classifier's head; a language model itself, which has none."""
    return getattr(model, "transformer", model)


def choose(
    model: nn.Module, patterns: str | Sequence[str], kinds: tuple[type[nn.Module], ...]
) -> dict[str, nn.Module]:
    """Layers of the body, of exactly these `kinds`, whose name fits one of `patterns`.

    A pattern is a name in which * stands for anything: "*" is all layers, "*.c_attn" one of each
    block, "h.11.*" all of a block. Raises ValueError for a pattern that fits no layer; it names
    those that there are.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    there = {name: layer for name, layer in body_of(model).named_modules() if type(layer) in kinds}
    if missing := [p for p in patterns or [""] if not any(fnmatchcase(n, p) for n in there)]:
        names = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in there})
        raise ValueError(
            f"no layer of type {' or '.join(kind.__name__ for kind in kinds)} fits "
            f"{', '.join(map(repr, missing))}: there are {', '.join(names) or 'none'}"
        )
    return {n: layer for n, layer in there.items() if any(fnmatchcase(n, p) for p in patterns)}


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in the place of those of the body that have their names."""
    body = body_of(model)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        owner = body.get_submodule(parent)
        setattr(owner, child, layer.train(getattr(owner, child).training))
    if hasattr(model, "bears_int8"):
        model.bears_int8 = False  # other weights may not: see inference.check_int8


def frozen_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer that is not trained, with this weight (out, in) and a copy of this bias."""
    layer = nn.Linear(*weight.T.shape, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
