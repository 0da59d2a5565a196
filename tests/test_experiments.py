"""The grid of notebook 09: what is shared must not change what is found."""

import copy
import inspect
from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
import torch

from spamgpt import SEED, experiments
from spamgpt.__main__ import main
from spamgpt.batches import HiddenStates, data_loader
from spamgpt.experiments import (
    DEFAULT,
    FULL,
    GRID,
    GROUPS,
    KEY,
    METHODS,
    SETTING,
    TRAINED,
    Lab,
    Padded,
    Setting,
    accuracy,
    compare,
    difference,
    jobs,
    load_runs,
    part_of,
    recipe_for,
    recipe_runs,
    run_grid,
    runs_of,
    sentences,
    summary,
)
from spamgpt.files.workspace import SAMPLE
from spamgpt.inference import logits
from spamgpt.models.base import Base
from spamgpt.recipes import GPT2_RECIPE, POCKET_RECIPE, Recipe
from spamgpt.statistics import wilson_interval
from spamgpt.tasks import sms
from spamgpt.tasks.splits import at_prevalence, balance, group_split, random_split, stratified_split
from spamgpt.training import fit

RECIPE = Recipe(trained_blocks=1, learning_rate=3e-3, batch_size=8, epochs=1)


@pytest.fixture
def lab(make_classifier, pocket_tokenizer):
    """A tiny random model, and 60 messages of the sample."""
    sample = sms.load(SAMPLE)
    table = pd.concat([part[:30] for _, part in sample.groupby("label")])
    base = Base("tiny", make_classifier().transformer, pocket_tokenizer, RECIPE)
    return Lab(base, sms.TASK, table, "few")


def run(lab, setting, seed=SEED):
    return {k: v for k, v in lab.run(setting, seed).items() if k != "seconds"}


# --- runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [DEFAULT, Setting(weights="random"), Setting(split="groups")])
def test_one_seed_gives_one_result(setting, lab):
    torch.manual_seed(1)
    first = run(lab, setting)
    torch.manual_seed(2)  # what happened before has no say
    assert run(lab, setting) == first


@pytest.mark.parametrize("pooling", ["last", "mean", "position -1"])
@pytest.mark.parametrize("padding", ["batch", "context"])
def test_shared_states_give_the_result_that_token_ids_give(pooling, padding, lab, monkeypatch):
    setting, found = Setting(pooling=pooling, padding=padding), []
    monkeypatch.setattr(experiments, "fit", lambda *a, **o: (fit(*a, **o), found.append(a[0]))[0])
    lab.run(setting, SEED)
    assert lab._states
    lab._states.clear()
    monkeypatch.setattr(experiments, "MAX_CACHE", 0)
    lab.run(setting, SEED)
    assert not lab._states
    shared, alone = (classifier.state_dict() for classifier in found)
    for key in shared:
        torch.testing.assert_close(shared[key], alone[key], atol=1e-4, rtol=1e-3)


def test_a_run_leaves_the_base_model_as_it_was(lab):
    before = {key: value.clone() for key, value in lab.base.model.state_dict().items()}
    lab.run(Setting(trained="all"), SEED)
    assert all(torch.equal(before[k], v) for k, v in lab.base.model.state_dict().items())


def test_a_row_says_which_test_messages_were_wrong(lab):
    row = lab.run(Setting(method="majority"), SEED)
    splits = random_split(balance(lab.table, sms.LABEL_NAMES), sms.LABEL_NAMES)
    most = splits["train"]["target"].mode()[0]
    wrong = splits["test"]["target"] != most
    assert [int(i) for i in row["wrong"].split()] == np.flatnonzero(wrong).tolist()
    assert row["accuracy"] == pytest.approx(1 - wrong.mean(), abs=1e-4)


