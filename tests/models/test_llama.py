"""Llama: everything that a base model has to offer, and transformers as the reference."""

import copy
import dataclasses
import json

import pytest
import torch
import transformers
from randomize import randomize
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close
from wrappers import LoRA, LoRALinear, LoRAWithWeight

from spamgpt import experiments
from spamgpt.batches import Messages, encode, pad
from spamgpt.classifier import Classifier
from spamgpt.fast import blocks
from spamgpt.inference import (
    check_int8,
    classify,
    hidden_states,
    logits,
    precision_of_labels,
    precision_of_states,
)
from spamgpt.models.base import Base
from spamgpt.models.generate import generate
from spamgpt.models.llama import Llama, LlamaConfig
from spamgpt.models.published import load_config, load_weights, read_weights, save_checkpoint
from spamgpt.objectives import Classification
from spamgpt.recipes import Recipe
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.tasks import sms
from spamgpt.training import fit

NEAR = {"atol": 1e-5, "rtol": 1e-5}
CONFIGS = [
    LlamaConfig(1, 1, 1, 8, 12, n_ctx=16, n_vocab=50, theta=10_000.0, eps=1e-6),
    LlamaConfig(2, 4, 2, 32, 40, n_ctx=16, n_vocab=64),
    LlamaConfig(3, 6, 2, 24, 50, n_ctx=20, n_vocab=101, theta=500.0),
    LlamaConfig(2, 3, 3, 24, 50, n_ctx=20, n_vocab=101),
]
SMALL = CONFIGS[1]


def reference(config: LlamaConfig, cls=transformers.LlamaForCausalLM, **more):
    """transformers' model of this architecture, with random weights."""
    settings = {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "max_position_embeddings": config.n_ctx,
        "vocab_size": config.n_vocab,
        "rope_theta": config.theta,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": True,
    }
    return randomize(cls(transformers.LlamaConfig(**settings | more))).eval()


def ours(theirs, config: LlamaConfig) -> Llama:
    """Our model with transformers' weights."""
    model = Llama(config)
    load_weights(model, {name: p.detach().clone() for name, p in theirs.model.named_parameters()})
    return model.eval()


def tokens(config: LlamaConfig, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.n_vocab, (batch, config.n_ctx), generator=generator)


