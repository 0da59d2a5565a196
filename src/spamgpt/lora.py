"""LoRA: train two thin matrices beside a frozen one, W x + (alpha / r) B A x.

Adapters go into linear layers of any model of the package, 4-bit ones too (`nf4`: that is QLoRA).
`training.fit` trains them as it trains anything; blocks before the first adapter stay frozen, and
as fast as they were.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
https://arxiv.org/abs/2106.09685
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spamgpt import SEED
from spamgpt.files.workspace import show_path
from spamgpt.layers import body_of, choose, frozen_linear, put
from spamgpt.models.architectures import architecture_of, is_count
from spamgpt.models.published import header, read_weights, write_weights
from spamgpt.nf4 import NF4Linear

FORMAT = 1  # of files of adapters; a change that older code cannot read raises it
KINDS = (nn.Linear, NF4Linear)


class LoRALinear(nn.Module):
    """`linear`, frozen, and beside it a trained change of low rank: (..., in) -> (..., out).

    A (rank, in) is random and B (out, rank) zero, so that nothing changes before training;
    `dropout` is of the input of A. The paper draws A from a normal distribution, its authors'
    code and peft as here.
    """

    def __init__(
        self,
        linear: nn.Linear | NF4Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check(linear, rank, alpha, dropout)
        self.linear, self.drop = linear.requires_grad_(False), nn.Dropout(dropout)
        a = nn.init.kaiming_uniform_(
            torch.empty(rank, linear.in_features), a=math.sqrt(5), generator=generator
        )
        self.A, self.B = nn.Parameter(a), nn.Parameter(torch.zeros(linear.out_features, rank))
        # A buffer, so that a training is not continued with another one (see resume).
        self.register_buffer("alpha", torch.tensor([float(alpha)]))
        self.to(next(chain(linear.buffers(), linear.parameters())).device)

    @property
    def scale(self) -> Tensor:
        """alpha / r, (1,)."""
        return self.alpha / len(self.A)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * F.linear(F.linear(self.drop(x), self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain, frozen layer in fp32 that computes the same; this one stays as it is."""
        weight = self.linear.weight + self.scale * (self.B @ self.A)  # (out, in)
        return frozen_linear(weight, self.linear.bias)


def _check(linear: nn.Linear | NF4Linear, rank: int, alpha: float, dropout: float) -> None:
    largest = min(linear.in_features, linear.out_features)
    if not is_count(rank) or rank > largest:
        raise ValueError(
            f"rank = {rank!r}: it is a whole number from 1 to {largest}, the smaller side of a "
            f"layer with {linear.in_features:,} inputs and {linear.out_features:,} outputs"
        )
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha = {alpha!r}: it is a positive number")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout!r}: it is a share, from 0 to below 1")


