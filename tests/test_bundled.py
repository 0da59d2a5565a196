"""What the repository carries: the sample of messages and Pocket GPT's files."""

import re

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from spamgpt.files.workspace import POCKET, SAMPLE
from spamgpt.models.gpt2 import GPT2
from spamgpt.models.published import TRANSPOSED, load_config
from spamgpt.tasks import sms
from spamgpt.tasks.splits import near_duplicates, normalise

# --- the sample -----------------------------------------------------------------------

RESERVED_DOMAIN = re.compile(r"(.+\.)?(example(\.(com|org|net))?|test|invalid)", re.I)
# Numbers kept for drama by Ofcom, and the 555-01xx of North America.
RESERVED_PHONE = re.compile(
    r"07700900\d{3}|02079460\d{3}|01632960\d{3}|08081570\d{3}|09098790\d{3}"
    r"|01(21|61)4960\d{3}|02896496\d{3}|(\d{3})?55501\d{2}"
)
NOT_ADDRESSES = {"sister.marthe"}  # names that a dot joins


@pytest.fixture(scope="module")
def sample():
    return sms.load(SAMPLE)


def test_there_are_enough_messages_of_each_kind(sample):
    counts = sample["label"].value_counts()
    assert counts.sum() >= 1200
    assert counts["spam"] >= 300
    assert counts["ham"] >= counts["spam"]  # or balancing could not work


def test_the_sample_has_the_format_of_the_collection(sample):
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(sample)  # no quotation mark joins two of them
    assert all(re.fullmatch(r"(ham|spam)\t\S[^\t]*", line) for line in lines)


def test_no_message_occurs_twice(sample):
    assert sample["text"].str.lower().is_unique


def test_no_two_messages_are_made_from_one_template(sample):
    """By the rule that groups near-duplicates; "fine" may be said by anybody."""
    long = sample["text"][normalise(sample["text"]).str.len() > 10]
    group = pd.Series(near_duplicates(long), index=long.index)
    assert len(long) > 1200
    assert long[group.duplicated(keep=False)].tolist() == []


def test_no_web_address_could_be_real(sample):
    text = "\n".join(sample["text"])
    found = re.findall(r"(?:[\w-]+\.)+[a-z]{2,}\b", text, re.I)
    assert len(found) > 20  # the pattern does find them
    assert [a for a in found if not RESERVED_DOMAIN.fullmatch(a) and a not in NOT_ADDRESSES] == []


def test_no_phone_number_could_be_real(sample):
    runs = [run for text in sample["text"] for run in re.findall(r"\d(?:[ -]?\d)+", text)]
    numbers = [n for run in runs if len(n := re.sub(r"\D", "", run)) >= 7]
    assert len(numbers) > 20
    assert [n for n in numbers if not RESERVED_PHONE.fullmatch(n)] == []


# --- Pocket GPT -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors():
    with safe_open(POCKET / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_pocket_gpt_is_small_enough_for_a_repository(tensors):
    assert (POCKET / "model.safetensors").stat().st_size < 16e6
    assert {value.dtype for value in tensors.values()} == {torch.float16}


def test_pocket_gpt_has_the_tensors_that_its_config_announces(tensors):
    """In the published layout: names, and Conv1D matrices as (inputs, outputs)."""
    with torch.device("meta"):
        model = GPT2(load_config(POCKET))
    announced = {
        key: (value.T if key.endswith(TRANSPOSED) else value).shape
        for key, value in model.state_dict().items()
    }
    assert {key: value.shape for key, value in tensors.items()} == announced


def test_pocket_gpt_holds_numbers_only(tensors):
    assert all(torch.isfinite(value).all() for value in tensors.values())
