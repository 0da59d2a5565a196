"""The model by itself: causality, its limits, and its start values."""

import pytest
import torch
from randomize import randomize

from spamgpt.models.gpt2 import GPT2, GPT2Config

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_ctx=12, n_vocab=40)


@pytest.fixture(scope="module")
def model():
    return randomize(GPT2(CONFIG)).eval()


def ids(*shape, seed=0):
    return torch.randint(CONFIG.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_config_is_the_published_124m_model():
    with torch.device("meta"):
        model = GPT2(GPT2Config())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_config_rejects_channels_that_heads_cannot_share():
    with pytest.raises(ValueError, match=r"n_embd = 10 .* n_head = 4"):
        GPT2Config(n_embd=10, n_head=4)


@pytest.mark.parametrize("changed", [0, 4, 9])
def test_changing_a_token_changes_nothing_to_its_left(model, changed):
    before = ids(1, 10)
    after = before.clone()
    after[0, changed] = (after[0, changed] + 1) % CONFIG.n_vocab
    moved = (model(before) - model(after)).abs().amax(dim=-1)[0]  # (T,)
    assert (moved[:changed] == 0).all()
    assert (moved[changed:] > 1e-3).all()  # it and all that follows do react


def test_position_matters(model):
    """The same token gives other scores at another place."""
    scores = model(torch.full((1, 3), 7))[0]
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)


def test_a_text_as_long_as_the_context_is_read(model):
    assert model(ids(1, 12)).shape == (1, 12, 40)


def test_a_text_beyond_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match=r"13 tokens.* 12"):
        model(ids(1, 13))


@pytest.mark.parametrize("dropout, same", [(0.0, True), (0.5, False)])
def test_dropout_acts_in_training_only(dropout, same):
    model = randomize(GPT2(GPT2Config(2, 2, 16, 12, 40, dropout=dropout)))
    model.train()
    assert torch.equal(model(ids(1, 8)), model(ids(1, 8))) is same
    model.eval()
    assert torch.equal(model(ids(1, 8)), model(ids(1, 8)))


@pytest.mark.parametrize("site", ["drop", "h.0.drop", "h.0.attn.drop"])
def test_dropout_acts_on_embedding_residual_and_attention(site):
    """The three places of the published model, each tried alone."""
    model = randomize(GPT2(GPT2Config(1, 2, 16, 12, 40, dropout=0.5))).train()
    for name, module in model.named_modules():
        if name != site and isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model(ids(1, 8)), model(ids(1, 8)))


# --- start values ---------------------------------------------------------------------


def test_a_fresh_model_finds_all_tokens_about_equally_likely():
    """Small start values: the first loss is about ln(n_vocab), not far above."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=4, n_head=4, n_embd=64, n_ctx=32, n_vocab=1000))
    idx = torch.randint(1000, (4, 32))
    loss = torch.nn.functional.cross_entropy(model(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(6.908, abs=0.3)  # ln 1000


def test_start_values_have_the_published_spread():
    """Normal(0, 0.02); residual outputs divided by sqrt(2 n_layer)."""
    torch.manual_seed(0)
    h = GPT2(GPT2Config(n_layer=8, n_head=2, n_embd=64, n_vocab=100, n_ctx=8)).h[0]
    for layer in (h.attn.c_attn, h.mlp.c_fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for layer in (h.attn.c_proj, h.mlp.c_proj):
        assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
