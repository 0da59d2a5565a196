"""Fetching: every place in its order, every byte verified, every failure explained."""

import errno
import hashlib
import http.server
import os
import re
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from spamgpt.files.assets import ASSETS, Asset, AssetError, addresses, available, cached, fetch
from spamgpt.files.workspace import workspace

CONTENT = b"ham\thello\nspam\twin\n" * 50
TOY = Asset(
    filename="toy/messages.tsv",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="CC0",
    size=len(CONTENT),
    member="messages.tsv",
    mirror_names=("toy.zip", "messages.tsv"),
)


@pytest.fixture
def toy(monkeypatch):
    """toy(**changes) puts a small file into the table."""

    def put(**changes):
        monkeypatch.setitem(ASSETS, "toy", Asset(**{**TOY.__dict__, **changes}))

    put()
    return put


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):
    """An empty mirror folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("SPAMGPT_MIRROR", str(folder))
    return folder


def bare(folder, content=CONTENT):
    (folder / "messages.tsv").write_bytes(content)


def zipped(folder, content=CONTENT, member="messages.tsv"):
    with zipfile.ZipFile(folder / "toy.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "not this one")
        archive.writestr(member, content)


def assert_nothing_was_left():
    parent = cached("toy").parent
    assert not parent.exists() or list(parent.iterdir()) == []


# --- a mirror folder ------------------------------------------------------------------


@pytest.mark.parametrize("put", [bare, zipped])
def test_a_file_comes_from_the_mirror_folder(put, folder):
    put(folder)
    assert fetch("toy") == cached("toy")
    assert cached("toy").read_bytes() == CONTENT
    assert list(cached("toy").parent.iterdir()) == [cached("toy")]


@pytest.mark.parametrize("put", [bare, zipped])
@pytest.mark.parametrize(
    "wrong", [b"", CONTENT[:-1], CONTENT.replace(b"\n", b"\r\n"), b"<html>log in</html>"]
)
def test_wrong_content_is_refused_and_not_kept(put, wrong, folder):
    put(folder, wrong)
    with pytest.raises(AssetError, match="not the published file") as error:
        fetch("toy")
    assert f"({len(wrong):,} bytes" in str(error.value)
    assert_nothing_was_left()


def test_a_good_copy_beside_a_bad_one_is_found(folder):
    zipped(folder, b"wrong")
    bare(folder)
    assert fetch("toy").read_bytes() == CONTENT


def _no_zip(folder):
    (folder / "toy.zip").write_bytes(b"PK\x03\x04 but then nothing of the kind")


def _cut_zip(folder):
    zipped(folder)
    (folder / "toy.zip").write_bytes((folder / "toy.zip").read_bytes()[:-30])


def _zip_of_something_else(folder):
    zipped(folder, member="other.tsv")


def _zip_with_a_damaged_member(folder):
    zipped(folder)
    data = bytearray((folder / "toy.zip").read_bytes())
    start = data.index(b"messages.tsv") + len(b"messages.tsv")
    data[start : start + 10] = b"\xff" * 10
    (folder / "toy.zip").write_bytes(data)


@pytest.mark.parametrize(
    "spoil", [_no_zip, _cut_zip, _zip_of_something_else, _zip_with_a_damaged_member]
)
def test_a_useless_zip_is_an_asset_error_and_the_next_place_is_asked(spoil, folder):
    spoil(folder)
    with pytest.raises(AssetError):
        fetch("toy")
    assert_nothing_was_left()
    bare(folder)
    assert fetch("toy").read_bytes() == CONTENT


@pytest.mark.parametrize("exists", [True, False])
def test_a_mirror_without_the_file_is_named_in_the_error(exists, folder):
    if not exists:
        folder.rmdir()
    with pytest.raises(AssetError, match=re.escape(str(folder)) + r".*no such file"):
        fetch("toy")


@pytest.mark.parametrize("name", ["sms spam collection", "toy", "messages.tsv"])
def test_an_unpacked_archive_in_the_mirror_is_found(name, folder):
    """Some browsers unpack what they download."""
    (folder / name).mkdir()
    bare(folder / name)
    assert available("toy")
    assert fetch("toy").read_bytes() == CONTENT


def test_a_mirror_may_be_a_file_address(folder, monkeypatch):
    bare(folder)
    monkeypatch.setenv("SPAMGPT_MIRROR", folder.as_uri())
    assert available("toy")
    assert fetch("toy").read_bytes() == CONTENT


def test_an_address_without_a_scheme_is_told_what_it_lacks(toy, monkeypatch):
    monkeypatch.setenv("SPAMGPT_MIRROR", "lan.example:8000/files")
    with pytest.raises(AssetError, match=r"nor such a folder .*an address begins with http://"):
        fetch("toy")


def test_the_error_says_what_to_do(toy):
    with pytest.raises(AssetError) as error:
        fetch("toy")
    message = str(error.value)
    assert "toy could not be fetched" in message
    assert "python -m spamgpt fetch toy" in message
    assert "put toy.zip into a folder and set SPAMGPT_MIRROR" in message


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="no-such-file"):
        fetch("no-such-file")


# --- the cache ------------------------------------------------------------------------


def test_a_cached_file_needs_no_mirror(folder, monkeypatch):
    bare(folder)
    fetch("toy")
    monkeypatch.delenv("SPAMGPT_MIRROR")
    assert fetch("toy").read_bytes() == CONTENT


def test_a_damaged_cached_copy_is_replaced(folder):
    bare(folder)
    fetch("toy").write_bytes(CONTENT[:100])
    assert fetch("toy").read_bytes() == CONTENT


def test_a_damaged_cached_copy_is_never_handed_out(folder, monkeypatch):
    bare(folder)
    fetch("toy").write_bytes(CONTENT[:100])
    monkeypatch.delenv("SPAMGPT_MIRROR")
    with pytest.raises(AssetError):
        fetch("toy")
    assert_nothing_was_left()


def test_available_tells_whether_the_internet_is_needed(folder, monkeypatch):
    assert not available("toy")
    bare(folder)
    assert available("toy")
    fetch("toy")
    monkeypatch.delenv("SPAMGPT_MIRROR")
    assert available("toy")


# --- Hugging Face's cache ---------------------------------------------------------------

REVISION = "1" * 40


@pytest.fixture
def hub(toy, tmp_path, monkeypatch):
    """hub(content, …) puts a file where Hugging Face's library keeps it, and gives its path."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    toy(member=None, filename="toy/model.safetensors", hub=("somebody/toy", REVISION))

    def put(content=CONTENT, revision=REVISION, repository="somebody--toy", file=None):
        folder = tmp_path / "hub" / f"models--{repository}"
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        link = folder / "snapshots" / revision / (file or "model.safetensors")
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        return blob

    return put


