"""LoRA: peft is the reference; nothing but the adapters and the head is trained or saved."""

import copy
import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from counting import count
from randomize import randomize
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from spamgpt.batches import Messages, data_loader
from spamgpt.classifier import Classifier
from spamgpt.fast.blocks import is_known
from spamgpt.inference import classify, logits
from spamgpt.lora import LoRALinear, adapt, adapters, load_adapters, merge, save_adapters, unmerge
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.llama import Llama, LlamaConfig
from spamgpt.models.published import header
from spamgpt.nf4 import NF4Linear, quantize_layers
from spamgpt.objectives import Classification
from spamgpt.recipes import Recipe
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.training import fit

NEAR = {"atol": 1e-5, "rtol": 1e-5}
RECIPE = Recipe(trained_blocks=1, learning_rate=1e-2, batch_size=8, epochs=1)
LAYERS = {
    "gpt2": ["*.c_attn", "h.2.mlp.c_proj"],
    "llama": ["*.q_proj", "*.v_proj", "*.2.mlp.up_proj"],
}
TEXTS = [f"{i} " + "free prize " * (i % 13) for i in range(24)]
LLAMA = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "n_inner": 24, "n_ctx": 64}


@pytest.fixture
def make(make_classifier, pocket_tokenizer):
    """make(architecture) is a tiny random classifier with a head that is not zero."""

    def made(architecture="gpt2", seed=0, **config):
        if architecture == "gpt2":
            classifier = make_classifier(seed, **config)
        else:
            body = Llama(LlamaConfig(n_vocab=pocket_tokenizer.n_vocab, **LLAMA | config))
            body = randomize(body, seed)
            classifier = Classifier(body, pocket_tokenizer, ["ham", "spam"], "smollm2").eval()
        randomize(classifier.score, seed=1)
        return classifier

    return made


@pytest.fixture(params=LAYERS)
def architecture(request):
    return request.param


def trained(classifier, layers=None, rank=2, seed=3, **options):
    """The classifier with adapters that do something."""
    layers = layers or LAYERS["gpt2" if isinstance(classifier.transformer, GPT2) else "llama"]
    adapt(classifier, rank, alpha=6.0, layers=layers, seed=seed, **options)
    for i, layer in enumerate(adapters(classifier).values()):
        generator = torch.Generator().manual_seed(seed + i)
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * 0.3)
    return classifier


@pytest.fixture
def data(pocket_tokenizer):
    return Messages(TEXTS, [i % 2 for i in range(24)], pocket_tokenizer, 64)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def loss_of(classifier, data):
    batch = data.collate([data[row] for row in range(len(data))])
    return F.cross_entropy(classifier(batch.ids, batch.lengths), batch.targets)


# --- before and in training -----------------------------------------------------------


def test_nothing_changes_before_training(architecture, make, data):
    classifier, ids = make(architecture), torch.tensor([data.ids[5]])
    before, exact = logits(classifier, data), classifier.transformer.hidden(ids)
    adapt(classifier, rank=2, alpha=6.0)
    assert torch.equal(classifier.transformer.hidden(ids), exact)
    assert_close(logits(classifier, data), before, **NEAR)  # by another way, with GPT-2
    assert all(layer.A.any() and not layer.B.any() for layer in adapters(classifier).values())


def test_the_change_is_the_low_rank_product_times_alpha_over_r():
    linear = randomize(nn.Linear(5, 4))
    layer = randomize(LoRALinear(copy.deepcopy(linear), rank=2, alpha=6.0), seed=2)
    layer.linear.load_state_dict(linear.state_dict())
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    assert_close(layer(x), linear(x) + 3 * x @ layer.A.T @ layer.B.T)
    assert not layer.linear.weight.requires_grad and not layer.linear.bias.requires_grad


def test_a_starts_uniform_as_in_peft_and_as_the_seed_says(make):
    classifiers = [make(n_embd=64) for _ in range(3)]
    for classifier, seed in zip(classifiers, (7, 7, 8), strict=True):
        torch.manual_seed(id(classifier) % 1000)
        adapt(classifier, rank=16, alpha=1.0, layers="*.c_fc", seed=seed)
    one, same, other = ([x.A for x in adapters(c).values()] for c in classifiers)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])
    bound = 1 / 64**0.5
    for a in one:
        assert 0.99 * bound < a.abs().max() <= bound
        assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_only_adapters_and_head_are_trainable(architecture, make):
    for head in (True, False):
        classifier = make(architecture)
        adapt(classifier, 2, 6.0, LAYERS[architecture], head=head)
        found = {f"transformer.{name}.{key}" for name in adapters(classifier) for key in "AB"}
        assert len(found) == 2 * len(adapters(classifier)) > 6
        assert trainable(classifier) == found | ({"score.weight", "score.bias"} if head else set())


