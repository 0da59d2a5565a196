"""Attention weights, as another implementation computes them."""

import pytest
import torch
import transformers
from randomize import randomize
from torch.testing import assert_close

from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.inside import attention_weights
from spamgpt.models.published import save_checkpoint

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_ctx=16, n_vocab=64)


@pytest.fixture(scope="module")
def model():
    return randomize(GPT2(CONFIG)).eval()


@pytest.mark.parametrize("T", [1, 2, 16])
def test_every_head_of_every_block_equals_transformers(model, T, tmp_path):
    save_checkpoint(model, tmp_path)
    theirs = transformers.GPT2Model.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(CONFIG.n_vocab, (T,), generator=torch.Generator().manual_seed(T))
    with torch.no_grad():
        expected = theirs(ids[None], output_attentions=True).attentions
    found = attention_weights(model, ids)
    assert found.shape == (3, 4, T, T)
    assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_each_token_divides_all_its_attention_among_itself_and_its_left(model):
    found = attention_weights(model, torch.arange(10))
    assert_close(found.sum(dim=-1), torch.ones(3, 4, 10))
    assert (found.triu(1) == 0).all()
    assert not found.requires_grad
