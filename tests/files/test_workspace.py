"""Writing to the workspace, naming paths, remembering choices."""

import errno
import io
import os
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from spamgpt.files import workspace as ws

# --- all or nothing -------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with ws.atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), ws.atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_survives_writing(tmp_path):
    content = {"text": "naïve 😀", "numbers": [1, 2.5], "none": None}
    ws.write_json(tmp_path / "a.json", content)
    assert ws.read_json(tmp_path / "a.json") == content


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    ws.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        ws.write_json(path, {"new": object()})
    assert ws.read_json(path) == {"old": 1}


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(workspace_folder):
    """There is a file where the folder should be: root may write to a read-only folder."""
    workspace_folder.write_bytes(b"")
    with pytest.raises(OSError) as error:
        ws.write_json(workspace_folder / "sms" / "source.json", {})
    said = str(error.value)
    assert said.startswith("source.json cannot be written to work/sms (")
    assert "set SPAMGPT_WORKSPACE to a folder of your own" in said and "Errno" not in said


def test_a_choice_that_cannot_be_written_down_stops_nobody(workspace_folder):
    workspace_folder.write_bytes(b"")
    ws.remember("base", "pocket", "no network")
    assert ws.chosen("base") is None


def test_a_file_in_place_of_the_workspace_is_called_one(workspace_folder):
    workspace_folder.write_bytes(b"")
    said = "work (work is a file, not a folder): make that folder writable, or set SPAMGPT_WORK"
    for use in (
        ws.check_writable,
        ws.forget_choices,
        lambda: ws.write_json(ws.workspace() / "a", {}),
    ):
        with pytest.raises(ws.WorkspaceError, match=re.escape(said)):
            use()


def test_a_folder_of_another_user_is_called_that(workspace_folder, monkeypatch):
    """root may write everywhere, so the system call is made to refuse."""
    workspace_folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: workspace_folder.stat().st_uid + 1)
    monkeypatch.setattr(Path, "touch", refuse(errno.EACCES, "Permission denied"))
    with pytest.raises(ws.WorkspaceError) as error:
        ws.write_json(workspace_folder / "a.json", {})
    owner = workspace_folder.owner()
    said = f"a.json cannot be written to work (work belongs to another user, {owner})"
    assert error.value.problem == said and error.value.errno == errno.EACCES
    assert str(error.value) == f"{said}: {error.value.remedy}"


def refuse(number, words):
    def call(*_, **__):
        raise OSError(number, words)

    return call


def test_a_read_only_file_system_is_called_that(workspace_folder, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EROFS, "Read-only file system"))
    with pytest.raises(ws.WorkspaceError, match=r"to work \(Read-only file system\): make that"):
        ws.check_writable()


def test_a_disk_that_fills_while_a_file_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    said = r"a\.txt cannot be written .*the disk is full.*free space"
    with pytest.raises(ws.WorkspaceError, match=said), ws.atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_error_while_a_file_is_written_stays_what_it_is(tmp_path):
    with pytest.raises(ConnectionResetError), ws.atomic(tmp_path / "a.txt"):
        raise ConnectionResetError("by the server")


def test_writing_is_really_tried_and_leaves_nothing(workspace_folder):
    ws.check_writable()
    assert list(workspace_folder.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_without_room_for_a_byte_cannot_be_written(workspace_folder, monkeypatch):
    """Making a file is no proof; /dev/full takes its place."""
    full = partial(open, "/dev/full", "wb")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full())
    with pytest.raises(ws.WorkspaceError, match=r"to work \(the disk is full: .*free space there"):
        ws.check_writable()


def test_a_folder_in_the_workspace_that_cannot_be_written_is_found(workspace_folder, monkeypatch):
    """Such as one that is left from a run as root."""
    (workspace_folder / "sms").mkdir(parents=True)
    real = tempfile.TemporaryFile

    def trial(dir):
        if dir.name == "sms":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", trial)
    with pytest.raises(
        ws.WorkspaceError, match=r"files cannot be written to work/sms \(Permission"
    ):
        ws.check_writable()


# --- paths ----------------------------------------------------------------------------