def test_the_first_gradient_is_zero_for_a_and_not_for_b(architecture, make, data):
    classifier = make(architecture)
    adapt(classifier, 2, 6.0, LAYERS[architecture])
    loss_of(classifier, data).backward()
    for layer in adapters(classifier).values():
        assert not layer.A.grad.any() and layer.B.grad.any()
    with torch.no_grad():
        for layer in adapters(classifier).values():
            layer.B -= 0.1 * layer.B.grad
    loss_of(classifier, data).backward()
    assert all(layer.A.grad.any() for layer in adapters(classifier).values())


@pytest.mark.parametrize("four_bits", [False, True])
def test_fit_changes_only_what_should_be_trained(four_bits, architecture, make, data):
    classifier = make(architecture).prepare(RECIPE)
    if four_bits:
        quantize_layers(classifier)
    adapt(classifier, 2, 6.0, LAYERS[architecture])
    before, expected = weights_of(classifier), trainable(classifier)
    buffers = {name: b.clone() for name, b in classifier.named_buffers()}
    first = loss_of(classifier, data)
    recipe = replace(RECIPE, learning_rate=1e-3, epochs=3)
    history = fit(classifier, data, data, recipe, progress=False)
    assert history["validation_loss"].iloc[-1] < first - 0.01
    now = dict(classifier.named_parameters())
    assert {name for name, p in now.items() if not torch.equal(p, before[name])} == expected
    assert all(torch.equal(b, buffers[name]) for name, b in classifier.named_buffers())


@pytest.mark.parametrize("layers", ["*.2.*", "*.1.*"])
def test_fit_on_cached_states_takes_the_steps_of_a_plain_loop(
    layers, architecture, make, data, monkeypatch
):
    # AdamW makes a step of rounding alone, where a gradient is 0; with a large eps it does not.
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=0.1))
    cached, from_ids, plain = (trained(make(architecture), layers) for _ in range(3))
    before = weights_of(cached)
    assert cached.frozen_blocks == int(layers[2])
    calls = count(monkeypatch)
    fit(cached, data, data, RECIPE, progress=False)
    assert len(calls["embedded"]) <= 2 * (architecture == "gpt2")  # once for each data set
    assert (len(calls["frozen block"]) > 0) == (architecture == "gpt2")
    fit(from_ids, data, data, RECIPE, Classification(max_cache_bytes=0), progress=False)
    optimizer = torch.optim.AdamW(
        [p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for batch in data_loader(data, 8, shuffle=True):
        hidden = plain.transformer.hidden(batch.ids)[torch.arange(8), batch.lengths - 1]
        optimizer.zero_grad()
        F.cross_entropy(plain.score(hidden), batch.targets).backward()
        optimizer.step()
    expected = dict(plain.named_parameters())
    for model in (cached, from_ids):
        for name, p in model.named_parameters():
            assert_close(p, expected[name], atol=1e-5, rtol=0)
            assert torch.equal(p, before[name]) is not p.requires_grad, name


def test_a_language_model_without_a_head_is_adapted_and_trained(tmp_path):
    ids = torch.arange(12).view(2, 6)
    for body in (GPT2(GPT2Config(2, 2, 16, 12, 40)), Llama(LlamaConfig(2, 4, 2, 16, 24, 12, 40))):
        fresh, before = copy.deepcopy(body), body(ids)
        adapt(body, 2, 6.0)
        assert torch.equal(body(ids), before)
        F.cross_entropy(body(ids).flatten(0, 1), ids.flatten()).backward()
        assert trainable(body) == {n for n, p in body.named_parameters() if p.grad is not None}
        for layer in adapters(body).values():
            layer.B.data.copy_(layer.B.grad)
        load_adapters(fresh, save_adapters(body, tmp_path / "adapters.safetensors"))
        assert torch.equal(fresh(ids), body(ids)) and not torch.equal(fresh(ids), before)


def test_dropout_is_of_the_input_of_a_and_in_training_only(make, data):
    layer = LoRALinear(nn.Linear(8, 8), rank=2, alpha=2.0, dropout=0.5).train()
    x = torch.ones(1000, 8)
    assert torch.equal(layer(x), layer.linear(x))  # B is 0, and W's input is whole
    nn.init.ones_(layer.B)
    with torch.no_grad():
        change = (layer(x) - layer.linear(x))[:, 0]
        sums = layer.A.sum(dim=0)  # (in,): what each input adds; it is doubled or dropped
    assert len(change.unique()) > 100
    assert change.mean().item() == pytest.approx(sums.sum().item(), abs=0.15)
    layer.eval()
    assert torch.equal(layer(x), layer(x))

    classifier = trained(make(), dropout=0.5)
    assert torch.equal(loss_of(classifier, data), loss_of(classifier, data))  # made in eval mode
    classifier.train()
    assert not torch.equal(loss_of(classifier, data), loss_of(classifier, data))


def test_an_interrupted_training_continues_with_the_same_adapters_only(
    make, data, tmp_path, monkeypatch, capsys
):
    recipe = replace(RECIPE, epochs=3)
    whole = trained(make())
    fit(whole, data, data, recipe, progress=False)

    def interrupted(alpha):
        classifier = trained(make())
        for layer in adapters(classifier).values():
            layer.alpha.fill_(alpha)
        return classifier

    measure, calls = Classification.measure, []

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="1 of 3"):
        patch.setattr(Classification, "measure", stop)
        fit(interrupted(6.0), data, data, recipe, progress=False, resume=tmp_path)
    kept = (tmp_path / "training.safetensors").read_bytes()
    again = interrupted(6.0)
    fit(again, data, data, recipe, progress=False, resume=tmp_path)
    assert "Continuing after epoch 1" in capsys.readouterr().out
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "training.safetensors").write_bytes(kept)
    fit(interrupted(7.0), data, data, recipe, progress=False, resume=tmp_path)
    assert "of another training (starting weights)" in capsys.readouterr().out


