"""Every figure of the notebooks: large type, colour-blind-safe colours, direct labels.

Each function draws into a new figure and returns its axes. Colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/); a label has the colour of its number, so that ham is
always blue and spam always orange.

Importing this module in a notebook makes figures appear in it, whatever MPLBACKEND says. Labels,
tokens and titles are shown as they are: none is read as mathematics, and a character that the
font does not have is written as Python would, such as \\U0001f600.
"""

from collections.abc import Iterable, Sequence
from functools import cache, wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
LABEL_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, GREY)
ON_DARK = {BLUE, GREEN, RED, GREY}  # white letters can be read on these
STYLE = {
    "figure.figsize": (10, 4.6),
    "figure.dpi": 100,
    "font.size": 14,
    "axes.titlesize": 16,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.5,
    "svg.hashsalt": "spamgpt",
    "text.parse_math": False,
    "text.usetex": False,
}
THOUSANDS = StrMethodFormatter("{x:,.0f}")
# As many decimals as the ticks need: 95%, 92.5%, −0.2%.
PERCENT = FuncFormatter(lambda share, _: f"{round(100 * share, 6) + 0.0:g}%".replace("-", "−"))


def _choose_backend() -> None:
    """Let a notebook show figures, even if the environment names a backend of files or windows.

    Now: chosen inside the first rc_context, Jupyter's backend would lose its setting
    "interactive" with it, and show the first figure only. `%matplotlib` still changes it later.
    """
    shell, backend = get_ipython(), plt.get_backend()
    shows = backend.lower() in ("inline", "nbagg", "widget", "ipympl") or ":" in backend
    if hasattr(shell, "kernel") and not shows:
        shell.run_line_magic("matplotlib", "inline")
    else:
        plt.switch_backend(backend)


_choose_backend()


def _style(function):
    """Draw the whole of a figure in the common style, its texts as they are."""

    @wraps(function)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            ax = function(*args, **kwargs)
            for text in ax.figure.findobj(Text):
                text.set_text(_literal(text.get_text(), text.get_weight()))
            return ax

    return styled


def _literal(text: str, weight: str | int = "normal") -> str:
    """`text`, with what the font cannot draw written as Python writes it in a string."""
    glyphs = _glyphs(weight, *plt.rcParams["font.family"])
    return "".join(
        c if c == "\n" or ord(c) in glyphs else c.encode("unicode_escape").decode() for c in text
    )


@cache
def _glyphs(weight: str | int, *families: str) -> frozenset[int]:
    """The code points that are in the fonts of these families."""
    fonts = [FontProperties(family=family, weight=weight) for family in families]
    return frozenset().union(*(get_font(findfont(font)).get_charmap() for font in fonts))


def _name_ticks(axis: Axis, names: Iterable[str]) -> None:
    """Names in place of 0, 1, 2 …

    Matplotlib's own ticks for names are made when the figure is drawn, and the style is over.
    """
    names = [_literal(str(name)) for name in names]
    axis.set_ticks(range(len(names)), names)


def _axes(title: str, xlabel: str, ylabel: str) -> Axes:
    """The axes of a new figure."""
    _, ax = plt.subplots(layout="constrained")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def _colors(label_names: Sequence[str]) -> dict[str, str]:
    """A colour for each label; beyond the eighth they repeat."""
    return {name: LABEL_COLORS[i % len(LABEL_COLORS)] for i, name in enumerate(label_names)}


def _legend_name(name: str) -> str:
    """A legend leaves out a name that starts with an underscore."""
    return f" {name}" if name.startswith("_") else name


@_style
def class_counts(table: pd.DataFrame, label_names: Sequence[str], title: str) -> Axes:
    """How many messages of each label, with share."""
    ax = _axes(title, "messages", "")
    ax.figure.set_figheight(max(4.6, 1.4 + 0.6 * len(label_names)))
    counts = table["label"].value_counts().reindex(list(label_names), fill_value=0)
    bars = ax.barh(range(len(counts)), counts, color=list(_colors(label_names).values()))
    labels = [f" {n:,} ({n / max(counts.sum(), 1):.1%})" for n in counts]
    ax.bar_label(bars, labels)
    _name_ticks(ax.yaxis, counts.index)
    ax.set_xlim(0, max(counts.max(), 1) * 1.25)
    ax.xaxis.set_major_formatter(THOUSANDS)
    ax.invert_yaxis()
    return ax


