"""Every environment variable of the series, read in one place, and again each time: tests
and notebooks may change them.

    SPAMGPT_BASE       base model: auto (default), gpt2, gpt2-medium, …, pocket
    SPAMGPT_MIRROR     folder or base URL that holds the files by name, asked first
    SPAMGPT_OFFLINE    1 = never ask the internet (the mirror is still asked)
    SPAMGPT_PRECISION  auto (default: what is fastest here), fp32, bf16 or int8
    SPAMGPT_WORKSPACE  folder for whatever is fetched, made or trained, instead of data/
    HF_ENDPOINT        a copy of Hugging Face
"""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp32", "bf16", "int8")


def base_name() -> str:
    """The base model that is asked for, "auto" if none is named."""
    return os.environ.get("SPAMGPT_BASE") or "auto"


def mirror() -> str | None:
    """The folder or address that is asked before the internet."""
    return os.environ.get("SPAMGPT_MIRROR") or None


def offline() -> bool:
    """Whether the internet must not be asked."""
    return os.environ.get("SPAMGPT_OFFLINE", "").lower() in {"1", "true", "yes"}


def precision() -> str | None:
    """The precision that is asked for, None if the package shall decide.

    Raises ValueError for one that does not exist.
    """
    wanted = os.environ.get("SPAMGPT_PRECISION") or "auto"
    if wanted not in ("auto", *PRECISIONS):
        raise ValueError(f"SPAMGPT_PRECISION={wanted}: choose one of auto, {', '.join(PRECISIONS)}")
    return None if wanted == "auto" else wanted


def workspace() -> Path:
    """The folder for whatever is fetched, made or trained."""
    return Path(os.environ.get("SPAMGPT_WORKSPACE") or PROJECT / "data").resolve()


def hub() -> str:
    """The address of Hugging Face, or of a copy of it."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
