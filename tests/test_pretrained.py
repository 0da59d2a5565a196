"""Checkpoints and tokenizers: equal to transformers', strict about files, clear about names."""

import math

import pytest
import tiktoken
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from randomize import randomize
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from spamgpt import assets, pretrained
from spamgpt.classifier import Classifier
from spamgpt.gpt2 import GPT2, GPT2Config
from spamgpt.pretrained import (
    BASE_NAMES,
    TRANSPOSED,
    load_base,
    load_config,
    load_tokenizer,
    load_weights,
    read_weights,
    save_checkpoint,
)
from spamgpt.workspace import chosen, forget_choices

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
    ids = tokens(SMALL, batch=4) % 63  # the pad id stands nowhere but in the padding
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


# --- base models by name --------------------------------------------------------------


def test_an_unknown_base_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no base model 'gpt-3'") as error:
        load_base("gpt-3")
    assert all(name in str(error.value) for name in ("auto", *BASE_NAMES))


def test_the_environment_names_the_base_model(monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "gpt5")
    with pytest.raises(ValueError, match="gpt5"):
        load_base()


def test_gpt2_that_cannot_be_had_says_what_to_do():
    with pytest.raises(assets.AssetError, match="What to do") as error:
        load_base("gpt2")
    assert "SPAMGPT_MIRROR" in str(error.value) and "SPAMGPT_OFFLINE" in str(error.value)


def test_gpt2_without_weights_says_what_to_do(mirror):
    """The mirror's tokenizer files alone do not make a GPT-2."""
    with pytest.raises(assets.AssetError, match=r"gpt2 could not be fetched[\s\S]*What to do"):
        load_base("gpt2")


def test_gpt2_is_loaded_from_a_mirror_folder(tmp_path, monkeypatch, pocket_tokenizer):
    """Names, shapes, file format and recipe of the default path, with a small stand-in."""
    theirs = reference(SMALL)
    stand_in = tmp_path / "mirror" / "model.safetensors"
    stand_in.parent.mkdir()
    save_file(published_tensors(theirs, prefix=False, buffers=True), stand_in)
    monkeypatch.setenv("SPAMGPT_MIRROR", str(stand_in.parent))
    asset = assets.Asset("gpt2/model.safetensors", None, "MIT", mirror_names=(stand_in.name,))
    monkeypatch.setitem(assets.ASSETS, "gpt2", asset)
    monkeypatch.setitem(pretrained.CONFIGS, "gpt2", SMALL)
    monkeypatch.setattr(pretrained, "load_tokenizer", lambda name: pocket_tokenizer)
    for wanted in ("gpt2", "auto"):
        monkeypatch.setenv("SPAMGPT_BASE", wanted)
        base = load_base()
        assert base.name == "gpt2"
        assert base.recipe == pretrained.GPT2_RECIPE
        with torch.no_grad():
            assert_close(base.model(tokens(SMALL)), theirs(tokens(SMALL)).logits, atol=1e-4, rtol=0)


@pytest.fixture
def auto(monkeypatch):
    """The learner's setting."""
    monkeypatch.setenv("SPAMGPT_BASE", "auto")


def test_auto_may_be_written_out(auto):
    """The error for an unknown name offers it."""
    assert load_base("auto").name == "pocket"


def test_auto_is_what_an_empty_setting_means(monkeypatch):
    monkeypatch.delenv("SPAMGPT_BASE")
    assert load_base().name == "pocket"
    assert chosen("base")["name"] == "pocket"


@pytest.fixture
def fetches(auto, monkeypatch):
    """The names of the files that were asked for; none can be had."""
    asked = []

    def fetch(name):
        asked.append(name)
        raise assets.AssetError(f"{name} could not be fetched:\n  - train: no network\nWhat to do")

    monkeypatch.setattr(assets, "fetch", fetch)
    return asked


def test_auto_offline_takes_pocket_gpt_and_says_why(auto, capsys):
    base = load_base()
    printed = capsys.readouterr().out
    assert base.name == "pocket"
    assert base.recipe == pretrained.POCKET_RECIPE
    assert "Pocket GPT stands in for GPT-2" in printed
    assert "SPAMGPT_OFFLINE" in printed  # the reason
    assert printed.startswith("┌")
    assert chosen("base")["name"] == "pocket"


