"""What the doctor finds before a learner does, and how it says to mend it."""

import importlib
import json
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

import spamgpt
from spamgpt import doctor
from spamgpt.__main__ import main
from spamgpt.files import assets
from spamgpt.files.workspace import SAMPLE, remember, write_json
from spamgpt.tasks import sms

GB = 1e9


@pytest.fixture
def check(capsys):
    """check(name) runs `python -m spamgpt doctor`: (fine?, its line, its advice)."""

    def run(name):
        status = main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        (at,) = (i for i, line in enumerate(lines) if line[5:].split()[0] == name)
        fine = lines[at].startswith("ok")
        advice = "" if fine else lines[at + 1].strip()
        assert fine or (status == 1 and advice.startswith("-> "))
        return fine, lines[at], advice

    return run


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setattr(doctor, "getproxies", dict)


def test_a_machine_like_this_one_is_fine_or_told_what_to_do():
    for found in doctor.examine():
        assert found.ok or found.remedy
        assert found.found and "\n" not in found.found


def test_old_python(check, monkeypatch):
    assert check("python")[0]
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    fine, _, advice = check("python")
    assert not fine and "install Python 3.10 or newer" in advice


def test_old_python_is_told_so_at_the_first_import(monkeypatch):
    """Other modules would end in a syntax or type error there."""
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(ImportError, match=r"needs Python 3\.10 or newer, this is 3\.8: install"):
        importlib.reload(spamgpt)


def test_packages_that_are_missing_or_too_old(check, monkeypatch):
    real = doctor.version

    def version(name):
        if name == "scipy":
            raise doctor.PackageNotFoundError
        return "2.0" if name == "torch" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    fine, line, advice = check("packages")
    assert not fine and "scipy is missing" in line and "torch is 2.0, needed >=2.4" in line
    assert "pip install -r requirements.txt" in advice


@pytest.mark.parametrize(("base", "needed"), [("auto", 1.5), ("pocket", 0.2)])
def test_too_little_disk(base, needed, check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", base)
    usage = shutil.disk_usage("/")
    for free, enough in ((needed * GB * 1.01, True), (needed * GB * 0.99, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        fine, _, advice = check("disk")
        assert fine == enough
    assert f"free {needed} GB" in advice
    assert ("SPAMGPT_BASE=pocket" in advice) == (base != "pocket")


@pytest.mark.parametrize(("base", "needed"), [("auto", 3), ("pocket", 1)])
def test_too_little_memory(base, needed, check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", base)
    for available, enough in ((needed * GB * 1.01, True), (needed * GB * 0.99, False)):
        memory = SimpleNamespace(available=available, total=8 * GB)
        monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda memory=memory: memory)
        fine, _, advice = check("memory")
        assert fine == enough
    assert f"close programs until {needed} GB are available" in advice
    assert ("SPAMGPT_BASE=pocket" in advice) == (base != "pocket")


@pytest.mark.parametrize("program", [sys.executable, "python", "python3"])
def test_the_kernel_of_this_environment(program, check, monkeypatch):
    spec = KernelSpec(argv=[program, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    assert check("kernel")[0]


def test_the_kernel_of_another_environment(check, monkeypatch):
    spec = KernelSpec(argv=["/opt/conda/bin/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    fine, line, advice = check("kernel")
    assert not fine and "the notebooks run in /opt/conda/bin/python" in line
    assert "python -m ipykernel install --sys-prefix" in advice


def test_no_kernel_at_all(check, monkeypatch):
    def none(_, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", none)
    fine, line, advice = check("kernel")
    assert not fine and "no Python kernel" in line and "ipykernel install" in advice


@pytest.mark.parametrize("answers", [True, False])
def test_a_proxy(answers, check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_OFFLINE", "0")
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        if answers:
            proxy.listen()
        port = proxy.getsockname()[1]
        address = f"http://me:secret@127.0.0.1:{port}"
        monkeypatch.setattr(doctor, "getproxies", lambda: {"https": address, "no": "localhost"})
        fine, line, advice = check("proxy")
    assert fine == answers
    assert f"https_proxy = 127.0.0.1:{port}" in line and "secret" not in line
    assert answers or ("does not answer" in line and "unset the variable" in advice)


def test_a_cached_file_that_is_not_what_was_published(check, monkeypatch):
    assert "0 fetched files" in check("cache")[1]
    path = assets.cached("sms")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    fine, line, advice = check("cache")
    assert not fine and "sms: the content is not the published file (4 bytes" in line
    assert "`python -m spamgpt fetch sms` gets them again" in advice


def test_a_cached_file_that_is_fine(check, mirror):
    assets.fetch("sms")
    fine, line, _ = check("cache")
    assert fine and "1 fetched files, all as published" in line


def test_a_wrong_base_model(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "gpt5")
    fine, line, advice = check("base")
    assert not fine and "gpt5 is not a base model" in line and "set SPAMGPT_BASE to auto" in advice


def test_a_wrong_precision(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", "fp8")
    fine, line, advice = check("device")
    assert not fine and "SPAMGPT_PRECISION=fp8: choose one of auto, fp32" in line
    assert "unset SPAMGPT_PRECISION" in advice


@pytest.fixture
def remembered(monkeypatch):
    """A workspace that decided without a network."""
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    remember("base", "pocket", "no network")
    remember("data", "sample", "no network")


def test_a_remembered_choice_that_still_holds(remembered, check):
    for name, word in (("base", "pocket"), ("data", "bundled sample")):
        fine, line, _ = check(name)
        assert fine and f"{word} (remembered" in line


def test_a_remembered_choice_that_is_stale(remembered, check, monkeypatch):
    """The network is back: every address answers."""
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    reply = SimpleNamespace(raise_for_status=lambda: None)
    monkeypatch.setattr(doctor.requests, "head", lambda *_, **__: reply)
    for name, word in (("base", "GPT-2 can be had now"), ("data", "the collection can be had now")):
        fine, line, advice = check(name)
        assert not fine and "remembered from an earlier run, but" in line and word in line
        assert "run `python -m spamgpt fetch`, then the notebooks" in advice


def test_splits_of_other_data_than_would_be_used_now(check, monkeypatch):
    sms.TASK.save_splits(sms.TASK.split(sms.load(SAMPLE)), "sample")
    assert check("data")[0]
    write_json(sms.TASK.folder / "source.json", {"data": "collection"})
    fine, line, advice = check("data")
    assert not fine
    assert "bundled sample, but the saved splits were made of the SMS Spam Collection" in line
    assert "run the notebooks from 01 on" in advice


def test_json_has_all_that_the_table_says(capsys, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "gpt5")
    assert main(["doctor", "--json"]) == 1
    (base,) = (c for c in json.loads(capsys.readouterr().out) if c["name"] == "base")
    assert base["ok"] is False and "set SPAMGPT_BASE to auto" in base["remedy"]