# --- merging --------------------------------------------------------------------------


@pytest.mark.parametrize("four_bits", [False, True])
def test_merged_gives_the_same_logits_and_unmerged_the_same_weights(
    four_bits, architecture, make, data
):
    classifier = make(architecture)
    if four_bits:
        quantize_layers(classifier)
    plain = logits(classifier, data)
    before, state = logits(trained(classifier), data), copy.deepcopy(classifier.state_dict())
    assert (before - plain).abs().max() > 0.01
    merged = merge(classifier)
    assert_close(logits(classifier, data), before, **NEAR)
    assert not any(isinstance(module, LoRALinear) for module in classifier.modules())
    assert trainable(classifier) == {"score.weight", "score.bias"}
    unmerge(classifier, merged)
    assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())
    assert state.keys() == classifier.state_dict().keys()
    assert torch.equal(logits(classifier, data), before)


def test_classify_takes_the_fast_path_after_merging(make, monkeypatch):
    classifier = trained(make(), "*")
    assert not any(map(is_known, classifier.transformer.blocks))
    calls = count(monkeypatch)
    before = classify(classifier, TEXTS)
    assert calls["block"] and not calls["frozen block"] and not calls["one query"]
    merge(classifier)
    assert all(map(is_known, classifier.transformer.blocks))
    calls["block"].clear()
    after = classify(classifier, TEXTS)
    assert calls["frozen block"] and calls["one query"] and not calls["block"]
    for a, b in zip(before, after, strict=True):
        assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_a_merged_classifier_is_saved_and_loaded_as_any_other(make, data):
    classifier = trained(make())
    expected = logits(classifier, data)
    merge(classifier)
    save_classifier(classifier)
    assert_close(logits(load_classifier()[0], data), expected, **NEAR)


def test_a_classifier_with_adapters_is_not_saved_as_what_could_not_be_loaded(
    trained_classifier, make, data
):
    save_classifier(trained_classifier)
    classifier = make()
    quantize_layers(classifier, "*.c_fc")
    for other in (classifier, trained(make())):
        words = r"would not be known .*h\.0\..*lora\.merge .*nf4\.dequantize_layers .*save_adapters"
        with pytest.raises(ValueError, match=words):
            save_classifier(other)
    assert torch.equal(logits(load_classifier()[0], data), logits(trained_classifier, data))


