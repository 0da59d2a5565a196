"""Every environment variable of the series, read in one place, and again each time: tests
and notebooks may change them.

    SPAMGPT_BASE       base model: auto (default), gpt2, gpt2-medium, …, smollm2, pocket
    SPAMGPT_MIRROR     folder or base URL that holds the files by name, asked first
    SPAMGPT_OFFLINE    1 = never ask the internet (the mirror is still asked)
    SPAMGPT_PRECISION  auto (default: what is fastest here), fp32, bf16 or int8
    SPAMGPT_WORKSPACE  folder for whatever is fetched, made or trained, instead of data/ (if the
                       package was not installed from a checkout as editable: instead of your
                       own folder for data, such as ~/.local/share/spamgpt)

and those of others, which mean here what they mean there:

    HF_ENDPOINT        a copy of Hugging Face
    HF_HUB_OFFLINE     1 = never ask Hugging Face, nor that copy (also TRANSFORMERS_OFFLINE)
    HF_HUB_CACHE       where Hugging Face's programs keep their downloads, which are used here;
                       if not set, in HF_HOME or XDG_CACHE_HOME
    REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE, SSL_CERT_DIR
                       the certificates to trust, for example of a company's own authority

A path may be relative (to the folder in which the program was started), begin with ~, hold
variables, stand in quotation marks or be a file:// address. Whoever imports this module makes
such paths absolute, once and in the environment itself: the kernels that execute notebooks
inherit it, and run in another folder.
"""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from platformdirs import user_data_dir

PACKAGE = Path(__file__).resolve().parent
IN_WHEEL = (PACKAGE / "notebooks").is_dir()  # setup.py puts notebooks and data/bundled there
PROJECT = PACKAGE if IN_WHEEL else PACKAGE.parents[1]
PRECISIONS = ("fp32", "bf16", "int8")
HUB = "https://huggingface.co"
# Where Hugging Face's cache is, below the folder that a variable names; the first one counts.
HUB_CACHES = {
    "HF_HUB_CACHE": "",
    "HUGGINGFACE_HUB_CACHE": "",
    "HF_HOME": "hub",
    "XDG_CACHE_HOME": "huggingface/hub",
}
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PATHS = ("SPAMGPT_WORKSPACE", "SPAMGPT_MIRROR", *HUB_CACHES, *CERTIFICATES)
YES, NO = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


def base_name() -> str:
    """The base model that is asked for, "auto" if none is named."""
    return _read("SPAMGPT_BASE") or "auto"


def mirror() -> str | None:
    """The address, or the absolute path of the folder, that is asked before the internet."""
    return _place("SPAMGPT_MIRROR") or None


def offline() -> bool:
    """Whether the internet must not be asked.

    Raises ValueError where that cannot be told: who wanted to stay offline must not be online.
    """
    value = _read("SPAMGPT_OFFLINE")
    if value.lower() not in YES | NO:
        raise ValueError(f"SPAMGPT_OFFLINE={value}: choose 1 (never ask the internet) or 0")
    return value.lower() in YES


def precision() -> str | None:
    """The precision that is asked for, None if the package shall decide.

    Raises ValueError for one that does not exist.
    """
    given = os.environ.get("SPAMGPT_PRECISION") or "auto"
    wanted = _read("SPAMGPT_PRECISION") if given != "auto" else given
    if wanted not in ("auto", *PRECISIONS):
        raise ValueError(f"SPAMGPT_PRECISION={given}: choose one of auto, {', '.join(PRECISIONS)}")
    return None if wanted == "auto" else wanted


def workspace() -> Path:
    """The absolute path of the folder for whatever is fetched, made or trained.

    Raises ValueError if that cannot be one.
    """
    default = user_data_dir("spamgpt", appauthor=False) if IN_WHEEL else PROJECT / "data"
    place = _place("SPAMGPT_WORKSPACE") or str(default)
    if "://" in place:
        raise ValueError(f"SPAMGPT_WORKSPACE={place}: this must be a folder, not an address")
    return Path(os.path.realpath(place))


def hub() -> str:
    """The address of Hugging Face, or of a copy of it."""
    endpoint = _read("HF_ENDPOINT").rstrip("/") or HUB
    return endpoint if "://" in endpoint else f"https://{endpoint}"


def hub_offline() -> bool:
    """Whether Hugging Face must not be asked."""
    return (_read("HF_HUB_OFFLINE") or _read("TRANSFORMERS_OFFLINE")).lower() in YES


def hub_cache() -> Path:
    """Where Hugging Face's own programs keep what they fetched."""
    for name, below in HUB_CACHES.items():
        if place := _place(name):
            return Path(place, below)
    return Path.home() / ".cache" / HUB_CACHES["XDG_CACHE_HOME"]


def certificates() -> tuple[str, str] | None:
    """(variable, path) of the certificates to trust in place of those that requests brings.

    requests itself does not know the variables of OpenSSL.
    """
    return next(((name, path) for name in CERTIFICATES if (path := _place(name))), None)


def _read(name: str) -> str:
    """A variable without the blanks and quotation marks around it, "" if it is not set.

    A shell takes them off; files of settings do not, nor does `set X="C:\\my files"` on Windows.
    """
    value = os.environ.get(name, "").strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].strip()
    return value


def _place(name: str) -> str:
    """An address as it is, a path as an absolute one, "" if the variable is not set.

    Raises ValueError for the home of a user who does not exist, which ~name stands for.
    """
    value = _read(name)
    if value.lower().startswith("file:"):
        address = urlsplit(value)
        host = "" if address.netloc in ("", "localhost") else f"//{address.netloc}"
        value = host + url2pathname(address.path)
    if not value or "://" in value:
        return value
    path = os.path.expanduser(os.path.expandvars(value))
    if path.startswith("~"):
        raise ValueError(f"{name}={value}: there is no user of that name; ~ alone is your own home")
    return str(Path(_start(), path))


def _start() -> str:
    """Where relative paths begin: the folder in which whoever set the variables was.

    Jupyter starts a kernel in its notebook's folder, but leaves PWD, the shell's folder, alone.
    """
    shell = os.environ.get("PWD", "")
    return shell if "JPY_PARENT_PID" in os.environ and os.path.isdir(shell) else os.getcwd()


def settle() -> None:
    """Replace the paths in the environment by absolute ones, for processes that inherit it.

    And bound what oneDNN keeps and how long OpenMP's threads wait awake, unless the user has.
    """
    for name in PATHS:
        with suppress(ValueError):  # whoever uses it will hear of it
            if place := _place(name):
                os.environ[name] = place
    # oneDNN keeps a compiled product for each shape that it has seen. The thousand that it keeps
    # otherwise grow to hundreds of megabytes on a long stream of messages. Batches sorted by
    # length use one shape for all blocks, then the next: a few are enough. Read at the first one.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    # A thread that has done its part of a product waits for the others by asking again and again.
    # Where another program wants the processor too, that takes it from the very thread it waits
    # for. Asking a thousand times before it sleeps is enough. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


settle()
