"""Every external file of the series: where it comes from, how it is checked, where it lies.

`fetch(name)` gives the path of a verified local file, or raises `AssetError` with one
sentence per place that was tried. Files are asked for in this order: the workspace's
cache, the folder or address in SPAMGPT_MIRROR, the internet.

Settings, both optional environment variables:
    SPAMGPT_MIRROR   folder or base URL that holds the files by name, asked first
    SPAMGPT_OFFLINE  1 = never ask the internet (the mirror is still asked)
"""

import hashlib
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from spamgpt.workspace import atomic, chosen, workspace

CONNECT_SECONDS, READ_SECONDS = 5, 60

pooch.get_logger().setLevel(logging.WARNING)


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
    """Raise AssetError if the file is not the one in the table."""
    if asset.sha256 is not None and (found := pooch.file_hash(path)) != asset.sha256:
        raise AssetError(
            f"the content is not the published file ({path.stat().st_size:,} bytes, "
            f"SHA-256 {found[:12]}…, expected {asset.sha256[:12]}…)"
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

    Raises:
        KeyError: no such file in the table.
        AssetError: none of the places had it; names each place and what went wrong.
    """
    asset, target = ASSETS[name], cached(name)
    if target.is_file():
        try:
            verify(target, asset)
            return target
        except AssetError:
            target.unlink()  # a damaged copy is worth nothing
    tried = []
    for place in _places(asset):
        try:
            with atomic(target) as temporary:
                _get(place, asset, temporary)
                verify(temporary, asset)
            return target
        except (OSError, AssetError, requests.RequestException) as error:
            short = place.split("/")[2] if "://" in place else "the mirror"
            tried.append((place, short, _reason(error)))
    if asset.hub and not offline():
        try:
            return _fetch_from_hub(asset, target)
        except Exception as error:  # the hub's client raises errors of several libraries
            tried.append((f"Hugging Face {asset.hub[0]}", "huggingface.co", _reason(error)))
    if offline():
        tried.append(("the internet",) * 2 + ("not asked, since SPAMGPT_OFFLINE is set",))
    raise AssetError(
        f"{name} could not be fetched:\n"
        + "\n".join(f"  - {place}: {reason}" for place, _, reason in tried)
        + "\nWhat to do: connect to the internet and run `python -m spamgpt fetch "
        f"{name}`, or put {asset.mirror_names[0]} into a folder and set SPAMGPT_MIRROR to it.",
        brief=f"{name}: " + "; ".join(f"{short}: {reason}" for _, short, reason in tried),
    )


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
    return places if offline() else places + list(asset.urls)


def _get(place: str, asset: Asset, target: Path) -> None:
    """Bring the file at `place` (a path or URL, perhaps a zip) to `target`."""
    if "://" in place:
        pooch.retrieve(
            place,
            known_hash=None,
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(
                timeout=(CONNECT_SECONDS, READ_SECONDS), progressbar=(asset.size or 0) > 5e6
            ),
        )
    else:
        shutil.copyfile(place, target)
    if asset.member and zipfile.is_zipfile(target):
        try:
            with zipfile.ZipFile(target) as archive:
                data = archive.read(asset.member)
        except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError) as error:
            raise AssetError(f"the zip archive cannot be used: {error}") from error
        target.write_bytes(data)


def _fetch_from_hub(asset: Asset, target: Path) -> Path:
    """Download through huggingface_hub, which goes on where an earlier try broke off."""
    from huggingface_hub import hf_hub_download

    repository, revision = asset.hub
    # The hub's client retries for 20 seconds without a network; this finds out in 5.
    requests.head(_hub_url(asset), timeout=(CONNECT_SECONDS, READ_SECONDS)).raise_for_status()
    path = Path(
        hf_hub_download(
            repository,
            target.name,
            revision=revision,
            local_dir=target.parent,
            etag_timeout=CONNECT_SECONDS,
        )
    )
    try:
        verify(path, asset)
    except AssetError:
        path.unlink()
        raise
    return path


def _hub_url(asset: Asset) -> str:
    """The address of a file on Hugging Face."""
    from huggingface_hub import hf_hub_url

    repository, revision = asset.hub
    return hf_hub_url(repository, Path(asset.filename).name, revision=revision)


def addresses(name: str) -> list[str]:
    """The internet addresses that `fetch(name)` may ask; none with SPAMGPT_OFFLINE."""
    asset = ASSETS[name]
    if offline():
        return []
    return [*asset.urls, *([_hub_url(asset)] if asset.hub else [])]


def _reason(error: Exception) -> str:
    """The cause of a failed download in a few words."""
    names = {type(e).__name__ for e in _chain(error)}
    if names & {"NameResolutionError", "gaierror"} or "Name or service" in str(error):
        return "the host was not found (no internet?)"
    if names & {"ConnectTimeout", "ConnectTimeoutError", "TimeoutError"}:
        return f"no answer within {CONNECT_SECONDS} seconds"
    if names & {"ConnectionRefusedError", "NewConnectionError", "ConnectError", "ConnectionError"}:
        return "no connection (no internet?)"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