@_style
def lengths(table: pd.DataFrame, label_names: Sequence[str], title: str) -> Axes:
    """Distribution of message lengths in characters, by label."""
    ax = _axes(title, "characters in a message", "share of the label's messages")
    sizes = table["text"].str.len()
    longest = max(sizes.quantile(0.995), 1) if len(sizes) else 1  # the few above are left out
    bins = np.arange(0, longest + 10, 10)
    filled = len(label_names) == 2  # more of them would hide each other
    for label, color in _colors(label_names).items():
        chosen = sizes[table["label"] == label]
        median = f"median {chosen.median():.0f}" if len(chosen) else "no messages"
        ax.hist(
            chosen,
            bins=bins,
            weights=np.full(len(chosen), 1 / max(len(chosen), 1)),
            color=color,
            alpha=0.65 if filled else 1,
            histtype="bar" if filled else "step",
            linewidth=0 if filled else 2.5,
            label=_legend_name(f"{label} ({median})"),
        )
    ax.yaxis.set_major_formatter(PERCENT)
    ax.legend(frameon=False)
    return ax


@_style
def split_sizes(splits: dict[str, pd.DataFrame], label_names: Sequence[str], title: str) -> Axes:
    """One bar a set, divided by label; the counts are behind it, where they always fit."""
    ax = _axes(title, "messages", "")
    colors, few = _colors(label_names), len(label_names) <= 3
    counts = pd.DataFrame({name: part["label"].value_counts() for name, part in splits.items()}).T
    counts = counts.reindex(columns=list(label_names)).fillna(0).astype(int)
    totals, left = counts.sum(axis=1), 0 * counts.sum(axis=1)
    longest = int(totals.argmax())
    rows = range(len(counts))
    for label, color in colors.items():
        ax.barh(rows, counts[label], left=left, color=color, label=_legend_name(label))
        if few and counts[label].iloc[longest] > 0.12 * totals.max():  # serves for all bars
            ink = "white" if color in ON_DARK else "black"
            middle = left.iloc[longest] + counts[label].iloc[longest] / 2
            ax.text(middle, longest, label, color=ink, ha="center", va="center")
        left = left + counts[label]
    for y, (name, total) in enumerate(totals.items()):
        parts = " + ".join(f"{counts[label][name]:,} {label}" for label in label_names)
        ax.text(total, y, f"  {total:,} = {parts}" if few else f"  {total:,}", va="center")
    if not few:
        ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                         frameon=False)  # fmt: skip
    _name_ticks(ax.yaxis, counts.index)
    wide = 1.5 + 0.3 * (len(label_names) - 2) if few else 1.2
    ax.set_xlim(0, max(totals.max(), 1) * wide)
    ax.xaxis.set_major_formatter(THOUSANDS)
    ax.invert_yaxis()
    return ax


@_style
def token_counts(counts: Sequence[int], n_ctx: int, title: str) -> Axes:
    """Histogram of tokens per message, with mean and longest marked."""
    ax = _axes(title, f"tokens in a message (the model reads up to {n_ctx:,})", "messages")
    longest, mean = max(counts), float(np.mean(counts))
    ax.hist(counts, bins=range(0, longest + 4, 3), color=BLUE)
    top = ax.get_ylim()[1]
    for x, text, align in (
        (mean, f"mean {mean:.1f} ", "left"),
        (longest, f"longest {longest} ", "right"),
    ):
        ax.axvline(x, color=RED, linestyle="--")
        ax.text(x, top, f" {text}", color=RED, ha=align, va="top")
    return ax


