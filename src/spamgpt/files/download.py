"""One file over HTTP: taken up again where the way breaks, and every fault in plain words."""

import errno
import math
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from spamgpt import settings
from spamgpt.files.workspace import DISK_FULL

if TYPE_CHECKING:  # each function imports it: it takes a fifth of a second, and where all files
    import requests  # are at hand, as for `classify`, nobody needs it

CONNECT_SECONDS, READ_SECONDS = 5, 60
RETRIES, PAUSE_SECONDS = 3, 1.0  # the pause doubles from one try to the next
LOGIN_PAGE = "; does this network ask you to log in? Open a browser, then try again"
OWN_AUTHORITY = (
    ". If a company or school reads along with a certificate of its own, set REQUESTS_CA_BUNDLE "
    "to the file with that certificate (.pem)"
)
BUSY = (429, 500, 502, 503, 504)  # answers that a server may think better of
PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


class DownloadError(OSError):
    """What came is not what was asked for; the message says what did."""


def download(
    url: str, target: Path, size: int | None = None, most: float = math.inf, resume: bool = False
) -> None:
    """Write what `url` has to `target`, continuing where that ends.

    With `size`, nothing of another size is taken; more than `most` bytes are never written.
    With `resume`, shows its progress, and what arrived stays for the next call.

    huggingface_hub continues an interrupted file within one run only, and moves it into
    place unverified; pooch starts again from the first byte, and does not ask a busy server
    again. Hence requests: urllib3 asks a busy server again, the loop takes a broken connection
    up again as long as that brings more bytes.

    Raises OSError; `reason_of` says in words what it means.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    retry = Retry(
        total=None,
        connect=0,
        read=0,
        other=0,  # TLS
        status=RETRIES,
        status_forcelist=BUSY,
        backoff_factor=PAUSE_SECONDS / 2,
        raise_on_status=False,
        respect_retry_after_header=False,  # it may say an hour
    )
    before, failures = _size(target), 0
    if resume and size == before:
        return  # complete, but never verified
    check_way(url)
    with requests.Session() as session:
        session.verify = trusted(url)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while True:
            have = _size(target)
            try:
                return _stream(session, url, target, size, most, resume)
            except broken as error:
                got = _size(target)
                if got == before:  # nothing came at all
                    raise
                failures = 1 if got > have else failures + 1
                if failures > RETRIES:
                    of = f" of {size:,}" if size else ""
                    kept = "; the next try continues there" if resume else ""
                    raise DownloadError(
                        f"the connection broke off after {got:,}{of} bytes{kept}"
                    ) from error
                time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _stream(
    session: "requests.Session", url: str, target: Path, size: int | None, most: float, resume: bool
) -> None:
    """Append to `target` what is missing there; begin again if the server cannot do that."""
    have = _size(target)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = (connect_seconds(url), READ_SECONDS)
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
        span = response.headers.get("Content-Range", "")  # bytes 100-199/200, or */200
        length = response.headers.get("Content-Length", "")
        if have and response.status_code == 416:
            if span == f"bytes */{have}":
                return  # it was complete already
            if size is None or have > size:
                target.unlink()  # longer than the file: no part of it
                return _stream(session, url, target, size, most, resume)
        response.raise_for_status()
        resumes = have > 0 and span.startswith(f"bytes {have}-")
        total = int(length) + (have if resumes else 0) if length.isdecimal() else None
        if resume:  # before a byte of what is there already is overwritten
            if "text/html" in response.headers.get("Content-Type", ""):
                raise DownloadError("a web page came in place of the file" + LOGIN_PAGE)
            if size and total and total != size:
                raise DownloadError(
                    f"a file of {total:,} bytes is offered, the published one has {size:,}"
                )
        if total is not None and total > most:
            raise DownloadError(
                f"a file of {total:,} bytes is offered, the published one is smaller"
            )
        check_room((total or 0) - (have if resumes else 0), target)
        with (
            open(target, "ab" if resumes else "wb") as file,
            tqdm(
                desc=urlsplit(url).path.rpartition("/")[2],
                total=total,
                initial=file.tell(),
                unit="B",
                unit_scale=True,
                disable=not resume,
            ) as bar,
        ):
            for chunk in response.iter_content(2**16):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > most:
                    raise DownloadError(f"after {file.tell():,} bytes, there is still more to come")


def check_way(url: str) -> None:
    """Raise DownloadError, before anything is asked, if nothing can come from this address.

    That is: it is none, or the proxy on the way to it has no address that can be read.
    """
    from requests.utils import get_environ_proxies, select_proxy

    try:
        parts, proxy = urlsplit(url), select_proxy(url, get_environ_proxies(url))
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise DownloadError("this is no address that can be asked, such as https://host/folder")
    if proxy:
        read_proxy(proxy)


def trusted(url: str) -> bool | str:
    """requests' `verify` for this address: True, or the certificates that the user names.

    Raises DownloadError if they cannot be used. The variables of OpenSSL may name what is not
    there, as for OpenSSL: installers leave them behind.
    """
    variable, path = settings.certificates() or ("", "")
    if not variable or not url.startswith("https:"):
        return True
    if variable.startswith("SSL_") and not os.path.exists(path):
        return True
    try:
        ssl.create_default_context(**{"capath" if os.path.isdir(path) else "cafile": path})
    except OSError as error:  # SSLError is one
        raise DownloadError(
            f"{variable} names {path}, which holds no certificates ({error.strerror or error})"
        ) from error
    return path


def read_proxy(address: str) -> tuple[str, int]:
    """(host, port) of a proxy from its variable.

    Raises DownloadError that says what is wrong with it, never the password that it may hold.
    """
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in PROXIES:
        raise DownloadError(
            "the address of the proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be read: it must "
            "look like http://host:8080"
        )
    if parts.scheme.startswith("socks") and find_spec("socks") is None:
        raise DownloadError('a SOCKS proxy needs one package more: pip install "requests[socks]"')
    return host, port or {"http": 80, "https": 443}.get(parts.scheme, 1080)


def connect_seconds(url: str) -> float:
    """How long each address of a host may take, so that all take CONNECT_SECONDS together.

    A second is left to each: the way may be slow.
    """
    from requests.utils import get_environ_proxies

    if get_environ_proxies(url):
        return CONNECT_SECONDS  # the proxy looks the host up
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return CONNECT_SECONDS  # the connection will fail and say so
    return min(CONNECT_SECONDS, max(1.0, CONNECT_SECONDS / len(found)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_room(n_bytes: int, target: Path) -> None:
    """Raise OSError before the disk is filled to the brim."""
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise OSError(
            errno.ENOSPC, f"{n_bytes / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        )


def disk_full(error: Exception) -> bool:
    """Whether there is no room left (or none that this user may take)."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def reason_of(error: Exception) -> str:
    """The cause of a failed download in a few words."""
    import requests

    chain = list(_chain(error))
    names = {type(e).__name__ for e in chain}
    if isinstance(error, (DownloadError, RuntimeError)):
        return str(error)
    if disk_full(error):
        return f"the disk is full ({[e for e in chain if disk_full(e)][-1].strerror})"
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} ({error.response.reason})"
    if any(cls.__name__ == "ProxyError" for e in chain for cls in type(e).__mro__):
        words = re.search(r"Tunnel connection failed: (\d{3}[^'\")]*)", str(error))
        refusals = [str(e) for e in chain if type(e).__name__.startswith("SOCKS")]
        if words or refusals:
            said = words[1].strip() if words else refusals[0]
            login = ": it wants a name and a password, as in http://name:password@host:8080"
            return f"the proxy refuses ({said}){login if '407' in said else ''}"
        return "the proxy does not answer (see HTTP_PROXY, HTTPS_PROXY)"
    if names & {"NameResolutionError", "gaierror"}:
        return "the host was not found (no internet?)"
    if names & {"ConnectTimeout", "ConnectTimeoutError"}:
        return f"no answer within {CONNECT_SECONDS:g} seconds"
    if names & {"ReadTimeout", "ReadTimeoutError"}:
        return f"the server said nothing for {READ_SECONDS:g} seconds"
    if names & {"SSLError", "SSLCertVerificationError"}:
        words = [e.verify_message for e in chain if isinstance(e, ssl.SSLCertVerificationError)]
        if not words:  # no TLS at all
            return "the connection is not secure" + LOGIN_PAGE
        return f"the connection is not secure ({words[0]})" + LOGIN_PAGE + OWN_AUTHORITY
    if names & {"ConnectionRefusedError", "NewConnectionError"}:
        cause = next((e.strerror for e in chain if isinstance(e, OSError) and e.strerror), None)
        return f"no connection ({cause or 'no internet?'})"
    if names & {"ConnectionError", "ChunkedEncodingError"}:
        return "the connection broke off"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
