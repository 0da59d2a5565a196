"""The fast evaluation of the first blocks gives what the blocks themselves give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from randomize import randomize
from torch.testing import assert_close

from spamgpt import trunk
from spamgpt.gpt2 import GPT2, GPT2Config
from spamgpt.hardware import packing_pays
from spamgpt.trunk import Trunk, merge

CONFIG = GPT2Config(n_layer=3, n_head=2, n_embd=32, n_ctx=24, n_vocab=40)
MESSAGES = [
    [7, 3, 9],
    [7, 3, 9, 1],  # begins with the first
    [7, 3, 2, 2, 2, 2, 2, 2, 2],
    [5],
    [3, 9],  # the end of the first, at another position
    list(range(24)),
]
MANY = 10**6  # tokens to come, so that packing and bf16 are worth it


@pytest.fixture(scope="module")
def model():
    return randomize(GPT2(CONFIG)).eval()


def plainly(model: GPT2, message: list[int], n_blocks: int) -> torch.Tensor:
    with torch.no_grad():
        x = model.embed(torch.tensor([message]))
        for block in model.h[:n_blocks]:
            x = block(x)
    return x[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("n_blocks", [0, 2, 3])
def test_states_are_those_of_the_blocks(model, n_blocks, packed, monkeypatch):
    if packed and not packing_pays():
        pytest.skip("this machine does not pack weights")
    monkeypatch.setattr(trunk, "packing_pays", lambda: packed)
    states, lengths = Trunk(model, n_blocks, bf16=False, n_tokens=MANY)(MESSAGES)
    assert lengths.tolist() == [len(message) for message in MESSAGES]
    for row, message in zip(states, MESSAGES, strict=True):
        assert_close(row[: len(message)], plainly(model, message, n_blocks), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_bf16_moves_states_by_rounding_only(model, packed, monkeypatch):
    if packed and not packing_pays():
        pytest.skip("this machine does not pack weights")
    monkeypatch.setattr(trunk, "packing_pays", lambda: packed)
    exact, _ = Trunk(model, 3, bf16=False, n_tokens=MANY)(MESSAGES)
    rounded, _ = Trunk(model, 3, bf16=True, n_tokens=MANY)(MESSAGES)
    assert rounded.dtype == torch.float32
    for a, b, message in zip(exact, rounded, MESSAGES, strict=True):
        n = len(message)
        assert 0 < (a[:n] - b[:n]).norm() < 0.02 * a[:n].norm()


def test_a_few_tokens_are_not_rounded_unless_asked(model, monkeypatch):
    monkeypatch.setattr(trunk, "bf16_pays", lambda device: True)
    exact, _ = Trunk(model, 3, bf16=False, n_tokens=9)([[7, 3, 9]])
    assert torch.equal(Trunk(model, 3, bf16=None, n_tokens=9)([[7, 3, 9]])[0], exact)
    assert not torch.equal(Trunk(model, 3, bf16=True, n_tokens=9)([[7, 3, 9]])[0], exact)
    assert not torch.equal(Trunk(model, 3, bf16=None, n_tokens=MANY)([[7, 3, 9]])[0], exact)


def test_a_message_beyond_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match=r"25 tokens; the model reads at most 24"):
        Trunk(model, 3, bf16=False, n_tokens=25)([[1] * 25])


def test_equal_beginnings_are_one_node():
    nodes, place = merge([[7, 3, 9], [7, 3, 9, 1], [7, 2], [3, 9]])
    assert len(place) == 7  # 7, 73, 739, 7391, 72, 3, 39
    assert nodes[0, :3].tolist() == nodes[1, :3].tolist()
    assert nodes[0, 0] == nodes[2, 0] != nodes[3, 0]
    assert nodes[0, 1] != nodes[3, 0]  # the same token after another beginning


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_every_token_is_found_again_where_its_node_stands(messages):
    nodes, place = merge(messages)
    beginnings = {tuple(message[: i + 1]) for message in messages for i in range(len(message))}
    assert len(place) == len(beginnings)
    for row, message in enumerate(messages):
        for column in range(len(message)):
            there, at = divmod(int(place[nodes[row, column]]), nodes.shape[1])
            assert messages[there][: at + 1] == message[: column + 1]
