"""NF4: frozen weights in 4 bits each, on levels that fit numbers from a normal distribution.

Weights are stored in blocks of 64, each scaled by its largest absolute value; these scales are
stored in 8 bits, in blocks of 256 ("double quantization"). Together 4.127 bits a weight. Codes,
scales and results are those of bitsandbytes, the authors' library; an 8-bit scale may be its
neighbour there, if it is nearly as near, since bitsandbytes multiplies by a rounded reciprocal.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
https://arxiv.org/abs/2305.14314 (levels: appendix E); the 8-bit levels of the scales: Dettmers et
al., "8-bit Optimizers via Block-wise Quantization", 2021, https://arxiv.org/abs/2110.02861
"""

import math
from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spamgpt.layers import choose, frozen_linear, put

LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes allows
SCALES = 256  # scales in a block of their own


def normal_levels() -> Tensor:
    """How the published LEVELS were found: quantiles of the normal distribution, (16,) in fp64.

    Eight positive and seven negative ones, evenly spaced in probability, so that each is about
    equally often the nearest, and 0, which is exact; scaled to -1..1. The outermost quantile is
    1 less the mean of 1/32 and 1/30. LEVELS differ by less than 2e-7: they were computed in fp32.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    positive, negative = (
        torch.special.ndtri(torch.linspace(0.5, outermost, n, dtype=torch.float64)) for n in (9, 8)
    )
    return torch.cat([-negative.flip(0), positive[1:]]) / positive[-1]


def dynamic_levels() -> Tensor:
    """256 levels from -1 to 1 for 8 bits: the smaller, the closer together, (256,).

    Each power of ten, from 1e-6 on, has twice as many as the one below.
    """
    edges = [torch.linspace(0.1, 1, 2**i + 1) for i in range(7)]
    positive = [(e[:-1] + e[1:]) / 2 * 10.0 ** (i - 6) for i, e in enumerate(edges)]
    positive = torch.cat([*positive, torch.ones(1)])
    return torch.cat([-positive[:-1], torch.zeros(1), positive]).sort().values


SCALE_LEVELS = dynamic_levels()


def nearest(x: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(number of the nearest level for each of x (n,); largest absolute value of each block).

    The levels are those of a block scaled to -1..1. The last block may be shorter.
    """
    blocks = F.pad(x, (0, -len(x) % block)).view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks * absmax.clamp_min(1e-38).reciprocal()[:, None]
    middles = ((levels[:-1] + levels[1:]) / 2).to(x.device)
    return torch.bucketize(scaled, middles, out_int32=True).flatten()[: len(x)].byte(), absmax


def scaled_back(numbers: Tensor, levels: Tensor, absmax: Tensor, block: int) -> Tensor:
    """The inverse of `nearest`: (n,) level numbers and (n_blocks,) -> (n,)."""
    x = levels.to(numbers.device).index_select(0, numbers.int())
    return (F.pad(x, (0, -len(x) % block)).view(-1, block) * absmax[:, None]).flatten()[: len(x)]


def quantize(weight: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    """(4-bit codes, two to a byte, the first in the upper half; absmax of each block).

    Blocks go through the rows, (n,) -> ((n + 1) // 2,) and (n_blocks,); the last may be shorter.
    Raises ValueError for a size of blocks that is not in BLOCKS, and for weights that are empty,
    whole numbers, infinite or not a number.
    """
    if block not in BLOCKS:
        raise ValueError(f"block = {block!r}: choose one of {', '.join(map(str, BLOCKS))}")
    if not weight.is_floating_point():
        raise ValueError(f"weights of type {weight.dtype}: only floating-point numbers can be NF4")
    if not weight.numel():
        raise ValueError(f"weights of shape {tuple(weight.shape)}: there is nothing to quantize")
    if bad := int((~weight.isfinite()).sum()):
        raise ValueError(
            f"{bad:,} of {weight.numel():,} weights are infinite or not a number: NF4 has no code "
            "for them, and they would spoil their blocks"
        )
    x = weight.detach().flatten().float()
    numbers, absmax = nearest(F.pad(x, (0, len(x) % 2)), LEVELS, block)
    first, second = numbers.view(-1, 2).unbind(dim=1)
    return first << 4 | second, absmax


def dequantize(codes: Tensor, absmax: Tensor, shape: Sequence[int], block: int = 64) -> Tensor:
    """The inverse of `quantize`, but for rounding, in fp32 and `shape`."""
    numbers = torch.stack([codes >> 4, codes & 15], dim=1).flatten()[: math.prod(shape)]
    return scaled_back(numbers, LEVELS, absmax, block).view(shape)


class NF4Linear(nn.Module):
    """A frozen linear layer with weights in NF4; its bias stays as it is.

    `weight` is computed anew from the codes each time it is asked for, and for each product.
    """

    def __init__(self, linear: nn.Linear, block: int = 64):
        super().__init__()
        self.in_features, self.out_features, self.block = *linear.weight.T.shape, block
        bias = linear.bias
        self.bias = bias if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        codes, absmax = quantize(linear.weight, block)
        offset = absmax.mean(dim=0, keepdim=True)  # scales are positive, the levels are not
        scales, steps = nearest(absmax - offset, SCALE_LEVELS, SCALES)
        for name, tensor in zip(
            ("codes", "scales", "steps", "offset"), (codes, scales, steps, offset), strict=True
        ):
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Tensor:
        """(out, in) in fp32."""
        absmax = scaled_back(self.scales, SCALE_LEVELS, self.steps, SCALES) + self.offset
        return dequantize(self.codes, absmax, (self.out_features, self.in_features), self.block)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        y = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """x W', without keeping W for the gradient: it is dequantized once more instead."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight.to(grad.dtype), None


def quantize_layers(model: nn.Module, layers: str | Sequence[str] = "*", block: int = 64) -> None:
    """Store a model's linear `layers` (see `layers.choose`) in NF4, frozen, in place.

    Raises ValueError that names the layer for weights that cannot be quantized (see `quantize`),
    or names that fit no layer; the model stays as it was.
    """
    new = {}
    for name, layer in choose(model, layers, (nn.Linear,)).items():
        try:
            new[name] = NF4Linear(layer, block)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    put(model, new)


def dequantize_layers(model: nn.Module, layers: str | Sequence[str] = "*") -> None:
    """Put plain layers with the rounded weights in the place of layers in NF4, frozen.

    Then the model is as fast, as large and as easily saved as any other. Raises ValueError for
    names that fit no layer in NF4.
    """
    chosen = choose(model, layers, (NF4Linear,))
    put(model, {name: frozen_linear(layer.weight, layer.bias) for name, layer in chosen.items()})


def bytes_held(model: nn.Module) -> int:
    """Bytes of all tensors that a model holds, each piece of memory counted once."""
    pieces = (t.untyped_storage() for t in chain(model.parameters(), model.buffers()))
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())
