"""Every external file of the series: where it comes from, how it is checked, where it lies.

`fetch(name)` gives the path of a verified local file, or raises `AssetError` with one
sentence per place that was tried. Files are asked for in this order: the workspace's
cache, the folder or address in SPAMGPT_MIRROR, the internet.

Settings, both optional environment variables:
    SPAMGPT_MIRROR   folder or base URL that holds the files by name, asked first
    SPAMGPT_OFFLINE  1 = never ask the internet (the mirror is still asked)
"""

import errno
import hashlib
import math
import os
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from urllib3.util import Retry

from spamgpt.workspace import atomic, chosen, show_path, workspace

CONNECT_SECONDS, READ_SECONDS = 5, 60
RETRIES, PAUSE_SECONDS = 3, 1.0  # the pause doubles from one try to the next
LOGIN_PAGE = "; does this network ask you to log in? Open a browser, then try again"
BUSY = (429, 500, 502, 503, 504)  # answers that a server may think better of
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", None)} - {None}  # no quota on Windows
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class AssetError(RuntimeError):
    """A file could not be had; the message says what was tried and what to do.

    `brief` is what was tried in one line, for a notice.
    """

    def __init__(self, message: str, brief: str = ""):
        super().__init__(message)
        self.brief = brief or message


@dataclass(frozen=True)
class Asset:
    """One file as it is used: its name in the cache, its SHA-256, and where it can be had.

    `member` names the file inside a zip archive; the member is verified, not the archive.
    `hub` is (repository, revision) on Hugging Face; such files resume when interrupted.
    """

    filename: str
    sha256: str | None
    licence: str
    urls: tuple[str, ...] = ()
    size: int | None = None  # bytes
    member: str | None = None
    hub: tuple[str, str] | None = None
    mirror_names: tuple[str, ...] = ()


def _weights(name: str, revision: str, sha256: str | None = None, size: int | None = None) -> Asset:
    """The published GPT-2 weights called `name` on Hugging Face."""
    return Asset(
        filename=f"{name}/model.safetensors",
        sha256=sha256,
        licence="MIT",
        size=size,
        hub=(f"openai-community/{name}", revision),
        mirror_names=(f"{name}/model.safetensors",)
        + (("model.safetensors",) if name == "gpt2" else ()),
    )


_BPE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_HUB = (
    "https://huggingface.co/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/"
)


def _tiktoken_name(file: str) -> str:
    """Where tiktoken looks for its downloads: the SHA-1 of their address."""
    return "tiktoken/" + hashlib.sha1((_BPE + file).encode()).hexdigest()


