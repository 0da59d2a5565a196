"""Every figure draws, is labelled, shows its numbers, and can be read from the last row."""

import inspect
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from spamgpt import plots

MESSAGES = pd.DataFrame(
    {"label": ["ham"] * 30 + ["spam"] * 10, "text": ["x" * (5 + 3 * i) for i in range(40)]}
)
HISTORY = pd.DataFrame(
    {
        "epoch": [0.5, 1.0, 1.5, 2.0],
        "examples": [8, 16, 24, 32],
        "train_loss": [0.7, 0.5, 0.3, 0.2],
        "train_accuracy": [0.5, 0.7, 0.9, 0.95],
        "validation_loss": [0.69, 0.55, 0.4, 0.35],
        "validation_accuracy": [0.5, 0.65, 0.8, 0.9],
    }
)
COMPARED = pd.DataFrame(
    {
        "accuracy": [0.957, 0.750, 0.960],
        "low": [0.927, 0.698, 0.931],
        "high": [0.975, 0.796, 0.977],
        "difference": [np.nan, -0.207, 0.003],
        "differs": [np.nan, "worse", ""],
    },
    index=["last real token", "first token", "position -1"],
)
CURVE = pd.DataFrame(
    {
        "messages": [1045, 105, 10],
        "accuracy": [0.97, 0.93, 0.8],
        "low": [0.95, 0.9, 0.7],
        "high": [0.98, 0.95, 0.9],
    }
)
CALIBRATION = pd.DataFrame(
    {
        "said": [0.02, 0.5, 0.98],
        "share": [0.01, 0.6, 0.97],
        "low": [0, 0.2, 0.93],
        "high": [0.04, 0.9, 0.99],
        "n": [1140, 5, 150],
    }
)
SHARES = (np.array([0, 0.1, 1]), np.array([0, 0.9, 1]))
SPLITS = {"train": MESSAGES, "validation": MESSAGES[20:35], "test": MESSAGES[25:]}

# Function, its arguments before the title, and texts that the figure has to show.
FIGURES = [
    ("class_counts", [MESSAGES], ["ham", "spam", "30 (75.0%)", "10 (25.0%)"]),
    ("lengths", [MESSAGES], ["ham (median 48)", "spam (median 108)"]),
    ("split_sizes", [SPLITS], ["train", "30 ham", "10 spam", "validation", "test", "15"]),
    ("token_counts", [[3, 5, 8, 20, 44], 1024], ["mean 16.0", "longest 44", "1,024"]),
    ("padding", [{"to 120": (300, 900), "to batch": (300, 100)}], ["75% pads", "25% pads"]),
    ("ledger", [{"wte": 38_597_376, "head": 1538}], ["wte", "38,597,376", "1,538"]),
    ("candidates", [[" home", " now"], [0.6, 0.25]], ["' home'", "60.0%", "25.0%"]),
    ("change_by_position", [[0.0, 0.0, 2.0, 1.5], 2], ["replaced token"]),
    ("history", [HISTORY, "loss"], ["train", "validation", "messages seen"]),
    ("history", [HISTORY, "accuracy"], ["train", "validation", "messages seen"]),
    ("accuracies", [[("GPT-2", 0.957, 0.927, 0.975), ("ham", 0.5, 0.45, 0.55)]], ["95.7%"]),
    (
        "comparison",
        [COMPARED],
        ["first token", "75.0%", "−20.7 points", "+0.3 points, not told apart", "held against"],
    ),
    ("learning_curves", [{"GPT": CURVE, "TF-IDF": CURVE}], ["GPT", "TF-IDF", "1,045", "105"]),
    ("curve", [{"GPT": SHARES, "words": SHARES}, (0.1, 0.9), "x", "y"], ["GPT", "threshold 0.5"]),
    (
        "threshold_cost",
        [np.array([0.01, 0.5, 0.99]), {"all": np.array([9.0, 4.0, 7.0])}, 0.93],
        ["chosen: 0.93", "all"],
    ),
    ("calibration", [CALIBRATION], ["n = 1,140", "n = 5", "as it should be"]),
    ("token_effects", [[" free", " mum"], [0.31, -0.055]], ["' free'", "+31.0%", "−5.5%"]),
    ("confusion", [np.array([[148, 2], [11, 1139]]), ["ham", "spam"]], ["148", "1,139", "spam"]),
]


@pytest.fixture(params=FIGURES, ids=lambda f: f[0])
def drawn(request, monkeypatch):
    """(axes, all texts on paper, expected texts); drawn after the call, as a notebook does."""
    name, arguments, expected = request.param
    ax = getattr(plots, name)(*arguments, title="A title")
    draw, texts = Text.draw, set()  # ticks beyond the axes have a text, too, but don't draw it
    monkeypatch.setattr(Text, "draw", lambda t, renderer: (texts.add(t), draw(t, renderer))[1])
    ax.figure.canvas.draw()
    yield ax, [t for t in texts if t.get_text().strip()], expected
    plt.close("all")


def test_every_public_figure_is_tested_here():
    public = {
        name
        for name, f in inspect.getmembers(plots, inspect.isfunction)
        if f.__module__ == plots.__name__ and not name.startswith("_")
    }
    assert public == {name for name, *_ in FIGURES}


def test_a_figure_shows_its_numbers_and_names(drawn):
    ax, texts, expected = drawn
    assert isinstance(ax, Axes)
    shown = "\n".join(t.get_text() for t in texts)
    assert ax.get_title("left") == "A title"
    assert [text for text in expected if text not in shown] == []


def test_every_axis_says_what_it_is(drawn):
    """By a label, or by names instead of numbers at its ticks."""
    ax, *_ = drawn
    for axis in (ax.xaxis, ax.yaxis):
        ticks = [t.get_text() for t in axis.get_ticklabels() if t.get_text()]
        named = ticks and all(re.search("[A-Za-z]", tick) for tick in ticks)
        assert axis.get_label_text() or named


def test_type_is_large_enough_for_a_projector(drawn):
    _, texts, _ = drawn
    assert {t.get_text(): t.get_fontsize() for t in texts if t.get_fontsize() < 12} == {}


def test_no_text_is_cut_off_by_the_edge_of_the_figure(drawn):
    ax, texts, _ = drawn
    edge = ax.figure.bbox.padded(1)
    lost = [t.get_text() for t in texts if not edge.contains(*t.get_window_extent().min)]
    lost += [t.get_text() for t in texts if not edge.contains(*t.get_window_extent().max)]
    assert lost == []


def test_each_call_draws_a_new_figure_and_leaves_the_reader_settings_alone():
    before = dict(plt.rcParams)
    first, second = (plots.class_counts(MESSAGES, "t") for _ in range(2))
    assert first.figure is not second.figure
    assert dict(plt.rcParams) == before
    plt.close("all")


def test_ham_and_spam_keep_their_colours():
    ax = plots.class_counts(MESSAGES, "t")
    ham, spam = (patch.get_facecolor() for patch in ax.patches)
    assert matplotlib.colors.to_hex(ham) == plots.COLORS["ham"].lower()
    assert matplotlib.colors.to_hex(spam) == plots.COLORS["spam"].lower()
    plt.close("all")
