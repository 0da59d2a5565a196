"""Every figure draws, is labelled, shows its numbers, and can be read from the last row."""

import inspect
import re
import warnings
from itertools import pairwise

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
HAM_SPAM, THREE = ["ham", "spam"], ["bad", "neutral", "good"]
SEVEN = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def messages_of(label_names):
    """Ten messages of the first label, twenty of the second, and so on; other lengths each."""
    labels = [name for i, name in enumerate(label_names, 1) for _ in range(10 * i)]
    texts = ["x" * (10 + 3 * i % 97) for i in range(len(labels))]
    return pd.DataFrame({"label": labels, "text": texts})


THIRDS, DAYS = messages_of(THREE), messages_of(SEVEN)

# A message with all that a label may trip over: dollars, spaces, a line break, a long word.
TOKENS = ["Win", " $5", " or", " $", "9", "\n", " cash", "!" * 40, " £", "   ", "�", "$$", " $_x$"]
DIVIDED = np.tril(np.ones((13, 13))) / np.arange(1, 14)[:, None]
HEADS = ["itself\n(h.0, head 1)", "the one before\n(h.3, head 0)", "the first\n(h.11, head 10)"]
WORDS, ROWS = [[" of"] * 9 + [" $_1$"]] * 13, [f"h.{i}" for i in range(13)]
LINE = np.ones(3)

# Function, its arguments before the title, and texts that the figure has to show.
FIGURES = [
    ("class_counts", [MESSAGES, HAM_SPAM], ["ham", "spam", "30 (75.0%)", "10 (25.0%)"]),
    ("lengths", [MESSAGES, HAM_SPAM], ["ham (median 48)", "spam (median 108)"]),
    (
        "split_sizes",
        [SPLITS, HAM_SPAM],
        ["train", "30 ham", "10 spam", "validation", "test", "15 = 5 ham + 10 spam"],
    ),
    ("class_counts", [THIRDS, THREE], [*THREE, "10 (16.7%)", "30 (50.0%)"]),
    ("lengths", [THIRDS, THREE], [f"{name} (median" for name in THREE]),
    (
        "split_sizes",
        [{"train": THIRDS, "test": THIRDS[25:]}, THREE],
        ["60 = 10 bad + 20 neutral + 30 good", "35 = 0 bad + 5 neutral + 30 good"],
    ),
    ("confusion", [np.diag([1234, 5, 6]), THREE], [*THREE, "1,234", "5", "6"]),
    ("class_counts", [DAYS, SEVEN], [*SEVEN, "70 (25.0%)"]),
    ("lengths", [DAYS, SEVEN], [f"{name} (median" for name in SEVEN]),
    ("split_sizes", [{"train": DAYS, "test": DAYS[25:]}, SEVEN], [*SEVEN, "280", "255"]),
    ("confusion", [np.arange(49).reshape(7, 7), SEVEN], [*SEVEN, "47", "48"]),
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
        ["first token", "75.0%", "−20.7 points", "+0.3 points, inconclusive", "the baseline"],
    ),
    ("learning_curves", [{"GPT": CURVE, "TF-IDF": CURVE}], ["GPT", "TF-IDF", "1,045", "105"]),
    ("curve", [{"GPT": SHARES, "words": SHARES}, (0.1, 0.9), "x", "y"], ["GPT", "threshold 0.5"]),
    (
        "threshold_cost",
        [np.array([0.01, 0.5, 0.99]), {"all": np.array([9.0, 4.0, 7.0])}, 0.93, "urgent"],
        ["chosen: 0.93", "all", "called urgent above"],
    ),
    (
        "calibration",
        [CALIBRATION, "urgent"],
        ["n = 1,140", "n = 5", "as it should be", "share that was urgent"],
    ),
    (
        "token_effects",
        [[" free", " mum"], [0.31, -0.055], "urgent"],
        ["' free'", "+31.0%", "−5.5%", "probability of urgent"],
    ),
    ("confusion", [np.array([[148, 2], [11, 1139]]), ["ham", "spam"]], ["148", "1,139", "spam"]),
    ("numbers", [np.eye(3, 60) - 0.5, TOKENS[:3], None, "number", "token"], ["Win", "·$5"]),
    ("numbers", [np.triu(DIVIDED), TOKENS, TOKENS, "looked at", "looks"], ["·cash", "↵", "!!…"]),
    ("attention", [np.tile(DIVIDED, (3, 1, 1)), TOKENS, HEADS], ["·cash", *HEADS, "100%"]),
    ("attention", [np.tile(DIVIDED, (6, 1, 1)), TOKENS, HEADS * 2], ["·$5", *HEADS]),
    ("residual_norms", [np.outer([4, 90, 210], range(1, 14)), TOKENS], ["first: Win", "·$_x$"]),
    ("residual_norms", [np.full((13, 13), 3000.5), TOKENS], ["first: Win", "last: ·$_x$", "12"]),
    ("logit_lens", [WORDS, np.eye(13, 10), ROWS, TOKENS[:10]], ["·of", "·$_1$", "h.12", "Win"]),
    ("lines", [np.arange(3), {"GELU": LINE, "ReLU": LINE}, "in", "out"], ["GELU", "ReLU"]),
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


