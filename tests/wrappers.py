"""What people put around, into and onto the blocks of a model."""

import torch
from randomize import randomize
from torch import nn
from torch.nn.utils import parametrize

from spamgpt import lora

RANK = 2


class LoRA(nn.Module):
    """W x + B A x with W frozen; B isn't zero, so that it shows. Has no `weight`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        generator = torch.Generator().manual_seed(7)
        self.A = nn.Parameter(torch.randn(RANK, linear.in_features, generator=generator) * 0.3)
        self.B = nn.Parameter(torch.randn(linear.out_features, RANK, generator=generator) * 0.3)

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T


class LoRAWithWeight(LoRA):
    """The same, and `weight` and `bias` are those of the frozen layer, as in PEFT."""

    @property
    def weight(self):
        return self.linear.weight

    @property
    def bias(self):
        return self.linear.bias


class LoRALinear(nn.Linear):
    """The same as a subclass of nn.Linear."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.lora = LoRA(linear)

    def forward(self, x):
        return self.lora(x)


def package_lora(linear: nn.Linear) -> lora.LoRALinear:
    """The package's own."""
    generator = torch.Generator().manual_seed(7)
    layer = lora.LoRALinear(linear, RANK, alpha=RANK, generator=generator)
    layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * 0.3)
    return layer


class Around(nn.Module):
    """Adds a learned vector to what a module gives, a block or an attention."""

    def __init__(self, inner: nn.Module, width: int):
        super().__init__()
        self.inner = inner
        self.shift = nn.Parameter(torch.linspace(-1, 1, width))

    def forward(self, x, *rest):
        return self.inner(x, *rest) + self.shift


class AroundBlock(Around):
    """The same, for a block that knows nothing of `last`."""

    def forward(self, x):
        return super().forward(x)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def _lora(kind, *names):
    def change(blocks, i):
        for name in names:
            parent = blocks[i].get_submodule(name.rpartition(".")[0])
            attribute = name.rpartition(".")[2]
            setattr(parent, attribute, kind(getattr(parent, attribute)))

    return change


def _hook(name):
    def change(blocks, i):
        module = blocks[i].get_submodule(name)
        module.register_forward_hook(lambda m, inputs, y: y + torch.linspace(-1, 1, y.shape[-1]))

    return change


def _pre_hook(name):
    def change(blocks, i):
        module = blocks[i].get_submodule(name)
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.5, *inputs[1:]))

    return change


def _around_block(blocks, i):
    blocks[i] = AroundBlock(blocks[i], blocks[i].ln_1.normalized_shape[0])


def _around_attention(blocks, i):
    blocks[i].attn = Around(blocks[i].attn, blocks[i].ln_1.normalized_shape[0])


def _parametrize(name):
    def change(blocks, i):
        parametrize.register_parametrization(blocks[i].get_submodule(name), "weight", Doubled())

    return change


def _own_forward(blocks, i):
    inner = blocks[i].mlp.forward
    blocks[i].mlp.forward = lambda x: 2 * inner(x)


def _kind_of_its_own(name):
    def change(blocks, i):
        module = blocks[i].get_submodule(name)
        kind = type(module)

        def forward(self, *inputs):
            y = kind.forward(self, *inputs)
            return y + torch.linspace(-1, 1, y.shape[-1])

        module.__class__ = type(f"Other{kind.__name__}", (kind,), {"forward": forward})

    return change


LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc")
# By name, a function (blocks, i) that changes block i of a model in place.
CHANGES = {
    **{f"LoRA in {name}": _lora(LoRA, name) for name in LINEARS},
    "LoRA in all three": _lora(LoRA, *LINEARS),
    "LoRA with a weight": _lora(LoRAWithWeight, *LINEARS),
    "LoRA by subclass": _lora(LoRALinear, *LINEARS),
    "the package's LoRA": _lora(package_lora, *LINEARS),
    "hook of a block": _hook(""),
    "hook of an attention": _hook("attn"),
    "hook of a linear layer": _hook("mlp.c_fc"),
    "hook of a norm": _hook("ln_2"),
    "hook before a linear layer": _pre_hook("attn.c_attn"),
    "wrapper of a block": _around_block,
    "wrapper of an attention": _around_attention,
    "parametrization of c_attn": _parametrize("attn.c_attn"),
    "parametrization of c_proj": _parametrize("mlp.c_proj"),
    "forward of its own": _own_forward,
    "linear layer of another kind": _kind_of_its_own("attn.c_proj"),
    "norm of another kind": _kind_of_its_own("ln_1"),
    "attention of another kind": _kind_of_its_own("attn"),
    "block of another kind": _kind_of_its_own(""),
}


def changed(classifier, change, i):
    """A classifier with a trained head, whose block i was changed by the name of a change."""
    randomize(classifier.score, seed=1)
    CHANGES[change](classifier.transformer.blocks, i)
    return classifier