def assert_same_gradients(theirs, mine):
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    found = {name: p.grad for name, p in mine.named_parameters()}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert_close(grad, expected[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- the model ------------------------------------------------------------------------


def test_the_default_config_is_the_published_135m_model():
    with torch.device("meta"):
        model = Llama(LlamaConfig())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_config_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"n_embd = 30 .* 2 n_head = 8"):
        LlamaConfig(n_embd=30, n_head=4, n_kv_head=2)
    with pytest.raises(ValueError, match=r"n_head = 4 .* n_kv_head = 3"):
        LlamaConfig(n_embd=32, n_head=4, n_kv_head=3)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_equal_transformers(config):
    theirs = reference(config)
    with torch.no_grad():
        found, expected = ours(theirs, config)(tokens(config)), theirs(tokens(config)).logits
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_of_a_language_model_step_equal_transformers(config):
    theirs = reference(config)
    mine, idx = ours(theirs, config), tokens(config)
    theirs(idx, labels=idx).loss.backward()
    found = mine(idx)[:, :-1]
    F.cross_entropy(found.flatten(0, 1), idx[:, 1:].flatten()).backward()
    assert_same_gradients(theirs.model, mine)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_greedy_generation_equals_transformers(config):
    theirs = reference(config)
    start = tokens(config, batch=1)[:, :3]
    expected = theirs.generate(
        start, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generate(ours(theirs, config), start, 10, temperature=0).tolist() == expected.tolist()


def test_changing_a_token_changes_nothing_to_its_left():
    model, before = randomize(Llama(SMALL)).eval(), tokens(SMALL, batch=1)
    after = before.clone()
    after[0, 5] = (after[0, 5] + 1) % SMALL.n_vocab
    moved = (model(before) - model(after)).abs().amax(dim=-1)[0]  # (T,)
    assert (moved[:5] == 0).all() and (moved[5:] > 1e-3).all()


def test_position_matters():
    """Without the rotation, attention would see a set of tokens."""
    model = randomize(Llama(SMALL)).eval()
    found = model(torch.tensor([[7, 8, 9], [8, 7, 9]]))[:, -1]
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_text_beyond_the_context_is_refused_with_both_numbers():
    model = Llama(SMALL)
    assert model(tokens(SMALL)).shape == (3, 16, 64)
    with pytest.raises(ValueError, match=r"17 tokens.* 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_a_block_asked_for_one_token_gives_that_token():
    block, x = randomize(Llama(SMALL)).eval().blocks[0], torch.randn(4, 9, SMALL.n_embd)
    last = torch.tensor([8, 0, 3, 5])
    assert_close(block(x, last), block(x)[torch.arange(4), last], **NEAR)


@pytest.mark.parametrize("site", ["drop", "layers.0.drop", "layers.0.self_attn.drop"])
def test_dropout_acts_in_training_only(site):
    model, idx = randomize(Llama(SMALL)), tokens(SMALL)
    model.get_submodule(site).p = 0.5
    assert torch.equal(model.eval()(idx), model(idx))
    assert not torch.equal(model.train()(idx), model(idx))


# --- its files ------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_transformers_reads_what_we_save(config, tmp_path):
    mine = randomize(Llama(config)).eval()
    save_checkpoint(mine, tmp_path)
    assert all(key.startswith("model.") for key in load_file(tmp_path / "model.safetensors"))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert theirs.config.architectures == ["LlamaForCausalLM"]
    assert type(theirs) is transformers.LlamaForCausalLM
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        found = theirs.eval()(tokens(config)).logits
        assert_close(found, mine(tokens(config)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_we_read_what_transformers_saves(config, tmp_path):
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    assert load_config(tmp_path) == config
    mine = Llama(config).eval()
    load_weights(mine, read_weights(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert_close(mine(tokens(config)), theirs(tokens(config)).logits, atol=1e-4, rtol=1e-4)


def test_the_older_place_of_theta_is_read(tmp_path):
    save_checkpoint(Llama(SMALL), tmp_path)
    write_config(tmp_path, rope_theta=123.0, rope_parameters=None)
    assert load_config(tmp_path).theta == 123.0


def write_config(folder, **entries):
    """The config.json of a saved SMALL, changed, and without the weights, which have a copy."""
    save_checkpoint(Llama(SMALL), folder)
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config))


REFUSED = {
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "quantization_config": {"bits": 4},
    "tie_word_embeddings": False,
    "head_dim": 16,
    "rms_norm_eps": "small",
}


@pytest.mark.parametrize("entry", REFUSED)
def test_a_config_that_asks_for_what_is_not_implemented_is_refused_by_name(entry, tmp_path):
    write_config(tmp_path, **{entry: REFUSED[entry]})
    with pytest.raises(ValueError, match=rf"config\.json asks for .* Llama .*: {entry} is "):
        load_config(tmp_path)


def test_other_rotary_positions_are_refused_by_name(tmp_path):
    write_config(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4})
    with pytest.raises(ValueError, match="rope_type is 'llama3', only 'default'"):
        load_config(tmp_path)
    write_config(tmp_path, rope_parameters={"rope_theta": -1})
    with pytest.raises(ValueError, match="rope_theta is -1, not a positive number"):
        load_config(tmp_path)


def test_an_output_layer_of_its_own_is_refused(tmp_path):
    """In transformers' configuration of a Llama, not tied is the default: the entry is missing."""
    reference(SMALL, tie_word_embeddings=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tie_word_embeddings is False"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        read_weights(tmp_path / "model.safetensors")


def test_a_number_that_is_missing_is_named(tmp_path):
    write_config(tmp_path, num_key_value_heads=None)
    with pytest.raises(ValueError, match="not describe a Llama: num_key_value_heads is None"):
        load_config(tmp_path)


# --- classifiers ----------------------------------------------------------------------

TEXTS = [f"{i} " + "free prize, call now " * (i % 7) for i in range(60)]
RECIPE = Recipe(trained_blocks=1, learning_rate=1e-2, epochs=2)


@pytest.fixture
def classifier(pocket_tokenizer):
    """A classifier on a tiny Llama, with a head that is not zero."""
    config = LlamaConfig(3, 4, 2, 16, 24, n_ctx=64, n_vocab=pocket_tokenizer.n_vocab)
    body = randomize(Llama(config))
    classifier = Classifier(body, pocket_tokenizer, ["ham", "spam"], "pocket").eval()
    randomize(classifier.score, seed=1)
    return classifier


@pytest.fixture
def data(pocket_tokenizer):
    return Messages(TEXTS, [i % 2 for i in range(60)], pocket_tokenizer, 64)


def by_hand(classifier, data):
    """Logits by the plain model: every block at every token, one message at a time."""
    hidden = [classifier.transformer.hidden(torch.tensor([ids]))[0] for ids in data.ids]
    if classifier.pooling == "last":
        return classifier.score(torch.stack([x[-1] for x in hidden]))
    return classifier.score(torch.stack([x.mean(dim=0) for x in hidden]))


def test_classification_and_its_gradients_equal_transformers(pocket_tokenizer):
    theirs = reference(
        SMALL, transformers.LlamaForSequenceClassification, num_labels=2, pad_token_id=63
    )
    mine = Classifier(ours(theirs, SMALL), pocket_tokenizer, ["ham", "spam"], "pocket")
    with torch.no_grad():
        mine.score.weight.copy_(theirs.score.weight)
    lengths = torch.tensor([16, 1, 5, 9])
    ids = tokens(SMALL, batch=4) % 63  # the pad id is nowhere but in the padding
    ids[torch.arange(16) >= lengths[:, None]] = 63
    assert_close(mine(ids, lengths), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    targets = torch.tensor([0, 1, 1, 0])
    theirs(ids, labels=targets).loss.backward()
    F.cross_entropy(mine(ids, lengths), targets).backward()
    assert_same_gradients(theirs.model, mine.transformer)
    assert_close(mine.score.weight.grad, theirs.score.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_every_way_to_logits_gives_those_of_the_plain_model(pooling, classifier, data):
    classifier.pooling = pooling
    with torch.no_grad():
        expected = by_hand(classifier, data)
    assert_close(logits(classifier, data), expected, **NEAR)
    for n_blocks in (0, 1, 2, 3):
        states = hidden_states(classifier, data, n_blocks)
        assert_close(logits(classifier, states), expected, **NEAR)
    found = torch.tensor([prediction.probability for prediction in classify(classifier, TEXTS)])
    assert_close(found, expected.softmax(dim=1).amax(dim=1), **NEAR)


def test_the_last_block_is_computed_at_one_token(classifier, data, monkeypatch):
    block, asked = classifier.transformer.blocks[-1], []
    forward = type(block).forward

    def noted(self, x, last=None):
        asked.append(last is not None)
        return forward(self, x, last)

    monkeypatch.setattr(type(block), "forward", noted)
    logits(classifier, hidden_states(classifier, data, 2))
    assert asked[-1] and asked.count(True) < asked.count(False)


def test_fit_on_cached_states_takes_the_steps_of_fit_on_ids(classifier, data):
    cached, from_ids = copy.deepcopy(classifier), copy.deepcopy(classifier)
    histories = [
        fit(c.prepare(RECIPE), data, data, RECIPE, objective, progress=False)
        for c, objective in ((cached, None), (from_ids, Classification(max_cache_bytes=0)))
    ]
    assert_close(*(torch.tensor(h["train_loss"]) for h in histories), atol=1e-4, rtol=1e-4)
    before, after = dict(classifier.named_parameters()), dict(from_ids.named_parameters())
    for name, p in cached.named_parameters():
        assert_close(p, after[name], atol=1e-4, rtol=1e-3)
        assert torch.equal(p, before[name]) is not p.requires_grad, name
    trained = {name.split(".")[1] for name, p in cached.named_parameters() if p.requires_grad}
    assert trained == {"layers", "norm", "weight", "bias"}


def test_a_saved_classifier_comes_back_the_same(classifier):
    save_classifier(classifier, data="sample")
    loaded, facts = load_classifier()
    ids, lengths = pad(encode(TEXTS, loaded.tokenizer), 0)
    assert torch.equal(loaded(ids, lengths), classifier(ids, lengths))
    assert loaded.transformer.config == classifier.transformer.config
    assert facts["data"] == "sample"
    assert classify(loaded, TEXTS) == classify(classifier, TEXTS)


def test_transformers_reads_the_saved_classifier(classifier, data):
    folder = save_classifier(classifier)
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert theirs.config.architectures == ["LlamaForSequenceClassification"]
    assert type(theirs) is transformers.LlamaForSequenceClassification
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"score.bias"}  # theirs has no such thing
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    ids, lengths = pad(data.ids, theirs.config.pad_token_id)
    with torch.no_grad():
        expected = theirs.eval()(ids).logits + classifier.score.bias
        assert_close(classifier(ids, lengths), expected, atol=1e-4, rtol=1e-4)


def test_an_experiment_runs_on_it(classifier, tmp_path):
    import pandas as pd

    base = Base("tiny", classifier.transformer, classifier.tokenizer, RECIPE)
    table = pd.DataFrame({"label": ["ham", "spam"] * 30, "text": TEXTS})
    task = dataclasses.replace(sms.TASK, name="toy")
    lab = experiments.Lab(base, task, table, "toy")
    for weights in ("pretrained", "random"):
        row = lab.run(experiments.Setting(weights=weights), 123)
        assert row["tested"] == 12 and 0 <= row["accuracy"] <= 1


# --- what people put into and around its blocks ---------------------------------------


def _lora(kind):
    def change(block):
        block.self_attn.q_proj = kind(block.self_attn.q_proj)
        block.mlp.up_proj = kind(block.mlp.up_proj)

    return change


def _hook(block):
    block.mlp.register_forward_hook(lambda module, inputs, y: y + torch.linspace(-1, 1, 16))


def _own_norm(block):
    norm = block.post_attention_layernorm
    block.post_attention_layernorm = torch.nn.Sequential(norm, torch.nn.Tanh())


CHANGES = {
    "LoRA": _lora(LoRA),
    "LoRA with a weight": _lora(LoRAWithWeight),
    "LoRA by subclass": _lora(LoRALinear),
    "hook": _hook,
    "norm of another kind": _own_norm,
}


@pytest.mark.parametrize("i", [0, 1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_blocks_give_the_answer_of_the_plain_model(change, i, classifier, data):
    before = logits(classifier, data)
    CHANGES[change](classifier.transformer.blocks[i])
    with torch.no_grad():
        expected = by_hand(classifier, data)
    assert_close(logits(classifier, data), expected, **NEAR)
    assert_close(logits(classifier, hidden_states(classifier, data, 2)), expected, **NEAR)
    assert (before - expected).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_its_blocks_compute_in_fp32_and_that_is_recorded(precision, classifier, data, monkeypatch):
    """The fast paths are written for GPT-2's products."""
    exact = logits(classifier, data)
    monkeypatch.setenv("SPAMGPT_PRECISION", precision)
    assert not any(blocks.is_known(block) for block in classifier.transformer.blocks)
    assert torch.equal(logits(classifier, data, precision_of_labels(classifier)), exact)
    assert precision_of_states(classifier).name == precision_of_labels(classifier).name == "fp32"
    assert check_int8(classifier, data) == 0 and not classifier.bears_int8
    save_classifier(classifier)
    assert load_classifier()[1]["precision"] == "fp32"
