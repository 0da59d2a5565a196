"""NF4: codes, scales and weights are those of bitsandbytes; a frozen layer in 4 bits."""

import copy

import pytest
import torch
from randomize import randomize
from torch import nn
from torch.testing import assert_close

from spamgpt.batches import Messages
from spamgpt.fast.blocks import is_known
from spamgpt.inference import hidden_states, logits
from spamgpt.nf4 import (
    BLOCKS,
    LEVELS,
    SCALE_LEVELS,
    NF4Linear,
    bytes_held,
    dequantize,
    dequantize_layers,
    nearest,
    normal_levels,
    quantize,
    quantize_layers,
)
from spamgpt.saving import load_classifier, save_classifier

# Whole blocks, a rest, less than a block, an odd number of weights, many scales.
SHAPES = [(64, 64), (48, 40), (33, 130), (3, 20), (1, 1), (3, 5), (129, 129), (300, 256)]
# bitsandbytes divides by way of a reciprocal that is only nearly right: where a scale lies this
# close to the middle between two of the 256 levels, it may take the other one.
TIE = 5e-5


def random(shape, scale=1.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def layer_of(weight, block=64, bias=False):
    linear = nn.Linear(*weight.T.shape, bias=bias)
    linear.weight.data.copy_(weight)
    return NF4Linear(linear, block)


# --- bitsandbytes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """bitsandbytes.functional, where it quantizes on a CPU."""
    bnb = pytest.importorskip("bitsandbytes", reason="the extra `dev` is not installed")
    try:
        bnb.functional.quantize_4bit(torch.ones(2, 64), quant_type="nf4")
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"this bitsandbytes does not quantize on a CPU: {error}")
    if not hasattr(torch.compiler, "set_stance"):  # before torch 2.6
        yield bnb.functional
    else:  # it would compile its fallback anew for each shape
        with torch.compiler.set_stance("force_eager"):
            yield bnb.functional