def test_merging_twice_and_unmerging_twice_are_refused(make, data):
    classifier = trained(make())
    merged = merge(classifier)
    found = logits(classifier, data)
    with pytest.raises(ValueError, match="no adapters: `adapt` was not called, or they are merged"):
        merge(classifier)
    assert torch.equal(logits(classifier, data), found)
    unmerge(classifier, merged)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn is no merged layer of this model"):
        unmerge(classifier, merged)


def test_unmerging_never_loses_what_was_trained_since(make):
    classifier = trained(make())
    merged = merge(classifier)
    for change in ("weight", "bias"):
        p = getattr(classifier.transformer.h[1].attn.c_attn, change)
        p.data[0] += 0.01
        with pytest.raises(ValueError, match=r"h\.1\.attn\.c_attn has other weights"):
            unmerge(classifier, merged)
        p.data[0] -= 0.01
    for other in (make(seed=1), make(n_embd=32)):
        with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn has other weights"):
            unmerge(other, merged)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn is no merged layer"):
        unmerge(make("llama"), merged)
    unmerge(classifier, merged)


# --- files ----------------------------------------------------------------------------


@pytest.fixture
def saved(make, tmp_path):
    return save_adapters(trained(make(), dropout=0.25), tmp_path / "new" / "adapters.safetensors")


def test_a_saved_file_gives_adapters_and_head_back(architecture, make, data, tmp_path):
    classifier = trained(make(architecture), dropout=0.25)
    classifier.positive = "spam"
    classifier.set_threshold(0.75)
    expected = logits(classifier, data)
    path = save_adapters(classifier, tmp_path / "adapters.safetensors")
    fresh = make(architecture)
    fresh.positive = "spam"
    nn.init.zeros_(fresh.score.weight)
    load_adapters(fresh, path)
    assert not fresh.training and torch.equal(logits(fresh, data), expected)
    assert fresh.threshold == 0.75
    assert trainable(fresh) == trainable(classifier)
    assert {layer.drop.p for layer in adapters(fresh).values()} == {0.25}
    assert path.stat().st_size < 20_000 and [f.name for f in tmp_path.iterdir()] == [path.name]


def test_the_file_holds_no_more_than_it_says(saved):
    facts = json.loads(header(saved)["config"])["adapters"]
    layers = [*(f"h.{i}.attn.c_attn" for i in range(3)), "h.2.mlp.c_proj"]
    assert (facts["rank"], facts["alpha"], sorted(facts["layers"])) == (2, 6.0, sorted(layers))
    assert facts["base"] == "pocket (GPT-2, 3 blocks of width 16)"
    keys = {f"{name}.{key}" for name in layers for key in "AB"} | {"score.weight", "score.bias"}
    assert load_file(saved).keys() == keys


@pytest.mark.parametrize("from_four_bits", [False, True])
def test_a_base_in_four_bits_and_one_in_32_take_each_others_adapters(
    from_four_bits, make, data, tmp_path
):
    one, other = make(), make()
    quantize_layers(one if from_four_bits else other)
    path = save_adapters(trained(one), tmp_path / "adapters.safetensors")
    load_adapters(other, path)
    for name, layer in adapters(other).items():
        assert torch.equal(layer.B, adapters(one)[name].B)
    kinds = {type(layer.linear) for layer in adapters(other).values()}
    assert kinds == {nn.Linear if from_four_bits else NF4Linear}


def other_norm(classifier):
    classifier.transformer.ln_f.weight.data[0] += 1e-3


def other_linear(classifier):
    classifier.transformer.h[0].mlp.c_fc.weight.data[0] += 1e-3


def merged_already(classifier):
    trained(classifier)
    merge(classifier)


def other_labels(classifier):
    classifier.label_names = ["spam", "ham"]


def other_pooling(classifier):
    classifier.pooling = "mean"


def renamed(classifier):
    classifier.base_name = "gpt2"


def adapted(classifier):
    adapt(classifier, 2, 6.0, "*.c_fc")


@pytest.mark.parametrize(
    "change, words",
    [
        (renamed, r"for pocket \(GPT-2, 3 blocks of width 16\), this model is gpt2 \(GPT-2"),
        (other_norm, r"other weights of pocket \(.*of type LayerNorm\): load the base anew"),
        (other_linear, r"other weights of pocket \(.*of type Linear\): load the base anew"),
        (merged_already, r"of type Linear\): load the base anew; .*have adapters merged into it"),
        (other_labels, r"head for .*'ham', 'spam'.*this model has .*'spam', 'ham'"),
        (other_pooling, r"head for .*'last'.*this model has .*'mean'"),
        (adapted, r"3 adapters already \(h\.0\.mlp\.c_fc, .*\): merge them first"),
    ],
)
def test_another_base_is_refused_and_stays_as_it_was(change, words, saved, make):
    classifier = make()
    change(classifier)
    state, free = copy.deepcopy(classifier.state_dict()), trainable(classifier)
    with pytest.raises(ValueError, match=words):
        load_adapters(classifier, saved)
    assert trainable(classifier) == free and state.keys() == classifier.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())


