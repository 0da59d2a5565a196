"""What takes the place of a file that cannot be had: the choice, its notice, its memory."""

import hashlib

import pytest

from spamgpt.files import assets
from spamgpt.files.assets import ASSETS, Asset
from spamgpt.files.stand_ins import Choice
from spamgpt.files.workspace import chosen, forget_choices

CHOICE = Choice(
    key="toy",
    real="the real one",
    stand_in="the small one",
    files=("first", "second"),
    notice="TOY: the small one replaces the real one.",
    consequence="It is smaller.",
)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """mirror(names…) has these of the two files."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("SPAMGPT_MIRROR", str(folder))
    for name in CHOICE.files:
        digest = hashlib.sha256(name.encode()).hexdigest()
        monkeypatch.setitem(ASSETS, name, Asset(name, digest, "CC0", mirror_names=(name,)))

    def put(*names):
        for name in names:
            (folder / name).write_text(name)

    return put


def test_the_real_thing_is_taken_in_silence_when_all_its_files_can_be_had(mirror, capsys):
    mirror("first", "second")
    assert CHOICE.decide() == "the real one"
    assert capsys.readouterr().out == ""
    assert chosen("toy")["name"] == "the real one"


@pytest.mark.parametrize("there", [(), ("first",), ("second",)])
def test_one_missing_file_is_enough_for_the_stand_in(there, mirror, capsys):
    mirror(*there)
    assert CHOICE.decide() == "the small one"
    said = capsys.readouterr().out
    missing = "second" if there == ("first",) else "first"
    assert CHOICE.notice in said and CHOICE.consequence in said
    assert f"{missing}: the mirror: no such file" in said
    assert "python -m spamgpt fetch" in said
    assert chosen("toy")["name"] == "the small one"


def test_the_stand_in_is_remembered_with_its_reason(mirror, capsys):
    assert CHOICE.remembered() is None
    CHOICE.decide()
    capsys.readouterr()
    assert "first: the mirror: no such file" in CHOICE.remembered()
    assert CHOICE.decide() == "the small one"
    words = capsys.readouterr().out.replace("│", "").split()  # without the box
    assert CHOICE.remembered() in " ".join(words)
    forget_choices()
    assert CHOICE.remembered() is None


def test_files_that_turn_up_later_are_used(mirror):
    assert CHOICE.decide() == "the small one"
    mirror("first", "second")
    assert CHOICE.remembered() is None
    assert CHOICE.decide() == "the real one"


@pytest.mark.parametrize("there", ["first", "second"])
def test_one_of_the_files_is_no_reason_to_ask_a_dead_network_again(there, mirror, monkeypatch):
    """Weights that another program has fetched, say, without the tokenizer."""
    CHOICE.decide()
    mirror(there)

    def asked(name):
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(assets, "fetch", asked)
    assert CHOICE.decide() == "the small one"


def test_choices_of_another_kind_do_not_matter(mirror):
    CHOICE.decide()
    other = Choice("other", "real", "small", CHOICE.files, "", "")
    assert other.remembered() is None