@_style
def padding(widths: dict[str, tuple[int, int]], title: str) -> Axes:
    """Real tokens and pads under each way of padding: name -> (real, pads)."""
    ax = _axes(title, "tokens the model computes (solid: real, hatched: pads)", "")
    names = list(widths)
    real = np.array([widths[name][0] for name in names])
    pads = np.array([widths[name][1] for name in names])
    ax.barh(range(len(names)), real, color=BLUE)
    ax.barh(range(len(names)), pads, left=real, color="white", edgecolor=GREY, hatch="///")
    _name_ticks(ax.yaxis, names)
    for y, (r, p) in enumerate(zip(real, pads, strict=True)):
        ax.text(r + p, y, f"  {p / (r + p):.0%} pads", va="center")
    ax.set_xlim(0, (real + pads).max() * 1.2)
    ax.xaxis.set_major_formatter(THOUSANDS)
    ax.invert_yaxis()
    return ax


@_style
def ledger(counts: dict[str, int], title: str, highlight: Sequence[str] = ()) -> Axes:
    """Parameters of each part, as bars; those in `highlight` stand out."""
    ax = _axes(title, "parameters", "")
    colors = [ORANGE if name in highlight else BLUE for name in counts]
    bars = ax.barh(range(len(counts)), list(counts.values()), color=colors)
    _name_ticks(ax.yaxis, counts)
    ax.bar_label(bars, [f" {n:,}" for n in counts.values()])
    ax.set_xlim(0, max(counts.values()) * 1.25)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.invert_yaxis()
    return ax


@_style
def candidates(words: Sequence[str], probabilities: Sequence[float], title: str) -> Axes:
    """The most probable next tokens."""
    ax = _axes(title, "probability", "next token")
    bars = ax.barh(range(len(words)), probabilities, color=BLUE)
    _name_ticks(ax.yaxis, map(repr, words))
    ax.bar_label(bars, [f" {p:.1%}" for p in probabilities])
    ax.set_xlim(0, max(probabilities) * 1.2)
    ax.xaxis.set_major_formatter(PERCENT)
    ax.invert_yaxis()
    return ax


@_style
def change_by_position(change: Sequence[float], changed: int, title: str) -> Axes:
    """How far each position's hidden state moved when token `changed` was replaced."""
    ax = _axes(title, "position of the token", "change of the hidden state")
    colors = [RED if i == changed else BLUE for i in range(len(change))]
    ax.bar(range(len(change)), change, color=colors)
    ax.annotate(
        "replaced token",
        (changed, change[changed]),
        (changed - 0.2, max(change) * 1.08),
        color=RED,
        ha="right",
    )
    ax.set_ylim(0, max(change) * 1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


@_style
def history(table: pd.DataFrame, quantity: str, title: str) -> Axes:
    """Training and validation curves of "loss" or "accuracy" against epochs and examples."""
    ax = _axes(title, "epoch", "cross-entropy (nats)" if quantity == "loss" else quantity)
    last = table.iloc[-1]
    above = "train" if last[f"train_{quantity}"] > last[f"validation_{quantity}"] else "validation"
    both = table[[f"train_{quantity}", f"validation_{quantity}"]]
    close = both.iloc[-1].max() - both.iloc[-1].min() < 0.1 * (both.max().max() - both.min().min())
    shift = 9 if close else 0  # points; labels at the end of their lines, unless they would meet
    for part, color, marker in (("train", BLUE, "o"), ("validation", RED, "s")):
        values = table[f"{part}_{quantity}"]
        ax.plot(table["epoch"], values, color=color, marker=marker, markersize=6)
        ax.annotate(
            f" {part}",
            (table["epoch"].iloc[-1], values.iloc[-1]),
            color=color,
            va="center",
            xytext=(6, shift if part == above else -shift),
            textcoords="offset points",
        )
    if quantity == "accuracy":
        ax.yaxis.set_major_formatter(PERCENT)
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlim(0, table["epoch"].max() * 1.14)
    per_epoch = table["examples"].iloc[-1] / table["epoch"].iloc[-1]
    top = ax.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda n: n / per_epoch))
    top.set_xlabel("messages seen")
    top.xaxis.set_major_formatter(THOUSANDS)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title, pad=14)
    return ax


