"""The architectures that we compute, by the names of their published files.

Another one is a file beside `gpt2.py` with a class that fits `base.LanguageModel`, and an entry
in ARCHITECTURES.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from torch import nn

from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.llama import Llama, LlamaConfig

Config = GPT2Config | LlamaConfig


@dataclass(frozen=True)
class Architecture:
    """A model of ours, and what its published files say in config.json and call their weights.

    `counts` has our name of each whole number and the published one. `implemented` has entries
    that change what a model computes, with the values that our model implements; the names are
    those of transformers' configurations, and an entry that is missing has the first value.
    `refuse` says what else is not implemented. `read` and `write` translate what is no whole
    number. `prefix` is in front of all weights of the body; None: as the model has them.
    """

    title: str
    model: type[nn.Module]
    config: type
    language_model: str  # transformers' class
    classifier: str  # transformers' class
    counts: dict[str, str]
    implemented: dict[str, tuple]
    refuse: Callable[[dict], list[str]]
    read: Callable[[dict], dict]
    write: Callable[[Config], dict]
    prefix: str | None = None

    def published_name(self, key: str) -> str:
        """The name in published files of a weight of our model, or of a classifier of ours."""
        if self.prefix is None or key.startswith("score."):
            return key
        return self.prefix + key.removeprefix("transformer.")


def _refuse_gpt2(config: dict) -> list[str]:
    inner, width = config.get("n_inner"), 4 * config["n_embd"]
    if inner in (None, width):
        return []
    return [f"n_inner is {inner!r}, only {width} (4 n_embd) is implemented"]


def _write_gpt2(config: GPT2Config) -> dict:
    return {
        "n_ctx": config.n_ctx,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": config.n_vocab - 1,
        "eos_token_id": config.n_vocab - 1,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }


def _rope(config: dict) -> dict:
    """What a Llama's file says of its rotary positions; `rope_theta` stood alone until 2025."""
    alone = {"rope_theta": config.get("rope_theta", 10_000.0), "rope_type": "default"}
    inside = config.get("rope_parameters")
    return alone | inside if isinstance(inside, dict) else alone


def _refuse_llama(config: dict) -> list[str]:
    rope, size = _rope(config), config["hidden_size"] // config["num_attention_heads"]
    found = {
        "head_dim": (config.get("head_dim") or size, size),
        "rope_type": (rope["rope_type"], "default"),
        "tie_word_embeddings": (config.get("tie_word_embeddings", False), True),
    }
    wrong = [
        f"{key} is {value!r}, only {ours!r} is implemented"
        for key, (value, ours) in found.items()
        if value != ours
    ]
    numbers = {"rope_theta": rope["rope_theta"], "rms_norm_eps": config.get("rms_norm_eps", 1e-6)}
    return wrong + [
        f"{key} is {value!r}, not a positive number"
        for key, value in numbers.items()
        if type(value) not in (int, float) or not value > 0
    ]


def _read_llama(config: dict) -> dict:
    return {"theta": _rope(config)["rope_theta"], "eps": config.get("rms_norm_eps", 1e-6)}


def _write_llama(config: LlamaConfig) -> dict:
    return {
        "hidden_act": "silu",
        "rms_norm_eps": config.eps,
        "rope_theta": config.theta,  # for readers of before 2025
        "rope_parameters": {"rope_theta": config.theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_dropout": config.dropout,
    }


ARCHITECTURES = {
    "gpt2": Architecture(
        title="GPT-2",
        model=GPT2,
        config=GPT2Config,
        language_model="GPT2LMHeadModel",
        classifier="GPT2ForSequenceClassification",
        counts={
            "n_layer": "n_layer",
            "n_head": "n_head",
            "n_embd": "n_embd",
            "n_ctx": "n_positions",
            "n_vocab": "vocab_size",
        },
        implemented={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one formula
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "is_encoder_decoder": (False,),
            "tie_word_embeddings": (True,),
            "pruned_heads": ({}, None),
            "quantization_config": (None,),
        },
        refuse=_refuse_gpt2,
        read=lambda config: {},
        write=_write_gpt2,
    ),
    "llama": Architecture(
        title="Llama",
        model=Llama,
        config=LlamaConfig,
        language_model="LlamaForCausalLM",
        classifier="LlamaForSequenceClassification",
        counts={
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "n_ctx": "max_position_embeddings",
            "n_vocab": "vocab_size",
        },
        implemented={
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_scaling": (None,),
            "quantization_config": (None,),
        },
        refuse=_refuse_llama,
        read=_read_llama,
        write=_write_llama,
        prefix="model.",
    ),
}


def config_of(config: dict, name: str) -> Config:
    """The architecture that the content of a config.json describes; `name` is for messages.

    Raises ValueError if an entry is missing or not a positive number, or asks for what we do
    not compute: loaded all the same, such a model would compute something else, and nothing
    would say so.
    """
    kind = config.get("model_type", "gpt2")
    if kind not in list(ARCHITECTURES):
        raise ValueError(
            f"{name} asks for what is not computed here: model_type is {kind!r}, only "
            f"{' or '.join(map(repr, ARCHITECTURES))} is implemented"
        )
    known = ARCHITECTURES[kind]
    wrong = [entry for entry in known.counts.values() if not is_count(config.get(entry))]
    if wrong:
        raise ValueError(
            f"{name} does not describe a {known.title}: "
            + ", ".join(f"{entry} is {config.get(entry)!r}" for entry in wrong)
        )
    wrong = [
        f"{key} is {config[key]!r}, only {' or '.join(map(repr, values))} is implemented"
        for key, values in known.implemented.items()
        if config.get(key, values[0]) not in values
    ] + known.refuse(config)
    if wrong:
        raise ValueError(
            f"{name} asks for what this {known.title} does not compute: {'; '.join(wrong)}"
        )
    counts = {ours: config[published] for ours, published in known.counts.items()}
    return known.config(**counts, **known.read(config))


def architecture_of(config: Config) -> Architecture:
    """The entry of ARCHITECTURES that `config` belongs to."""
    return next(known for known in ARCHITECTURES.values() if known.config is type(config))


def new_model(config: Config) -> nn.Module:
    """A model of this architecture, with random weights."""
    return architecture_of(config).model(config)


def smallest(config: Config) -> nn.Module:
    """A model with the modules and names of one of this architecture, and next to no weights.

    Not on torch's meta device: to draw start values there loads torch's compiler, a second and
    75 MB.
    """
    known = architecture_of(config)
    sizes = dict.fromkeys(known.counts, 1) | {"n_embd": 2, "n_layer": config.n_layer}
    return known.model(replace(config, **sizes))


def published_config(config: Config) -> dict:
    """The content of config.json for a model of this architecture."""
    known, numbers = architecture_of(config), asdict(config)
    return {
        "model_type": next(kind for kind, other in ARCHITECTURES.items() if other is known),
        "architectures": [known.language_model],
        **{published: numbers[ours] for ours, published in known.counts.items()},
        **known.write(config),
    }


def is_count(value: object) -> bool:
    """Whether it is a positive whole number (and not True)."""
    return type(value) is int and value > 0
