"""What users set and where they start: environment variables, proxies, certificates, terminals,
folders that cannot be written. From outside, as far as that is possible."""

import hashlib
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from misbehaving import Handler, gives

from spamgpt.__main__ import main
from spamgpt.experiments import jobs, run_grid
from spamgpt.files import download
from spamgpt.files.assets import ASSETS, Asset, AssetError, fetch
from spamgpt.files.workspace import PROJECT, WorkspaceError
from spamgpt.models.base import choose_base

CONTENT = b"ham\thello\nspam\twin\n" * 50


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """The internet may be asked; no proxy and no certificates of this machine's own."""
    monkeypatch.delenv("SPAMGPT_OFFLINE")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toy(monkeypatch):
    """toy(url, …) puts a file that these addresses have into the table."""

    def put(*urls):
        digest = hashlib.sha256(CONTENT).hexdigest()
        entry = Asset("toy.tsv", digest, "CC0", urls, len(CONTENT), mirror_names=("toy.tsv",))
        monkeypatch.setitem(ASSETS, "toy", entry)

    return put


def failure() -> str:
    with pytest.raises(AssetError) as error:
        fetch("toy")
    return str(error.value)


# --- relative paths -------------------------------------------------------------------


@pytest.mark.slow
def test_a_relative_workspace_is_one_place_for_command_and_kernels(tmp_path):
    """The kernels run in the folder of the notebooks."""
    done = subprocess.run(
        [sys.executable, "-m", "spamgpt", "run", "01"],
        cwd=tmp_path,
        env=os.environ | {"SPAMGPT_WORKSPACE": "one place", "SPAMGPT_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "one place"
    assert (folder / "sms" / "train.csv").is_file()  # by the kernel
    assert len(list(folder.glob("runs/*/report.html"))) == 1  # by the command
    assert not (PROJECT / "notebooks" / "one place").exists()


# --- terminals ------------------------------------------------------------------------


def test_a_notice_is_shown_on_a_terminal_that_knows_ascii_alone():
    """To a program of one's own, that is: the command line sets its streams to UTF-8."""
    program = "from spamgpt.tasks import sms; print(sms.source()[0])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "SPAMGPT_OFFLINE": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    first, second, *_, last = done.stdout.decode("ascii").splitlines()
    assert (
        first == "+" + "-" * 78 + "+"
        and second.startswith("| DATA: the bundled")
        and last == "sample"
    )


# --- proxies --------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["proxy.corp:8080x", "http://me:secret@[::1", "gopher://x"])
def test_a_proxy_whose_address_cannot_be_read(proxy, toy, monkeypatch, capsys):
    """Said without the password; `auto` takes the stand-in all the same."""
    monkeypatch.setenv("https_proxy", proxy)
    toy("https://uci.example/x")
    message = failure()
    assert "the address of the proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be" in message
    assert "secret" not in message
    monkeypatch.setenv("SPAMGPT_BASE", "auto")
    assert choose_base() == "pocket"
    said = capsys.readouterr().out
    assert "the address of the proxy" in said and "secret" not in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((407, "Proxy Authentication Required"), "it wants a name and a password, as in http://"),
        ((403, "Forbidden"), "the proxy refuses (403 Forbidden)"),
    ],
)
def test_a_proxy_that_refuses(answer, said, toy, server, monkeypatch):
    monkeypatch.setattr(Handler, "do_CONNECT", lambda h: h.send_error(*answer), raising=False)
    monkeypatch.setenv("https_proxy", server.url)
    toy("https://uci.example/x")
    message = failure()
    assert f"the proxy refuses ({answer[0]} {answer[1]})" in message and said in message


