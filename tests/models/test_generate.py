"""Writing with a language model, token by token."""

import pytest
import torch
from randomize import randomize

from spamgpt.models.generate import generate
from spamgpt.models.gpt2 import GPT2, GPT2Config

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_ctx=12, n_vocab=40)


@pytest.fixture(scope="module")
def model():
    return randomize(GPT2(CONFIG)).eval()


def ids(*shape, seed=0):
    return torch.randint(CONFIG.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_temperature_zero_always_takes_the_most_likely_token(model):
    expected = ids(1, 3)
    for _ in range(6):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(generate(model, ids(1, 3), 6, temperature=0), expected)


def test_one_seed_gives_one_text_and_another_seed_another(model):
    first, again, other = (generate(model, ids(1, 3), 8, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_top_k_one_is_the_most_likely_token_whatever_the_temperature(model):
    greedy = generate(model, ids(1, 3), 6, temperature=0)
    assert torch.equal(generate(model, ids(1, 3), 6, temperature=5.0, top_k=1, seed=3), greedy)


def test_top_k_may_exceed_the_vocabulary(model):
    out = generate(model, ids(1, 3), 4, top_k=10_000, seed=1)
    assert torch.equal(out, generate(model, ids(1, 3), 4, seed=1))


def test_generation_draws_from_the_softmax_at_the_given_temperature(model):
    """Frequencies of 300 draws agree with the probabilities to four standard errors."""
    temperature, draws = 2.0, 300
    p = torch.softmax(model(ids(1, 3))[0, -1] / temperature, dim=-1)
    drawn = [
        generate(model, ids(1, 3), 1, temperature=temperature, seed=s)[0, -1] for s in range(draws)
    ]
    top = int(p.argmax())
    share = torch.stack(drawn).eq(top).float().mean()
    assert abs(share - p[top]) < 4 * (p[top] * (1 - p[top]) / draws).sqrt()


def test_generation_stops_after_the_stop_token(model):
    full = generate(model, ids(1, 3), 8, temperature=0)
    stop = int(full[0, 5])
    first = full[0, 3:].tolist().index(stop)
    stopped = generate(model, ids(1, 3), 8, temperature=0, stop=stop)
    assert torch.equal(stopped, full[:, : 3 + first + 1])


def test_a_text_may_grow_beyond_the_context(model):
    """Then the last n_ctx tokens decide."""
    out = generate(model, ids(1, 10), 6, temperature=0)
    assert out.shape == (1, 16)
    with torch.no_grad():
        assert out[0, -1] == model(out[:, -13:-1])[0, -1].argmax()


def test_a_generated_text_can_be_given_to_the_model_again(model):
    """Also outside `no_grad`, as in a notebook cell."""
    out = generate(model, ids(1, 3), 4, temperature=0)
    assert model(out).shape == (1, 7, CONFIG.n_vocab)


def test_generation_leaves_a_training_model_in_training_mode():
    model = GPT2(CONFIG).train()
    generate(model, ids(1, 2), 1)
    assert model.training
