"""In which precision matrices are multiplied where nothing is trained: measured, decided once.

Many CPUs accept bf16 or int8 and emulate it slowly, so it is measured, not looked up. A
measurement may come out differently under load, and results differ with the precision in their
last digits. So the decision is kept in the workspace, for every later process.
"""

import platform
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from spamgpt import settings
from spamgpt.fast.products import DTYPES, can_int8, can_pack, inference_linear
from spamgpt.files.workspace import read_json, workspace, write_json
from spamgpt.hardware import shortest_seconds, tokens_per_batch

# Rounding has to be worth it: how many times as fast as the more exact one it must be.
BF16_WORTH, INT8_WORTH = 1.5, 1.2
# Casting and packing read and write every weight: that costs what it saves on some hundred tokens.
FEW_TOKENS = 512


class Precision(NamedTuple):
    """How `fast.products.inference_linear` multiplies: its name, and whether weights are packed."""

    name: str
    packed: bool


class Decision(NamedTuple):
    """What is fastest here: `states` for hidden states that are trained on ("fp32" or "bf16"),
    `inference` for labels ("int8" besides)."""

    states: str
    inference: str
    packed: bool


EXACT = Precision("fp32", packed=False)
POSSIBLE = [Decision(*d)._asdict() for d in product(DTYPES, settings.PRECISIONS, (False, True))]


def decide(device: torch.device, width: int) -> Decision:
    """The decision for a model of this width (n_embd), as SPAMGPT_PRECISION says or as measured.

    Read from the workspace if it is known there; a tenth of a second otherwise.
    """
    key = f"{_processor(device)}, width {width}, torch {torch.__version__}"
    known = _known().get(key)
    if known in POSSIBLE:
        decided = Decision(**known)
    else:  # not yet, or damaged
        decided = _measure(device, width)
        _remember(key, decided)
    wanted = settings.precision()
    if wanted is None:
        return decided
    if wanted == "int8" and not _int8_works(device):
        raise ValueError(
            f"SPAMGPT_PRECISION=int8: this {device.type}, or this torch, cannot multiply in int8: "
            "choose auto, fp32 or bf16"
        )
    # States that are trained on are never rounded to int8.
    return decided._replace(inference=wanted, states="bf16" if wanted == "int8" else wanted)


def _int8_works(device: torch.device) -> bool:
    with torch.random.fork_rng(devices=[]):
        return can_int8(nn.Linear(64, 64), torch.randn(8, 64).to(device))


def _path():
    return workspace() / "precision.json"


def _processor(device: torch.device) -> str:
    """What has to be the same for a decision to hold: a workspace may be shared or moved."""
    if device.type != "cpu":
        return device.type
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _known() -> dict:
    """What this workspace has decided; nothing yet if the file is damaged."""
    try:
        return dict(read_json(_path()))
    except (OSError, ValueError, TypeError):
        return {}


def _remember(key: str, decided: Decision) -> None:
    """Keep a decision; where nothing can be written, each process decides for itself."""
    with suppress(OSError):
        write_json(_path(), {**_known(), key: decided._asdict()})


@lru_cache
def _measure(device: torch.device, width: int) -> Decision:
    """What is fastest for the widest products that a batch of this device's size needs."""
    with torch.random.fork_rng(devices=[]):  # a training's next random numbers stay what they were
        layer, x = nn.Linear(width, 4 * width), torch.randn(tokens_per_batch(device), width)
        packs, bytes_ = can_pack(layer, x.to(device)), can_int8(layer, x.to(device))
    layer, x = layer.to(device), x.to(device)

    def seconds(precision: str, packed: bool) -> float:
        return shortest_seconds(inference_linear(layer, precision, packed, gelu=True), x)

    if device.type == "mps":  # bf16 gains little there and differs between versions of macOS
        return Decision("fp32", "fp32", packed=False)
    took = {packed: seconds("fp32", packed) for packed in {False, packs}}
    packed = min(took, key=took.get)
    states, fastest = "fp32", took[packed]
    if (bf16 := seconds("bf16", packed)) * BF16_WORTH < fastest:
        states, fastest = "bf16", bf16
    int8 = bytes_ and seconds("int8", packed) * INT8_WORTH < fastest
    return Decision(states, "int8" if int8 else states, packed)