def test_the_lecture_split_of_the_grid_is_that_of_the_notebooks(lab):
    of_grid = Lab(lab.base, sms.TASK, sms.load(SAMPLE), "sample").split(DEFAULT, seed=7)
    for name, part in sms.TASK.split(sms.load(SAMPLE)).items():
        assert of_grid[name]["text"].tolist() == part["text"].tolist()
        assert of_grid[name]["target"].tolist() == part["target"].tolist()


def test_a_part_of_the_messages_is_as_balanced_as_the_whole():
    train = pd.DataFrame({"target": [0, 1] * 50, "text": "x"})
    part = part_of(train, 0.1, seed=1)
    assert part["target"].tolist().count(1) == 5 == len(part) - 5
    assert part_of(train, 0.1, seed=2).index.tolist() != part.index.tolist()


def test_fewer_messages_are_seen_more_often():
    assert recipe_for(POCKET_RECIPE, "all", 0.1).epochs == 10 * POCKET_RECIPE.epochs
    assert recipe_for(POCKET_RECIPE, "all", 0.01).epochs == 100
    assert recipe_for(POCKET_RECIPE, "recipe") == POCKET_RECIPE


@pytest.mark.parametrize(
    "draw", [balance, random_split, stratified_split, group_split, at_prevalence, data_loader, fit]
)
def test_one_place_sets_the_seed_of_everything(draw):
    assert inspect.signature(draw).parameters["seed"].default == SEED == 123  # the lecture's


# --- what fit is really given ---------------------------------------------------------


@pytest.fixture
def given(lab, monkeypatch):
    """given(setting) is what fit is called with in a run: recipe, names of what is trainable,
    dropout of the classifier, and the data."""

    def given(setting, recipe=GPT2_RECIPE):
        calls = []

        def record(classifier, train, validation, recipe, objective, **options):
            trainable = {n for n, p in classifier.named_parameters() if p.requires_grad}
            dropout = {m.p for m in classifier.modules() if isinstance(m, torch.nn.Dropout)}
            calls.append((recipe, trainable, dropout, train, options))

        monkeypatch.setattr(experiments, "fit", record)
        lab.base = replace(lab.base, recipe=recipe)
        lab.run(setting, SEED)
        (call,) = calls
        return call

    return given


HEAD = {"score.weight", "score.bias", "transformer.ln_f.weight", "transformer.ln_f.bias"}


def blocks_in(trainable):
    return {int(name.split(".")[2]) for name in trainable if name.startswith("transformer.h.")}


def test_the_grid_trains_by_the_lecture_s_recipe(given):
    recipe, trainable, dropout, _, options = given(DEFAULT)
    assert (recipe.epochs, recipe.batch_size) == (5, 8)
    assert (recipe.learning_rate, recipe.weight_decay) == (5e-5, 0.1)
    assert not recipe.lr_decay and recipe.embedding_lr is None and dropout == {0.0}
    assert blocks_in(trainable) == {2} and trainable >= HEAD
    assert len(trainable) == len(HEAD) + 12  # what a block has
    assert options["seed"] == SEED


@pytest.mark.parametrize(
    "trained, blocks, rate",
    [
        ("last block", {2}, 5e-5),
        ("head only", set(), 5e-5),
        ("head only, 10x rate", set(), 5e-4),
        ("last two blocks", {1, 2}, 5e-5),
        ("all", {0, 1, 2}, 5e-5),
    ],
)
def test_each_part_is_trained_alone_and_at_its_rate(trained, blocks, rate, given):
    recipe, trainable, *_ = given(Setting(trained=trained))
    assert recipe.learning_rate == pytest.approx(rate)
    assert blocks_in(trainable) == blocks
    assert trainable >= HEAD
    embeddings = {name for name in trainable if ".wte." in name or ".wpe." in name}
    assert bool(embeddings) is (trained == "all")
    if not blocks:
        assert trainable == HEAD


