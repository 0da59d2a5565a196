"""Whatever is put around, into or onto a block, everything gives the answer of the plain model."""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from wrappers import CHANGES, changed

from spamgpt.batches import Messages, data_loader
from spamgpt.evaluation import predict
from spamgpt.fast.precision import FEW_TOKENS
from spamgpt.inference import classify, hidden_states, logits
from spamgpt.recipes import Recipe
from spamgpt.training import fit

NEAR = {"atol": 1e-5, "rtol": 1e-5}
BLOCKS = {"first": 0, "middle": 1, "last": 2}
RECIPE = Recipe(trained_blocks=1, learning_rate=1e-2, batch_size=8, epochs=1)


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def i(request):
    return request.param


@pytest.fixture(params=CHANGES)
def classifier(request, i, make_classifier):
    return changed(make_classifier(), request.param, i)


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [f"{i} " + "free prize " * draw.randint(0, 15) for i in range(60)]


@pytest.fixture
def data(texts, pocket_tokenizer):
    data = Messages(texts, [i % 2 for i in range(60)], pocket_tokenizer, 64)
    assert sum(map(len, data.ids)) > FEW_TOKENS
    return data


def by_hand(classifier, ids, lengths):
    """Logits of padded messages by the plain model: every block at every token."""
    hidden = classifier.transformer.hidden(ids)  # (B, T, C)
    return classifier.score(hidden[torch.arange(len(ids)), lengths - 1])


def test_every_way_to_logits_gives_those_of_the_plain_model(
    classifier, make_classifier, data, texts
):
    batch = data.collate([data[row] for row in range(len(data))])
    with torch.no_grad():
        expected = by_hand(classifier, batch.ids, batch.lengths)
        assert_close(classifier(batch.ids, batch.lengths), expected, **NEAR)
    assert_close(logits(classifier, data), expected, **NEAR)
    assert_close(logits(classifier, data.ids[:3]), expected[:3], **NEAR)
    for n_blocks in (0, 1, 2, 3):
        states = hidden_states(classifier, data, n_blocks)
        assert_close(logits(classifier, states), expected, **NEAR)
    p = expected.softmax(dim=1)
    assert_close(torch.tensor(predict(classifier, data)[1]), p, **NEAR)
    found = torch.tensor([prediction.probability for prediction in classify(classifier, texts)])
    assert_close(found, p.amax(dim=1), **NEAR)
    unchanged = make_classifier()
    unchanged.score = classifier.score
    assert (logits(unchanged, data) - expected).abs().max() > 0.01  # so that it would show

    for pooling in ("first", "mean"):
        classifier.pooling = pooling
        hidden = [classifier.transformer.hidden(torch.tensor([ids]))[0] for ids in data.ids]
        read = [x[0] if pooling == "first" else x.mean(dim=0) for x in hidden]
        expected = classifier.score(torch.stack(read)).detach()
        assert_close(logits(classifier, data), expected, **NEAR)
        assert_close(logits(classifier, hidden_states(classifier, data, 2)), expected, **NEAR)


@pytest.mark.parametrize("all_trained", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_training_takes_the_steps_of_a_plain_loop(
    change, all_trained, i, make_classifier, data, monkeypatch
):
    """The last block, and what was added wherever it is; two steps on each of two copies."""
    # AdamW makes a step of rounding alone, where a gradient is 0; with a large eps it does not.
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=0.1))
    ours, plain, start = (changed(make_classifier(), change, i) for _ in range(3))
    for copy in (ours, plain):
        copy.freeze(None if all_trained else 1)
        for name, p in copy.named_parameters():
            if name.endswith((".A", ".B", ".shift")):
                p.requires_grad_(True)
    few = Messages(["x"] * 16, [0, 1] * 8, ours.tokenizer, 64)
    few.ids, few.targets = data.ids[:16], data.targets[:16]
    fit(ours, few, data, RECIPE, progress=False)

    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=RECIPE.weight_decay)
    for batch in data_loader(few, 8, shuffle=True):
        loss = F.cross_entropy(by_hand(plain, batch.ids, batch.lengths), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights, before = dict(plain.named_parameters()), dict(start.named_parameters())
    for name, p in ours.named_parameters():
        assert_close(p, weights[name], atol=1e-5, rtol=0)
        assert torch.equal(p, before[name]) is not p.requires_grad, name
