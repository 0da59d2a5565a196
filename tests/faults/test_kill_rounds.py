"""A few rounds of scripts/kill_rounds.py, and proof that it would see what must not be."""

import os
import subprocess
import sys

import pytest

if not hasattr(os, "fork"):
    pytest.skip("killed processes are forked", allow_module_level=True)

import kill_rounds

from spamgpt.files import assets
from spamgpt.files.workspace import PROJECT
from spamgpt.saving import classifier_folder


def test_killing_at_random_moments_leaves_no_wrong_or_unreadable_file():
    """In a Python of its own: torch cannot be forked once it has trained something."""
    script = PROJECT / "scripts" / "kill_rounds.py"
    done = subprocess.run(
        [sys.executable, script, "15"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 rounds in" in done.stdout and "VIOLATION" not in done.stdout
    for job in kill_rounds.JOBS:
        assert f"\n{job}" in done.stdout


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {})
    monkeypatch.setattr(assets, "_hub_url", None)
    kill_rounds.put_into_the_table("http://127.0.0.1:9")
    assets.cached("table").parent.mkdir(parents=True)


@pytest.mark.parametrize("content", [kill_rounds.TABLE[:-1], b"", b"x" * len(kill_rounds.TABLE)])
def test_it_sees_wrong_content_under_a_final_name(content, table):
    assets.cached("table").write_bytes(kill_rounds.TABLE)
    kill_rounds.check_fetched()
    assets.cached("table").write_bytes(content)
    with pytest.raises(kill_rounds.Violation, match="has its final name and wrong"):
        kill_rounds.check_fetched()


def test_it_sees_a_fetch_that_only_says_it_was_done(table):
    with pytest.raises(kill_rounds.Violation, match="reported as fetched"):
        kill_rounds.check_fetched(complete=True)
    assets.cached("table").write_bytes(kill_rounds.DAMAGE)
    with pytest.raises(kill_rounds.Violation, match="wrong content"):
        kill_rounds.check_fetched(complete=True)


def test_it_sees_half_a_classifier_a_mixture_and_one_of_another_run():
    kill_rounds.save_one(4)
    assert kill_rounds.check_saved(3, 4) == 4
    with pytest.raises(kill_rounds.Violation, match="of run 4, not of one of"):
        kill_rounds.check_saved(5)
    path = classifier_folder() / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(kill_rounds.Violation, match="is not of run 4"):
        kill_rounds.check_saved(4)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(kill_rounds.Violation, match="cannot be read"):
        kill_rounds.check_saved(4)


def test_it_sees_what_was_left_behind(tmp_path):
    (tmp_path / ".model.safetensors.7.part").touch()
    with pytest.raises(kill_rounds.Violation, match=r"left behind: \.model"):
        kill_rounds.check_tidy(tmp_path)
