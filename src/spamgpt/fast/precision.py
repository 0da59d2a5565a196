"""In which precision matrices are multiplied where nothing is trained: measured, decided once.

Many CPUs accept bf16 and emulate it slowly, so it is measured, not looked up. A measurement
may come out differently under load, and results differ with the precision in their last
digits. So the decision is kept in the workspace, for every later process.
"""

from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from spamgpt import settings
from spamgpt.fast.products import can_pack, inference_linear
from spamgpt.files.workspace import read_json, workspace, write_json
from spamgpt.hardware import shortest_seconds, tokens_per_batch

WORTH = 1.5  # bf16 rounds; it has to be this many times as fast as fp32
# Casting and packing read and write every weight: that costs what it saves on some hundred tokens.
FEW_TOKENS = 512


class Precision(NamedTuple):
    """How `fast.products.inference_linear` multiplies: "fp32" or "bf16", weights packed or not."""

    name: str
    packed: bool


EXACT = Precision("fp32", packed=False)


def decide(device: torch.device, width: int) -> Precision:
    """The precision for a model of this width (n_embd), as SPAMGPT_PRECISION says or as measured.

    Read from the workspace if it is known there; a tenth of a second otherwise.
    """
    key, path = f"{device.type}, width {width}, torch {torch.__version__}", _path()
    try:
        decided = Precision(**read_json(path)[key])
    except (OSError, ValueError, KeyError, TypeError):  # not yet, or damaged
        decided = _measure(device, width)
        _remember(key, decided)
    wanted = settings.precision()
    return decided if wanted is None else decided._replace(name=wanted)


def _path():
    return workspace() / "precision.json"


def _remember(key: str, decided: Precision) -> None:
    """Keep a decision; where nothing can be written, each process decides for itself."""
    try:
        known = read_json(_path())
    except (OSError, ValueError):
        known = {}
    with suppress(OSError):
        write_json(_path(), {**known, key: decided._asdict()})


@lru_cache
def _measure(device: torch.device, width: int) -> Precision:
    """What is fastest for the widest products that a batch of this device's size needs."""
    with torch.random.fork_rng(devices=[]):  # a training's next random numbers stay what they were
        layer, x = nn.Linear(width, 4 * width), torch.randn(tokens_per_batch(device), width)
    layer, x = layer.to(device), x.to(device)

    def seconds(precision: str, packed: bool) -> float:
        return shortest_seconds(inference_linear(layer, precision, packed, gelu=True), x)

    packed = can_pack(layer, x) and seconds("fp32", True) <= seconds("fp32", False)
    if device.type == "mps":  # bf16 gains little there and differs between versions of macOS
        return EXACT
    faster = seconds("bf16", packed) * WORTH < seconds("fp32", packed)
    return Precision("bf16" if faster else "fp32", packed)