def test_the_recipe_of_the_base_model_is_followed_as_it_is(given):
    recipe, trainable, dropout, *_ = given(Setting(trained="recipe"), POCKET_RECIPE)
    assert recipe == POCKET_RECIPE
    assert blocks_in(trainable) == {0, 1, 2} and "transformer.wte.weight" in trainable
    assert dropout == {0.1}
    recipe, trainable, *_ = given(Setting(trained="last block"), POCKET_RECIPE)
    assert blocks_in(trainable) == {2} and "transformer.wte.weight" not in trainable


def test_random_weights_are_trained_whole_by_the_recipe(given):
    recipe, trainable, *_ = given(Setting(trained="recipe", weights="random"))
    assert recipe.trained_blocks is None
    assert blocks_in(trainable) == {0, 1, 2} and "transformer.wte.weight" in trainable


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("share, epochs", [(1.0, 5), (0.5, 10), (0.1, 50), (0.01, 100)])
def test_a_share_of_the_messages_is_seen_in_as_many_steps(trained, share, epochs, given):
    assert recipe_for(GPT2_RECIPE, trained, share).epochs == epochs
    if share in (0.5, 0.1):
        recipe, _, _, train, _ = given(Setting(trained=trained, share=share))
        assert recipe.epochs == epochs
        assert len(train) == pytest.approx(42 * share, abs=1)
        assert recipe.batch_size == min(8, len(train))


def test_pretrained_weights_are_trained_on_cached_states(given):
    assert isinstance(given(DEFAULT)[3], HiddenStates)
    assert given(DEFAULT)[3].n_blocks == 2
    assert given(Setting(trained="last two blocks"))[3].n_blocks == 1
    assert not isinstance(given(Setting(trained="all"))[3], HiddenStates)


# --- folds and worth ------------------------------------------------------------------


def test_folds_look_at_no_test_message(lab):
    """Every other message is judged by one of the five, and trained on in the four others."""
    setting = Setting(split="folds")
    splits = random_split(balance(lab.table, sms.LABEL_NAMES), sms.LABEL_NAMES)
    known = pd.concat([splits["train"], splits["validation"]])["text"]
    judged = []
    for seed in range(SEED, SEED + 5):
        found = lab.split(setting, seed)
        assert found["test"] is found["validation"]
        train, test = found["train"]["text"], found["test"]["text"]
        assert sorted([*train, *test]) == sorted(known)
        assert not set(train) & set(splits["test"]["text"])
        assert found["train"]["target"].mean() == pytest.approx(0.5, abs=0.1)
        judged += test.tolist()
    assert sorted(judged) == sorted(known)
    assert lab.split(setting, SEED + 5)["test"].equals(lab.split(setting, SEED)["test"])


@pytest.mark.parametrize("group", ["recipe, folds", "worth, 100%", "worth, 10%"])
def test_the_groups_that_choose_a_recipe_run_and_are_compared(group, lab, tmp_path):
    wanted = jobs([group], 2)
    runs = run_grid(lab, wanted, tmp_path / "runs.csv", progress=False)
    assert len(runs) == len(wanted)
    found = compare(runs, group)
    assert found.index.tolist() == list(GROUPS[group])
    assert found["accuracy"].between(0, 1).all()
    assert {"recipe", *METHODS} - {"majority"} <= set(found.index)
    assert set(runs["tested"]) == ({10} if "folds" in group else {12})
    assert summary(runs).loc[group].index.tolist() == found.index.tolist()


def test_the_grid_of_the_notebook_is_without_them():
    assert set(GROUPS) - set(GRID) == {
        *("recipe, folds", "worth, 100%", "worth, 25%", "worth, 10%", "worth, 5%")
    }


# --- padding --------------------------------------------------------------------------


@pytest.fixture
def short(lab):
    """The lab's messages; the longest fill 50 of the 64 tokens that the model reads."""
    messages = copy.copy(lab.messages)
    messages.ids = [ids[:50] for ids in messages.ids]
    assert max(map(len, messages.ids)) == 50
    return messages


