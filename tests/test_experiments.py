"""The grid of notebook 07: what is shared must not change what is found."""

import inspect
from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
import torch

from spamgpt import SEED, experiments, sms
from spamgpt.__main__ import main
from spamgpt.batching import data_loader
from spamgpt.evaluation import wilson_interval
from spamgpt.experiments import (
    DEFAULT,
    FULL,
    GROUPS,
    KEY,
    SETTING,
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
from spamgpt.pretrained import POCKET_RECIPE, Base, Recipe
from spamgpt.training import fit
from spamgpt.workspace import SAMPLE

RECIPE = Recipe(trained_blocks=1, learning_rate=3e-3, batch_size=8, epochs=1)


@pytest.fixture
def lab(make_classifier, pocket_tokenizer):
    """A tiny random model, and 60 messages of the sample."""
    sample = sms.load(SAMPLE)
    table = pd.concat([part[:30] for _, part in sample.groupby("label")])
    return Lab(Base("tiny", make_classifier().transformer, pocket_tokenizer, RECIPE), table, "few")


def run(lab, setting, seed=SEED):
    return {k: v for k, v in lab.run(setting, seed).items() if k != "seconds"}


# --- runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [DEFAULT, Setting(weights="random"), Setting(split="groups")])
def test_one_seed_gives_one_result(setting, lab):
    torch.manual_seed(1)
    first = run(lab, setting)
    torch.manual_seed(2)  # what happened before has no say
    assert run(lab, setting) == first


@pytest.mark.parametrize("read", ["last", "mean", "position -1"])
@pytest.mark.parametrize("padding", ["batch", "context"])
def test_shared_states_give_the_result_that_token_ids_give(read, padding, lab, monkeypatch):
    setting, found = Setting(read=read, padding=padding), []
    monkeypatch.setattr(experiments, "classes", lambda c, m: found.append(c) or np.zeros(len(m)))
    lab.run(setting, SEED)
    assert lab._states
    lab._states.clear()
    monkeypatch.setattr(experiments, "MAX_STATES", 0)
    lab.run(setting, SEED)
    assert not lab._states
    shared, alone = (classifier.state_dict() for classifier in found[::2])
    for key in shared:
        torch.testing.assert_close(shared[key], alone[key], atol=1e-4, rtol=1e-3)


def test_a_run_leaves_the_base_model_as_it_was(lab):
    before = {key: value.clone() for key, value in lab.base.model.state_dict().items()}
    lab.run(Setting(trained="all"), SEED)
    assert all(torch.equal(before[k], v) for k, v in lab.base.model.state_dict().items())


def test_a_row_says_which_test_messages_were_wrong(lab):
    row = lab.run(Setting(method="always ham"), SEED)
    test = sms.random_split(sms.balance(lab.table))["test"]
    assert [int(i) for i in row["wrong"].split()] == np.flatnonzero(test["target"]).tolist()
    assert row["accuracy"] == pytest.approx(1 - test["target"].mean(), abs=1e-4)


def test_the_lecture_split_of_the_grid_is_that_of_the_notebooks(lab):
    for name, part in sms.random_split(sms.balance(sms.load(SAMPLE))).items():
        of_grid = Lab(lab.base, sms.load(SAMPLE), "sample").split(DEFAULT, seed=7)[name]
        assert of_grid["text"].tolist() == part["text"].tolist()


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
    "draw", [sms.balance, sms.random_split, sms.group_split, sms.at_true_share, data_loader, fit]
)
def test_one_place_sets_the_seed_of_everything(draw):
    assert inspect.signature(draw).parameters["seed"].default == SEED == 123  # the lecture's


# --- padding --------------------------------------------------------------------------


def scores(classifier, messages):
    with torch.no_grad():
        return torch.cat([classifier(b.ids, b.lengths) for b in data_loader(messages, 8)])


@pytest.mark.parametrize("padding", ["batch", "longest", "context"])
def test_padding_changes_nothing_where_the_last_real_token_is_read(
    padding, lab, trained_classifier
):
    padded = Padded(lab.messages, 64, padding, "last")
    expected = trained_classifier.scores_of(lab.messages.ids)
    torch.testing.assert_close(scores(trained_classifier, padded), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", ["batch", "longest", "context"])
def test_position_minus_1_is_that_of_the_padded_batch(padding, lab, trained_classifier):
    messages = lab.messages
    lengths = [len(ids) for ids in messages.ids[:8]]
    width = {"batch": max(lengths), "longest": max(map(len, messages.ids)), "context": 64}[padding]
    ids = torch.full((8, width), messages.pad_id)
    for row, message in zip(ids, messages.ids, strict=False):
        row[: len(message)] = torch.tensor(message)
    body = trained_classifier.transformer
    with torch.no_grad():
        expected = trained_classifier.score(body.hidden(ids)[:, -1])
    found = scores(trained_classifier, Padded(messages, 64, padding, "position -1"))[:8]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    alone = trained_classifier.scores_of(messages.ids)[:8]
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
    assert "colour" in error and "token read" in error


def test_no_seed_at_all_is_refused(capsys):
    assert main(["experiments", "--seeds", "0"]) == 1
    assert "seeds = 0: at least one" in capsys.readouterr().err


def test_a_stopped_grid_goes_on_where_it_stopped(lab, tmp_path, monkeypatch):
    path, wanted = tmp_path / "runs.csv", jobs(["token read"], 2)
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
    assert runs[["read", "seed"]].apply(tuple, axis=1).tolist() == [(s.read, n) for s, n in wanted]
    again = run_grid(lab, wanted, path, progress=False)  # from the file alone
    assert summary(again).equals(summary(runs))
    assert len(done) == 8
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]


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
        run_grid(lab, jobs(["token read"], 1), path, progress=False)
    assert path.read_text() == "a,b\n1,2\n"


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
    for data, groups in (("collection", GROUPS), ("sample", ["recipe"])):
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
            table(range(40), range(40), read="first"),
            table(range(9), range(9), read="mean"),
        ]
    )
    found = compare(runs, "token read")
    assert found.index.tolist() == ["last real token", "mean of the real tokens", "first token"]
    assert found["differs"].fillna("-").tolist() == ["-", "", "worse"]
    assert found["difference"].tolist()[1:] == pytest.approx([0.01, -0.3])
    assert len(runs_of(runs, Setting(read="first"))) == 2


def test_sentences_say_what_the_table_allows():
    runs = pd.concat(
        [table(range(10)), table(range(40), read="first"), table(range(9), read="mean")]
    )
    mean, first = sentences(compare(runs, "token read")).splitlines()
    assert mean.startswith("mean of the real tokens: not told apart from last real token, +1.0")
    assert first.startswith("first token: worse than last real token, -30.0 points (-39")
