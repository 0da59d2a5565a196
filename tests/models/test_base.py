"""Base models by name, tokenizers, and the embedded Pocket GPT."""

import hashlib
import math

import pytest
import tiktoken
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from randomize import randomize
from torch.nn import functional as F
from torch.testing import assert_close

from spamgpt.files import assets
from spamgpt.files.workspace import POCKET, chosen, forget_choices
from spamgpt.models import base as models
from spamgpt.models.base import BASE_NAMES, load_base, load_tokenizer
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.published import load_config, save_checkpoint
from spamgpt.recipes import GPT2_RECIPE, POCKET_RECIPE

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
    """Names, shapes, file format and recipe of the default path, with a small model as GPT-2."""
    small = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_ctx=16, n_vocab=64)
    expected = randomize(GPT2(small)).eval()
    mirror = tmp_path / "mirror"
    save_checkpoint(expected, mirror)
    monkeypatch.setenv("SPAMGPT_MIRROR", str(mirror))
    asset = assets.Asset("gpt2/model.safetensors", None, "MIT", mirror_names=("model.safetensors",))
    monkeypatch.setitem(assets.ASSETS, "gpt2", asset)
    for file in ("vocab.bpe", "encoder.json"):  # any content: the tokenizer is not loaded
        (mirror / file).write_text("")
        digest = hashlib.sha256(b"").hexdigest()
        monkeypatch.setitem(
            assets.ASSETS, file, assets.Asset(file, digest, "MIT", mirror_names=(file,))
        )
    monkeypatch.setitem(models.CONFIGS, "gpt2", small)
    monkeypatch.setattr(models, "load_tokenizer", lambda name: pocket_tokenizer)
    ids = torch.arange(12).reshape(1, 12)
    for wanted in ("gpt2", "auto"):
        monkeypatch.setenv("SPAMGPT_BASE", wanted)
        base = load_base()
        assert base.name == "gpt2"
        assert base.recipe == GPT2_RECIPE
        with torch.no_grad():
            assert_close(base.model(ids), expected(ids), atol=1e-6, rtol=0)


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
def dead_network(auto, monkeypatch):
    """The addresses that were asked; none answers."""
    asked = []

    def download(url, *_, **__):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setattr(assets, "download", download)
    return asked


def test_auto_offline_takes_pocket_gpt_and_says_why(auto, capsys):
    base = load_base()
    printed = capsys.readouterr().out
    assert base.name == "pocket"
    assert base.recipe == POCKET_RECIPE
    assert "the embedded Pocket GPT replaces GPT-2 124M" in printed
    assert "SPAMGPT_OFFLINE" in printed  # the reason
    assert printed.startswith("┌")
    assert chosen("base")["name"] == "pocket"


def test_auto_asks_a_dead_network_once_for_a_workspace(dead_network, capsys):
    load_base()
    assert dead_network == list(assets.ASSETS["vocab.bpe"].urls)
    dead_network.clear()
    capsys.readouterr()
    assert load_base().name == "pocket"
    assert dead_network == []
    assert "no network" in capsys.readouterr().out  # it still says why


def test_auto_asks_again_once_the_choice_is_forgotten(dead_network):
    load_base()
    dead_network.clear()
    forget_choices()
    load_base()
    assert dead_network


def test_an_explicit_name_is_not_overruled_by_a_remembered_choice(dead_network):
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
    n_vocab = load_config(POCKET).n_vocab
    assert pocket_tokenizer.n_vocab == n_vocab
    assert pocket_tokenizer.eot_token == n_vocab - 1
    assert pocket_tokenizer.decode([n_vocab - 1]) == "<|endoftext|>"


def test_pocket_tokenizer_is_worth_its_vocabulary(pocket_tokenizer):
    """Common English costs about a token a word, not a token a character."""
    text = "I will call you when I get home tonight, do you want me to bring some food?"
    assert len(pocket_tokenizer.encode_ordinary(text)) < 1.5 * len(text.split())


def test_a_tokenizer_file_is_plain_tiktoken(pocket_tokenizer):
    """Someone else's reader of the rank file gives the same tokens."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(POCKET / "pocket.tiktoken"))
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
