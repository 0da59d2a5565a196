"""Published files: our model equals transformers', and what does not fit is refused by name."""

import json

import pytest
import torch
import transformers
from randomize import randomize
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from spamgpt.classifier import Classifier
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.published import (
    TRANSPOSED,
    load_config,
    load_weights,
    read_weights,
    save_checkpoint,
)

CONFIGS = [
    GPT2Config(n_layer=1, n_head=1, n_embd=8, n_ctx=16, n_vocab=50),
    GPT2Config(n_layer=2, n_head=4, n_embd=32, n_ctx=16, n_vocab=64),
    GPT2Config(n_layer=5, n_head=3, n_embd=24, n_ctx=20, n_vocab=101),
]
SMALL = CONFIGS[1]


def reference(config: GPT2Config, cls=transformers.GPT2LMHeadModel, **more):
    """transformers' model of this architecture, with random weights."""
    settings = transformers.GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_positions=config.n_ctx,
        vocab_size=config.n_vocab,
        **{"bos_token_id": config.n_vocab - 1, "eos_token_id": config.n_vocab - 1},
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        **more,
    )
    return randomize(cls(settings)).eval()


def published_tensors(model, prefix=True, buffers=False, head=False) -> dict[str, torch.Tensor]:
    """The model's tensors under the names that published files use."""
    tensors = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    if buffers:
        n = model.config.n_positions
        for i in range(model.config.n_layer):
            tensors[f"h.{i}.attn.bias"] = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if prefix:
        tensors = {f"transformer.{k}": v for k, v in tensors.items()}
    if head:
        tensors["lm_head.weight"] = model.lm_head.weight.detach().clone()
    return tensors


def load(config: GPT2Config, path) -> GPT2:
    model = GPT2(config)
    load_weights(model, read_weights(path))
    return model.eval()


def ours(model, config: GPT2Config, folder, **layout) -> GPT2:
    """Our model, loaded from transformers' weights in a published layout."""
    save_file(published_tensors(model, **layout), folder / "model.safetensors")
    return load(config, folder / "model.safetensors")


def tokens(config: GPT2Config, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.n_vocab, (batch, config.n_ctx), generator=generator)