def padded(messages, setting):
    """Messages as the lab pads them, to 64 tokens."""
    full, lengths = copy.copy(messages), [len(ids) for ids in messages.ids]
    full.ids = [ids + [full.pad_id] * (64 - len(ids)) for ids in messages.ids]
    return Padded(full, lengths, setting)


def of_batches(classifier, data):
    with torch.no_grad():
        return torch.cat([classifier(b.ids, b.lengths) for b in data_loader(data, 8)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("pooling", ["last", "position -1"])
@pytest.mark.parametrize("padding", ["batch", "longest", "context"])
def test_a_padded_batch_is_as_wide_as_the_setting_asks_for(padding, pooling, cached, short):
    lengths = [len(ids) for ids in short.ids]
    data = padded(short, Setting(padding=padding, pooling=pooling))
    if cached:
        states = [torch.ones(64, 16)] * len(lengths)
        full = HiddenStates(states, short.targets, 2)
        data = Padded(full, lengths, Setting(padding=padding, pooling=pooling))
    for k, batch in enumerate(data_loader(data, 8)):
        of_batch = lengths[8 * k : 8 * k + 8]
        width = {"batch": max(of_batch), "longest": max(lengths), "context": 64}[padding]
        assert batch[0].shape[:2] == (len(of_batch), width)
        expected = of_batch if pooling == "last" else [width] * len(of_batch)
        assert batch.lengths.tolist() == expected
        assert batch.targets.tolist() == short.targets[8 * k : 8 * k + 8]


@pytest.mark.parametrize("padding", ["batch", "longest", "context"])
def test_padding_changes_nothing_where_the_last_real_token_is_read(
    padding, short, trained_classifier
):
    found = of_batches(trained_classifier, padded(short, Setting(padding=padding)))
    expected = logits(trained_classifier, short)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", ["batch", "longest", "context"])
def test_position_minus_1_is_that_of_the_padded_batch(padding, short, trained_classifier):
    lengths = [len(ids) for ids in short.ids[:8]]
    width = {"batch": max(lengths), "longest": max(map(len, short.ids)), "context": 64}[padding]
    ids = torch.full((8, width), short.pad_id)
    for row, message in zip(ids, short.ids, strict=False):
        row[: len(message)] = torch.tensor(message)
    body = trained_classifier.transformer
    with torch.no_grad():
        expected = trained_classifier.score(body.hidden(ids)[:, -1])
    setting = Setting(padding=padding, pooling="position -1")
    found = of_batches(trained_classifier, padded(short, setting))[:8]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    alone = logits(trained_classifier, short.ids)[:8]
    assert (found - alone).abs().max() > 0.01  # it does matter here


# --- the grid -------------------------------------------------------------------------


def test_no_run_is_asked_for_twice():
    wanted = jobs(GROUPS, 3)
    assert len(set(wanted)) == len(wanted)
    assert {seed for _, seed in wanted} == {SEED, SEED + 1, SEED + 2}
    assert sum(setting == DEFAULT for setting, _ in wanted) == 3
    assert sum(setting == Setting(method="TF-IDF words") for setting, _ in wanted) == 1  # no chance


def test_an_unknown_group_is_refused_with_the_known(capsys):
    assert main(["experiments", "--only", "colour"]) == 1
    error = capsys.readouterr().err
    assert "colour" in error and "pooling" in error


def test_no_seed_at_all_is_refused(capsys):
    assert main(["experiments", "--seeds", "0"]) == 1
    assert "seeds = 0: at least one" in capsys.readouterr().err


def test_a_stopped_grid_continues_where_it_stopped(lab, tmp_path, monkeypatch):
    path, wanted = tmp_path / "grid" / "runs.csv", jobs(["pooling"], 2)
    do, done = lab.run, []

    def run_and_stop(setting, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((setting, seed))
        return do(setting, seed)

    monkeypatch.setattr(lab, "run", run_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_grid(lab, wanted, path, progress=False)
    assert len(load_runs(path)) == 3
    monkeypatch.setattr(lab, "run", lambda *job: done.append(job) or do(*job))
    runs = run_grid(lab, wanted, path, progress=False)
    assert sorted(map(str, done)) == sorted(map(str, wanted))  # each once
    assert len(runs) == len(load_runs(path)) == 8
    assert list(zip(runs["pooling"], runs["seed"], strict=True)) == [
        (setting.pooling, seed) for setting, seed in wanted
    ]
    again = run_grid(lab, wanted, path, progress=False)  # from the file alone
    assert summary(again).equals(summary(runs))
    assert len(done) == 8
    assert [file.name for file in path.parent.iterdir()] == ["runs.csv"]


def test_another_base_model_or_number_of_epochs_is_another_run(lab, tmp_path):
    path, wanted = tmp_path / "runs.csv", jobs(["weights, last block trained"], 1)
    run_grid(lab, wanted, path, progress=False)
    lab.base = replace(lab.base, recipe=replace(RECIPE, epochs=2))
    run_grid(lab, wanted, path, progress=False)
    assert load_runs(path)["epochs"].tolist() == [1] * len(wanted) + [2] * len(wanted)


def test_a_file_of_something_else_is_refused_and_left_alone(lab, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv lacks the columns"):
        run_grid(lab, jobs(["pooling"], 1), path, progress=False)
    assert path.read_text() == "a,b\n1,2\n"


def test_runs_that_were_stored_before_version_0_2_are_read_and_not_done_again(
    lab, tmp_path, monkeypatch
):
    """There, `pooling` was called `read`."""
    path, wanted = tmp_path / "runs.csv", jobs(["pooling"], 1)
    runs = run_grid(lab, wanted, path, progress=False)
    stored = pd.read_csv(path, keep_default_na=False).rename(columns={"pooling": "read"})
    stored.to_csv(path, index=False)
    assert load_runs(path)["pooling"].tolist() == ["last", "mean", "first", "position -1"]
    monkeypatch.setattr(lab, "run", lambda *job: pytest.fail("it was done again"))
    again = run_grid(lab, wanted, path, progress=False)
    assert summary(again).equals(summary(runs))


def test_the_command_runs_the_grid_and_keeps_it(tmp_path, capsys):
    path = tmp_path / "grid" / "runs.csv"
    command = ["experiments", "--only", "messages, TF-IDF characters", "--seeds", "2"]
    assert main([*command, "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "100%" in printed and "11 runs" in printed
    runs = load_runs(path)
    assert len(runs) == 11 and set(runs["data"]) == {"sample"}
    assert set(runs["messages"]) == {489, 245, 122, 49, 25, 5}


def test_the_bundled_runs_are_the_whole_grid_of_pocket_gpt():
    """Of the collection everything, of the sample the recipe; five seeds, none twice."""
    runs = load_runs(FULL)
    for data, groups in (("collection", GRID), ("sample", ["recipe"])):
        of_data = runs[runs["data"] == data]
        found = of_data[[*SETTING, "seed"]].apply(tuple, axis=1).tolist()
        wanted = [(*astuple(setting), seed) for setting, seed in jobs(groups, 5)]
        assert sorted(map(str, found)) == sorted(map(str, wanted))
        assert len(recipe_runs("pocket", data)) == 5


def test_the_bundled_runs_have_five_seeds_and_fit_the_recipe():
    runs = load_runs(FULL)
    assert set(runs["base"]) == {"pocket"} and set(runs["epochs"]) == {POCKET_RECIPE.epochs}
    assert not runs.duplicated(KEY).any()
    wrong = runs["wrong"].astype(str).str.split().str.len()
    assert (1 - wrong / runs["tested"]).tolist() == pytest.approx(runs["accuracy"], abs=1e-4)
    ours = recipe_runs("pocket", "collection")
    assert ours["seed"].tolist() == list(range(SEED, SEED + 5))
    assert ours["validation"].between(0.9, 1).all()
    assert recipe_runs("gpt2", "collection").empty


# --- what the runs say ----------------------------------------------------------------


def table(*runs, split="lecture", n=100, **setting):
    """Runs of one setting; each is given by the numbers of the messages that it got wrong."""
    found = []
    for seed, wrong in enumerate(runs):
        row = dict.fromkeys(KEY, "") | replace(Setting(split=split), **setting).__dict__
        row |= {"seed": seed, "messages": 10, "tested": n, "seconds": 1.0}
        found.append(row | {"accuracy": 1 - len(wrong) / n, "wrong": " ".join(map(str, wrong))})
    return pd.DataFrame(found)


def test_the_interval_of_one_run_is_wilson_s():
    assert accuracy(table([1, 2, 3])) == (0.97, *wilson_interval(97, 100))


def test_seeds_that_differ_widen_the_interval():
    (_, low, high), (_, lower, higher) = (
        accuracy(table(*runs)) for runs in ([[1, 2], [3, 4]], [[1], [2, 3, 4]])
    )
    assert lower < low < 0.98 < high < higher
    assert (low, high) == wilson_interval(98, 100)


def test_redrawn_test_sets_are_judged_by_their_spread_alone():
    mean, low, high = accuracy(table(range(10), range(11), range(12), split="groups"))
    half = 4.302652729911275 * 0.01 / 3**0.5  # Student's 97.5 % quantile, two degrees of freedom
    assert (mean, low, high) == pytest.approx((0.89, 0.89 - half, 0.89 + half))


def test_single_runs_on_other_test_messages_are_not_told_apart_by_a_message():
    one, other = table([1], split="groups"), table([1, 2], split="random")
    assert accuracy(one) == (0.99, *wilson_interval(99, 100))
    mean, low, high = difference(one, other)
    assert mean == pytest.approx(0.01)
    assert low < 0 < high < 0.08
    one_low, other_high = wilson_interval(99, 100)[0], wilson_interval(98, 100)[1]
    assert low == pytest.approx(0.01 - np.hypot(0.99 - one_low, other_high - 0.98))


def test_an_interval_stays_between_0_and_1():
    _, low, high = accuracy(table([], range(90)))  # two seeds that differ wildly
    assert (low, high) == (0, 1)


def test_a_difference_is_taken_message_by_message():
    reference = table(range(10))
    mean, low, high = difference(table(range(5)), reference)  # half of the same mistakes
    deviation = np.std([1] * 5 + [0] * 95, ddof=1)
    assert mean == pytest.approx(0.05)
    half = 1.959964 * deviation / 10
    assert (low, high) == pytest.approx((mean - half, mean + half))
    other = difference(table(range(50, 55)), reference)  # as many, but others
    assert other[0] == pytest.approx(0.05)
    assert other[1] < 0 < low


def test_compare_says_worse_or_better_only_where_the_interval_leaves_out_0():
    runs = pd.concat(
        [
            table(range(10), range(10)),
            table(range(40), range(40), pooling="first"),
            table(range(9), range(9), pooling="mean"),
        ]
    )
    found = compare(runs, "pooling")
    assert found.index.tolist() == ["last real token", "mean of the real tokens", "first token"]
    assert found["differs"].fillna("-").tolist() == ["-", "", "worse"]
    assert found["difference"].tolist()[1:] == pytest.approx([0.01, -0.3])
    assert len(runs_of(runs, Setting(pooling="first"))) == 2


def test_sentences_say_what_the_table_allows():
    runs = pd.concat(
        [table(range(10)), table(range(40), pooling="first"), table(range(9), pooling="mean")]
    )
    mean, first = sentences(compare(runs, "pooling")).splitlines()
    assert mean.startswith("mean of the real tokens: cannot be told from last real token, +1.0")
    assert first.startswith("first token: worse than last real token, -30.0 points (-39")