def test_another_architecture_or_shape_is_refused_by_name(saved, make):
    for other, words in (
        (make("llama"), r"this model is smollm2 \(Llama, 3 blocks of width 16\)"),
        (make(n_embd=32), r"this model is pocket \(GPT-2, 3 blocks of width 32\)"),
        (make(n_layer=2), r"this model is pocket \(GPT-2, 2 blocks of width 16\)"),
    ):
        with pytest.raises(ValueError, match=r"adapters for pocket .*16\), " + words):
            load_adapters(other, saved)
    with pytest.raises(ValueError, match=r"adapters for pocket .*, this model is GPT-2, 3 blocks"):
        load_adapters(make().transformer, saved)


def rewritten(path, change_tensors=lambda t: t, **changes):
    """The file with changes in its header or tensors."""
    facts = json.loads(header(path)["config"])["adapters"] | changes
    metadata = {"format": "pt", "config": json.dumps({"adapters": facts})}
    tensors = load_file(path)
    change_tensors(tensors)
    save_file(tensors, path, metadata)
    return path


def test_damaged_files_are_refused_with_the_reason(saved, make, tmp_path):
    classifier, whole = make(), saved.read_bytes()
    state = set(classifier.state_dict())
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is missing"):
        load_adapters(classifier, tmp_path / "none.safetensors")
    saved.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_adapters(classifier, saved)
    folder = save_classifier(classifier)
    with pytest.raises(ValueError, match=r"holds no adapters: `save_adapters` writes them"):
        load_adapters(classifier, folder / "model.safetensors")
    for changes, words in (
        ({"format": 2}, r"another spamgpt \(format 2, not 1\)"),
        ({"head": None}, "holds no adapters"),
        ({"rank": 3}, r"damaged: wrong or missing are h\.0\.attn\.c_attn\.A, .*B, .* …"),
        ({"change_tensors": lambda t: t.pop("h.1.attn.c_attn.B")}, r"are h\.1\.attn\.c_attn\.B$"),
        ({"change_tensors": lambda t: t.pop("score.bias")}, r"are score\.bias$"),
        ({"change_tensors": lambda t: t.update(more=torch.ones(1))}, r"are more$"),
    ):
        saved.write_bytes(whole)
        with pytest.raises(ValueError, match=words):
            load_adapters(classifier, rewritten(saved, **changes))
    assert set(classifier.state_dict()) == state


def test_what_would_not_be_in_the_file_is_refused_before_anything_is_written(make, saved):
    whole = saved.read_bytes()
    with pytest.raises(ValueError, match=r"the model has no adapters"):
        save_adapters(make(), saved)
    classifier = trained(make())
    classifier.transformer.h[2].ln_1.requires_grad_(True)
    with pytest.raises(ValueError, match=r"2 other weights .*h\.2\.ln_1\.weight, .*would not be"):
        save_adapters(classifier, saved)
    classifier = trained(make())
    classifier.transformer.h[0].attn.c_attn.alpha.fill_(1.0)
    with pytest.raises(
        ValueError, match=r"differ in \(rank, alpha, dropout\): .*\(2, 1\.0, 0\.0\)"
    ):
        save_adapters(classifier, saved)
    assert saved.read_bytes() == whole


