"""A base model by name: its weights in our model, its tokenizer, its fine-tuning recipe.

Published GPT-2 files store the matrices of their "Conv1D" layers as (inputs, outputs),
torch's `Linear` as (outputs, inputs). Transposing those four matrices of each block is
all the mapping there is; the names are the same.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import tiktoken
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str
from torch import Tensor

from spamgpt import assets
from spamgpt.gpt2 import GPT2, GPT2Config
from spamgpt.workspace import POCKET, atomic, notice, read_json, remember, show_path, write_json

END = "<|endoftext|>"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The causal masks that older files store beside the weights; they hold nothing learned.
BUFFERS = (".attn.bias", ".attn.masked_bias")
CONFIGS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}
BASE_NAMES = (*CONFIGS, "pocket")
# Our name of each number of the architecture, and the published one.
CONFIG_NAMES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_ctx": "n_positions",
    "n_vocab": "vocab_size",
}
FORMAT = 1  # of the files we save; a change that older code cannot read raises it
PICKLE = (b"\x80", b"PK\x03\x04")  # how pickles, and the zip files that torch.save makes, begin


@dataclass(frozen=True)
class Recipe:
    """How a base model is fine-tuned: what is trained, and how fast.

    `trained_blocks` counts from the end and includes `ln_f` and the head; None trains
    everything. `learning_rate` and `weight_decay` are AdamW's; with `decay`, the learning
    rate falls linearly to zero over the training, else it stays. `dropout` is the share of
    hidden values that are set to zero at random in training. With `embedding_rate` the
    embeddings are trained as well, whatever is frozen above them, at a learning rate of
    their own: a token that occurs in a few messages moves in a few steps only.
    """

    trained_blocks: int | None
    learning_rate: float
    weight_decay: float = 0.1
    batch_size: int = 8
    epochs: int = 5
    decay: bool = False
    dropout: float = 0.0
    embedding_rate: float | None = None


# The lecture's recipe for GPT-2. Pocket GPT's was chosen by cross-validation (see its model card).
GPT2_RECIPE = Recipe(trained_blocks=1, learning_rate=5e-5)
POCKET_RECIPE = Recipe(
    trained_blocks=3, learning_rate=3e-4, epochs=4, decay=True, dropout=0.1, embedding_rate=3e-3
)


@dataclass
class Base:
    """A pretrained model with what belongs to it."""

    name: str
    model: GPT2
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
        name = announce_base()
    if name == "pocket":
        return load_pocket()
    tokenizer = load_tokenizer(name)
    model = GPT2(CONFIGS[name])
    load_weights(model, read_weights(assets.fetch(name)))
    return Base(name, model.eval(), tokenizer, GPT2_RECIPE)


def load_pocket(folder: Path = POCKET) -> Base:
    """The embedded Pocket GPT, or another that `scripts/pretrain_pocket.py` wrote to `folder`."""
    model = GPT2(load_config(folder))
    load_weights(model, read_weights(folder / "model.safetensors"))
    tokenizer = tokenizer_from_ranks(folder / "pocket.tiktoken")
    return Base("pocket", model.eval(), tokenizer, POCKET_RECIPE)


def announce_base() -> str:
    """The name of the base model to use; prints a notice where Pocket GPT stands in for GPT-2."""
    wanted = os.environ.get("SPAMGPT_BASE") or "auto"
    if wanted != "auto":
        return wanted
    if reason := assets.why_stand_in("base", "pocket", "gpt2"):
        notice(_pocket_notice(reason))
        return "pocket"
    try:
        load_tokenizer("gpt2")
        assets.fetch("gpt2")
    except assets.AssetError as error:
        remember("base", "pocket", error.brief)
        notice(_pocket_notice(error.brief))
        return "pocket"
    remember("base", "gpt2", "its files are here")
    return "gpt2"


def _pocket_notice(reason: str) -> str:
    return (
        "BASE MODEL: the embedded Pocket GPT stands in for GPT-2 124M.\n"
        f"{reason}\n"
        "Same architecture, same code, fewer parameters. With internet, run\n"
        "python -m spamgpt fetch"
    )


# --- tokenizers -----------------------------------------------------------------------


def load_tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer of the base model `name`; ValueError for an unknown name."""
    if name not in BASE_NAMES:
        raise ValueError(f"no base model {name!r}: choose one of auto, {', '.join(BASE_NAMES)}")
    if name == "pocket":
        return tokenizer_from_ranks(POCKET / "pocket.tiktoken")
    for file in ("vocab.bpe", "encoder.json"):
        os.environ["TIKTOKEN_CACHE_DIR"] = str(assets.fetch(file).parent)
    return tiktoken.get_encoding("gpt2")


def tokenizer_from_ranks(path: Path) -> tiktoken.Encoding:
    """A byte-level BPE from a .tiktoken rank file, with GPT-2's way of cutting words."""
    ranks = load_tiktoken_bpe(str(path))
    return tiktoken.Encoding(
        path.stem, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END: len(ranks)}
    )


# --- checkpoints ----------------------------------------------------------------------


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

    Raises ValueError besides, if an entry is missing or not a positive number.
    """
    config, names = read_config(folder), CONFIG_NAMES
    wrong = [name for name in names.values() if not _is_count(config.get(name))]
    if wrong:
        raise ValueError(
            f"{show_path(folder)}/config.json does not describe a GPT-2: "
            + ", ".join(f"{name} is {config.get(name)!r}" for name in wrong)
        )
    return GPT2Config(**{ours: config[published] for ours, published in names.items()})


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