def test_labels_are_taken_literally_and_do_not_overlap(drawn):
    """Two dollars would make matplotlib typeset what is between them, or fail at it."""
    ax, texts, _ = drawn
    assert [t.get_text() for t in texts if "$" in t.get_text() and t.get_parse_math()] == []
    for other in ax.figure.axes:
        for axis, side in ((other.xaxis, "x"), (other.yaxis, "y")):
            labels = [
                t for t in axis.get_ticklabels() if t.get_text() and t.get_rotation() % 90 == 0
            ]
            boxes = [getattr(t.get_window_extent(), f"interval{side}") for t in labels]
            spans = sorted(box.tolist() for box in boxes)
            assert all(b[0] > a[1] - 3 for a, b in pairwise(spans))  # pixels


def test_each_call_draws_a_new_figure_and_leaves_the_reader_settings_alone():
    before = dict(plt.rcParams)
    first, second = (plots.class_counts(MESSAGES, HAM_SPAM, "t") for _ in range(2))
    assert first.figure is not second.figure
    assert dict(plt.rcParams) == before
    plt.close("all")


def colours(ax):
    return [matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in ax.patches]


def test_a_label_keeps_its_colour_in_every_figure():
    first, second = plots.LABEL_COLORS[:2]
    assert (first, second) == (plots.BLUE, plots.ORANGE)
    assert colours(plots.class_counts(MESSAGES, HAM_SPAM, "t")) == [first, second]
    assert colours(plots.class_counts(MESSAGES, HAM_SPAM[::-1], "t")) == [first, second]
    assert colours(plots.split_sizes(SPLITS, HAM_SPAM, "t")) == [first] * 3 + [second] * 3
    assert set(colours(plots.lengths(MESSAGES, HAM_SPAM, "t"))) == {first, second}
    plt.close("all")


def test_seven_labels_have_seven_colours():
    assert len(set(colours(plots.class_counts(DAYS, SEVEN, "t")))) == 7
    plt.close("all")


def test_a_label_without_messages_is_drawn_as_none():
    ax = plots.class_counts(MESSAGES, ["ham", "spam", "rare"], "t")
    assert [patch.get_width() for patch in ax.patches] == [30, 10, 0]
    ax = plots.split_sizes(SPLITS, ["ham", "spam", "rare"], "t")
    assert "40 = 30 ham + 10 spam + 0 rare" in "".join(text.get_text() for text in ax.texts)
    plots.lengths(MESSAGES, ["ham", "spam", "rare"], "t").figure.canvas.draw()
    plt.close("all")


# --- texts of others ------------------------------------------------------------------

# A text that matplotlib would take for mathematics, and one that is odd otherwise.
PAIRS = [
    ("$$ cash $$", "\U0001f984"),
    ("$x^2$ off", "_hidden"),
    (r"a_{b \frac{1}", "שלום مرحبا"),
    (r"$\notacommand$", "a\0b\t\ud800 垃圾 a\u0301\u200d"),
    ("100 % _free_ ^ & #~", ""),
]


ONLY_ONE = "calibration"  # it shows the first alone


