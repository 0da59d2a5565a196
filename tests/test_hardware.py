"""The choice of device, the size of batches, and the clock."""

import pytest
import torch

from spamgpt import hardware


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_gpu_comes_first(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert hardware.best_device().type == expected


def test_a_gpu_is_given_more_at_a_time():
    assert hardware.tokens_per_batch(torch.device("cpu")) == 1024
    assert hardware.tokens_per_batch(torch.device("cuda")) > 1024


def test_a_real_measurement_gives_seconds():
    matrix = torch.ones(8, 8)
    assert 0 < hardware.shortest_seconds(lambda x: x @ x, matrix) < 60


def test_the_shortest_of_ten_calls_counts_and_the_first_of_all_does_not(monkeypatch):
    """Each call takes as many seconds as it says: warming up, nothing; later, at least two."""
    clock, took = [0.0], iter([0, 9, 8, 7, 6, 2, 3, 4, 5, 6, 7])

    def f(x):
        clock[0] += next(took)
        return x

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    assert hardware.shortest_seconds(f, torch.ones(1, 1)) == 2
    assert next(took, None) is None