ASSETS = {
    "sms": Asset(
        filename="SMSSpamCollection",
        sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        licence="CC BY 4.0",
        size=477_907,
        member="SMSSpamCollection",
        urls=(
            "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
            "https://raw.githubusercontent.com/learn-co-curriculum/"
            "dsc-document-classification-with-naive-bayes-lab/"
            "2f98ca443ecd26e1088b369260f1e9782e2e36fc/SMSSpamCollection",
        ),
        mirror_names=("sms+spam+collection.zip", "SMSSpamCollection"),
    ),
    "vocab.bpe": Asset(
        filename=_tiktoken_name("vocab.bpe"),
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        licence="MIT",
        size=456_318,
        urls=(_BPE + "vocab.bpe", _HUB + "merges.txt"),
        mirror_names=("vocab.bpe", "merges.txt"),
    ),
    "encoder.json": Asset(
        filename=_tiktoken_name("encoder.json"),
        sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        licence="MIT",
        size=1_042_301,
        urls=(_BPE + "encoder.json", _HUB + "vocab.json"),
        mirror_names=("encoder.json", "vocab.json"),
    ),
    "gpt2": _weights(
        "gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        548_105_171,
    ),
    # Where no digest is recorded, the revision alone pins the content.
    "gpt2-medium": _weights("gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": _weights("gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": _weights(
        "gpt2-xl",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}


def cached(name: str) -> Path:
    """Where the file called `name` lies once it is fetched."""
    return workspace() / "cache" / ASSETS[name].filename


def offline() -> bool:
    """Whether SPAMGPT_OFFLINE forbids asking the internet."""
    return os.environ.get("SPAMGPT_OFFLINE", "").lower() in {"1", "true", "yes"}


def verify(path: Path, asset: Asset) -> None:
    """Raise AssetError if the file is not the one in the table.

    A file without a recorded digest must be a whole safetensors file at least.
    """
    if asset.sha256 is None:
        try:
            with safe_open(path, "pt"):
                return
        except SafetensorError as error:
            problem = f"{path.stat().st_size:,} bytes that are no safetensors file: {error}"
    elif (found := pooch.file_hash(path)) == asset.sha256:
        return
    else:
        problem = (
            f"{path.stat().st_size:,} bytes, SHA-256 {found[:12]}…, expected {asset.sha256[:12]}…"
        )
    with open(path, "rb") as file:
        web_page = file.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    raise AssetError(
        f"the content is {'a web page, ' if web_page else ''}not the published file ({problem})"
        + (LOGIN_PAGE if web_page else "")
    )


def available(name: str) -> bool:
    """Whether `fetch(name)` needs no internet: the file is cached, or in a mirror folder."""
    mirror = os.environ.get("SPAMGPT_MIRROR", "")
    in_mirror = (
        mirror
        and "://" not in mirror
        and any((Path(mirror) / file).is_file() for file in ASSETS[name].mirror_names)
    )
    return cached(name).is_file() or bool(in_mirror)


def why_stand_in(key: str, stand_in: str, name: str) -> str | None:
    """Why this workspace remembers `stand_in` for `key`, as long as `name` is not at hand."""
    known = chosen(key)
    if known and known["name"] == stand_in and not available(name):
        return known["reason"]
    return None


def fetch(name: str) -> Path:
    """Path of the verified local file called `name`, downloaded if need be.

    Processes that want the same file at once wait for the first one. Large files that
    were interrupted go on where they broke off.

    Raises:
        KeyError: no such file in the table.
        AssetError: none of the places had it, or it cannot be written here; names each
            place and what went wrong.
    """
    asset, target = ASSETS[name], cached(name)
    if _have(asset, target):
        return target
    with _alone(name, target):
        if _have(asset, target):  # another process was faster
            return target
        target.unlink(missing_ok=True)  # a damaged copy is worth nothing
        tried, advice = [], _advice(name, asset)
        for place in _places(asset):
            short = place.split("/")[2] if "://" in place else "the mirror"
            try:
                with _temporary(asset, target, place) as temporary:
                    _get(place, asset, temporary)
            except (OSError, AssetError) as error:  # requests' errors are OSErrors
                tried.append((place, short, _reason(error)))
                if _disk_full(error):  # no other place can help
                    advice = "free space there, or set SPAMGPT_WORKSPACE to a folder elsewhere."
                    break
                continue
            for left in target.parent.glob(f".{target.name}.*.part"):
                left.unlink()  # by a fetch that was killed
            if tried and tried[-1][1] != short:
                print(f"{name}: {tried[-1][1]}: {tried[-1][2]}; taken from {short} instead")
            return target
    if offline():
        tried.append(("the internet",) * 2 + ("not asked, since SPAMGPT_OFFLINE is set",))
    raise AssetError(
        f"{name} could not be fetched:\n"
        + "\n".join(f"  - {place}: {reason}" for place, _, reason in tried)
        + f"\nWhat to do: {advice}",
        brief=f"{name}: " + "; ".join(f"{short}: {reason}" for _, short, reason in tried),
    )


def _advice(name: str, asset: Asset) -> str:
    return (
        f"connect to the internet and run `python -m spamgpt fetch {name}`, "
        f"or put {asset.mirror_names[0]} into a folder and set SPAMGPT_MIRROR to it."
    )


def _have(asset: Asset, target: Path) -> bool:
    """Whether the file lies there and is the right one."""
    try:
        verify(target, asset)
    except (FileNotFoundError, NotADirectoryError, AssetError):
        return False
    return True


@contextmanager
def _alone(name: str, target: Path) -> Iterator[None]:
    """Let no other process fetch the same file meanwhile; a killed one holds nobody up."""
    lock = FileLock(workspace() / "cache" / ".locks" / f"{name}.lock")
    try:
        for folder in (Path(lock.lock_file).parent, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            print(f"{name}: another program is fetching it; waiting for that one", file=sys.stderr)
            lock.acquire()
    except NotImplementedError:
        pass  # a file system without locks; what two processes may spoil, the digest finds
    except OSError as error:
        folder = show_path(target.parent)
        raise AssetError(
            f"{name} cannot be kept, since nothing can be written to {folder} "
            f"({error.strerror}).\nWhat to do: make that folder writable, or set "
            "SPAMGPT_WORKSPACE to a folder of your own.",
            brief=f"{name}: nothing can be written to {folder} ({error.strerror})",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _temporary(asset: Asset, target: Path, place: str) -> Iterator[Path]:
    """Where to bring the file; becomes `target` once the content is verified.

    Weights are hundreds of megabytes: what was downloaded of them stays until it is
    complete, so that the next try goes on there, from whatever address. The name holds
    what pins the content, so that parts of two versions never meet.
    """
    if asset.hub is None or "://" not in place:
        with atomic(target) as temporary:
            yield temporary
            verify(temporary, asset)
        return
    pin = (asset.sha256 or asset.hub[1])[:12]
    temporary = target.with_name(f".{target.name}.{pin}.part")
    yield temporary
    try:
        verify(temporary, asset)
    except AssetError:
        temporary.unlink()
        raise
    os.replace(temporary, target)


def _places(asset: Asset) -> list[str]:
    """Mirror first, then the published addresses."""
    places = []
    if mirror := os.environ.get("SPAMGPT_MIRROR"):
        names = asset.mirror_names
        if "://" in mirror:
            places += [f"{mirror.rstrip('/')}/{name}" for name in names]
        else:
            found = [Path(mirror) / name for name in names if (Path(mirror) / name).is_file()]
            places += [str(path) for path in found] or [str(Path(mirror) / names[0])]
    return places + _addresses(asset)


def _get(place: str, asset: Asset, target: Path) -> None:
    """Bring the file at `place` (a path or URL, perhaps a zip) to `target`."""
    if "://" in place:
        _download(place, asset, target)
    else:
        _check_room(Path(place).stat().st_size, target)
        shutil.copyfile(place, target)
    if asset.member and zipfile.is_zipfile(target):
        target.write_bytes(_unzip(target, asset))


def _unzip(path: Path, asset: Asset) -> bytes:
    """The one member that is wanted; nothing else in the archive is ever unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(asset.member).file_size
            if size <= _most(asset):
                return archive.read(asset.member)
            problem = f"{asset.member} would unpack to {size:,} bytes, not {asset.size:,}"
    except Exception as error:  # zipfile passes on the errors of several decoders
        problem = str(error)
    raise AssetError(f"the zip archive cannot be used: {problem}")


def _most(asset: Asset) -> float:
    """More bytes than this are certainly something else, even for a zip with more in it."""
    return math.inf if asset.size is None else 2 * asset.size + 2**20


def _download(url: str, asset: Asset, target: Path) -> None:
    """Write what `url` has to `target`, going on where that ends.

    huggingface_hub goes on with an interrupted file within one run only, and moves it into
    place unverified; pooch starts anew, and does not ask a busy server again. Hence
    requests: urllib3 asks a busy server again, the loop takes a broken connection up again
    as long as that brings more bytes.
    """
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
    if asset.hub and asset.size == before:
        return  # complete, but never verified
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while True:
            have = _size(target)
            try:
                return _stream(session, url, asset, target)
            except BROKEN as error:
                got = _size(target)
                if got == before:  # nothing came at all
                    raise
                failures = 1 if got > have else failures + 1
                if failures > RETRIES:
                    of = f" of {asset.size:,}" if asset.hub and asset.size else ""
                    kept = "; the next try goes on there" if asset.hub else ""
                    raise AssetError(
                        f"the connection broke off after {got:,}{of} bytes{kept}"
                    ) from error
                time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _stream(session: requests.Session, url: str, asset: Asset, target: Path) -> None:
    """Append to `target` what is missing there; begin anew if the server cannot do that."""
    have = _size(target)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = (connect_seconds(url), READ_SECONDS)
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
        span = response.headers.get("Content-Range", "")  # bytes 100-199/200, or */200
        length = response.headers.get("Content-Length", "")
        if have and response.status_code == 416:
            if span == f"bytes */{have}":
                return  # it was complete already
            if asset.size is None or have > asset.size:
                target.unlink()  # longer than the file: no part of it
                return _stream(session, url, asset, target)
        response.raise_for_status()
        resumes = have > 0 and span.startswith(f"bytes {have}-")
        total = int(length) + (have if resumes else 0) if length.isdecimal() else None
        if asset.hub:  # before a byte of what is there already is overwritten
            if "text/html" in response.headers.get("Content-Type", ""):
                raise AssetError("a web page came in place of the file" + LOGIN_PAGE)
            if asset.size and total and total != asset.size:
                raise AssetError(
                    f"a file of {total:,} bytes is offered, the published one has {asset.size:,}"
                )
        if total is not None and total > _most(asset):
            raise AssetError(f"a file of {total:,} bytes is offered, the published one is smaller")
        _check_room((total or 0) - (have if resumes else 0), target)
        with (
            open(target, "ab" if resumes else "wb") as file,
            tqdm(
                desc=Path(asset.filename).name,
                total=total,
                initial=file.tell(),
                unit="B",
                unit_scale=True,
                disable=asset.hub is None,
            ) as bar,
        ):
            for chunk in response.iter_content(2**16):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > _most(asset):
                    raise AssetError(f"after {file.tell():,} bytes, there is still more to come")


def connect_seconds(url: str) -> float:
    """How long each address of a host may take, so that all take CONNECT_SECONDS together."""
    if requests.utils.get_environ_proxies(url):
        return CONNECT_SECONDS  # the proxy looks the host up
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return CONNECT_SECONDS  # the connection will fail and say so
    return CONNECT_SECONDS / len(found)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(n_bytes: int, target: Path) -> None:
    """Raise OSError before the disk is filled to the brim."""
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise OSError(
            errno.ENOSPC, f"{n_bytes / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        )


def _disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL


def _hub_url(asset: Asset) -> str:
    """The address of a file on Hugging Face (or on the copy that HF_ENDPOINT names)."""
    from huggingface_hub import hf_hub_url

    repository, revision = asset.hub
    return hf_hub_url(repository, Path(asset.filename).name, revision=revision)


def addresses(name: str) -> list[str]:
    """The internet addresses that `fetch(name)` may ask; none with SPAMGPT_OFFLINE."""
    return _addresses(ASSETS[name])


def _addresses(asset: Asset) -> list[str]:
    if offline():
        return []
    return [*asset.urls, *([_hub_url(asset)] if asset.hub else [])]


def _reason(error: Exception) -> str:
    """The cause of a failed download in a few words."""
    chain = list(_chain(error))
    names = {type(e).__name__ for e in chain}
    if isinstance(error, AssetError):
        return str(error)
    if _disk_full(error):
        return f"the disk is full ({error.strerror})"
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} ({error.response.reason})"
    if names & {"ProxyError"}:
        return "the proxy does not answer (see HTTP_PROXY, HTTPS_PROXY)"
    if names & {"NameResolutionError", "gaierror"}:
        return "the host was not found (no internet?)"
    if names & {"ConnectTimeout", "ConnectTimeoutError"}:
        return f"no answer within {CONNECT_SECONDS:g} seconds"
    if names & {"ReadTimeout", "ReadTimeoutError"}:
        return f"the server said nothing for {READ_SECONDS:g} seconds"
    if names & {"SSLError", "SSLCertVerificationError"}:
        return "the connection is not secure" + LOGIN_PAGE
    if names & {"ConnectionRefusedError", "NewConnectionError"}:
        cause = next((e.strerror for e in chain if isinstance(e, OSError) and e.strerror), None)
        return f"no connection ({cause or 'no internet?'})"
    if names & {"ConnectionError", "ChunkedEncodingError"}:
        return "the connection broke off"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
