"""What `pip install .` installs: a package that needs no checkout (slow: it is built once)."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest

from spamgpt.files.workspace import PROJECT
from spamgpt.saving import save_classifier

pytestmark = pytest.mark.slow

FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("src/spamgpt", "data/bundled", "notebooks")
UNWANTED = shutil.ignore_patterns("__pycache__", ".*")


def pip(*arguments, **options):
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, since building leaves folders behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(PROJECT / name, copy)
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, copy / name, ignore=UNWANTED)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    built = pip("wheel", source, "--no-deps", "--wheel-dir", folder, *here)
    if built.returncode and not here and "No matching distribution found" in built.stderr:
        pytest.skip("setuptools is neither installed nor to be had from the package index")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("spamgpt-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    assert pip("install", "--no-deps", "--target", folder, wheel).returncode == 0
    return folder


@pytest.fixture
def call(installed, tmp_path):
    """call(*arguments) runs Python with the installed package, from a folder of its own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments, **variables):
        environment = os.environ | {
            "PYTHONPATH": str(installed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        environment = {k: v for k, v in (environment | variables).items() if v is not None}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert list(elsewhere.iterdir()) == []
        return done

    return run


def files_below(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_module_every_notebook_and_every_bundled_file(source, wheel):
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("spamgpt/")}
    expected = {f"spamgpt/{name}" for name in files_below(source / "src" / "spamgpt")}
    for folder in FOLDERS[1:]:
        expected |= {f"spamgpt/{folder}/{name}" for name in files_below(source / folder)}
    assert "spamgpt/data/bundled/pocket-gpt/model.safetensors" in expected
    assert "spamgpt/notebooks/figures/roadmap.svg" in expected
    assert there == expected


def test_a_source_archive_makes_the_same_wheel(source, wheel, tmp_path):
    """The way by which `python -m build` and package indexes go."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("setuptools is not installed")
    make = "from setuptools.build_meta import build_sdist as b; import sys; b(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, tmp_path], cwd=source, check=True)
    (archive,) = tmp_path.glob("spamgpt-*.tar.gz")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    assert pip("wheel", archive, *options).returncode == 0
    names = [sorted(zipfile.ZipFile(w).namelist()) for w in (wheel, *tmp_path.glob("*.whl"))]
    assert names[0] == names[1]


def test_the_installed_package_finds_its_files_and_a_workspace_of_the_users(call, installed):
    """Neither in site-packages nor wherever one happens to be; shown so that it can be found."""
    script = """
from spamgpt.files.workspace import BUNDLED, show_path
from spamgpt.settings import workspace
print(BUNDLED, workspace(), show_path(workspace() / "runs"), sep="\\n")
"""
    bundled, folder, shown = call("-c", script, SPAMGPT_WORKSPACE=None).stdout.splitlines()
    assert bundled == str((installed / "spamgpt" / "data" / "bundled").resolve())
    assert os.path.isabs(folder) and "spamgpt" in folder
    assert not folder.startswith((str(installed.resolve()), str(PROJECT), os.getcwd()))
    assert os.path.expanduser(shown) == os.path.join(folder, "runs") and shown.startswith("~")


def test_doctor_runs_from_the_wheel(call):
    done = call("-m", "spamgpt", "doctor")
    assert done.returncode == 0, done.stdout
    assert "pocket" in done.stdout


def test_classify_runs_from_the_wheel(call, trained_classifier):
    save_classifier(trained_classifier)
    done = call("-m", "spamgpt", "classify", "You have won a prize")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("ham", "spam")


def test_a_notebook_runs_from_the_wheel_and_leaves_it_as_it_was(call, installed, workspace_folder):
    before = {name: (installed / name).read_bytes() for name in files_below(installed)}
    done = call("-m", "spamgpt", "run", "00")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (workspace_folder / "runs").iterdir()
    notebook = nbformat.read(folder / "00_finetuning_approaches.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert (folder / "report.html").is_file()
    assert {name: (installed / name).read_bytes() for name in files_below(installed)} == before
