"""Each way a download can fail: what the learner reads, and what is left on the disk."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from functools import partial

import pytest
import requests
import urllib3
from misbehaving import answers, gives, login_page, never_ends, says_nothing, stops_after

from spamgpt.__main__ import main
from spamgpt.files import assets, download
from spamgpt.files.assets import ASSETS, Asset, AssetError, cached, fetch
from spamgpt.files.workspace import show_path

CONTENT = b"ham\thello\nspam\twin\n" * 50
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


def asset(content: bytes, **more) -> Asset:
    sha256, size = hashlib.sha256(content).hexdigest(), len(content)
    return Asset(**{"filename": "toy/messages.tsv", "sha256": sha256, "size": size} | more)


SMALL = asset(CONTENT, licence="CC0", member="messages.tsv", mirror_names=("toy.zip",))
LARGE = asset(
    WEIGHTS,
    licence="MIT",
    filename="toy/model.safetensors",
    hub=("somebody/model", "abc"),
    mirror_names=("model.safetensors",),
)


@pytest.fixture(autouse=True)
def _online_and_brisk(monkeypatch):
    """The internet may be asked; nobody waits for seconds."""
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def small(monkeypatch):
    """small(url, …) puts a small file that these addresses have into the table."""

    def put(*urls):
        monkeypatch.setitem(ASSETS, "toy", Asset(**{**SMALL.__dict__, "urls": urls}))

    return put


@pytest.fixture
def large(monkeypatch, server):
    """large(*behaviours) puts weights into the table that the server has at /weights."""

    def put(*behaviours, **changes):
        server.on("/weights", *behaviours)
        monkeypatch.setattr(assets, "_hub_url", lambda asset: server.url + "/weights")
        monkeypatch.setitem(ASSETS, "toy", Asset(**{**LARGE.__dict__, **changes}))

    return put


def failure() -> str:
    """The message that `fetch("toy")` ends with."""
    with pytest.raises(AssetError) as error:
        fetch("toy")
    assert "What to do: " in str(error.value)
    return str(error.value)


def left() -> dict[str, int]:
    """Names and sizes of the files beside the place of the final file."""
    folder = cached("toy").parent
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def part() -> str:
    return f".model.safetensors.{LARGE.sha256[:12]}.part"


# --- no connection --------------------------------------------------------------------


def test_connection_refused(small):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small(f"http://127.0.0.1:{port}/x")
    assert "no connection (Connection refused)" in failure()
    assert left() == {}


def test_no_route(small, monkeypatch):
    """Nothing on loopback is unroutable, so the system call is made to say so."""

    def unreachable(*_, **__):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(urllib3.util.connection, "create_connection", unreachable)
    small("http://127.0.0.1:9/x")
    assert "no connection (No route to host)" in failure()
    assert left() == {}


@pytest.mark.parametrize("name", ["sms", "vocab.bpe", "gpt2"])
def test_dns_failure(name):
    """The suite's resolver knows this machine only, as on a train."""
    with pytest.raises(AssetError) as error:
        fetch(name)
    lines = [line for line in str(error.value).splitlines() if line.startswith("  - ")]
    assert len(lines) == len(ASSETS[name].urls) + bool(ASSETS[name].hub)
    assert all("the host was not found (no internet?)" in line for line in lines)
    assert not cached(name).exists()


