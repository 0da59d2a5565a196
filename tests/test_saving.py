"""Save and load a classifier."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_texts import TEXTS
from randomize import randomize
from torch.testing import assert_close

from spamgpt.batches import encode, pad
from spamgpt.classifier import Classifier
from spamgpt.inference import classify, logits
from spamgpt.models.published import write_checkpoint
from spamgpt.saving import classifier_folder, load_classifier, save_classifier


def test_a_saved_classifier_comes_back_the_same(trained_classifier):
    save_classifier(trained_classifier, data="sample", epochs=3)
    loaded, facts = load_classifier()
    ids, lengths = pad(encode(TEXTS, loaded.tokenizer), 0)
    assert torch.equal(loaded(ids, lengths), trained_classifier(ids, lengths))
    assert facts == {"base": "pocket", "precision": "fp32", "data": "sample", "epochs": 3}
    assert loaded.label_names == ["ham", "spam"]
    assert not loaded.training
    assert classify(loaded, TEXTS) == classify(trained_classifier, TEXTS)


def test_the_positive_label_and_a_threshold_are_saved_with_it(trained_classifier):
    trained_classifier.positive = "spam"
    save_classifier(trained_classifier, data="sample")
    loaded, facts = load_classifier()
    assert (loaded.positive, loaded.threshold) == ("spam", None)
    loaded.set_threshold(0.9968)
    save_classifier(loaded, **facts)  # as notebook 08 does
    again, same_facts = load_classifier()
    assert (again.positive, again.threshold) == ("spam", 0.9968) and same_facts == facts
    assert not {"positive", "threshold"} & set(facts)


@pytest.mark.parametrize(
    "wrong", [{"positive": "eggs"}, {"threshold": 0.9}, {"positive": "spam", "threshold": "much"}]
)
def test_a_damaged_threshold_is_named_with_the_file(wrong, trained_classifier):
    folder = save_classifier(trained_classifier)
    config = json.loads((folder / "config.json").read_text())
    config["spamgpt"] |= wrong
    write_checkpoint(trained_classifier.state_dict(), config, folder)
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_classifier()


@settings(max_examples=10)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.sampled_from([1, 2, 4]),
    n_ctx=st.integers(8, 40),
    n_labels=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_any_classifier_gives_the_same_logits_after_saving(
    tmp_path_factory, make_classifier, n_layer, n_head, n_ctx, n_labels, seed
):
    body = make_classifier(seed, n_layer=n_layer, n_head=n_head, n_ctx=n_ctx).transformer
    names = [f"label {i}" for i in range(n_labels)]
    classifier = Classifier(body, make_classifier().tokenizer, names, "pocket").eval()
    randomize(classifier.score, seed)
    folder = save_classifier(classifier, tmp_path_factory.mktemp("saved"))
    loaded, _ = load_classifier(folder)
    sequences = [ids[:n_ctx] for ids in encode(TEXTS, classifier.tokenizer)]
    assert torch.equal(logits(loaded, sequences), logits(classifier, sequences))
    assert loaded.label_names == names


def test_more_than_ten_labels_keep_their_order(pocket_tokenizer, make_classifier, tmp_path):
    """JSON keys are text: "10" sorts before "2"."""
    body = make_classifier().transformer
    names = [f"label {i}" for i in range(12)]
    classifier = type(make_classifier())(body, pocket_tokenizer, names, "pocket")
    loaded, _ = load_classifier(save_classifier(classifier, tmp_path / "many"))
    assert loaded.label_names == names


def test_saving_twice_keeps_the_second(make_classifier, trained_classifier):
    save_classifier(make_classifier(), run=1)
    save_classifier(trained_classifier, run=2)
    loaded, facts = load_classifier()
    assert facts["run"] == 2
    assert torch.equal(loaded.score.weight, trained_classifier.score.weight)


def test_a_missing_classifier_names_the_notebook_that_makes_it():
    with pytest.raises(FileNotFoundError, match="06_finetune"):
        load_classifier()


def test_transformers_reads_the_saved_classifier(trained_classifier):
    folder = save_classifier(trained_classifier)
    theirs, info = transformers.GPT2ForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"score.bias"}  # theirs has no such thing
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    sequences = encode([t for t in TEXTS if t], trained_classifier.tokenizer)
    ids, lengths = pad(sequences, theirs.config.pad_token_id)
    with torch.no_grad():
        expected = theirs.eval()(ids).logits + trained_classifier.score.bias
        assert_close(trained_classifier(ids, lengths), expected, atol=1e-4, rtol=1e-4)


def test_the_classifier_is_kept_in_the_workspace(trained_classifier, workspace_folder):
    assert save_classifier(trained_classifier) == classifier_folder()
    assert classifier_folder().is_relative_to(workspace_folder)


def test_a_classifier_may_have_a_folder_of_its_own(trained_classifier, make_classifier, tmp_path):
    save_classifier(trained_classifier)
    own = save_classifier(make_classifier(), tmp_path / "own")
    assert own == tmp_path / "own"
    assert torch.equal(load_classifier()[0].score.weight, trained_classifier.score.weight)
    assert not load_classifier(own)[0].score.weight.any()


# --- how it reads, and in which precision ---------------------------------------------


@pytest.fixture
def folder(make_classifier):
    """Where a classifier that takes the mean is saved."""
    tiny = make_classifier()
    classifier = Classifier(tiny.transformer, tiny.tokenizer, ["ham", "spam"], "pocket", "mean")
    return save_classifier(classifier)


def rewrite(folder, change):
    """Change what config.json, and the copy in the header of the weights, say of the series."""
    from spamgpt.models.published import read_weights, write_weights

    config = json.loads((folder / "config.json").read_text())
    change(config["spamgpt"])
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    write_weights(read_weights(path), path, config=config)


def test_the_pooling_is_saved_with_it(folder):
    classifier, facts = load_classifier()
    assert classifier.pooling == "mean" and "pooling" not in facts


def test_the_pooling_of_an_older_file_is_known_by_its_old_name(folder):
    rewrite(folder, lambda ours: ours.update(read=ours.pop("pooling")))
    assert load_classifier()[0].pooling == "mean"


def test_files_that_do_not_name_the_pooling_read_the_last_token(folder):
    rewrite(folder, lambda ours: ours.pop("pooling"))
    assert load_classifier()[0].pooling == "last"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_of_its_training_is_a_fact_of_it(precision, make_classifier, monkeypatch):
    monkeypatch.setenv("SPAMGPT_PRECISION", precision)
    save_classifier(make_classifier())
    assert load_classifier()[1]["precision"] == precision


def test_that_its_weights_bear_int8_is_saved_with_it(make_classifier):
    classifier = make_classifier()
    folder = save_classifier(classifier)
    assert load_classifier()[0].bears_int8 is False
    classifier.bears_int8 = True
    save_classifier(classifier)
    loaded, facts = load_classifier()
    assert loaded.bears_int8 is True and "bears_int8" not in facts
    rewrite(folder, lambda ours: ours.pop("bears_int8"))  # as before there was int8
    assert load_classifier()[0].bears_int8 is False