@_style
def accuracies(rows: Sequence[tuple[str, float, float, float]], title: str) -> Axes:
    """(name, accuracy, low, high): a point and a 95 % interval a row."""
    ax = _axes(title, "accuracy, with 95 % interval", "")
    ax.figure.set_figheight(max(4.6, 1.4 + 0.65 * len(rows)))
    for y, (_, value, low, high) in enumerate(rows):
        _interval(ax, y, value, low, high, BLUE)
    _name_ticks(ax.yaxis, [name for name, *_ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.7)
    ax.xaxis.set_major_formatter(PERCENT)
    return ax


@_style
def confusion(matrix: np.ndarray, label_names: Sequence[str], title: str) -> Axes:
    """Confusion matrix: true labels in rows, predicted in columns."""
    ax = _axes(title, "predicted label", "true label")
    n_labels = len(label_names)
    ax.figure.set_figheight(max(4.6, 1.6 + 0.7 * n_labels))
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=max(matrix.max(), 1) * 1.3)
    for (i, j), n in np.ndenumerate(matrix):
        color = "white" if n > matrix.max() / 2 else "black"
        size = 22 if n_labels <= 3 else 14
        ax.text(j, i, f"{n:,}", ha="center", va="center", fontsize=size, color=color)
    for axis in (ax.xaxis, ax.yaxis):
        _name_ticks(axis, label_names)
    if n_labels > 3:
        plt.setp(ax.get_xticklabels(), rotation=35, ha="right")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


@_style
def comparison(table: pd.DataFrame, title: str) -> Axes:
    """What `experiments.compare` found: accuracy with interval, beside it the difference.

    The first row, in blue, is the baseline: green is better than it, orange-red worse, and grey
    is inconclusive.
    """
    ax = _axes(title, "test accuracy, with 95 % interval", "")
    ax.figure.set_figheight(1.9 + 0.62 * len(table))
    right = table["high"].max()
    span = max(right - table["low"].min(), 0.02)
    verdicts = {"better": GREEN, "worse": RED, "": GREY}
    for y, (_, row) in enumerate(table.iterrows()):
        color = BLUE if y == 0 else verdicts[row["differs"]]
        _interval(ax, y, row["accuracy"], row["low"], row["high"], color)
        note = "the baseline"
        if y:
            gain = 100 * row["difference"]
            note = f"{gain:+.1f} points" + ("" if row["differs"] else ", inconclusive")
        ax.text(right + 0.05 * span, y, note.replace("-", "−"), color=color, va="center")
    ax.set_xlim(table["low"].min() - 0.05 * span, right + 0.75 * span)
    ax.set_xticks([x for x in MaxNLocator(8).tick_values(*ax.get_xlim()) if x <= 1.0001])
    ax.set_xlim(table["low"].min() - 0.05 * span, right + 0.75 * span)
    _name_ticks(ax.yaxis, table.index)
    ax.set_ylim(len(table) - 0.5, -0.7)
    ax.xaxis.set_major_formatter(PERCENT)
    return ax


def _interval(ax: Axes, y: float, value: float, low: float, high: float, color: str) -> None:
    """A point with its interval, and its value above it."""
    error = [[value - low], [high - value]]
    ax.errorbar(value, y, xerr=error, fmt="o", color=color, capsize=6, markersize=9)
    ax.text(value, y - 0.18, f"{value:.1%}", ha="center", va="bottom")


@_style
def learning_curves(curves: dict[str, pd.DataFrame], title: str) -> Axes:
    """Accuracy with 95 % interval against training messages, a line for each method.

    Each table has the columns messages, accuracy, low and high.
    """
    ax = _axes(title, "training messages", "test accuracy")
    ax.figure.set_figheight(6)
    looks = zip((BLUE, ORANGE, GREEN, RED), "osD^", ("-", "--", "-.", ":"), strict=True)
    for (name, table), (color, marker, line) in zip(curves.items(), looks, strict=False):
        table = table.sort_values("messages")
        x = table["messages"].astype(float)
        ax.plot(x, table["accuracy"], line, color=color, marker=marker, label=_legend_name(name))
        ax.fill_between(x, table["low"], table["high"], color=color, alpha=0.13, linewidth=0)
    ax.set_xscale("log")
    counts = sorted({round(n) for table in curves.values() for n in table["messages"]})
    ax.set_xticks(counts, [f"{n:,}" for n in counts])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PERCENT)
    ax.legend(frameon=False, loc="lower right")
    return ax


