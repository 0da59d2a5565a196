"""Fetching: every place in its order, every byte verified, every failure explained."""

import hashlib
import http.server
import re
import threading
import zipfile

import pytest

from spamgpt.files.assets import ASSETS, Asset, AssetError, available, cached, fetch

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


# --- over HTTP ------------------------------------------------------------------------


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
    assert asset.urls or asset.hub
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