def test_levels_are_those_of_bitsandbytes(reference):
    assert torch.equal(LEVELS, reference.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(SCALE_LEVELS, reference.create_dynamic_map())


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_scales_and_weights_equal_those_of_bitsandbytes_bit_for_bit(shape, scale, reference):
    weight = random(shape, scale)
    for block in BLOCKS[:4]:
        codes, absmax = quantize(weight, block)
        theirs, state = reference.quantize_4bit(weight, blocksize=block, quant_type="nf4")
        assert torch.equal(codes, theirs.flatten())
        assert torch.equal(absmax, state.absmax)
        if block == 64:  # where blocks are longer than rows, its CPU kernel takes wrong scales
            expected = reference.dequantize_4bit(theirs, state)
            assert torch.equal(dequantize(codes, absmax, shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantization_equals_that_of_bitsandbytes(shape, reference):
    weight = random(shape, 0.02)
    layer = layer_of(weight)
    theirs, state = reference.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(layer.codes, theirs.flatten())
    assert torch.equal(layer.offset[0], state.offset)
    assert torch.equal(layer.steps, state.state2.absmax)
    steps = layer.steps.repeat_interleave(256)[: len(layer.scales)]
    other = (layer.scales != state.absmax) & (steps > 0)  # one scale alone is its own mean
    size = ((quantize(weight)[1] - layer.offset) / steps)[other]
    numbers, theirs_too = layer.scales[other].int(), state.absmax[other].int()
    assert ((numbers - theirs_too).abs() == 1).all() and len(numbers) <= 1 + 0.01 * len(steps)
    middle = (SCALE_LEVELS[numbers] + SCALE_LEVELS[theirs_too]) / 2
    assert ((size - middle).abs() < TIE).all()

    layer.scales.copy_(state.absmax)  # of the same 8-bit numbers it makes the same weights
    assert torch.equal(layer.weight, reference.dequantize_4bit(theirs, state))


def test_nothing_is_lost_by_a_block_of_zeros(reference):
    weight = random((4, 64))
    weight[1] = 0
    codes, absmax = quantize(weight)
    assert torch.equal(codes, reference.quantize_4bit(weight, quant_type="nf4")[0].flatten())
    assert not dequantize(codes, absmax, weight.shape)[1].any()
    assert not layer_of(weight).weight[1].any()


# --- levels and codes -----------------------------------------------------------------


def test_the_levels_follow_from_quantiles_of_the_normal_distribution():
    derived = normal_levels()
    assert derived.dtype == torch.float64 and derived.shape == (16,)
    assert (derived - LEVELS.double()).abs().max() < 2e-7
    assert derived[7] == LEVELS[7] == 0 and derived[[0, -1]].tolist() == [-1, 1]
    assert SCALE_LEVELS.shape == (256,) and SCALE_LEVELS.diff().min() > 0


def test_each_weight_gets_the_nearest_level_of_its_block():
    weight = random((5, 77), 3.0)
    codes, absmax = quantize(weight, 32)
    flat, found = weight.flatten(), dequantize(codes, absmax, weight.shape, 32).flatten()
    assert len(absmax) == 13 and len(codes) == 193
    for i in range(13):
        block = flat[32 * i : 32 * (i + 1)]
        assert absmax[i] == block.abs().max()
        distance = (block[:, None] - absmax[i] * LEVELS).abs().min(dim=1).values
        assert_close((found[32 * i : 32 * (i + 1)] - block).abs(), distance, atol=1e-6, rtol=0)


def test_two_codes_share_a_byte_the_first_in_the_upper_half():
    codes, absmax = quantize(LEVELS.flip(0)[None])
    assert absmax.tolist() == [1.0]
    assert codes.tolist() == [0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10]
    assert torch.equal(dequantize(codes, absmax, (1, 16)), LEVELS.flip(0)[None])


def test_nearest_asks_for_sorted_levels_only():
    numbers, absmax = nearest(torch.tensor([2.0, -4.0, 0.4]), torch.tensor([-1.0, 0.0, 1.0]), 2)
    assert numbers.tolist() == [1, 0, 2] and absmax.tolist() == [4.0, pytest.approx(0.4)]


# --- the layer ------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_with_the_weights_that_it_shows(bias):
    linear = randomize(nn.Linear(20, 12, bias=bias))
    layer, x = NF4Linear(linear), random((3, 5, 20), seed=1)
    error = (layer.weight - linear.weight).abs().max() / linear.weight.abs().max()
    assert 0.01 < error < 0.16  # rounded: half of the widest gap between levels
    assert_close(layer(x), nn.functional.linear(x, layer.weight, linear.bias))
    assert not any(p.requires_grad for p in layer.parameters())
    assert linear.weight.requires_grad  # the layer that it was made of is as it was
    assert not bias or linear.bias.requires_grad
    loaded = NF4Linear(nn.Linear(20, 12, bias=bias))
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.parametrize("block", BLOCKS[:3])
def test_blocks_of_a_layer_are_as_large_as_asked_for(block, make_classifier):
    classifier = make_classifier()
    weight = classifier.transformer.h[0].mlp.c_fc.weight.detach().clone()  # (64, 16)
    quantize_layers(classifier, block=block)
    layer = classifier.transformer.h[0].mlp.c_fc
    assert len(layer.scales) == 64 * 16 / block
    expected = dequantize(*quantize(weight, block), weight.shape, block)
    assert_close(layer.weight, expected, atol=0.02, rtol=0)  # but for rounded scales


def test_gradients_pass_through_a_layer_without_keeping_its_weights():
    layer, x = layer_of(random((12, 20)), bias=True), random((3, 5, 20), seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = layer(x)
    assert (12, 20) not in kept and (20, 12) not in kept
    grad = random(y.shape, seed=2)
    y.backward(grad)
    assert_close(x.grad, grad @ layer.weight)


def test_a_quantized_model_is_near_and_every_way_gives_the_same(
    trained_classifier, pocket_tokenizer
):
    ids = [[5, 6, 7, 8], [9], [3, 4], [11, 12, 13, 14, 15, 16, 17]]
    classifier = copy.deepcopy(trained_classifier)
    quantize_layers(classifier)
    exact, found = logits(trained_classifier, ids), logits(classifier, ids)
    assert 1e-3 < (exact - found).norm() / exact.norm() < 0.5
    for i, message in enumerate(ids):
        x = classifier.transformer.hidden(torch.tensor([message]))[0, -1]
        assert_close(classifier.score(x), found[i], atol=1e-5, rtol=1e-5)
    kinds = [type(m) for m in classifier.transformer.modules()]
    assert kinds.count(NF4Linear) == 12 and nn.Linear not in kinds
    assert type(classifier.score) is nn.Linear

    dequantize_layers(classifier)
    assert all(map(is_known, classifier.transformer.blocks))
    assert_close(logits(classifier, ids), found, atol=1e-5, rtol=1e-5)
    save_classifier(classifier)
    assert_close(logits(load_classifier()[0], ids), found, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"of type NF4Linear fits '\*': there are none"):
        dequantize_layers(classifier)


def test_bytes_are_counted_from_what_is_held(make_classifier):
    classifier = make_classifier(n_embd=64)
    numbers = sum(p.numel() for p in classifier.parameters())
    assert bytes_held(classifier) == 4 * numbers
    layer = classifier.transformer.h[0].mlp.c_fc  # 64 x 256 weights, 256 blocks
    before = bytes_held(classifier)
    assert bytes_held(NF4Linear(layer)) == 64 * 256 // 2 + 256 + 4 + 4 + 4 * 256
    quantize_layers(classifier, "h.0.mlp.c_fc")
    assert before - bytes_held(classifier) == 64 * 256 * 4 - (64 * 256 // 2 + 256 + 4 + 4)
    view = nn.ParameterList([nn.Parameter(layer.weight.data[:2]), nn.Parameter(layer.weight.data)])
    assert bytes_held(view) == 4 * 64 * 256  # a view holds all that it looks into, once


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight, block, words",
    [
        (random((4, 64)), 48, r"block = 48: choose one of 32, 64, 128, .*4096"),
        (random((4, 64)), 0, r"block = 0: "),
        (torch.ones(4, 64, dtype=torch.int64), 64, r"weights of type torch\.int64: only floating"),
        (torch.zeros(0, 64), 64, r"shape \(0, 64\): there is nothing to quantize"),
        (random((4, 64)).index_fill(1, torch.tensor([3]), float("nan")), 64, r"4 of 256 weights"),
        (random((4, 64)).index_fill(0, torch.tensor([0]), float("inf")), 64, r"64 of 256 .*infin"),
    ],
)
def test_bad_input_gets_one_sentence(weight, block, words):
    with pytest.raises(ValueError, match=words) as error:
        quantize(weight, block)
    assert "\n" not in str(error.value)


def test_a_layer_that_cannot_be_quantized_is_named_and_nothing_changes(make_classifier):
    classifier = make_classifier()
    classifier.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"h\.1\.mlp\.c_fc: 1 of 1,024 weights are infinite or not"
    ):
        quantize_layers(classifier)
    assert not any(isinstance(module, NF4Linear) for module in classifier.modules())
    assert all(p.requires_grad for p in classifier.parameters())
    with pytest.raises(ValueError, match=r"of type Linear fits 'query': there are h\.\*\.attn"):
        quantize_layers(classifier, "query")


def test_what_is_in_four_bits_already_is_not_quantized_again(make_classifier):
    classifier = make_classifier()
    quantize_layers(classifier)
    with pytest.raises(ValueError, match=r"of type Linear fits '\*': there are none"):
        quantize_layers(classifier)


def test_states_of_quantized_blocks_can_be_cached(trained_classifier, pocket_tokenizer):
    quantize_layers(trained_classifier)
    data = Messages(["free prize"] * 2 + ["see you"], [1, 1, 0], pocket_tokenizer, 64)
    cached = logits(trained_classifier, hidden_states(trained_classifier, data, 2))
    assert_close(cached, logits(trained_classifier, data), atol=1e-5, rtol=1e-5)
