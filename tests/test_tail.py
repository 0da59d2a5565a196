"""The last block at one token of each message gives what the whole block gives there."""

import pytest
import torch
from randomize import randomize
from torch import nn

from spamgpt import tail
from spamgpt.gpt2 import Block, GPT2Config
from spamgpt.tail import attention_at_end, block_at_end

CONFIG = GPT2Config(n_layer=1, n_head=2, n_embd=16)


@pytest.fixture
def block():
    return randomize(Block(CONFIG)).eval()


def test_the_last_block_at_the_last_token_alone_equals_the_whole_block(block):
    lengths = torch.tensor([9, 1, 4])
    x = torch.randn(3, 9, CONFIG.n_embd, requires_grad=True)
    alone = block_at_end(block, x, lengths)
    whole = block(x)[torch.arange(3), lengths - 1]
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    alone_grad, whole_grad = (
        torch.autograd.grad((y**2).sum(), [x, *block.parameters()]) for y in (alone, whole)
    )
    torch.testing.assert_close(alone_grad, whole_grad, atol=1e-4, rtol=1e-4)


def test_dropout_scales_a_value_with_its_bias(block, monkeypatch):
    attention = block.attn
    torch.nn.init.normal_(attention.c_attn.bias)
    x, lengths = (torch.randn(2, 5, CONFIG.n_embd), torch.tensor([5, 2]))
    once = attention_at_end(attention, x, lengths)
    monkeypatch.setattr(attention.drop, "forward", lambda weights: 3 * weights)
    bias = attention.c_proj.bias
    tripled = attention_at_end(attention, x, lengths)
    torch.testing.assert_close(tripled - bias, 3 * (once - bias))


@pytest.mark.parametrize("rows", [1, 8, tail.FEW, tail.FEW + 1])
@pytest.mark.parametrize("out", [8, 10])  # 10 rows of weights have no four equal parts
def test_a_few_rows_give_what_the_layer_gives(rows, out):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, out), torch.randn(rows, 6, requires_grad=True)
    results = tail.linear(layer, x), layer(x)
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad((y**2).sum(), [x, layer.weight, layer.bias]) for y in results]
    torch.testing.assert_close(*gradients)


def test_gradients_of_a_few_rows_are_those_of_finite_differences():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 8).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: tail.linear(layer, x), (x, *layer.parameters()))
