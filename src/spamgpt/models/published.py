"""Published files: their configurations, and their weights in our models.

The names of weights are the same. GPT-2's files store the matrices of their "Conv1D" layers as
(inputs, outputs), torch's `Linear` as (outputs, inputs): transposing those four matrices of each
block is all the mapping there is.

What else differs between architectures is in `architectures.py`.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spamgpt.files.workspace import atomic, read_json, show_path, write_json
from spamgpt.models.architectures import (
    ARCHITECTURES,
    Config,
    config_of,
    is_count,
    published_config,
)
from spamgpt.models.gpt2 import GPT2Config
from spamgpt.models.llama import LlamaConfig

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The causal masks that older files store beside the weights; they hold nothing learned.
BUFFERS = (".attn.bias", ".attn.masked_bias")
CONFIGS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
    "smollm2": LlamaConfig(),
}
FORMAT = 1  # of the files we save; a change that older code cannot read raises it
PICKLE = (b"\x80", b"PK\x03\x04")  # how pickles, and the zip files that torch.save makes, begin


def read_config(folder: Path) -> dict:
    """What config.json says about the weights beside it.

    Files of ours carry a copy in the header of model.safetensors, which is taken first: two
    files cannot be replaced in one step, and a process killed between them would leave
    weights beside the configuration of others.

    Raises FileNotFoundError if there is no config.json, ValueError if it is damaged or was
    written by a newer spamgpt.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{show_path(path)} is missing: it says what the weights mean")
    embedded = header(folder / "model.safetensors").get("config")
    try:
        config = json.loads(embedded) if embedded else read_json(path)
    except ValueError as error:
        raise ValueError(f"{show_path(path)} is damaged ({error})") from None
    ours = config.get("spamgpt", {}) if isinstance(config, dict) else None
    written = ours.get("format", FORMAT) if isinstance(ours, dict) else None
    if not is_count(written):
        raise ValueError(f"{show_path(path)} is damaged (it does not describe a model)")
    if written > FORMAT:
        raise ValueError(
            f"{show_path(folder)} was saved by a newer spamgpt (format {written}; this one reads "
            f"up to {FORMAT}): update it with `git pull`, or train again"
        )
    return config


def header(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file; none if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):  # reading the weights will say so
        return {}


def load_config(folder: Path) -> Config:
    """The architecture from a config.json with the published names (see `read_config`).

    Raises ValueError besides, if it describes none, or one that we do not compute.
    """
    return config_of(read_config(folder), f"{show_path(folder)}/config.json")


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file in the published layout -> our keys and shapes, in fp32.

    Accepts names with and without "transformer." or "model." in front, drops the stored causal
    masks and a tied "lm_head.weight". Raises ValueError if the file is not readable, or if its
    lm_head is not the token embedding, FileNotFoundError if there is none. A pickle is never
    read: that could run any program.
    """
    if not path.exists():
        raise FileNotFoundError(f"{show_path(path)} is missing{_pickle_beside(path)}")
    try:
        published = load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as file:
            start = file.read(9)  # the length of a JSON object, then that object
        pickled = start.startswith(PICKLE) and not start.endswith(b"{")
        problem = (
            "is a pickle, which is never read here, since it could run any program: "
            "use the model.safetensors that is published beside it"
            if pickled
            else f"is not a readable safetensors file ({error}): "
            "delete it, then fetch or train it again"
        )
        raise ValueError(f"{show_path(path)} {problem}") from None
    tensors = {
        key.removeprefix("transformer.").removeprefix("model."): value
        for key, value in published.items()
    }
    head = tensors.pop("lm_head.weight", None)
    for name in ("wte.weight", "embed_tokens.weight"):
        if head is not None and name in tensors and not torch.equal(head, tensors[name]):
            raise ValueError(f"lm_head.weight differs from {name}: this is not a tied model")
    return {
        key: (value.T if key.endswith(TRANSPOSED) else value).float().contiguous()
        for key, value in tensors.items()
        if not key.endswith(BUFFERS)
    }


def _pickle_beside(path: Path) -> str:
    """A word on the file that others save in place of `path`, if it is there."""
    if not path.with_name("pytorch_model.bin").exists():
        return ""
    return "; pytorch_model.bin is a pickle, which is never read here: it could run any program"


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into `model`; every key must be used and every shape must fit.

    Raises ValueError that names the keys that are missing, surplus or misshapen.
    """
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"surplus {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, the model needs {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        more = f" … and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError("the weights do not fit the model: " + "; ".join(problems[:5]) + more)
    model.load_state_dict(tensors)


def write_weights(
    tensors: dict[str, Tensor],
    path: Path,
    dtype: torch.dtype = torch.float32,
    config: dict | None = None,
) -> None:
    """The inverse of `read_weights`: our tensors as a safetensors file in published layout.

    `config` goes into its header for `read_config`. Raises OSError if it cannot be written;
    a file that was there before stays as it was.
    """
    published = {
        key: (value.T if key.endswith(TRANSPOSED) else value).to(dtype).contiguous()
        for key, value in tensors.items()
    }
    metadata = {"format": "pt"} | ({"config": json.dumps(config)} if config else {})
    with atomic(path) as temporary:
        try:
            save_file(published, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(
                f"{show_path(path)} could not be saved ({error}); what was there before is kept"
            ) from error
        temporary.chmod(0o644)  # safetensors makes it readable for its owner only


def write_checkpoint(
    tensors: dict[str, Tensor], config: dict, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write model.safetensors, which makes the new state valid, then config.json."""
    config["spamgpt"] = {"format": FORMAT, **config.get("spamgpt", {})}
    known = ARCHITECTURES[config["model_type"]]
    tensors = {known.published_name(key): value for key, value in tensors.items()}
    write_weights(tensors, folder / "model.safetensors", dtype, config)
    write_json(folder / "config.json", config)


def save_checkpoint(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write model.safetensors and config.json in the published layout."""
    write_checkpoint(model.state_dict(), published_config(model.config), folder, dtype)
