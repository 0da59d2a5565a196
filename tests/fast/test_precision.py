"""The precision: measured, decided once for a workspace, overruled by SPAMGPT_PRECISION."""

import json
import os
import subprocess
import sys

import pytest
import torch

from spamgpt.fast import precision
from spamgpt.fast.precision import Decision, decide
from spamgpt.hardware import tokens_per_batch

CPU = torch.device("cpu")
WIDTH = 32


@pytest.fixture(autouse=True)
def _measured_again(monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", "auto")
    precision._measure.cache_clear()
    yield
    precision._measure.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """clock(bf16=…): products in fp32 are said to take a second, others as many as is given."""
    calls = []

    def set_to(bf16=1.0, int8=1.0, packed=1.0, can_pack=True, can_int8=True):
        precision._measure.cache_clear()  # as in another process
        monkeypatch.setattr(
            precision, "inference_linear", lambda layer, name, is_packed, gelu: (name, is_packed)
        )
        monkeypatch.setattr(precision, "can_pack", lambda layer, x: can_pack)
        monkeypatch.setattr(precision, "can_int8", lambda layer, x: can_int8)

        def seconds(product, x):
            name, is_packed = product
            calls.append((name, is_packed, x.shape))
            return {"fp32": 1.0, "bf16": bf16, "int8": int8}[name] * (packed if is_packed else 1)

        monkeypatch.setattr(precision, "shortest_seconds", seconds)
        return calls

    return set_to


# --- measured -------------------------------------------------------------------------


@pytest.mark.parametrize("seconds, name", [(0.5, "bf16"), (0.9, "fp32"), (3.0, "fp32")])
def test_bf16_is_used_only_where_it_is_clearly_faster(seconds, name, clock):
    clock(bf16=seconds)
    assert decide(CPU, WIDTH)[:2] == (name, name)


@pytest.mark.parametrize(
    "bf16, int8, inference",
    [(1.0, 0.5, "int8"), (1.0, 0.9, "fp32"), (0.5, 0.4, "int8"), (0.5, 0.45, "bf16")],
)
def test_int8_is_for_labels_only_and_only_where_it_is_faster_still(bf16, int8, inference, clock):
    clock(bf16, int8)
    decided = decide(CPU, WIDTH)
    assert decided.inference == inference
    assert decided.states == ("bf16" if bf16 < 0.6 else "fp32")


def test_where_int8_sums_overflow_it_is_not_tried(clock):
    calls = clock(int8=0.1, can_int8=False)
    assert decide(CPU, WIDTH).inference == "fp32"
    assert "int8" not in {name for name, *_ in calls}


@pytest.mark.parametrize("seconds, packed", [(0.8, True), (1.2, False)])
def test_packing_is_not_used_where_it_is_slower(seconds, packed, clock):
    clock(packed=seconds)
    assert decide(CPU, WIDTH).packed is packed


def test_where_weights_cannot_be_packed_it_is_not_tried(clock):
    calls = clock(packed=0.1, can_pack=False)
    assert decide(CPU, WIDTH).packed is False
    assert not any(packed for _, packed, _ in calls)


def test_what_is_measured_is_a_batch_of_this_devices_size(clock):
    calls = clock()
    decide(CPU, WIDTH)
    assert {shape for *_, shape in calls} == {(tokens_per_batch(CPU), WIDTH)}


def test_a_real_measurement_decides_in_a_moment():
    assert decide(CPU, WIDTH).states in ("fp32", "bf16")


def test_measuring_leaves_the_random_numbers_of_a_training_alone():
    before = torch.random.get_rng_state()
    decide(CPU, WIDTH)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- decided once ---------------------------------------------------------------------


def test_the_decision_is_kept_whatever_a_later_measurement_would_say(clock, workspace_folder):
    clock(bf16=0.1, packed=0.9)
    first = decide(CPU, WIDTH)
    calls = clock(bf16=9.0, packed=9.0)
    calls.clear()
    assert decide(CPU, WIDTH) == first == Decision("bf16", "bf16", packed=True)
    assert not calls
    assert (workspace_folder / "precision.json").exists()


def test_another_process_takes_the_decision_over(clock):
    clock(bf16=0.1, int8=0.05, packed=0.9)
    decided = decide(CPU, WIDTH)
    script = (
        "import torch\n"
        "from spamgpt.fast import precision\n"
        "precision.shortest_seconds = None\n"  # nothing is measured
        f"print(*precision.decide(torch.device('cpu'), {WIDTH}))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert decided == ("bf16", "int8", True)
    assert child.stdout.split() == list(map(str, decided))


def test_each_width_and_each_workspace_has_a_decision_of_its_own(
    clock, monkeypatch, tmp_path, workspace_folder
):
    clock(bf16=0.1)
    assert decide(CPU, WIDTH).states == "bf16"
    clock(bf16=9.0)
    assert decide(CPU, 2 * WIDTH).states == "fp32"
    assert decide(CPU, WIDTH).states == "bf16"
    assert len(json.loads((workspace_folder / "precision.json").read_text())) == 2
    monkeypatch.setenv("SPAMGPT_WORKSPACE", str(tmp_path / "other"))
    assert decide(CPU, WIDTH).states == "fp32"


def test_a_workspace_on_another_kind_of_processor_decides_again(clock, monkeypatch):
    """A folder may be shared; weights cannot be packed everywhere."""
    clock(packed=0.9)
    assert decide(CPU, WIDTH).packed
    clock(packed=0.9, can_pack=False)
    assert decide(CPU, WIDTH).packed  # it is not even asked
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    assert not decide(CPU, WIDTH).packed


@pytest.mark.parametrize(
    "damaged",
    [
        *("", "{", "[]", "7", "null", "{}", "\x00\xff", '{"%s": 3}'),
        '{"%s": {"name": "bf16", "packed": true}}',  # as it was kept before there was int8
        '{"%s": {"states": "int8", "inference": "int8", "packed": true}}',
        '{"%s": {"states": "bf16", "inference": "fp8", "packed": true}}',
    ],
)
def test_a_damaged_decision_is_measured_again_and_replaced(damaged, clock, workspace_folder):
    clock(bf16=0.1)
    decide(CPU, WIDTH)
    path = workspace_folder / "precision.json"
    (key,) = json.loads(path.read_text())
    path.write_text(damaged.replace("%s", key), encoding="latin-1")
    clock(bf16=9.0)
    assert decide(CPU, WIDTH).states == "fp32"
    clock(bf16=0.1)
    assert decide(CPU, WIDTH).states == "fp32"  # kept


def test_where_nothing_can_be_written_each_process_decides_for_itself(clock, workspace_folder):
    workspace_folder.write_text("a file where the folder should be")
    calls = clock(bf16=0.1)
    assert decide(CPU, WIDTH).states == "bf16"
    n_calls = len(calls)
    assert decide(CPU, WIDTH).states == "bf16"
    assert len(calls) == n_calls  # once a process, though nothing is kept
    clock(bf16=9.0)
    assert decide(CPU, WIDTH).states == "fp32"


# --- asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [0.1, 9.0])
@pytest.mark.parametrize(
    "wanted, states, inference",
    [("fp32", "fp32", "fp32"), ("bf16", "bf16", "bf16"), ("int8", "bf16", "int8")],
)
def test_the_setting_has_the_last_word_and_leaves_what_was_decided(
    wanted, states, inference, measured, clock, monkeypatch
):
    clock(bf16=measured)
    decided = decide(CPU, WIDTH)
    monkeypatch.setenv("SPAMGPT_PRECISION", wanted)
    assert decide(CPU, WIDTH) == Decision(states, inference, decided.packed)
    monkeypatch.delenv("SPAMGPT_PRECISION")
    assert decide(CPU, WIDTH) == decided


def test_an_unknown_precision_is_refused_with_the_known(monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", "fp8")
    with pytest.raises(ValueError, match="=fp8: choose one of auto, fp32, bf16, int8"):
        decide(CPU, WIDTH)


def test_int8_is_refused_where_a_machine_cannot(clock, monkeypatch):
    clock(can_int8=False)
    monkeypatch.setenv("SPAMGPT_PRECISION", "int8")
    with pytest.raises(ValueError, match="this cpu, or this torch, cannot multiply in int8"):
        decide(CPU, WIDTH)
