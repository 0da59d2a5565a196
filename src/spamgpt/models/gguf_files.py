"""Base models in GGUF files: weights of 4 bits back to fp32, and the tokenizer.

GGUF is llama.cpp's format: one file with the architecture, quantized weights and the tokenizer.
The package `gguf`, by the same people, reads it. What it gives is written once beside the file
in the published layout of `published.py`; from then on nothing is dequantized.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken
import torch
from torch import Tensor

from spamgpt.files import assets
from spamgpt.files.workspace import read_json, say, write_json
from spamgpt.models.architectures import published_config, smallest
from spamgpt.models.llama import LlamaConfig
from spamgpt.models.published import CONFIGS, header, write_checkpoint

if TYPE_CHECKING:  # else imported where it is used: it takes a quarter of a second
    from gguf import GGUFReader

# SmolLM2's way of cutting words: each digit alone, then GPT-2's way with what is between them,
# so that spaces before a digit are a word of their own.
PATTERN = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
PRE = "smollm"  # its name in GGUF files


class Encoding(tiktoken.Encoding):
    """A byte-level BPE whose vocabulary may lack bytes.

    SmolLM2's lacks 13 that UTF-8 never uses, six control characters, and how the code points
    from U+40000 to U+BFFFF begin, which stand for nothing. As in the published tokenizer, they
    are left out; tiktoken by itself would end in an error. (What stands on both sides of one in
    a word is not merged, as the published one would: two exclamation marks stay two tokens.)
    """

    def __init__(self, name: str, mergeable_ranks: dict[bytes, int], **parts):
        super().__init__(name, mergeable_ranks=mergeable_ranks, **parts)
        lacking = [byte for byte in range(256) if bytes([byte]) not in mergeable_ranks]
        more = {bytes([byte]): self.n_vocab + i for i, byte in enumerate(lacking)}
        self._lacking = set(lacking)
        self._whole = tiktoken.Encoding(
            f"{name}, with all bytes",
            **(parts | {"mergeable_ranks": mergeable_ranks | more, "special_tokens": {}}),
        )

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text; what spells a special token is ordinary text."""
        if self._lacking.isdisjoint(text.encode("utf-8", "surrogatepass")):
            return super().encode_ordinary(text)
        return [i for i in self._whole.encode_ordinary(text) if i < self.n_vocab]


def is_one(name: str) -> bool:
    """Whether the base model `name` comes as a GGUF file."""
    return assets.ASSETS[name].filename.endswith(".gguf")


def weights(name: str) -> Path:
    """The safetensors file made of the base model `name`; fetched and made if need be.

    Raises AssetError if it cannot be had, OSError if it cannot be written.
    """
    return _made(name)[0]


def tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer of the base model `name`; raises as `weights` does."""
    return encoding(name, _made(name)[1])


def encoding(name: str, table: dict) -> Encoding:
    """A tokenizer from what `token_table` gives."""
    ranks = {token.encode("latin-1"): rank for token, rank in table["ranks"].items()}
    return Encoding(
        name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=table["special_tokens"]
    )


def _made(name: str) -> tuple[Path, dict]:
    """(weights, token table) made of a GGUF file; makes both unless both are whole and of it."""
    path, made_of = assets.fetch(name), {"made_of": assets.ASSETS[name].sha256}
    weights, table = path.with_name("model.safetensors"), path.with_name("tokens.json")
    try:
        tokens = read_json(table)
        config = json.loads(header(weights)["config"])
        if tokens["made_of"] == config["spamgpt"]["made_of"] == made_of["made_of"]:
            return weights, tokens
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not yet made, or damaged
    from gguf import GGUFReader

    say(f"{name}: weights and tokenizer are made ready, once for this workspace")
    reader, config = GGUFReader(path), CONFIGS[name]
    tokens = token_table(reader) | made_of
    write_json(table, tokens)
    write_checkpoint(
        dequantized(reader, config), published_config(config) | {"spamgpt": made_of}, path.parent
    )
    return weights, tokens


def dequantized(reader: "GGUFReader", config: LlamaConfig) -> dict[str, Tensor]:
    """The weights in a GGUF file, under our names, in fp32.

    Raises ValueError if one is missing or surplus.
    """
    import gguf

    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layer)
    keys = list(smallest(config).state_dict())
    parts = (f"model.{key.removesuffix('.weight')}" for key in keys)
    theirs = {key: f"{names.get_name(part)}.weight" for key, part in zip(keys, parts, strict=True)}
    if odd := set(theirs.values()) ^ set(stored):
        raise ValueError(f"the GGUF file does not fit the model: {', '.join(sorted(odd)[:5])}")
    heads = {"q_proj.weight": config.n_head, "k_proj.weight": config.n_kv_head}
    tensors = {}
    for key, name in theirs.items():
        x = torch.tensor(gguf.dequantize(stored[name].data, stored[name].tensor_type))
        n_head = next((n for end, n in heads.items() if key.endswith(end)), None)
        tensors[key] = x if n_head is None else side_by_side(x, n_head)
    return tensors


def side_by_side(x: Tensor, n_head: int) -> Tensor:
    """Rows of queries or keys, (nh hs, C): of each head, first all that are turned with others.

    llama.cpp turns row 2i with row 2i + 1 of a head, `llama.rotate` row i with row i + hs/2.
    """
    return x.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def token_table(reader: "GGUFReader") -> dict:
    """{"ranks": {token: rank}, "special_tokens": {token: id}}, a character for a byte.

    Raises ValueError for a tokenizer of another kind than SmolLM2's.
    """
    from gguf import TokenType

    tokens, merges, types, pre = (
        reader.get_field(f"tokenizer.ggml.{key}").contents()
        for key in ("tokens", "merges", "token_type", "pre")
    )
    normal = int(TokenType.NORMAL)
    ids = {token: i for i, token in enumerate(tokens) if types[i] == normal}
    merged = [ids[merge.replace(" ", "")] for merge in merges]
    if pre != PRE or merged != sorted(merged):
        raise ValueError(f"the GGUF file has a tokenizer of another kind ({pre})")
    byte = _bytes()
    return {
        "ranks": {"".join(map(byte.__getitem__, token)): i for token, i in ids.items()},
        "special_tokens": {t: i for i, t in enumerate(tokens) if types[i] != normal},
    }


def _bytes() -> dict[str, str]:
    """The byte that each character stands for in GPT-2's vocabulary files, as a character.

    Printable ones stand for themselves; characters from 256 on stand for the others, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(256 + i): chr(byte) for i, byte in enumerate(others)}
    return {chr(byte): chr(byte) for byte in printable} | stand_ins
