"""Settings: read again each time, in one place, and nonsense is an error that names the choices."""

import ast
import re

import pytest

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