def test_a_socks_proxy_without_the_package_for_it(toy, monkeypatch):
    monkeypatch.setattr(download, "find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    toy("https://uci.example/x")
    assert 'a SOCKS proxy needs one package more: pip install "requests[socks]"' in failure()


@pytest.fixture
def socks(server):
    """A SOCKS5 proxy: its address; .asked (host names). Every way leads to `server`."""

    def pump(a, b):
        while data := a.recv(2**16):
            b.sendall(data)

    def serve(client):
        client.recv(client.recv(2)[1])
        client.sendall(b"\5\0")
        assert client.recv(4) == b"\5\1\0\3"  # connect to a host by its name
        host = client.recv(client.recv(1)[0]).decode()
        client.recv(2)
        proxy.asked.append(host)
        refused = host == "refused.example"
        client.sendall(b"\5" + bytes([2 * refused]) + b"\0\1" + bytes(6))
        if not refused:
            with socket.create_connection(("127.0.0.1", server.server_port)) as way:
                threading.Thread(target=pump, args=(client, way), daemon=True).start()
                pump(way, client)
        client.close()

    def accept():
        with suppress(OSError):  # the listener is closed when the test is over
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        proxy = type("Proxy", (), {"asked": []})
        proxy.url = f"socks5h://127.0.0.1:{listener.getsockname()[1]}"
        yield proxy


def test_a_socks_proxy(toy, server, socks, monkeypatch):
    pytest.importorskip("socks", reason="PySocks is not installed")
    server.on("/x", gives(CONTENT))
    monkeypatch.setenv("ALL_PROXY", socks.url)
    toy("http://refused.example/x")
    assert "the proxy refuses (0x02: Connection not allowed by ruleset)" in failure()
    toy("http://uci.example/x")
    assert fetch("toy").read_bytes() == CONTENT
    assert socks.asked == ["refused.example", "uci.example"]


# --- certificates ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with the certificate of an authority that nobody knows (ca.pem), and of a server
    of this machine (server.pem, server.key) that it has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout"]
    sign = ["x509", "-req", "-in", "asked.pem", "-CA", "ca.pem", "-CAkey", "ca.key"]
    for command in (
        ["req", "-x509", *key, "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Corp"],
        ["req", *key, "server.key", "-out", "asked.pem", "-subj", "/CN=localhost"],
        [*sign, "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(server, authority):
    """`server` once more, with TLS: its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as secure:
        secure.asked, secure.scripts, secure.over = server.asked, server.scripts, server.over
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, args=(0.01,), daemon=True).start()
        server.on("/x", gives(CONTENT))
        yield f"https://localhost:{secure.server_port}/x"
        secure.shutdown()


def test_a_private_authority_that_is_not_named(toy, secure):
    toy(secure)
    message = failure()
    assert "the connection is not secure (unable to get local issuer certificate)" in message
    assert "does this network ask you to log in?" in message
    assert "set REQUESTS_CA_BUNDLE to the file with that certificate" in message


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_private_authority_that_is_named(name, toy, secure, authority, monkeypatch):
    """requests itself does not look at SSL_CERT_FILE."""
    monkeypatch.setenv(name, str(authority / "ca.pem"))
    toy(secure)
    assert fetch("toy").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_that_cannot_be_used_are_named(name, toy, secure, tmp_path, monkeypatch):
    (tmp_path / "none.pem").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    toy(secure)
    assert f"{name} names {tmp_path / 'none.pem'}, which holds no certificates" in failure()


def test_a_variable_of_openssl_that_an_installer_left_behind(toy, secure, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    toy(secure)
    assert "unable to get local issuer certificate" in failure()  # those of requests counted
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    assert f"REQUESTS_CA_BUNDLE names {tmp_path / 'gone.pem'}" in failure()


# --- addresses ------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["http://[x", "ftp://x", "https://x:80x", "://"])
def test_an_address_of_hugging_face_that_is_none(endpoint, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert main(["fetch", "gpt2"]) == 1
    assert "this is no address that can be asked" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example"])
def test_a_host_name_that_can_be_none(host, toy):
    """urllib3 finds out when it connects, by an error of another kind."""
    toy(f"https://{host}/x")
    assert f"https://{host}/x: " in failure()


# --- folders that cannot be written ---------------------------------------------------


@pytest.mark.parametrize("command", [["run", "00"], ["fetch", "sms"], ["clean"]])
def test_a_file_in_place_of_the_workspace(command, workspace_folder, capsys):
    """Said in one sentence, before anything is done."""
    workspace_folder.write_bytes(b"mine")
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Errno" not in err
    assert "(work is a file, not a folder): make that folder writable, or set SPAMGPT_WORK" in err
    assert "00_" not in out
    assert workspace_folder.read_bytes() == b"mine"


def test_a_grid_whose_results_could_not_be_kept_is_not_begun(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    base = SimpleNamespace(name="pocket", recipe=SimpleNamespace(epochs=1))
    lab = SimpleNamespace(base=base, data_name="sample")  # nothing that could compute
    with pytest.raises(WorkspaceError, match="file is a file, not a folder"):
        run_grid(lab, jobs(["recipe"], 1), tmp_path / "file" / "runs.csv")
