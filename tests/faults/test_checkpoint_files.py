"""Each way a saved model can be spoiled: what the learner reads, and that nothing is run."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spamgpt.__main__ import main
from spamgpt.batches import Messages
from spamgpt.files.workspace import PROJECT, read_json, write_json
from spamgpt.inference import classify
from spamgpt.models import published
from spamgpt.models.base import load_pocket
from spamgpt.models.gpt2 import GPT2, GPT2Config
from spamgpt.models.published import load_config, save_checkpoint
from spamgpt.recipes import Recipe
from spamgpt.resume import FILE, Checkpoint
from spamgpt.saving import load_classifier, save_classifier
from spamgpt.training import fit


@pytest.fixture
def saved(trained_classifier) -> Path:
    """The folder of a good classifier."""
    return save_classifier(trained_classifier, run=1)


FACTS = {"base": "pocket", "precision": "fp32"}  # what is saved with every classifier here


def failure(kind=ValueError) -> str:
    """What `load_classifier` raises, which is what the command line prints."""
    with pytest.raises(kind) as error:
        load_classifier()
    message = str(error.value)
    assert "\n" not in message
    assert str(Path.home()) not in message and "/tmp" not in message
    return message


def change_weights(folder: Path, change) -> None:
    """Write other tensors, as somebody else's program would: without our header."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(folder: Path, **entries) -> None:
    """Change config.json and the copy in the weights' header; None deletes an entry."""
    config = read_json(folder / "config.json") | entries
    config = {key: value for key, value in config.items() if value is not None}
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"config": json.dumps(config)})
    write_json(folder / "config.json", config)


# --- the weights ----------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_weights(kept, saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert re.search(
        r"model\.safetensors is not a readable safetensors file \(.+\): delete it, then fetch or "
        "train it again",
        failure(),
    )
    assert path.exists()  # nobody's file is deleted for them


