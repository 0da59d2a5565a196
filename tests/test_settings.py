"""Settings: read again each time, in one place, and nonsense is an error that names the choices."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from spamgpt import settings
from spamgpt.files.workspace import PROJECT

SOURCE = PROJECT / "src" / "spamgpt"


@pytest.mark.parametrize("value", ["fp16", "FP32", "1", " "])
def test_a_precision_that_does_not_exist_is_refused_with_the_choices(value, monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", value)
    with pytest.raises(ValueError, match=f"SPAMGPT_PRECISION={value}: choose one of") as error:
        settings.precision()
    assert all(name in str(error.value) for name in ("auto", *settings.PRECISIONS))


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_without_a_precision_the_package_decides(value, monkeypatch):
    monkeypatch.delenv("SPAMGPT_PRECISION")
    if value is not None:
        monkeypatch.setenv("SPAMGPT_PRECISION", value)
    assert settings.precision() is None


@pytest.mark.parametrize("name", settings.PRECISIONS)
def test_a_precision_that_exists_is_taken(name, monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", name)
    assert settings.precision() == name


def test_a_setting_that_is_changed_counts_from_then_on(monkeypatch, tmp_path):
    before = settings.workspace()
    monkeypatch.setenv("SPAMGPT_WORKSPACE", str(tmp_path / "other"))
    assert settings.workspace() == (tmp_path / "other").resolve() != before
    monkeypatch.setenv("SPAMGPT_BASE", "gpt2-xl")
    assert settings.base_name() == "gpt2-xl"
    monkeypatch.delenv("SPAMGPT_BASE")
    assert settings.base_name() == "auto"
    monkeypatch.setenv("HF_ENDPOINT", "https://copy.example/")
    assert settings.hub() == "https://copy.example"
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert settings.hub() == "https://huggingface.co"


# --- paths ----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's home, beside the folder that the program runs in."""
    folder = tmp_path / "home"
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    folder.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.mark.parametrize("name", ["SPAMGPT_WORKSPACE", "SPAMGPT_MIRROR"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ws", "here/ws"),
        ("./my ws", "here/my ws"),
        ("../ws", "ws"),
        ("~/ws", "home/ws"),
        ("~", "home"),
        ("$HOME/ws", "home/ws"),
        ("'{tmp}/a b'", "a b"),
        ('"~/a b"', "home/a b"),
        (" {tmp}/ws ", "ws"),
        ("file://{tmp}/a%20b", "a b"),
        ("file://localhost{tmp}/ws", "ws"),
        ("FILE:{tmp}/ws", "ws"),
        ("'ws", "here/'ws"),
    ],
)
def test_a_path_is_understood_as_a_shell_would(name, value, expected, home, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value.format(tmp=tmp_path))
    found = settings.workspace() if name == "SPAMGPT_WORKSPACE" else Path(settings.mirror())
    assert found.is_absolute()
    assert found.resolve() == (tmp_path / expected).resolve()


@pytest.mark.parametrize("value", ["http://lan:8000/x", "'https://lan/x'"])
def test_the_address_of_a_mirror_stays_one(value, monkeypatch):
    monkeypatch.setenv("SPAMGPT_MIRROR", value)
    assert settings.mirror() == value.strip("'")


@pytest.mark.parametrize("value", ["", "  ", "''"])
def test_an_empty_value_is_none(value, monkeypatch):
    for name in ("SPAMGPT_BASE", "SPAMGPT_MIRROR", "SPAMGPT_OFFLINE", "SPAMGPT_WORKSPACE"):
        monkeypatch.setenv(name, value)
    assert settings.workspace() == PROJECT / "data"
    assert (settings.mirror(), settings.base_name(), settings.offline()) == (None, "auto", False)


@pytest.mark.parametrize(
    ("value", "said"),
    [("~nobody-of-that-name/x", "no user of that name"), ("https://lan/x", "must be a folder")],
)
def test_a_workspace_that_cannot_be_a_folder_is_refused(value, said, monkeypatch):
    monkeypatch.setenv("SPAMGPT_WORKSPACE", value)
    with pytest.raises(ValueError, match=f"^SPAMGPT_WORKSPACE={re.escape(value)}: .*{said}"):
        settings.workspace()
    settings.settle()  # importing the package goes well all the same


SHOW = """
from spamgpt import settings
print(settings.workspace(), settings.mirror(), settings.certificates()[1], settings.hub_cache())
"""