def with_texts(a, b):
    """Each figure that shows texts of others, with a and b as two of them."""
    table = MESSAGES.assign(label=[a] * 30 + [b] * 10)
    many = [a, b, *"cdefg"]
    yield "class_counts", [table, [a, b]]
    yield "lengths", [table, [a, b]]
    yield "lengths", [table, many]
    yield "split_sizes", [{a: table, b: table}, [a, b]]
    yield "split_sizes", [{a: table, b: table}, many]
    yield "confusion", [np.eye(2), [a, b]]
    yield "confusion", [np.eye(7), many]
    yield "padding", [{a: (300, 900), b: (300, 100)}]
    yield "ledger", [{a: 3, b: 4}]
    yield "candidates", [[a, b], [0.6, 0.25]]
    yield "accuracies", [[(a, 0.9, 0.8, 1.0), (b, 0.5, 0.4, 0.6)]]
    yield "comparison", [COMPARED.set_axis([a, b, "c"])]
    yield "learning_curves", [{a: CURVE, b: CURVE}]
    yield "curve", [{a: SHARES, b: SHARES}, (0.1, 0.9), a, b]
    costs = {a: np.array([9.0, 4.0, 7.0]), b: np.array([9.0, 4.0, 7.0])}
    yield "threshold_cost", [np.array([0.01, 0.5, 0.99]), costs, 0.93, a]
    yield "calibration", [CALIBRATION, a]
    yield "token_effects", [[a, b], [0.31, -0.055], a]


@pytest.mark.parametrize("maths, odd", PAIRS, ids=ascii)
def test_texts_of_others_are_shown_as_they_are(maths, odd, monkeypatch):
    """Drawn after the call, as a notebook does: no error, no warning, no formula, none missing."""
    draw, drawn = Text.draw, {}
    monkeypatch.setattr(Text, "draw", lambda t, r: (drawn.update({id(t): t}), draw(t, r))[1])
    for name, arguments in with_texts(maths, odd):
        drawn.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ax = getattr(plots, name)(*arguments, title=f"About {maths}{odd}")
            ax.figure.canvas.draw()
        assert not [t for t in drawn.values() if "$" in t.get_text() and t.get_parse_math()], name
        texts = [t.get_text() for t in drawn.values() if not t.get_text().startswith("About ")]
        for text in (maths, odd if odd in ("_hidden", "שלום مرحبا") else ""):
            shown = repr(text)[1:-1] if name in ("candidates", "token_effects") else text
            assert any(shown in t for t in texts) or (name == ONLY_ONE and text == odd), (
                name,
                texts,
            )
        plt.close("all")


def test_what_the_font_lacks_is_written_as_python_writes_it():
    ax = plots.class_counts(
        MESSAGES.assign(label=["a\0🦄"] * 30 + ["b"] * 10), ["a\0🦄", "b"], "T 垃 é\nnext line"
    )
    assert ax.get_yticklabels()[0].get_text() == r"a\x00\U0001f984"
    assert ax.get_title("left") == r"T \u5783 é" + "\nnext line"
    plt.close("all")


def test_a_font_that_has_the_character_is_used():
    """Somebody with another script sets a font that has it; here one with mathematical signs."""
    sign = "\ue000"  # for private use, and not in the first of these fonts
    fonts = ["DejaVu Serif", "STIXNonUnicode"]
    assert plots._literal(sign) == r"\ue000"
    with plt.rc_context({"font.family": fonts}):
        assert plots._literal(sign) == sign


def test_two_tokens_that_are_alike_are_two_bars():
    ax = plots.candidates([" free", " free"], [0.5, 0.25], "t")
    assert [patch.get_width() for patch in ax.patches] == [0.5, 0.25]
    assert [patch.get_y() for patch in ax.patches] == [-0.4, 0.6]
    plt.close("all")


def test_a_reader_may_use_mathematics_in_figures_of_their_own():
    plots.class_counts(MESSAGES, HAM_SPAM, "t")
    _, ax = plt.subplots()
    assert ax.set_title("$x^2$").get_parse_math()
    plt.close("all")


def test_a_label_without_messages_has_no_median():
    ax = plots.lengths(MESSAGES, ["ham", "spam", "rare"], "t")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["ham (median 48)", "spam (median 108)", "rare (no messages)"]
    plt.close("all")