def test_connect_timeout(small):
    """A listening socket whose queue is full does not answer, like a firewall that drops."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        queue = [socket.socket() for _ in range(3)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        small(f"http://127.0.0.1:{deaf.getsockname()[1]}/x")
        assert "no answer within 0.3 seconds" in failure()
        for waiting in queue:
            waiting.close()
    assert left() == {}


@pytest.mark.parametrize(("addresses", "seconds"), [(1, 5), (4, 1.25), (12, 1)])
def test_all_addresses_of_a_host_together_take_the_connect_limit(
    addresses, seconds, small, monkeypatch
):
    """Hugging Face has several; a firewall that drops would cost 5 seconds for each."""
    resolve, limits = socket.getaddrinfo, []

    def several(host, port, *args, **kwargs):
        return resolve("127.0.0.1", port, type=socket.SOCK_STREAM) * addresses

    def connect(address, timeout, *_, **__):
        limits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(download, "CONNECT_SECONDS", 5)
    monkeypatch.setattr(socket, "getaddrinfo", several)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    small("http://many.example/x")
    failure()
    assert limits == [seconds]


def test_a_server_that_accepts_and_says_nothing(small, server):
    small(server.on("/x", says_nothing))
    assert "the server said nothing for 0.3 seconds" in failure()
    assert left() == {}


def test_a_proxy_that_is_gone(small, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    small("http://uci.example/x")
    assert "the proxy does not answer (see HTTP_PROXY, HTTPS_PROXY)" in failure()


def test_a_connection_that_is_not_secure(small, server, monkeypatch):
    """What a captive portal makes of https: here a server that speaks no TLS at all."""
    small(server.on("/x", gives(CONTENT)).replace("http://", "https://"))
    assert "the connection is not secure; does this network ask you to log in?" in failure()
    assert left() == {}


# --- wrong answers --------------------------------------------------------------------


def test_404(small, server):
    small(server.url + "/gone")
    assert f"{server.url}/gone: the server answers 404 (Not Found)" in failure()
    assert left() == {}


def test_503_twice_then_fine(small, server):
    small(server.on("/x", answers(503), answers(503, Retry_After="3600"), gives(CONTENT)))
    assert fetch("toy").read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_503_for_good(small, server):
    small(server.on("/x", answers(503)))
    assert "the server answers 503 (Service Unavailable)" in failure()
    assert len(server.asked) == 1 + download.RETRIES


def test_the_pause_before_asking_a_busy_server_again_doubles(small, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "PAUSE_SECONDS", 1.0)
    monkeypatch.setattr("urllib3.util.retry.time.sleep", pauses.append)
    small(server.on("/x", answers(503)))
    failure()
    assert pauses == [1.0, 2.0]  # urllib3 asks for the first time again at once


def test_a_login_page_in_place_of_the_file(small, server):
    small(server.on("/x", login_page))
    message = failure()
    assert "a web page, not the published file (53 bytes" in message
    assert "does this network ask you to log in? Open a browser" in message
    assert left() == {}


def test_a_login_page_does_not_cost_what_has_arrived_of_the_weights(large, server):
    large(stops_after(300_000, WEIGHTS), login_page, gives(WEIGHTS))
    assert "a web page came in place of the file; does this network ask" in failure()
    assert left() == {part(): 300_000 // 2**16 * 2**16}
    assert fetch("toy").read_bytes() == WEIGHTS
    assert server.asked[-1] == ("/weights", f"bytes={300_000 // 2**16 * 2**16}-")


def test_wrong_weights_of_the_right_size(large, server):
    large(gives(b"x" * len(WEIGHTS)))
    assert "not the published file (1,048,576 bytes, SHA-256" in failure()
    assert left() == {}  # a wrong part would spoil the next try


def test_weights_of_the_wrong_size_are_not_even_downloaded(large, server):
    large(gives(WEIGHTS + b"x"))
    assert "a file of 1,048,577 bytes is offered, the published one has 1,048,576" in failure()
    assert left() == {}


def test_a_page_in_place_of_weights_without_a_recorded_digest(large, server):
    """A server may give the page a kind that hides what it is."""
    large(gives(b"<html>" + bytes(94)), sha256=None, size=None)
    assert "a web page, not the published file (100 bytes that are no safetensors" in failure()
    assert left() == {}


def test_wrong_hash(small, server):
    wrong = CONTENT.replace(b"win", b"won")
    small(server.on("/x", gives(wrong)))
    found, expected = hashlib.sha256(wrong).hexdigest()[:12], SMALL.sha256[:12]
    assert f"not the published file (950 bytes, SHA-256 {found}…, expected {expected}…" in failure()
    assert left() == {}


def test_bytes_without_end(small, server):
    small(server.on("/x", never_ends))
    assert "bytes, there is still more to come" in failure()
    assert left() == {}


# --- broken connections ---------------------------------------------------------------


def test_truncated_body(small, server):
    small(server.on("/x", stops_after(700, CONTENT)))
    assert "the connection broke off" in failure()
    assert left() == {}


@pytest.mark.parametrize("reset", [False, True])
def test_weights_continue_after_a_broken_connection_within_one_fetch(reset, large, server):
    large(stops_after(400_000, WEIGHTS, reset), stops_after(300_000, WEIGHTS), gives(WEIGHTS))
    assert fetch("toy").read_bytes() == WEIGHTS
    starts = [int((asked or "=0-")[:-1].split("=")[1]) for _, asked in server.asked]
    assert len(starts) == 3 and starts == sorted(set(starts))  # each continues, none starts again
    assert left() == {"model.safetensors": len(WEIGHTS)}


def test_weights_continue_in_the_next_fetch(large, server):
    """The server breaks off and stays away: the part is kept, and the message says so."""
    broken = [stops_after(400_000, WEIGHTS)] + [stops_after(0, WEIGHTS)] * download.RETRIES
    large(*broken, gives(WEIGHTS))
    kept = 400_000 // 2**16 * 2**16
    message = failure()
    assert f"broke off after {kept:,} of 1,048,576 bytes; the next try continues there" in message
    assert left() == {part(): kept}
    assert fetch("toy").read_bytes() == WEIGHTS
    assert server.asked[-1] == ("/weights", f"bytes={kept}-")
    assert left() == {"model.safetensors": len(WEIGHTS)}


def test_a_server_that_cannot_resume_gives_everything_again(large, server):
    def from_the_start(handler):
        del handler.headers["Range"]
        gives(WEIGHTS)(handler)

    large(stops_after(400_000, WEIGHTS), from_the_start)
    assert fetch("toy").read_bytes() == WEIGHTS


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_part_that_is_complete_or_longer_leads_nowhere_wrong(extra, large, server):
    large(gives(WEIGHTS))
    cached("toy").parent.mkdir(parents=True)
    (cached("toy").parent / part()).write_bytes(WEIGHTS + extra)
    assert fetch("toy").read_bytes() == WEIGHTS
    if not extra:
        assert server.asked == []  # killed between the last byte and the check


def test_a_part_with_wrong_bytes_is_thrown_away_once(large, server):
    large(gives(WEIGHTS))
    cached("toy").parent.mkdir(parents=True)
    (cached("toy").parent / part()).write_bytes(b"x" * 1000)
    assert "not the published file" in failure()
    assert left() == {}
    assert fetch("toy").read_bytes() == WEIGHTS


# --- zip archives ---------------------------------------------------------------------


def zipped(*members: tuple[str, bytes], mode: int = 0o644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return file.getvalue()


@pytest.mark.parametrize("hostile", ["../evil", "{outside}/evil"], ids=["parent", "absolute"])
def test_hostile_members_are_not_unpacked(hostile, small, server, tmp_path):
    hostile = hostile.format(outside=tmp_path)
    small(server.on("/x", gives(zipped((hostile, b"evil"), ("messages.tsv", CONTENT)))))
    assert fetch("toy").read_bytes() == CONTENT
    assert left() == {"messages.tsv": len(CONTENT)}
    assert list(tmp_path.rglob("evil")) == []


def test_a_symlink_in_place_of_the_member_is_not_followed(small, server, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    link = ("messages.tsv", str(tmp_path / "secret").encode())
    small(server.on("/x", gives(zipped(link, mode=stat.S_IFLNK | 0o777))))
    assert "not the published file" in failure()
    assert left() == {}


def test_a_zip_bomb_is_not_unpacked(small, server, monkeypatch):
    def unpack(*_):
        raise AssertionError("unpacked before its size was looked at")

    bomb = zipped(("messages.tsv", bytes(50_000_000)))
    assert len(bomb) < 100_000
    monkeypatch.setattr(zipfile.ZipFile, "read", unpack)
    small(server.on("/x", gives(bomb)))
    assert "messages.tsv would unpack to 50,000,000 bytes, not 950" in failure()
    assert left() == {}


def test_a_zip_bomb_that_lies_about_its_size_is_cut_off(small, server):
    bomb = zipped(("messages.tsv", bytes(50_000_000)))
    lie = bomb.replace((50_000_000).to_bytes(4, "little"), (950).to_bytes(4, "little"))
    assert lie != bomb
    small(server.on("/x", gives(lie)))
    assert "the zip archive cannot be used: " in failure()
    assert left() == {}


# --- another address ------------------------------------------------------------------


def test_the_backup_address_is_used_and_named(small, server, capsys):
    """The two addresses differ by host, as the published ones do."""
    backup = server.on("/backup", gives(CONTENT))
    small("http://uci.example/x", backup)
    assert fetch("toy").read_bytes() == CONTENT
    said = capsys.readouterr().out
    host = server.url.removeprefix("http://")
    assert f"toy: uci.example: the host was not found (no internet?); taken from {host}" in said


def test_every_address_is_named_when_none_has_the_file(small, server):
    small(server.url + "/gone", server.on("/busy", answers(403)), "http://uci.example/x")
    message = failure()
    assert re.search(r"/gone: .*404[\s\S]*/busy: .*403[\s\S]*uci\.example/x: the host", message)


# --- the disk -------------------------------------------------------------------------


def test_a_full_disk_is_found_before_a_large_download(large, server, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    large(gives(WEIGHTS))
    message = failure()
    assert "the disk is full (1 MB are needed, 0 MB are free" in message
    assert "What to do: free space there, or set SPAMGPT_WORKSPACE" in message
    assert left() == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_the_disk_fills_midway(small, server, monkeypatch):
    """/dev/full takes the place of the temporary file: a real ENOSPC, at the first write."""
    full = partial(open, "/dev/full", "wb")
    monkeypatch.setattr(download, "open", lambda path, mode: full(), raising=False)
    backup = server.on("/backup", gives(CONTENT))
    small(server.on("/x", gives(CONTENT)), backup)
    message = failure()
    assert "the disk is full (No space left on device)" in message
    assert "free space there" in message
    assert [path for path, _ in server.asked] == ["/x"]  # no other address can help
    assert left() == {}


def test_the_disk_fills_midway_through_the_weights(large, server, monkeypatch):
    """What has arrived stays, and the next fetch continues there."""
    real = open

    def cramped(path, mode):
        file = real(path, mode)
        if str(path).endswith(".part"):
            write = file.write

            class Cramped:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def tell(self):
                    return file.tell()

                def write(self, chunk):
                    if file.tell() > 400_000:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return write(chunk)

            return Cramped()
        return file

    large(gives(WEIGHTS))
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", cramped, raising=False)
        assert "the disk is full" in failure()
    (size,) = left().values()
    assert 400_000 < size < len(WEIGHTS)
    assert fetch("toy").read_bytes() == WEIGHTS
    assert server.asked[-1] == ("/weights", f"bytes={size}-")


@pytest.mark.parametrize("already", [False, True], ids=["empty", "cached"])
def test_a_data_folder_that_cannot_be_written(already, small, server, workspace_folder):
    """There is a file where the cache folder should be: root, as whom CI may run, is allowed
    to write to a read-only folder."""
    small(server.on("/x", gives(CONTENT)))
    if already:
        fetch("toy")
        shutil.rmtree(workspace_folder / "cache" / ".locks")
        (workspace_folder / "cache" / ".locks").write_bytes(b"")
        assert fetch("toy").read_bytes() == CONTENT  # nothing has to be written
        return
    workspace_folder.mkdir()
    (workspace_folder / "cache").write_bytes(b"")
    message = failure()
    assert f"nothing can be written to {show_path(cached('toy').parent)}" in message
    assert "set SPAMGPT_WORKSPACE to a folder of your own" in message
    assert server.asked == []


def test_without_a_writable_folder_the_stand_ins_still_work(workspace_folder, monkeypatch, capsys):
    """`auto` cannot even write down what it chose; it says why and continues."""
    from spamgpt.models.base import choose_base
    from spamgpt.tasks import sms

    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    workspace_folder.write_bytes(b"")
    assert choose_base() == "pocket"
    assert sms.source()[0] == "sample"
    assert "nothing can be written to" in capsys.readouterr().out


# --- several at once, interrupted, again ----------------------------------------------

FETCH = """
import signal
from spamgpt.files import assets
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
assets.ASSETS["toy"] = assets.Asset(**{fields!r})
{more}
print(assets.fetch("toy").stat().st_size)
"""


def start(fields: dict, more: str = "") -> subprocess.Popen:
    """A Python of its own that fetches the toy file."""
    program = FETCH.format(fields=fields, more=more)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class InTwoHalves:
    """A behaviour: half of the content, then the rest once the test says `go.set()`."""

    def __init__(self, content: bytes):
        self.content, self.half, self.go = content, threading.Event(), threading.Event()

    def __call__(self, handler):
        body = handler.start(self.content)
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        self.half.set()
        self.go.wait(60)
        handler.wfile.write(body[len(body) // 2 :])


def test_two_processes_fetch_the_same_file_once(small, server):
    halves = InTwoHalves(CONTENT)
    url = server.on("/x", halves)
    small(url)
    first = start(SMALL.__dict__ | {"urls": (url,)})
    assert halves.half.wait(60)
    second = start(SMALL.__dict__ | {"urls": (url,)})
    assert "another program is fetching it; waiting" in second.stderr.readline()
    halves.go.set()
    assert [process.communicate(timeout=60)[0] for process in (first, second)] == ["950\n"] * 2
    assert len(server.asked) == 1
    assert left() == {"messages.tsv": 950}


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal there")
def test_ctrl_c_midway_then_again(large, server):
    """The first process is interrupted after half of the weights; the second continues."""
    halves = InTwoHalves(WEIGHTS)
    large(halves, gives(WEIGHTS))
    more = f'assets._hub_url = lambda asset: "{server.url}/weights"'
    process = start(LARGE.__dict__, more)
    assert halves.half.wait(60), process.communicate(timeout=1)
    while not any(size > 400_000 for size in left().values()):  # until it has been written
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    halves.go.set()
    assert "KeyboardInterrupt" in err
    assert list(left()) == [part()]
    (kept,) = left().values()
    assert fetch("toy").read_bytes() == WEIGHTS
    assert server.asked[-1] == ("/weights", f"bytes={kept}-")


def test_ctrl_c_in_the_command_line_says_that_nothing_is_lost(small, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    small("http://127.0.0.1:9/x")
    monkeypatch.setattr(requests.Session, "get", interrupted)
    assert main(["fetch", "toy"]) == 130
    assert "what was fetched or saved so far is kept" in capsys.readouterr().err
    assert left() == {}


def test_parts_that_a_killed_fetch_left_are_cleared_away(small, server):
    small(server.on("/x", gives(CONTENT)))
    cached("toy").parent.mkdir(parents=True)
    (cached("toy").parent / ".messages.tsv.12345.part").write_bytes(b"half")
    fetch("toy")
    assert left() == {"messages.tsv": 950}


# --- nothing twice --------------------------------------------------------------------


def test_what_is_verified_is_not_fetched_again_and_opens_no_connection(small, server, monkeypatch):
    small(server.on("/x", gives(CONTENT)))
    fetch("toy")

    def forbidden(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert fetch("toy").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_fully_cached_run_opens_no_connection(mirror, monkeypatch, tmp_path):
    """Data, tokenizer and weights of the default path; a small model replaces GPT-2."""
    from spamgpt.models import base, published
    from spamgpt.models.gpt2 import GPT2, GPT2Config
    from spamgpt.tasks import sms

    tiny = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_ctx=16)
    published.save_checkpoint(GPT2(tiny), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    gpt2 = Asset(**{**LARGE.__dict__, **asset(content, licence="MIT").__dict__})
    gpt2 = Asset(**{**gpt2.__dict__, "filename": "gpt2/model.safetensors", "hub": LARGE.hub})
    monkeypatch.setitem(ASSETS, "gpt2", gpt2)
    monkeypatch.setitem(base.CONFIGS, "gpt2", tiny)
    for name in ("sms", "vocab.bpe", "encoder.json"):
        fetch(name)
    cached("gpt2").parent.mkdir()
    shutil.copy(tmp_path / "model.safetensors", cached("gpt2"))

    def forbidden(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.delenv("SPAMGPT_MIRROR")
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert sms.source()[0] == "collection"
    assert base.load_base().name == "gpt2"
