"""A fast block gives what gpt2.Block gives; one that does more than that is never replaced."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from randomize import randomize
from torch import nn
from torch.testing import assert_close
from wrappers import CHANGES

from spamgpt.fast import blocks
from spamgpt.fast.blocks import FEW, FrozenBlock, block_at, few_rows, frozen_block
from spamgpt.fast.blocks import one_query_attention as one_query
from spamgpt.fast.products import can_pack
from spamgpt.models.gpt2 import Block, GPT2Config, at

CONFIG = GPT2Config(n_layer=1, n_head=2, n_embd=16)
PACKED = [False, True]


@pytest.fixture
def block():
    return randomize(Block(CONFIG)).eval()


@pytest.fixture
def x():
    return torch.randn(3, 9, CONFIG.n_embd, generator=torch.Generator().manual_seed(5))


def skip_unless_packing_works(packed, block, x):
    if packed and not can_pack(block.mlp.c_fc, x):
        pytest.skip("this machine does not pack weights")


def gradients(y, x, block):
    return torch.autograd.grad((y**2).sum(), [x, *block.parameters()])


# --- frozen blocks --------------------------------------------------------------------


@pytest.mark.parametrize("packed", PACKED)
def test_a_frozen_block_gives_what_the_block_gives(block, x, packed):
    skip_unless_packing_works(packed, block, x)
    with torch.no_grad():
        found, expected = frozen_block(block, "fp32", packed)(x), block(x)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", PACKED)
def test_bf16_moves_states_by_rounding_only(block, x, packed):
    skip_unless_packing_works(packed, block, x)
    with torch.no_grad():
        exact, rounded = block(x), frozen_block(block, "bf16", packed)(x)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() < 0.02 * exact.norm()


def test_a_frozen_block_has_no_dropout(x):
    block = randomize(Block(GPT2Config(1, 2, 16, dropout=0.5))).train()
    found = frozen_block(block, "fp32", False)(x)
    assert_close(found, block.eval()(x), atol=1e-5, rtol=1e-5)


def test_a_known_block_is_replaced(block):
    assert isinstance(frozen_block(block, "fp32", False), FrozenBlock)


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_does_something_else_is_not_replaced(change, block):
    parts = nn.ModuleList([block])
    CHANGES[change](parts, 0)
    assert frozen_block(parts[0], "fp32", False) is parts[0]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_forward_hook"])
def test_whoever_listens_to_a_block_hears_something(register, block, x):
    heard = []
    getattr(block.mlp, register)(lambda *args: heard.append(1) and None)
    block_at(block, x.requires_grad_(), torch.tensor([8, 0, 3])).sum().backward()
    assert heard


# --- one token of each row ------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    pads=st.integers(0, 3),
)
def test_a_block_asked_for_one_token_gives_what_it_gives_there(lengths, seed, pads):
    block = randomize(Block(CONFIG), seed).eval()
    T, last = max(lengths) + pads, torch.tensor(lengths) - 1
    x = torch.randn(len(lengths), T, CONFIG.n_embd, generator=torch.Generator().manual_seed(seed))
    x.requires_grad_()
    whole, alone, fast = at(block(x), last), block(x, last), block_at(block, x, last)
    expected = gradients(whole, x, block)
    for found in (alone, fast):
        assert_close(found, whole, atol=1e-5, rtol=1e-4)
        assert_close(gradients(found, x, block), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("last", [[8, 8, 8], [8, 0, 3], [0, 0, 0]], ids=str)
def test_one_query_attention_is_attention_at_that_token(last, block, x):
    x, last = x.requires_grad_(), torch.tensor(last)
    for attention in (block.attn, randomize(block.attn, seed=3)):
        results = [at(attention(x), last), attention(x, last), one_query(attention, x, last)]
        grads = [gradients(y, x, attention) for y in results]
        for result, grad in zip(results[1:], grads[1:], strict=True):
            assert_close(result, results[0], atol=1e-5, rtol=1e-5)
            assert_close(grad, grads[0], atol=1e-4, rtol=1e-4)


def test_what_is_to_the_right_reaches_nothing(block, x):
    """Not even as a NaN of a masked score."""
    last, other = torch.tensor([2, 2, 2]), x.clone()
    other[:, 3:] = 1e4
    for f in (block, lambda x, last: block_at(block, x, last)):
        assert_close(f(other, last), f(x, last))


@pytest.mark.parametrize("change", [name for name in CHANGES if "block" not in name])
def test_a_changed_block_gives_at_one_token_what_it_gives_there(change, block, x):
    parts, last = nn.ModuleList([block]), torch.tensor([8, 0, 3])
    plain = at(block(x), last)
    CHANGES[change](parts, 0)
    expected = at(parts[0](x), last)
    assert_close(block_at(parts[0], x, last), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)  # it does change something


def test_a_known_block_computes_no_other_token(block, x, monkeypatch):
    """The fast way is taken: the block itself is not called, and its products are of few rows."""
    calls, rows = [], []
    monkeypatch.setattr(Block, "forward", lambda *args: pytest.fail("the whole block ran"))
    monkeypatch.setattr(blocks, "one_query_attention", lambda *a: calls.append(a) or one_query(*a))
    monkeypatch.setattr(blocks, "few_rows", lambda f, x: rows.append(x.shape) or few_rows(f, x))
    block_at(block, x, torch.tensor([8, 0, 3]))
    assert len(calls) == 1
    assert rows == [(3, 16), (3, 16), (3, 64)]  # of attention, and two of the MLP


def test_a_linear_layer_of_ones_own_is_given_no_other_token(block, x, monkeypatch):
    """LoRA in the last block leaves the rest of it as cheap as it was."""
    parts, given = nn.ModuleList([block]), []
    CHANGES["LoRA in mlp.c_fc"](parts, 0)
    kind = type(block.mlp.c_fc)
    monkeypatch.setattr(kind, "forward", lambda m, x, f=kind.forward: given.append(x) or f(m, x))
    block_at(block, x, torch.tensor([8, 0, 3]))
    assert [x.shape for x in given] == [(3, 16)]


def test_dropout_scales_a_value_with_its_bias(block, monkeypatch):
    attention = block.attn
    nn.init.normal_(attention.c_attn.bias)
    x, last = (torch.randn(2, 5, CONFIG.n_embd), torch.tensor([4, 1]))
    once = one_query(attention, x, last)
    monkeypatch.setattr(attention.drop, "forward", lambda weights: 3 * weights)
    bias = attention.c_proj.bias
    tripled = one_query(attention, x, last)
    assert_close(tripled - bias, 3 * (once - bias))


@pytest.mark.parametrize("site", ["drop", "attn.drop"])
def test_dropout_acts_at_one_token_too(site, x):
    block = randomize(Block(GPT2Config(1, 2, 16, dropout=0.5))).train()
    for name, module in block.named_modules():
        if name != site and isinstance(module, nn.Dropout):
            module.p = 0.0
    last = torch.tensor([8, 4, 3])
    for f in (block, lambda x, last: block_at(block, x, last)):
        assert not torch.equal(f(x, last), f(x, last))


# --- few rows -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 8, FEW, FEW + 1])
@pytest.mark.parametrize("out", [8, 10])  # 10 rows of weights have no four equal parts
def test_a_few_rows_give_what_the_layer_gives(rows, out):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, out), torch.randn(rows, 6, requires_grad=True)
    results = few_rows(layer, x), layer(x)
    assert_close(*results)
    grads = [torch.autograd.grad((y**2).sum(), [x, layer.weight, layer.bias]) for y in results]
    assert_close(*grads)


@pytest.mark.parametrize(
    "rows, out, in_parts", [(1, 8, True), (FEW, 8, True), (FEW + 1, 8, False), (1, 10, False)]
)
def test_a_few_rows_are_multiplied_by_parts_of_the_weights(rows, out, in_parts, monkeypatch):
    layer, x = nn.Linear(6, out), torch.randn(rows, 6)
    plain = []
    monkeypatch.setattr(
        F, "linear", lambda *args, linear=F.linear: plain.append(1) or linear(*args)
    )
    few_rows(layer, x)
    assert (not plain) is in_parts


def test_gradients_of_a_few_rows_are_those_of_finite_differences():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 8).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: few_rows(layer, x), (x, *layer.parameters()))