@_style
def curve(
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    point: tuple[float, float],
    xlabel: str,
    ylabel: str,
    title: str,
) -> Axes:
    """Shares against each other as a threshold moves, a line (x, y) for each method.

    `point` is where the first of them is at the threshold 0.5.
    """
    ax = _axes(title, xlabel, ylabel)
    ax.figure.set_figheight(5.6)
    looks = zip((BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=True)
    for (name, (x, y)), (color, line) in zip(curves.items(), looks, strict=False):
        ax.plot(x, y, line, color=color, label=_legend_name(name), drawstyle="steps-post")
    ax.plot(*point, "o", color=BLUE, markersize=12, markerfacecolor="white", markeredgewidth=3)
    away = -1 if point[0] > 0.5 else 1
    ax.annotate(
        "threshold 0.5",
        point,
        (24 * away, -30),
        textcoords="offset points",
        color=BLUE,
        ha="right" if away < 0 else "left",
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PERCENT)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    ax.legend(frameon=False, loc="lower center")
    return ax


@_style
def threshold_cost(
    thresholds: np.ndarray, costs: dict[str, np.ndarray], chosen: float, positive: str, title: str
) -> Axes:
    """Cost against threshold, a line for each kind of cost; the chosen threshold is marked."""
    xlabel = f"threshold: called {positive} above this probability"
    ax = _axes(title, xlabel, "cost of 1,000 messages")
    looks = zip((BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=True)
    for (name, cost), (color, line) in zip(costs.items(), looks, strict=False):
        ax.plot(
            thresholds, cost, line, color=color, label=_legend_name(name), drawstyle="steps-mid"
        )
    ax.axvline(chosen, color=RED, linestyle="--", linewidth=1.5)
    ax.set_xscale("logit")  # both ends matter, and neither is ever reached
    ax.set_yscale("symlog", linthresh=10)
    ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(THOUSANDS)
    top = max(cost.max() for cost in costs.values())
    ax.set(xlim=(thresholds.min(), thresholds.max()), ylim=(0, top * 6))
    side = "right" if chosen > 0.5 else "left"
    ax.text(chosen, top * 2, f" chosen: {chosen:.3g} ", color=RED, ha=side)
    ax.legend(frameon=False, loc="lower left")
    return ax


@_style
def calibration(table: pd.DataFrame, positive: str, title: str) -> Axes:
    """How often a label was right where the model said how probable it is, with 95 % intervals.

    Columns: said (mean probability), share (of that label), low, high and n (messages).
    """
    xlabel, ylabel = f"probability of {positive} that the model gave", f"share that was {positive}"
    ax = _axes(title, xlabel, ylabel)
    ax.figure.set_figheight(5.6)
    ax.plot([0, 1], [0, 1], ":", color=GREY, zorder=0)
    ax.text(0.48, 0.5, "as it should be", color=GREY, ha="right", va="bottom")
    error = [table["share"] - table["low"], table["high"] - table["share"]]
    ax.errorbar(table["said"], table["share"], yerr=error, fmt="o", color=BLUE, capsize=6)
    for row in table.itertuples():
        side = "right" if row.said > 0.5 else "left"
        words = f"  n = {row.n:,}  "
        label = ax.text(row.said, row.share, words, ha=side, va="center", zorder=1)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0})  # over the diagonal
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PERCENT)
    ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    return ax