def python(program, folder, **variables):
    """What a Python of its own prints that was started in `folder`."""
    env = {name: value for name, value in os.environ.items() if name != "REQUESTS_CA_BUNDLE"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=env | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def relative(home, tmp_path):
    """Variables with relative paths, and the line that SHOW prints with them in `home`'s folder."""
    (tmp_path / "elsewhere").mkdir()
    names = {
        "SPAMGPT_WORKSPACE": "ws",
        "SPAMGPT_MIRROR": "usb",
        "REQUESTS_CA_BUNDLE": "ca.pem",
        "HF_HUB_CACHE": "hub",
    }
    here = Path(os.path.realpath(tmp_path / "here"))
    return names, " ".join(str(here / name) for name in names.values())


def test_processes_that_inherit_a_relative_path_use_the_same_place(relative, tmp_path):
    """A process that imports the package in one folder starts another one elsewhere."""
    variables, expected = relative
    parent = f"""
import subprocess, sys
import spamgpt.settings
subprocess.run([sys.executable, "-c", {SHOW!r}], cwd={str(tmp_path / "elsewhere")!r}, check=True)
"""
    assert python(parent, tmp_path / "here", **variables).strip() == expected
    assert python(SHOW, tmp_path / "here", **variables).strip() == expected


@pytest.mark.skipif(os.name == "nt", reason="there, nothing says where Jupyter was started")
def test_a_notebook_that_is_opened_by_hand_uses_the_same_place(relative, tmp_path, monkeypatch):
    """Jupyter, which knows nothing of the package, starts the kernel in the notebook's folder."""
    variables, expected = relative
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    env = os.environ | variables | {"PWD": os.path.realpath(tmp_path / "here")}
    manager, client = start_new_kernel(cwd=str(tmp_path / "elsewhere"), env=env)
    printed = []
    try:
        client.execute_interactive(
            SHOW, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", ""))
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "".join(printed).strip() == expected


# --- online or not --------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "YES", "on", "'1'", " 1 "])
def test_offline(value, monkeypatch):
    monkeypatch.setenv("SPAMGPT_OFFLINE", value)
    assert settings.offline()


@pytest.mark.parametrize("value", ["2", "yse", "offline"])
def test_who_may_want_to_stay_offline_is_asked_and_not_connected(value, monkeypatch):
    monkeypatch.setenv("SPAMGPT_OFFLINE", value)
    with pytest.raises(ValueError, match=f"SPAMGPT_OFFLINE={value}: choose 1 .* or 0"):
        settings.offline()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_for_hugging_face(name, monkeypatch):
    assert not settings.hub_offline()
    monkeypatch.setenv(name, "1")
    assert settings.hub_offline()


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("hf-mirror.example", "https://hf-mirror.example"),
        ("localhost:8080/hf/", "https://localhost:8080/hf"),
        ("http://10.0.0.1", "http://10.0.0.1"),
        ("  ", "https://huggingface.co"),
    ],
)
def test_the_address_of_hugging_face_needs_no_scheme(value, address, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", value)
    assert settings.hub() == address


def test_hugging_faces_cache_is_where_its_own_library_looks(tmp_path):
    """huggingface_hub reads the variables when it is imported, hence in processes of their own."""
    program = """
from huggingface_hub.constants import HF_HUB_CACHE
from spamgpt import settings
assert str(settings.hub_cache()) == HF_HUB_CACHE, (settings.hub_cache(), HF_HUB_CACHE)
print(HF_HUB_CACHE)
"""
    variables, seen = {"HOME": str(tmp_path)}, set()
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        unset = (
            "import os\nos.environ.pop('HF_HUB_CACHE')\n" if "HF_HUB_CACHE" not in variables else ""
        )
        seen.add(python(unset + program, tmp_path, **variables))
        variables[name] = str(tmp_path / name)
    seen.add(python(program, tmp_path, **variables))
    assert len(seen) == 5


# --- the rules ------------------------------------------------------------------------


def environment_uses(path):
    """(line number, whether it only sets an entry) of each use of the environment in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    targets = {
        id(target.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Subscript)
    }
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            name = next((a.name for a in node.names if a.name in ("environ", "getenv")), None)
        if name in ("environ", "environb", "getenv"):
            yield node.lineno, id(node) in targets


def test_nothing_but_settings_reads_the_environment():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    assert list(environment_uses(SOURCE / "settings.py"))  # it does find them
    for path in files:
        name = path.relative_to(SOURCE).as_posix()
        if name == "settings.py":
            continue
        for line, sets in environment_uses(path):
            # tiktoken can be told its folder in no other way
            assert sets and name == "models/base.py", f"{name}:{line} reads the environment"


def test_every_setting_is_described():
    """In the module's docstring, and in the README."""
    text = (SOURCE / "settings.py").read_text(encoding="utf-8")
    names = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"SPAMGPT_[A-Z]+", node.value)
    }
    assert len(names) >= 5
    assert all(f"\n    {name} " in settings.__doc__ for name in names)
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if name not in readme] == []