@pytest.mark.parametrize(
    "table", [MESSAGES[:0], MESSAGES[:5].assign(text="")], ids=["none", "empty"]
)
def test_tables_with_nothing_in_them_are_drawn(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ax in (
            plots.class_counts(table, HAM_SPAM, "t"),
            plots.lengths(table, HAM_SPAM, "t"),
            plots.split_sizes({"train": table, "test": table[:0]}, HAM_SPAM, "t"),
        ):
            ax.figure.canvas.draw()
            assert "nan" not in "".join(text.get_text() for text in ax.findobj(Text))


# --- inside a model -------------------------------------------------------------------


def image_of(ax):
    """(the numbers of its picture, the colour of each of them as RGBA)."""
    (image,) = ax.images
    return image.get_array(), image.to_rgba(image.get_array())


def test_signed_numbers_are_white_at_zero_and_coloured_by_their_sign():
    values = np.array([[0.0, 1.0, -1.0, np.inf]])
    _, colours_of = image_of(plots.numbers(values, ["a"], None, "x", "y", "t"))
    expected = ("white", plots.ORANGE, plots.BLUE, plots.UNUSED)
    assert np.allclose(colours_of[0], matplotlib.colors.to_rgba_array(expected), atol=0.01)
    plt.close("all")


def test_an_outlier_does_not_make_the_other_numbers_pale():
    values = np.ones((10, 50))
    values[3, 7] = 3000  # the first token of GPT-2 has such a state
    _, colours_of = image_of(plots.numbers(values, list("abcdefghij"), None, "x", "y", "t"))
    assert colours_of[0, 0].tolist() == colours_of[3, 7].tolist()
    plt.close("all")


def test_two_figures_can_share_their_shades():
    values = [[0.1, 0.2]]
    alone = image_of(plots.numbers(values, ["a"], ["b", "c"], "x", "y", "t"))[1]
    shared = image_of(plots.numbers(values, ["a"], ["b", "c"], "x", "y", "t", largest=0.4))[1]
    beside = image_of(plots.numbers([[0.2, 0.4]], ["a"], None, "x", "y", "t", largest=0.4))[1]
    assert not np.allclose(alone[0, 1], shared[0, 1])
    assert np.allclose(shared[0, 1], beside[0, 0])
    plt.close("all")


def test_each_head_has_a_map_of_its_own_with_the_tokens_on_both_axes():
    weights = np.stack([np.eye(13), DIVIDED, np.eye(13)[::-1]])
    ax = plots.attention(weights, TOKENS, HEADS, "t")
    maps = [a for a in ax.figure.axes if a.images and a.get_xlabel() in HEADS]
    assert [a.get_xlabel() for a in maps] == HEADS
    for drawn_map, expected in zip(maps, weights, strict=True):
        assert np.array_equal(image_of(drawn_map)[0], expected)
        assert len(drawn_map.get_xticklabels()) == 13
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["Win", "·$5", "·or"]
    plt.close("all")


def test_the_lens_writes_each_word_into_its_cell():
    words = [["a", "b"], ["c", "d"], ["e", "f"]]
    ax = plots.logit_lens(words, np.array([[0.1, 0.9]] * 3), ["0", "1", "2"], [" x", "y"], "t")
    cells = {t.get_position(): (t.get_text(), t.get_color()) for t in ax.texts}
    assert [[cells[j, i][0] for j in range(2)] for i in range(3)] == words
    assert cells[0, 0][1] == "black" and cells[1, 0][1] == "white"  # on light, on dark
    plt.close("all")


def test_the_lens_keeps_each_word_within_its_cell():
    words = [["\u00b7" + letter * 12 for letter in "mWwil.Mx@8"]] * 13
    ax = plots.logit_lens(words, np.eye(13, 10), ROWS, words[0], "t")
    ax.figure.canvas.draw()
    cell = ax.bbox.width / 10
    header = ax.get_xticklabels()
    assert max(t.get_window_extent().width for t in [*ax.texts, *header]) < cell
    assert min(len(t.get_text()) for t in ax.texts) >= 4  # and as much of it as possible
    assert ax.texts[3].get_text() == words[0][3]  # twelve narrow letters fit
    plt.close("all")
