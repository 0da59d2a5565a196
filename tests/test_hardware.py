"""The choice of device and precision."""

import pytest
import torch

from spamgpt import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    hardware.bf16_pays.cache_clear()
    yield
    hardware.bf16_pays.cache_clear()


@pytest.mark.parametrize(("bf16_seconds", "pays"), [(0.5, True), (0.9, False), (3.0, False)])
def test_bf16_is_used_only_where_it_is_clearly_faster(monkeypatch, bf16_seconds, pays):
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 1.0}
    monkeypatch.setattr(hardware, "_seconds", lambda a, b: seconds[a.dtype])
    assert hardware.bf16_pays(CPU) is pays


def test_the_measurement_is_made_once(monkeypatch):
    calls = []
    monkeypatch.setattr(hardware, "_seconds", lambda a, b: calls.append(a.dtype) or 1.0)
    hardware.bf16_pays(CPU)
    hardware.bf16_pays(CPU)
    assert len(calls) == 2  # one for each precision


def test_a_real_measurement_gives_seconds():
    matrix = torch.ones(8, 8)
    assert 0 < hardware._seconds(matrix, matrix) < 60


def test_the_gpu_comes_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.best_device().type == "cuda"
