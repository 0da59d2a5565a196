"""What the benchmark compares with computes the same, so that only speed is compared."""

import pytest
import torch
from randomize import randomize
from rivals import RIVALS, in_order, length_grouped, onnxruntime_rival, transformers_rival

from spamgpt.fast.precision import EXACT
from spamgpt.inference import logits

IDS = [[5, 6, 7, 8], [9], [3, 4], [11, 12, 13, 14, 15, 16, 17], [9], [8191, 2]]


@pytest.fixture
def classifier(make_classifier):
    made = make_classifier(n_embd=64, n_head=4)
    randomize(made.score, seed=1)
    made.score.bias.data.copy_(torch.tensor([0.5, -0.25]))
    return made


@pytest.mark.parametrize("row", [row for row in RIVALS if "int8" not in row and "bf16" not in row])
def test_rivals_give_our_logits_in_the_order_of_the_messages(row, classifier):
    if "ONNX" in row:
        pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    found = RIVALS[row](classifier)(IDS)
    torch.testing.assert_close(found, logits(classifier, IDS, EXACT), atol=1e-4, rtol=1e-4)


def test_onnx_runtime_really_rounds_in_int8(classifier):
    pytest.importorskip("onnxruntime", reason="the extra `bench` is not installed")
    exact, found = logits(classifier, IDS, EXACT), onnxruntime_rival(classifier, int8=True)(IDS)
    error = (found - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.2


def test_transformers_in_bf16_really_rounds(classifier):
    exact = logits(classifier, IDS, EXACT)
    found = transformers_rival(classifier, in_order, torch.bfloat16)(IDS)
    assert 1e-5 < (found - exact).norm() / exact.norm() < 0.2


def test_a_missing_extra_is_named(classifier, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"bench"):
        onnxruntime_rival(classifier, int8=False)


def test_length_grouped_batches_hold_each_message_at_most_once_and_like_lengths_together():
    lengths = torch.randint(1, 100, (1045,), generator=torch.Generator().manual_seed(0)).tolist()
    draw = torch.Generator().manual_seed(1)
    batches = list(length_grouped(lengths, 8, draw))
    rows = [row for batch in batches for row in batch]
    assert len(batches) == 130 and all(len(batch) == 8 for batch in batches)
    assert len(set(rows)) == len(rows) == 1040
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches]
    assert sum(spread) / len(spread) < 5  # as they come: about 78
    assert list(length_grouped(lengths, 8, draw)) != batches  # the next epoch has its own order