def test_a_full_disk_leaves_the_former_file(make, saved, monkeypatch):
    whole = saved.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spamgpt.models.published.save_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        save_adapters(trained(make()), saved)
    assert saved.read_bytes() == whole and len(list(saved.parent.iterdir())) == 1


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"rank": 0}, r"rank = 0: it is a whole number from 1 to 16, .* 16 inputs and 48 outputs"),
        ({"rank": -1}, r"rank = -1"),
        ({"rank": 2.0}, r"rank = 2\.0"),
        ({"rank": True}, r"rank = True"),
        ({"rank": 17}, r"rank = 17: it is a whole number from 1 to 16"),
        ({"alpha": 0}, r"alpha = 0: it is a positive number"),
        ({"alpha": float("nan")}, r"alpha = nan"),
        ({"alpha": float("inf")}, r"alpha = inf"),
        ({"alpha": "16"}, r"alpha = '16'"),
        ({"dropout": 1.0}, r"dropout = 1\.0: it is a share, from 0 to below 1"),
        ({"dropout": -0.1}, r"dropout = -0\.1"),
        ({"layers": "query"}, r"fits 'query': there are h\.\*\.attn\.c_attn, "),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(wrong, words, make):
    classifier = make()
    free, state = trainable(classifier), list(classifier.state_dict())
    with pytest.raises(ValueError, match=words) as error:
        adapt(classifier, **{"rank": 2, "alpha": 6.0} | wrong)
    assert "\n" not in str(error.value)
    assert trainable(classifier) == free and list(classifier.state_dict()) == state


def test_a_rank_that_is_too_large_for_one_layer_changes_no_other(make):
    """k_proj has 8 outputs."""
    classifier = make("llama")
    free = trainable(classifier)
    with pytest.raises(ValueError, match=r"rank = 12: .* from 1 to 8, .* 16 inputs and 8 outputs"):
        adapt(classifier, 12, 6.0)
    assert trainable(classifier) == free


# --- peft -----------------------------------------------------------------------------


TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture
def pair(architecture, make):
    """(our classifier, peft's on transformers' model): the same weights, A and B in both."""
    peft = pytest.importorskip("peft", reason="the extra `dev` is not installed")
    ours = make(architecture)
    nn.init.zeros_(ours.score.bias)  # theirs has none
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(save_classifier(ours))
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=6,
        target_modules=TARGETS[architecture],
        fan_in_fan_out=architecture == "gpt2",  # its matrices are stored as (in, out)
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    trained(ours, [f"*.{name}" for name in TARGETS[architecture]])
    matched = match(ours, theirs)
    assert len(matched) == len(adapters(ours)) == {"gpt2": 12, "llama": 9}[architecture]
    with torch.no_grad():
        for layer, other in matched.values():
            other.lora_A["default"].weight.copy_(layer.A)
            other.lora_B["default"].weight.copy_(layer.B)
    return ours, theirs


def match(ours, theirs):
    """name: (our adapter, peft's)"""
    found = {name: m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    return {
        name: (layer, next(m for other, m in found.items() if other.endswith(f".{name}")))
        for name, layer in adapters(ours).items()
    }


def by_both(ours, theirs, data):
    """(our logits, theirs), of messages that both find the ends of."""
    batch = data.collate([data[row] for row in range(8)])
    mask = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    return ours(batch.ids, batch.lengths), theirs(batch.ids, attention_mask=mask.long()).logits


def test_logits_equal_those_of_peft(pair, data):
    ours, theirs = by_both(*pair, data)
    assert_close(ours, theirs, **NEAR)
    with pair[1].disable_adapter():
        assert (by_both(*pair, data)[1] - theirs).abs().max() > 0.01  # they do something


def test_gradients_of_one_step_equal_those_of_peft(pair, data):
    targets = torch.tensor([0, 1] * 4)
    for found in by_both(*pair, data):
        F.cross_entropy(found, targets).backward()
    for layer, other in match(*pair).values():
        assert_close(layer.A.grad, other.lora_A["default"].weight.grad, **NEAR)
        assert_close(layer.B.grad, other.lora_B["default"].weight.grad, **NEAR)
        assert layer.A.grad.abs().max() > 1e-4
    (head,) = (p.grad for n, p in pair[1].named_parameters() if "score" in n and p.requires_grad)
    assert_close(pair[0].score.weight.grad, head, **NEAR)
    theirs = sum(p.numel() for p in pair[1].parameters() if p.requires_grad)
    assert pair[0].trainable_parameters() == theirs + len(pair[0].label_names)  # our bias


def test_merged_weights_equal_those_of_peft(pair, architecture, data):
    ours, theirs = pair
    merge(ours)
    theirs = theirs.merge_and_unload()
    stored = {re.sub(r"^(transformer|model)\.", "", n): p for n, p in theirs.named_parameters()}
    for name, p in ours.transformer.named_parameters():
        expected = stored[name]
        if architecture == "gpt2" and p.dim() == 2 and name.startswith("h."):
            expected = expected.T
        assert_close(p, expected, atol=1e-6, rtol=1e-6)
    assert_close(*by_both(ours, theirs, data), **NEAR)