@_style
def token_effects(tokens: Sequence[str], effects: Sequence[float], label: str, title: str) -> Axes:
    """How far the probability of a label falls (or rises, below 0) if one token is left out."""
    ax = _axes(title, f"what the token adds to the probability of {label}", "")
    ax.figure.set_figheight(1.6 + 0.45 * len(tokens))
    colors = [ORANGE if effect > 0 else BLUE for effect in effects]
    bars = ax.barh(range(len(tokens)), effects, color=colors)
    ax.bar_label(bars, [f" {effect:+.1%} ".replace("-", "−") for effect in effects])
    _name_ticks(ax.yaxis, map(repr, tokens))
    ax.axvline(0, color="black", linewidth=1)
    reach = max(map(abs, effects)) * 1.3 or 1
    ax.set_xlim(-reach if min(effects) < 0 else -0.1 * reach, reach if max(effects) > 0 else 0)
    ax.xaxis.set_major_formatter(PERCENT)
    ax.invert_yaxis()
    return ax


# --- inside a model ---------------------------------------------------------------------

SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "white", ORANGE])  # white is 0
UNUSED = "#D9D9D9"  # what is masked


def _visible(token: str) -> str:
    """A token as a label: a dot for each space that it begins with, an arrow for a line break."""
    word = token.lstrip(" ")
    return "·" * (len(token) - len(word)) + word.replace("\n", "↵")


def _shorter(text: str, longest: int) -> str:
    """At most `longest` characters of a text, the last of them a … if there were more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _fitting(text: str, points: float) -> str:
    """As much of a text in 12 point as is at most `points` wide, with … for the rest."""

    def width(part: str) -> float:
        return text_to_path.get_text_width_height_descent(part, FontProperties(size=12), False)[0]

    part = text
    while width(part) > points and len(part) > 1:
        part = part.removesuffix("…")[:-1] + "…"
    return part


def _token_ticks(axis: Axis, tokens: Sequence[str], longest: int = 14, **style) -> None:
    """Names as the labels of an axis, in 12 point; a $ in them is a dollar, not mathematics."""
    labels = [_shorter(_visible(token), longest) for token in tokens]
    axis.set_ticks(range(len(tokens)), labels, parse_math=False, fontsize=12, **style)
    axis.set_tick_params(length=0)


@_style
def numbers(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str] | None,
    xlabel: str,
    ylabel: str,
    title: str,
    percent: bool = False,
    largest: float | None = None,
) -> Axes:
    """Numbers as colours, a row for each name, and a column for each of `columns` if not None.

    Orange above 0, blue below, white for 0; only blue if none is below. Infinite ones are grey.
    The last shade is for `largest` and above; if that is None, it begins where the largest 1 %
    do, so that one outlier does not make all others pale.
    """
    values = np.ma.masked_invalid(np.asarray(values, dtype=float))
    reach = largest or float(np.quantile(np.abs(values.compressed()), 0.99)) or 1.0
    signed = bool(values.min() < 0)
    ax = _axes(title, xlabel, ylabel)
    ax.figure.set_figheight(1.6 + 0.27 * len(rows) + (0.9 if columns else 0))
    colors = SIGNED if signed else plt.get_cmap("Blues")
    image = ax.imshow(values, cmap=colors.with_extremes(bad=UNUSED), aspect="auto",
                      vmin=-reach if signed else 0, vmax=reach)  # fmt: skip
    bar = ax.figure.colorbar(image, pad=0.02, format=PERCENT if percent else None)
    bar.locator = MaxNLocator(4)
    _token_ticks(ax.yaxis, rows)
    if columns:
        _token_ticks(ax.xaxis, columns, rotation=90 if max(map(len, columns)) > 2 else 0)
    ax.spines[:].set_visible(False)
    return ax


@_style
def attention(weights: np.ndarray, tokens: Sequence[str], names: Sequence[str], title: str) -> Axes:
    """Attention weights (n, T, T), a map for each of the n names.

    A row is the token that looks, a column the token that it looks at.
    """
    across = len(names) if len(names) <= 4 else 3
    down = -(-len(names) // across)
    longest = min(max(len(_visible(token)) for token in tokens), 14)
    side = min(8.4 / across, 5.2)  # inches
    figure, axes = plt.subplots(
        down, across, squeeze=False, layout="constrained",
        figsize=(10, 0.6 + down * (side + 0.55 + 0.1 * longest)),
    )  # fmt: skip
    for i, ax in enumerate(axes.flat):
        if i >= len(names):
            ax.set_axis_off()
            continue
        image = ax.imshow(weights[i], cmap="Blues", vmin=0, vmax=1)
        _token_ticks(ax.xaxis, tokens, rotation=90)
        _token_ticks(ax.yaxis, tokens if i % across == 0 else [""] * len(tokens))
        ax.set_xlabel(names[i])
        ax.spines[:].set_color(UNUSED)
    bar = figure.colorbar(image, ax=axes, pad=0.02, shrink=0.6, format=PERCENT)
    bar.locator = MaxNLocator(4)
    axes[0, 0].set(title=title, ylabel="the token that looks")
    return axes[0, 0]


@_style
def residual_norms(norms: np.ndarray, tokens: Sequence[str], title: str) -> Axes:
    """Length of each token's vector (n_layer + 1, T) before the blocks and after each of them."""
    norms = np.asarray(norms)
    ax = _axes(title, "blocks that have been passed", "length of the vector")
    ax.plot(norms, color=UNUSED, linewidth=1.5)
    ends = sorted(((norms[-1, 0], 0, RED), (norms[-1, -1], len(tokens) - 1, BLUE)))
    close = ends[1][0] < 1.25 * ends[0][0]  # labels at the end of their lines, unless they meet
    for shift, (end, position, color) in zip((-9, 9), ends, strict=True):
        ax.plot(norms[:, position], color=color, marker="o", markersize=6)
        which = "first" if position == 0 else "last"
        ax.annotate(
            f"{which}: {_shorter(_visible(tokens[position]), 12)}",
            (len(norms) - 1, end),
            xytext=(10, shift if close else 0),
            textcoords="offset points",
            color=color,
            va="center",
            parse_math=False,
        )
    ax.set_xlim(-0.03 * len(norms), (len(norms) - 1) * 1.28)
    ax.set_yscale("log")
    ticks = [10.0**e * m for e in range(-9, 9) for m in (1, 2, 5)]
    low, high = norms.min() / 1.15, norms.max() * 1.15
    ax.set_yticks([t for t in ticks if low <= t <= high])
    ax.set_ylim(low, high)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.set_xticks(np.unique(np.linspace(0, len(norms) - 1, min(len(norms), 13)).astype(int)))
    return ax


