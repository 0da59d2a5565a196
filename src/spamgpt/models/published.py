"""Published GPT-2 files: their configurations, and their weights in our model.

They store the matrices of their "Conv1D" layers as (inputs, outputs), torch's `Linear` as
(outputs, inputs). Transposing those four matrices of each block is all the mapping there is;
the names are the same.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spamgpt.files.workspace import atomic, read_json, show_path, write_json
from spamgpt.models.gpt2 import GPT2, GPT2Config

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The causal masks that older files store beside the weights; they hold nothing learned.
BUFFERS = (".attn.bias", ".attn.masked_bias")
CONFIGS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}
# Our name of each number of the architecture, and the published one.
CONFIG_NAMES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_ctx": "n_positions",
    "n_vocab": "vocab_size",
}
# Entries that change what a model computes, with the values that `gpt2.GPT2` implements. The
# names are those of transformers' GPT2Config; an entry that is missing has the first value.
IMPLEMENTED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one formula
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_word_embeddings": (True,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
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
    embedded = _header(folder / "model.safetensors").get("config")
    try:
        config = json.loads(embedded) if embedded else read_json(path)
    except ValueError as error:
        raise ValueError(f"{show_path(path)} is damaged ({error})") from None
    ours = config.get("spamgpt", {}) if isinstance(config, dict) else None
    written = ours.get("format", FORMAT) if isinstance(ours, dict) else None
    if not _is_count(written):
        raise ValueError(f"{show_path(path)} is damaged (it does not describe a model)")
    if written > FORMAT:
        raise ValueError(
            f"{show_path(folder)} was saved by a newer spamgpt (format {written}; this one reads "
            f"up to {FORMAT}): update it with `git pull`, or train again"
        )
    return config


def _header(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file; none if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):  # reading the weights will say so
        return {}


def load_config(folder: Path) -> GPT2Config:
    """The architecture from a config.json with the published names (see `read_config`).

    Raises ValueError besides, if an entry is missing or not a positive number, or asks for
    what this model does not compute.
    """
    config, names = read_config(folder), CONFIG_NAMES
    wrong = [name for name in names.values() if not _is_count(config.get(name))]
    if wrong:
        raise ValueError(
            f"{show_path(folder)}/config.json does not describe a GPT-2: "
            + ", ".join(f"{name} is {config.get(name)!r}" for name in wrong)
        )
    refuse_unimplemented(config, f"{show_path(folder)}/config.json")
    return GPT2Config(**{ours: config[published] for ours, published in names.items()})


def refuse_unimplemented(config: dict, name: str) -> None:
    """Raise ValueError if an entry of a config.json changes the result in a way that we lack.

    Loaded all the same, such a model would compute something else, and nothing would say so.
    """
    wrong = [
        f"{key} is {config[key]!r}, only {' or '.join(map(repr, values))} is implemented"
        for key, values in IMPLEMENTED.items()
        if config.get(key, values[0]) not in values
    ]
    inner, width = config.get("n_inner"), config.get("n_embd")
    if inner is not None and inner != 4 * width:
        wrong.append(f"n_inner is {inner!r}, only {4 * width} (4 n_embd) is implemented")
    if wrong:
        raise ValueError(f"{name} asks for what this GPT-2 does not compute: {'; '.join(wrong)}")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def published_config(config: GPT2Config) -> dict:
    """The content of config.json for a model of this architecture."""
    numbers = asdict(config)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": numbers.pop("n_vocab"),
        "n_positions": numbers["n_ctx"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": config.n_vocab - 1,
        "eos_token_id": config.n_vocab - 1,
        **{key: value for key, value in numbers.items() if key != "dropout"},
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file in the published layout -> our keys and shapes, in fp32.

    Accepts names with and without "transformer." in front, drops the stored causal masks
    and a tied "lm_head.weight". Raises ValueError if the file is not readable, or if its
    lm_head is not the token embedding, FileNotFoundError if there is none. A pickle is never
    read: that could run any program.
    """
    if not path.exists():
        raise FileNotFoundError(f"{show_path(path)} is missing{_pickle_beside(path)}")
    try:
        published = load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as file:
            pickled = file.read(4).startswith(PICKLE)
        problem = (
            "is a pickle, which is never read here, since it could run any program: "
            "use the model.safetensors that is published beside it"
            if pickled
            else f"is not a readable safetensors file ({error}): "
            "delete it, then fetch or train it again"
        )
        raise ValueError(f"{show_path(path)} {problem}") from None
    tensors = {key.removeprefix("transformer."): value for key, value in published.items()}
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is not None and wte is not None and not torch.equal(head, wte):
        raise ValueError("lm_head.weight differs from wte.weight: this is not a tied GPT-2")
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


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
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
    write_weights(tensors, folder / "model.safetensors", dtype, config)
    write_json(folder / "config.json", config)


def save_checkpoint(model: GPT2, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write model.safetensors and config.json in the published layout."""
    write_checkpoint(model.state_dict(), published_config(model.config), folder, dtype)