def assert_same_gradients(theirs, mine: torch.nn.Module, bodies: tuple):
    """Every parameter of our body has the gradient that transformers computes."""
    their_body, my_body = bodies
    expected = {name: p.grad for name, p in their_body.named_parameters()}
    found = {name: p.grad for name, p in my_body.named_parameters()}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        wanted = expected[name].T if name.endswith(TRANSPOSED) else expected[name]
        assert_close(grad, wanted, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- parity with transformers ---------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_equal_transformers(config, tmp_path):
    theirs = reference(config)
    mine = ours(theirs, config, tmp_path)
    with torch.no_grad():
        assert_close(mine(tokens(config)), theirs(tokens(config)).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "layout",
    [
        {"prefix": False},
        {"prefix": True},
        {"prefix": False, "buffers": True},
        {"prefix": True, "buffers": True, "head": True},
        {"prefix": False, "head": True},
    ],
    ids=lambda layout: "+".join(k for k, on in layout.items() if on) or "plain",
)
def test_every_published_layout_gives_the_same_model(layout, tmp_path):
    theirs = reference(SMALL)
    mine = ours(theirs, SMALL, tmp_path, **layout)
    with torch.no_grad():
        assert_close(mine(tokens(SMALL)), theirs(tokens(SMALL)).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_of_a_language_model_step_equal_transformers(config, tmp_path):
    theirs = reference(config)
    mine = ours(theirs, config, tmp_path)
    idx = tokens(config)
    theirs(idx, labels=idx).loss.backward()
    logits = mine(idx)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    assert_same_gradients(theirs, mine, (theirs.transformer, mine))


@pytest.fixture
def classifiers(tmp_path, pocket_tokenizer):
    """transformers' classifier, ours with its weights, and a padded batch (ids, lengths)."""
    theirs = reference(
        SMALL, transformers.GPT2ForSequenceClassification, num_labels=2, pad_token_id=63
    )
    body = ours(theirs, SMALL, tmp_path, prefix=True)
    mine = Classifier(body, pocket_tokenizer, ["ham", "spam"], "pocket")
    with torch.no_grad():
        mine.score.weight.copy_(theirs.score.weight)
    lengths = torch.tensor([16, 1, 5, 9])
    ids = tokens(SMALL, batch=4) % 63  # the pad id is nowhere but in the padding
    ids[torch.arange(16) >= lengths[:, None]] = 63
    return theirs, mine, ids, lengths


def test_classification_logits_equal_transformers_on_a_padded_batch(classifiers):
    theirs, mine, ids, lengths = classifiers
    with torch.no_grad():
        assert_close(mine(ids, lengths), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_gradients_of_a_classification_step_equal_transformers(classifiers):
    theirs, mine, ids, lengths = classifiers
    targets = torch.tensor([0, 1, 1, 0])
    theirs(ids, labels=targets).loss.backward()
    F.cross_entropy(mine(ids, lengths), targets).backward()
    assert_same_gradients(theirs, mine, (theirs.transformer, mine.transformer))
    assert_close(mine.score.weight.grad, theirs.score.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_full_124m_shape_equals_transformers(tmp_path, pocket_tokenizer):
    config = GPT2Config()
    theirs = randomize(reference(config), std=0.02)
    mine = ours(theirs, config, tmp_path, buffers=True, head=True)
    idx = torch.randint(config.n_vocab, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(mine(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in mine.parameters()) == 124_439_808
    classifier = Classifier(mine, pocket_tokenizer, ["ham", "spam"], "gpt2")
    classifier.freeze(1)
    assert classifier.trainable_parameters() == 7_090_946


# --- our files in someone else's loader -----------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_transformers_reads_what_we_save(config, tmp_path):
    mine = randomize(GPT2(config)).eval()
    save_checkpoint(mine, tmp_path)
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert_close(theirs.eval()(tokens(config)).logits, mine(tokens(config)))


def test_we_read_what_transformers_saves(tmp_path):
    theirs = reference(SMALL)
    theirs.save_pretrained(tmp_path)
    mine = load(load_config(tmp_path), tmp_path / "model.safetensors")
    with torch.no_grad():
        assert_close(mine(tokens(SMALL)), theirs(tokens(SMALL)).logits, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_survives_our_own_round_trip_unchanged(tmp_path):
    model = randomize(GPT2(SMALL))
    save_checkpoint(model, tmp_path)
    again = read_weights(tmp_path / "model.safetensors")
    assert load_config(tmp_path) == SMALL
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_half_precision_files_are_read_as_single_precision(tmp_path):
    save_checkpoint(randomize(GPT2(SMALL)), tmp_path, dtype=torch.float16)
    path = tmp_path / "model.safetensors"
    assert {v.dtype for v in load_file(path).values()} == {torch.float16}
    assert {v.dtype for v in read_weights(path).values()} == {torch.float32}


# --- files that do not fit ------------------------------------------------------------


def _drop(tensors):
    del tensors["h.1.mlp.c_fc.bias"]
    return "missing h.1.mlp.c_fc.bias"


def _add(tensors):
    tensors["h.7.ln_1.weight"] = torch.ones(32)
    return "surplus h.7.ln_1.weight"


def _misshape(tensors):
    tensors["wpe.weight"] = torch.zeros(9, 32)
    return r"wpe.weight has shape \(9, 32\), the model needs \(16, 32\)"


def _untie(tensors):
    tensors["lm_head.weight"] = tensors["wte.weight"] + 1
    return "lm_head.weight"


def _only_head(tensors):
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    return "wte.weight"


@pytest.mark.parametrize("spoil", [_drop, _add, _misshape, _untie, _only_head])
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_the_key(spoil, tmp_path):
    tensors = published_tensors(reference(SMALL), prefix=False)
    message = spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(SMALL, tmp_path / "model.safetensors")


def test_a_refused_checkpoint_leaves_the_model_as_it_was(tmp_path):
    model = randomize(GPT2(SMALL))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = {key: value + 1 for key, value in before.items() if key != "ln_f.bias"}
    with pytest.raises(ValueError):
        load_weights(model, tensors)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# --- what config.json asks for --------------------------------------------------------


def write_config(folder, **entries):
    """A good config.json in `folder`, but for these entries."""
    save_checkpoint(GPT2(SMALL), folder)
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "model.safetensors").unlink()  # its header has a copy, which would be read first
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("layer_norm_epsilon", 1e-2),
        ("n_inner", 100),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("model_type", "mistral"),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_a_config_that_asks_for_what_is_not_implemented_is_refused_by_name(entry, value, tmp_path):
    """Loaded all the same, such weights would give other logits, and nothing would say so."""
    write_config(tmp_path, **{entry: value})
    with pytest.raises(ValueError, match=rf"config\.json asks for .*: {entry} is ") as error:
        load_config(tmp_path)
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_every_unimplemented_entry_is_named_at_once(tmp_path):
    write_config(tmp_path, activation_function="relu", n_inner=100)
    with pytest.raises(ValueError, match=r"activation_function .*; n_inner is 100, only 128 \("):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": None},
        {"n_inner": 4 * SMALL.n_embd},
        {"reorder_and_upcast_attn": True, "summary_type": "mean", "use_cache": False},
    ],
    ids=str,
)
def test_a_config_whose_entries_change_nothing_is_read(entries, tmp_path):
    write_config(tmp_path, **entries)
    assert load_config(tmp_path) == SMALL


def test_a_config_without_the_entries_that_have_a_default_is_read(tmp_path):
    numbers = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 16, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    assert load_config(tmp_path) == SMALL


@pytest.mark.parametrize(
    "entries",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-2},
    ],
    ids=str,
)
def test_what_is_refused_does_change_the_logits_of_transformers(entries, tmp_path):
    theirs, idx = reference(SMALL, **entries), tokens(SMALL)
    with torch.no_grad():
        moved = (theirs(idx).logits - reference(SMALL)(idx).logits).abs().max()
        assert moved > 1e-3
        assert (ours(theirs, SMALL, tmp_path)(idx) - theirs(idx).logits).abs().max() > 1e-3
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(entries))):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_both_names_of_the_activation_give_the_logits_of_transformers(name, tmp_path):
    theirs = reference(SMALL, activation_function=name)
    theirs.save_pretrained(tmp_path)
    mine = load(load_config(tmp_path), tmp_path / "model.safetensors")
    with torch.no_grad():
        assert_close(mine(tokens(SMALL)), theirs(tokens(SMALL)).logits, atol=1e-4, rtol=1e-4)