@pytest.mark.parametrize("repository", ["somebody--toy", "toy"])
@pytest.mark.parametrize("revision", [REVISION, "2" * 40])
def test_what_hugging_face_has_fetched_already_is_used(repository, revision, hub, monkeypatch):
    """Offline, and without taking the place of it twice."""
    blob = hub(repository=repository, revision=revision)
    assert available("toy")
    assert fetch("toy").samefile(blob)
    assert cached("toy").is_relative_to(workspace())
    blob.unlink()
    assert fetch("toy").read_bytes() == CONTENT  # Hugging Face may clear its cache


def test_on_another_disk_it_is_copied(hub, monkeypatch):
    def another_disk(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    blob = hub()
    assert fetch("toy").read_bytes() == CONTENT
    assert not cached("toy").samefile(blob)


def test_a_wrong_file_there_is_refused_and_left_alone(hub, folder):
    """The next place is asked."""
    blob = hub(b"wrong")
    with pytest.raises(AssetError, match=r"Hugging Face|not the published file \(5 bytes"):
        fetch("toy")
    assert blob.read_bytes() == b"wrong"
    assert_nothing_was_left()
    bare(folder)
    assert fetch("toy").read_bytes() == CONTENT
    assert blob.read_bytes() == b"wrong"


def test_a_damaged_copy_of_ours_does_not_cost_theirs(hub):
    """With two names for one file, whoever writes into one of them changes both."""
    blob = hub()
    fetch("toy")
    cached("toy").unlink()
    cached("toy").write_bytes(b"damaged")
    assert fetch("toy").read_bytes() == blob.read_bytes() == CONTENT


def test_without_a_recorded_digest_only_the_pinned_revision_counts(hub, toy):
    content = safetensors.numpy.save({"x": np.zeros(3)})
    toy(sha256=None, member=None, filename="toy/model.safetensors", hub=("somebody/toy", REVISION))
    hub(content, revision="2" * 40)
    assert not available("toy")
    hub(content)
    assert fetch("toy").read_bytes() == content


def test_of_the_tokenizer_too(hub, monkeypatch):
    """Its files have other names there."""
    merges = asset_of("vocab.bpe", CONTENT)
    monkeypatch.setitem(ASSETS, "vocab.bpe", merges)
    revision = merges.urls[1].split("/")[-2]
    hub(repository="openai-community--gpt2", revision=revision, file="merges.txt")
    assert fetch("vocab.bpe").read_bytes() == CONTENT


def asset_of(name, content):
    """The entry of the table, as if this were its published content."""
    digest = hashlib.sha256(content).hexdigest()
    return replace(ASSETS[name], sha256=digest, size=len(content))


def test_hugging_face_may_be_offline_alone(server, toy, monkeypatch):
    """HF_HUB_OFFLINE closes Hugging Face, or the copy of it, and no other host."""
    bare(server.folder)
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    toy(hub=("somebody/toy", REVISION), member=None)
    with pytest.raises(AssetError, match="Hugging Face: not asked, since HF_HUB_OFFLINE is set"):
        fetch("toy")
    assert server.asked == []
    toy(urls=(server.url.replace("127.0.0.1", "localhost") + "/messages.tsv",))
    assert fetch("toy").read_bytes() == CONTENT


def test_the_copy_of_hugging_face_is_asked_for_everything(monkeypatch):
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.example")
    asked = [url for name in ("vocab.bpe", "encoder.json", "gpt2") for url in addresses(name)]
    assert (
        sum(url.startswith("https://hf-mirror.example/openai-community/gpt2/") for url in asked)
        == 3
    )
    assert not any("huggingface.co" in url for url in asked)


# --- over HTTP ------------------------------------------------------------------------


def test_a_password_in_an_address_is_used_and_not_shown(server, monkeypatch):
    monkeypatch.setenv("SPAMGPT_MIRROR", server.url.replace("http://", "http://me:secret@"))
    with pytest.raises(AssetError, match=r"127\.0\.0\.1:\d+/toy\.zip: .*404") as error:
        fetch("toy")
    assert "secret" not in str(error.value) + error.value.brief


@pytest.fixture
def server(tmp_path, toy):
    """A web server on this machine: .url, .folder, .asked (the paths it was asked for)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            server.asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.folder, server.asked = folder, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("put", [bare, zipped])
def test_a_mirror_may_be_a_web_address_even_offline(put, slash, server, monkeypatch):
    """A classroom's LAN share is no internet."""
    put(server.folder)
    monkeypatch.setenv("SPAMGPT_MIRROR", server.url + slash)
    assert fetch("toy").read_bytes() == CONTENT
    assert list(cached("toy").parent.iterdir()) == [cached("toy")]


def test_a_web_mirror_without_the_file_is_named_in_the_error(server, monkeypatch):
    monkeypatch.setenv("SPAMGPT_MIRROR", server.url)
    with pytest.raises(AssetError, match=rf"{server.url}/toy\.zip: .*404"):
        fetch("toy")
    assert_nothing_was_left()


def test_a_wrong_download_is_refused_and_the_next_address_asked(server, toy, monkeypatch):
    (server.folder / "bad").write_bytes(b"<html>log in</html>")
    (server.folder / "good").write_bytes(CONTENT)
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    toy(urls=(f"{server.url}/bad", f"{server.url}/gone", f"{server.url}/good"))
    assert fetch("toy").read_bytes() == CONTENT
    toy(urls=(f"{server.url}/bad",))
    cached("toy").unlink()
    with pytest.raises(AssetError, match="not the published file"):
        fetch("toy")
    assert_nothing_was_left()


def test_the_mirror_is_asked_before_the_internet(server, toy, folder, monkeypatch):
    bare(folder)
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    toy(urls=(f"{server.url}/messages.tsv",))
    fetch("toy")
    assert server.asked == []


@pytest.mark.parametrize("setting", ["1", "true", "YES"])
def test_offline_asks_no_address_and_says_so(setting, server, toy, monkeypatch):
    bare(server.folder)
    monkeypatch.setenv("SPAMGPT_OFFLINE", setting)
    toy(urls=(f"{server.url}/messages.tsv",))
    with pytest.raises(AssetError, match="SPAMGPT_OFFLINE is set"):
        fetch("toy")
    assert server.asked == []


@pytest.mark.parametrize("setting", ["", "0", "false"])
def test_offline_can_be_switched_off(setting, server, toy, monkeypatch):
    bare(server.folder)
    monkeypatch.setenv("SPAMGPT_OFFLINE", setting)
    toy(urls=(f"{server.url}/messages.tsv",))
    assert fetch("toy").read_bytes() == CONTENT


# --- the table ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSETS)
def test_every_entry_is_complete(name):
    asset = ASSETS[name]
    assert asset.licence and asset.mirror_names
    assert asset.urls or asset.hub or asset.wheel
    assert all(url.startswith("https://") for url in asset.urls)
    assert asset.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
    if asset.hub:
        assert re.fullmatch(r"[0-9a-f]{40}", asset.hub[1])  # pinned, not "main"
    else:
        assert asset.sha256 and asset.size


def test_no_two_entries_share_a_place():
    assert len({asset.filename for asset in ASSETS.values()}) == len(ASSETS)


@pytest.mark.parametrize("name", ["sms", "vocab.bpe", "encoder.json"])
def test_the_published_files_are_what_the_table_says(name, mirror):
    assert fetch(name).stat().st_size == ASSETS[name].size