def adapt(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    layers: str | Sequence[str] = "*",
    dropout: float = 0.0,
    head: bool = True,
    seed: int = SEED,
) -> None:
    """Freeze a model's body and put adapters into its linear `layers` (see `layers.choose`).

    The classification head, where there is one, is trained besides unless `head` is False. To be
    called after `classifier.prepare(recipe)`, which would unfreeze blocks and set all dropout.
    The seed fixes A. Raises ValueError, and leaves the model as it was, for a rank, alpha or
    dropout that cannot be, names that fit no layer, or a model that has adapters already.
    """
    if there := _adapters(model):
        raise ValueError(
            f"the model has {len(there)} adapters already ({_few(there)}): merge them first, or "
            "begin with a fresh model"
        )
    generator, chosen = torch.Generator().manual_seed(seed), choose(model, layers, KINDS)
    for layer in chosen.values():  # all, before any is changed
        _check(layer, rank, alpha, dropout)
    new = {n: LoRALinear(old, rank, alpha, dropout, generator) for n, old in chosen.items()}
    model.requires_grad_(False)
    if body_of(model) is not model:
        model.score.requires_grad_(head)
    put(model, new)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of a model by the names of their layers; ValueError if there are none."""
    if found := _adapters(model):
        return found
    raise ValueError("the model has no adapters: `adapt` was not called, or they are merged")


def merge(model: nn.Module) -> dict[str, LoRALinear]:
    """Fold all adapters into the weights: the layers are plain nn.Linear again, and as fast.

    Returns what `unmerge` needs to take that back. Raises ValueError if there are none, so
    nothing is ever merged twice.
    """
    found = adapters(model)
    put(model, {name: layer.merged() for name, layer in found.items()})
    return found


def unmerge(model: nn.Module, merged: Mapping[str, LoRALinear]) -> None:
    """Put back what `merge` returned: the very weights, to the last bit, that were there before.

    Raises ValueError if they were merged into another model, or if the merged weights have been
    trained since, which would be lost.
    """
    there = dict(body_of(model).named_modules())
    for name, layer in merged.items():
        now = there.get(name)
        if type(now) is not nn.Linear:
            raise ValueError(f"{name} is no merged layer of this model: nothing to unmerge there")
        was = layer.to(now.weight.device).merged()
        if not _alike(now.state_dict(), was.state_dict()):
            raise ValueError(
                f"{name} has other weights than when its adapter was merged: that was in another "
                "model, or it has been trained since, which unmerging would lose"
            )
    put(model, merged)


def save_adapters(model: nn.Module, path: Path) -> Path:
    """Write the adapters, and the classification head, to one safetensors file; returns its path.

    Its header says as JSON which base, rank, alpha and layers. Raises ValueError if there are no
    adapters, or if something else of the body is trainable, which would not be in the file;
    OSError if it cannot be written: a file that was there before stays as it was.
    """
    found = adapters(model)
    sizes = {(len(layer.A), layer.alpha.item(), layer.drop.p) for layer in found.values()}
    if len(sizes) > 1:
        raise ValueError(f"the adapters differ in (rank, alpha, dropout): {sorted(sizes)}")
    rank, alpha, dropout = sizes.pop()
    tensors = {f"{n}.{key}": getattr(layer, key) for n, layer in found.items() for key in "AB"}
    others = [n for n, p in body_of(model).named_parameters() if p.requires_grad]
    if others := [n for n in others if n not in tensors]:
        raise ValueError(
            f"{len(others)} other weights of the body are trained ({_few(others)}) and would not "
            "be saved: `merge`, then save the whole model"
        )
    if head := _head(model):
        tensors |= {f"score.{key}": value for key, value in model.score.state_dict().items()}
        head["threshold"] = model.threshold
    facts = {"format": FORMAT, "base": _base(model), "weights": _digests(model), "rank": rank}
    facts |= {"alpha": alpha, "dropout": dropout, "layers": list(found), "head": head}
    write_weights({k: v.detach() for k, v in tensors.items()}, path, config={"adapters": facts})
    return path


def load_adapters(model: nn.Module, path: Path) -> None:
    """Put the adapters of a file into the base model that they were trained on, and its head.

    Then the model is as `adapt` leaves it. The base may be stored in 4 bits here and not there,
    or the other way round. Raises FileNotFoundError if there is no file, ValueError if it is
    damaged, or of another base, other weights or other labels; the model stays as it was.
    """
    tensors, name = read_weights(path), show_path(path)
    try:
        facts = json.loads(header(path)["config"])["adapters"]
        written, base, layers = facts["format"], facts["base"], facts["layers"]
        rank, alpha, dropout = facts["rank"], facts["alpha"], facts["dropout"]
        weights, head = dict(facts["weights"]), dict(facts["head"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} holds no adapters: `save_adapters` writes them") from None
    if written != FORMAT:
        raise ValueError(f"{name} was saved by another spamgpt (format {written}, not {FORMAT})")
    if base != _base(model):
        raise ValueError(f"{name} has adapters for {base}, this model is {_base(model)}")
    threshold = head.pop("threshold", None)
    if head != _head(model):
        raise ValueError(f"{name} has a head for {head}, this model has {_head(model)}")
    ours = _digests(model)
    if other := [kind for kind in weights.keys() & ours.keys() if weights[kind] != ours[kind]]:
        raise ValueError(
            f"{name} was trained on other weights of {base} (of type {', '.join(sorted(other))}): "
            "load the base anew; it may have been trained, or have adapters merged into it"
        )
    chosen = choose(model, layers, KINDS)
    expected = {f"{n}.A": (rank, layer.in_features) for n, layer in chosen.items()}
    expected |= {f"{n}.B": (layer.out_features, rank) for n, layer in chosen.items()}
    if head:
        expected |= {f"score.{k}": tuple(v.shape) for k, v in model.score.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if wrong := sorted(k for k in expected | found if expected.get(k) != found.get(k)):
        raise ValueError(f"{name} is damaged: wrong or missing are {_few(wrong)}")
    adapt(model, rank, alpha, layers, dropout)
    for place, layer in adapters(model).items():
        layer.A.data.copy_(tensors[f"{place}.A"])
        layer.B.data.copy_(tensors[f"{place}.B"])
    if head:
        model.score.load_state_dict({k: tensors[f"score.{k}"] for k in ("weight", "bias")})
        model.set_threshold(threshold)


def _adapters(model: nn.Module) -> dict[str, LoRALinear]:
    modules = body_of(model).named_modules()
    return {name: layer for name, layer in modules if type(layer) is LoRALinear}


def _alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether both hold the same, but for rounding."""
    return a.keys() == b.keys() and all(
        a[key].shape == b[key].shape and torch.allclose(a[key], b[key], atol=1e-6) for key in a
    )


def _few(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(list(names)[:3]) + (" …" if len(names) > 3 else "")


def _base(model: nn.Module) -> str:
    """What a reader would call the base model."""
    config = body_of(model).config
    title = f"{architecture_of(config).title}, {config.n_layer} blocks of width {config.n_embd}"
    name = getattr(model, "base_name", None)
    return f"{name} ({title})" if name else title


def _head(model: nn.Module) -> dict:
    """What gives the numbers of a classification head their meaning; nothing without a head."""
    keys = ("label_names", "pooling", "positive")
    return {key: getattr(model, key) for key in keys} if body_of(model) is not model else {}


def _digests(model: nn.Module) -> dict[str, str]:
    """A digest of the frozen weights of each type of layer."""
    digests = defaultdict(hashlib.sha256)
    for module in body_of(model).modules():
        if not list(module.children()):  # so none of A and B
            for p in module.state_dict().values():
                digests[type(module).__name__].update(
                    p.cpu().contiguous().view(torch.uint8).numpy()
                )
    return {kind: digest.hexdigest() for kind, digest in digests.items()}