@pytest.mark.parametrize("at", [0, 7, 30])
def test_corrupt_weights(at, saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "model.safetensors is not a readable safetensors file" in failure()


def test_weights_of_another_architecture(saved, make_classifier, tmp_path):
    other = save_classifier(make_classifier(n_embd=32), tmp_path / "other")
    save_file(load_file(other / "model.safetensors"), saved / "model.safetensors")
    message = failure()
    assert re.search(r"has shape \(\d+, 32\), the model needs \(\d+, 16\)", message)
    assert "train again with notebook 06_finetune" in message


def test_weights_that_lack_a_layer(saved):
    change_weights(saved, lambda tensors: tensors.pop("transformer.h.1.ln_1.bias"))
    assert "missing transformer.h.1.ln_1.bias" in failure()


def test_a_base_model_in_place_of_a_classifier(saved, trained_classifier):
    save_checkpoint(trained_classifier.transformer, saved)
    assert "does not describe a classifier of this series ('base' is missing" in failure()


def test_the_wrong_number_of_classes(saved):
    def third(tensors):
        tensors["score.weight"], tensors["score.bias"] = torch.zeros(3, 16), torch.zeros(3)

    change_weights(saved, third)
    assert "has weights for 3 labels, but its config.json names 2 (ham, spam)" in failure()


# --- pickles --------------------------------------------------------------------------


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_in_place_of_the_weights_is_refused_unread(save, saved, tmp_path):
    save({"score.weight": Bomb(tmp_path / "it ran")}, saved / "model.safetensors")
    message = failure()
    assert "model.safetensors is a pickle, which is never read here" in message
    assert "could run any program" in message
    assert not (tmp_path / "it ran").exists()


def test_a_damaged_file_is_not_called_a_pickle_whatever_the_length_of_its_header(tmp_path):
    """That length comes first, and may begin with the byte that pickles begin with."""
    path = tmp_path / "model.safetensors"
    for n in range(300):
        save_file({"x": torch.ones(1)}, path, {"name": "n" * n})
        if path.read_bytes()[0] == 0x80:
            break
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        published.read_weights(path)


def test_a_pickle_beside_missing_weights_is_named_and_not_read(tmp_path):
    save_checkpoint(GPT2(GPT2Config(1, 1, 8, 16, 50)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "it ran"), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"is missing; pytorch_model\.bin is a pickle"):
        load_pocket(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_nothing_here_can_unpickle():
    ways = r"import pickle|from pickle|torch\.load\((?!.*weights_only=True)|read_pickle|joblib"
    places = [("src", "*.py"), ("scripts", "*.py"), ("notebooks", "*.ipynb")]
    files = [path for folder, kind in places for path in (PROJECT / folder).rglob(kind)]
    assert len(files) > 20
    found = {path.name: re.findall(ways, path.read_text("utf-8")) for path in files}
    assert {name: words for name, words in found.items() if words} == {}


# --- config.json ----------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file(file, saved):
    (saved / file).unlink()
    assert re.search(rf"no trained classifier .*{file} is missing.*06_finetune", failure(OSError))


def test_a_base_model_without_config(tmp_path):
    save_checkpoint(GPT2(GPT2Config(1, 1, 8, 16, 50)), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: it says what"):
        load_pocket(tmp_path)


@pytest.mark.parametrize("content", ["", '{"n_layer": ', "[1, 2]", '{"spamgpt": 3}', "\x00"])
def test_a_damaged_config(content, saved):
    change_weights(saved, lambda tensors: None)
    (saved / "config.json").write_text(content)
    assert "config.json is damaged (" in failure()


@pytest.mark.parametrize("value", [None, "12", 0, -3, 1.5, True])
def test_a_config_that_is_no_architecture(value, saved):
    change_config(saved, n_layer=value)
    assert f"config.json does not describe a GPT-2: n_layer is {value!r}" in failure()


def test_a_config_that_asks_for_what_is_not_implemented(saved):
    change_config(saved, activation_function="relu")
    assert "does not compute: activation_function is 'relu', only 'gelu_new' or" in failure()


@pytest.mark.parametrize("entry", ["spamgpt", "id2label"])
def test_a_config_that_is_no_classifiers(entry, saved):
    change_config(saved, **{entry: None})
    assert f"does not describe a classifier of this series ('{entry}' is missing" in failure()


def test_a_base_model_that_does_not_exist(saved):
    change_config(saved, spamgpt={"base": "gpt9"})
    assert "no base model 'gpt9'" in failure()


def test_saved_by_a_newer_version(saved, monkeypatch, capsys):
    change_config(saved, spamgpt={"base": "pocket", "format": published.FORMAT + 1})
    assert main(["classify", "hello"]) == 1
    said = capsys.readouterr().err
    assert "was saved by a newer spamgpt (format 2; this one reads up to 1): update" in said


def test_saved_before_there_were_formats(saved):
    """Files without a number are the first format's, header or not."""
    change_weights(saved, lambda tensors: None)
    config = read_json(saved / "config.json")
    del config["spamgpt"]["format"]
    write_json(saved / "config.json", config)
    assert load_classifier()[1] == FACTS | {"run": 1}


@pytest.mark.parametrize("header", [True, False], ids=["with header", "without"])
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_saved_when_pooling_was_called_read(pooling, header, trained_classifier):
    """Versions before 0.2 wrote "read", and no precision; before that, neither."""
    trained_classifier.pooling = pooling
    folder = save_classifier(trained_classifier, run=1)
    older = {"base": "pocket", "format": 1, "run": 1}
    for ours in (older | {"read": pooling}, *([older] if pooling == "last" else [])):
        change_config(folder, spamgpt=ours)
        if not header:
            change_weights(folder, lambda tensors: None)
        loaded, facts = load_classifier()
        assert loaded.pooling == pooling
        assert facts == {"base": "pocket", "run": 1}
        texts = ["first message", "a second, longer one"]
        found, expected = (
            [p.probability for p in classify(c, texts)] for c in (loaded, trained_classifier)
        )
        assert found == pytest.approx(expected, abs=1e-6)


def test_an_unknown_pooling_is_refused(saved):
    change_config(saved, spamgpt={"base": "pocket", "pooling": "max"})
    assert "pooling = 'max': choose one of last, first, mean" in failure()


# --- an unfinished training of an older version ---------------------------------------


def test_an_unfinished_training_of_an_older_version_is_refused(
    make_classifier, workspace_folder, capsys, monkeypatch
):
    """Its fingerprint had other parts, so nobody could say whether it is of the same training."""
    recipe = Recipe(trained_blocks=1, learning_rate=1e-3, epochs=2)
    folder = workspace_folder / "training"

    def train(stop=False):
        classifier = make_classifier().prepare(recipe)
        messages = Messages(["a", "b"] * 8, [0, 1] * 8, classifier.tokenizer, 64)
        with monkeypatch.context() as patch:
            if stop:  # when the first epoch is kept and the second begins
                save = Checkpoint.save

                def save_and_stop(*args):
                    save(*args)
                    raise KeyboardInterrupt

                patch.setattr(Checkpoint, "save", save_and_stop)
            fit(classifier, messages, messages, recipe, progress=False, resume=folder)
        return classifier

    expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(stop=True)
    with safe_open(folder / FILE, "pt") as file:
        facts = json.loads(file.metadata()["training"])
    assert facts.pop("format") == 2
    save_file(load_file(folder / FILE), folder / FILE, metadata={"training": json.dumps(facts)})
    capsys.readouterr()
    found = train()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"work/training/{FILE} was kept by another version of spamgpt and cannot be continued: "
        "training starts from the beginning, and replaces it after its first epoch."
    ]
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)


# --- saving, interrupted --------------------------------------------------------------


class Killed(BaseException):
    """Nothing in the package may catch this."""


@pytest.mark.parametrize("step", ["before weights", "in weights", "before config"])
@pytest.mark.parametrize("n_embd", [16, 32], ids=["same shape", "other shape"])
def test_a_save_that_is_killed_leaves_the_old_or_the_new(
    step, n_embd, saved, make_classifier, trained_classifier, monkeypatch
):
    new = make_classifier(n_embd=n_embd, seed=5)

    def kill(*_, **__):
        raise Killed

    def half(tensors, path, **_):
        Path(path).write_bytes(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        if step == "before weights":
            patch.setattr(published, "write_weights", kill)
        elif step == "in weights":
            patch.setattr(published, "save_file", half)
        else:
            patch.setattr(published, "write_json", kill)
        with pytest.raises(Killed):
            save_classifier(new, run=2)
    loaded, facts = load_classifier()
    expected = new if step == "before config" else trained_classifier
    assert facts == FACTS | {"run": 2 if step == "before config" else 1}
    for key, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_base_model_whose_saving_was_killed_between_its_files(tmp_path, monkeypatch):
    small, large = GPT2Config(1, 1, 8, 16, 50), GPT2Config(2, 2, 16, 16, 50)
    save_checkpoint(GPT2(small), tmp_path)
    monkeypatch.setattr(published, "write_json", lambda *_: None)
    save_checkpoint(GPT2(large), tmp_path)
    assert load_config(tmp_path) == large  # config.json still is the small one's


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_keeps_the_former_classifier(saved, make_classifier, monkeypatch):
    def on_a_full_disk(tensors, path, **kwargs):
        with open("/dev/full", "wb") as file:
            try:
                file.write(safetensors.torch.save(tensors))
                file.flush()
            except OSError as error:  # as the library reports it
                raise safetensors.SafetensorError(f"I/O error: {error.strerror}") from None

    monkeypatch.setattr(published, "save_file", on_a_full_disk)
    with pytest.raises(OSError, match=r"could not be saved .*No space left.* before is kept"):
        save_classifier(make_classifier(), run=2)
    assert load_classifier()[1]["run"] == 1


def test_what_a_killed_process_left_is_cleared_by_the_next_save(saved, trained_classifier):
    gone = 2**22 + 1  # above the largest process id of Linux
    (saved / f".model.safetensors.{gone}.part").write_bytes(b"half")
    (saved / f".model.safetensors.{os.getppid()}.part").write_bytes(b"somebody is writing this")
    save_classifier(trained_classifier)
    names = [path.name for path in saved.iterdir() if path.name.endswith(".part")]
    assert names == [f".model.safetensors.{os.getppid()}.part"]