def test_auto_asks_a_dead_network_once_for_a_workspace(fetches, capsys):
    load_base()
    assert len(fetches) >= 1
    fetches.clear()
    capsys.readouterr()
    assert load_base().name == "pocket"
    assert fetches == []
    assert "no network" in capsys.readouterr().out  # it still says why


def test_auto_asks_again_once_the_choice_is_forgotten(fetches):
    load_base()
    fetches.clear()
    forget_choices()
    load_base()
    assert fetches


def test_an_explicit_name_is_not_overruled_by_a_remembered_choice(fetches):
    load_base()
    with pytest.raises(assets.AssetError):
        load_base("gpt2")


# --- tokenizers -----------------------------------------------------------------------

VARIED = [
    "Hello world",
    "  leading and   inner spaces \n\n new lines\t tabs",
    "FREE entry in 2 a wkly comp!! Txt WIN to 80086 now £1.50pm",
    "don't we'll they're I'd he's",
    "emoji 😀👩‍👩‍👧 flags 🇮🇪",
    "العربية 中文 हिन्दी русский ελληνικά",
    "ﬁ ½ ² é e\u0301 \u200b zero width",
    "<|endoftext|> as text",
    "x" * 300,
    "",
]


@pytest.mark.parametrize("text", VARIED, ids=lambda t: repr(t[:20]))
def test_gpt2_tokenizer_equals_transformers(text, gpt2_tokenizer, published):
    theirs = transformers.GPT2TokenizerFast(
        vocab=str(published("encoder.json")), merges=str(published("vocab.bpe"))
    )
    found = gpt2_tokenizer.encode(text, disallowed_special=(), allowed_special="all")
    assert found == theirs(text)["input_ids"]


def test_gpt2_tokenizer_has_the_published_size_and_end_token(gpt2_tokenizer):
    assert gpt2_tokenizer.n_vocab == GPT2Config().n_vocab
    assert gpt2_tokenizer.eot_token == 50256


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_pocket_tokenizer_gives_back_any_text(text, pocket_tokenizer):
    assert pocket_tokenizer.decode(pocket_tokenizer.encode_ordinary(text)) == text


def test_pocket_tokenizer_fits_the_pocket_model(pocket_tokenizer):
    n_vocab = load_config(pretrained.POCKET).n_vocab
    assert pocket_tokenizer.n_vocab == n_vocab
    assert pocket_tokenizer.eot_token == n_vocab - 1
    assert pocket_tokenizer.decode([n_vocab - 1]) == "<|endoftext|>"


def test_pocket_tokenizer_is_worth_its_vocabulary(pocket_tokenizer):
    """Common English costs about a token a word, not a token a character."""
    text = "I will call you when I get home tonight, do you want me to bring some food?"
    assert len(pocket_tokenizer.encode_ordinary(text)) < 1.5 * len(text.split())


def test_a_tokenizer_file_is_plain_tiktoken(pocket_tokenizer):
    """Someone else's reader of the rank file gives the same tokens."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(pretrained.POCKET / "pocket.tiktoken"))
    assert sorted(ranks.values()) == list(range(len(ranks)))
    assert all(bytes([i]) in ranks for i in range(256))  # so that any text can be written


def test_unknown_tokenizer_name_is_refused():
    with pytest.raises(ValueError, match="pocket"):
        load_tokenizer("bert")


# --- Pocket GPT -----------------------------------------------------------------------


def test_pocket_gpt_has_learned_english():
    base = load_base("pocket")
    text = "I am sorry, but I will not be able to come to the party with you on Saturday night."
    idx = torch.tensor([base.tokenizer.encode_ordinary(text)])
    with torch.inference_mode():
        loss = F.cross_entropy(base.model(idx)[0, :-1], idx[0, 1:]).item()
    assert loss < 0.75 * math.log(base.tokenizer.n_vocab)  # a uniform guess costs ln(n_vocab)


def test_pocket_gpt_comes_ready_for_use():
    base = load_base("pocket")
    assert base.name == "pocket"
    assert not base.model.training
    assert load_base("pocket").model is not base.model  # nobody trains someone else's copy