def test_the_environment_names_the_workspace(monkeypatch, tmp_path):
    monkeypatch.setenv("SPAMGPT_WORKSPACE", str(tmp_path / "here"))
    assert ws.workspace() == (tmp_path / "here").resolve()


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_setting_the_workspace_is_the_project_data_folder(setting, monkeypatch):
    monkeypatch.delenv("SPAMGPT_WORKSPACE")
    if setting is not None:
        monkeypatch.setenv("SPAMGPT_WORKSPACE", setting)
    assert ws.workspace() == ws.PROJECT / "data"


def test_a_path_in_the_project_is_shown_from_there_on():
    assert ws.show_path(ws.SAMPLE) == "data/bundled/sms_sample.tsv"


def test_a_path_is_never_shown_as_an_absolute_one(workspace_folder, tmp_path_factory):
    places = [ws.SAMPLE, workspace_folder / "sms" / "train.csv", workspace_folder, ws.PROJECT]
    places += [tmp_path_factory.mktemp("elsewhere") / "x.txt", Path("relative.txt")]
    for place in places:
        shown = ws.show_path(place)
        assert not Path(shown).is_absolute()
        assert str(Path.home()) not in shown and "/tmp" not in shown


def test_a_path_in_the_workspace_names_the_workspace(workspace_folder):
    assert ws.show_path(workspace_folder / "sms" / "train.csv") == "work/sms/train.csv"


# --- notices --------------------------------------------------------------------------


def test_a_notice_is_a_box_that_holds_every_word(capsys):
    text = "TITLE\n\nfirst line\n" + "a long line that has to be wrapped " * 5 + "\n" + "x" * 200
    ws.notice(text)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1  # a straight right border
    assert len(lines[0]) <= 80
    inner = [line.strip("│ ") for line in lines[1:-1]]
    assert "".join("".join(inner).split()) == "".join(text.split())
    assert inner[:3] == ["TITLE", "", "first line"]
    assert (lines[0][0], lines[-1][-1]) == ("┌", "┘")


@pytest.mark.parametrize(
    ("encoding", "corner", "umlaut", "dots"),
    [("ascii", "+", "?", "..."), ("cp1252", "+", "ü", "…"), ("cp437", "┌", "ü", "...")],
)
def test_every_terminal_shows_something_readable(encoding, corner, umlaut, dots, monkeypatch):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding=encoding, newline="\n"))
    ws.notice("für 12… \udcff " + "a word of a long line " * 10)
    ws.say("naïve …")
    sys.stdout.flush()
    *box, last = bytes_.getvalue().decode(encoding).splitlines()
    assert len(box) > 4 and {len(line) for line in box} == {80}
    assert box[0][0] == corner and box[1][2:].startswith(f"f{umlaut}r 12{dots} ? a word")
    assert last.endswith(f"ve {dots}")


def test_a_stream_of_python_without_an_encoding_shows_everything(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    ws.notice("für")
    assert "│ für" in stream.getvalue() and "┌" in stream.getvalue()


# --- choices --------------------------------------------------------------------------


def test_a_choice_is_remembered_until_it_is_forgotten():
    assert ws.chosen("base") is None
    ws.remember("base", "pocket", "no network")
    ws.remember("data", "sample", "no network either")
    assert ws.chosen("base") == {"name": "pocket", "reason": "no network"}
    assert ws.chosen("data")["name"] == "sample"
    ws.forget_choices()
    assert ws.chosen("base") is ws.chosen("data") is None
    ws.forget_choices()  # nothing to forget is no error


def test_a_later_choice_replaces_the_earlier():
    ws.remember("base", "pocket", "no network")
    ws.remember("base", "gpt2", "its files are here")
    assert ws.chosen("base")["name"] == "gpt2"


def test_choices_belong_to_a_workspace(monkeypatch, tmp_path):
    ws.remember("base", "pocket", "no network")
    monkeypatch.setenv("SPAMGPT_WORKSPACE", str(tmp_path / "other"))
    assert ws.chosen("base") is None


def test_a_damaged_file_of_choices_is_as_good_as_none(workspace_folder):
    workspace_folder.mkdir()
    (workspace_folder / "choices.json").write_text('{"base": ')
    assert ws.chosen("base") is None
    ws.remember("base", "pocket", "no network")
    assert ws.chosen("base")["name"] == "pocket"