@_style
def logit_lens(
    words: Sequence[Sequence[str]],
    probabilities: np.ndarray,
    rows: Sequence[str],
    tokens: Sequence[str],
    title: str,
) -> Axes:
    """The next word that each state stands for: rows are depths, columns the tokens read.

    `words` and their `probabilities` (R, T); the darker a cell, the surer the word.
    """
    ax = _axes(title, "token that has just been read", "")
    ax.figure.set_figheight(1.8 + 0.36 * len(rows))
    image = ax.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    room = 7.7 * 72 / len(tokens)  # a column, in points
    for i, line in enumerate(words):
        for j, word in enumerate(line):
            ax.text(j, i, _fitting(_visible(word), room), ha="center", va="center",
                    fontsize=12, color="white" if probabilities[i][j] > 0.55 else "black",
                    parse_math=False)  # fmt: skip
    _token_ticks(ax.xaxis, [_fitting(_visible(token), room) for token in tokens])
    _token_ticks(ax.yaxis, rows)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    bar = ax.figure.colorbar(image, pad=0.02, format=PERCENT)
    bar.locator = MaxNLocator(4)
    ax.spines[:].set_visible(False)
    return ax


@_style
def lines(
    x: np.ndarray, curves: dict[str, np.ndarray], xlabel: str, ylabel: str, title: str
) -> Axes:
    """Functions of `x`, a line for each name."""
    ax = _axes(title, xlabel, ylabel)
    looks = zip((BLUE, ORANGE, GREEN, RED), ("-", "--", ":", "-."), strict=True)
    for (name, y), (color, line) in zip(curves.items(), looks, strict=False):
        ax.plot(x, y, line, color=color, label=name)
    ax.axhline(0, color=UNUSED, linewidth=1, zorder=0)
    if len(curves) > 1:
        ax.legend(frameon=False)
    return ax
