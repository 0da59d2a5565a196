"""How sure one can be of a figure: intervals of shares, means and differences."""

import numpy as np
from scipy.stats import binomtest, norm
from scipy.stats import t as student


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true share is, given `correct` of `total` (Wilson 1927, by scipy)."""
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(right: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """How much more accurate one is than the other on the same messages: (mean, low, high).

    Both are (N,), how far each message was judged rightly (0 to 1). The 95 % interval is the
    normal one of the mean difference: what is hard for both does not blur it.
    """
    gains = np.asarray(right, dtype=float) - np.asarray(other, dtype=float)
    half = norm.ppf(0.975) * gains.std(ddof=1) / np.sqrt(len(gains))
    return gains.mean(), gains.mean() - half, gains.mean() + half


def newcombe_difference(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The difference of two means, given as (mean, low, high), with its own interval.

    The half-widths are added as squares (Newcombe 1998, method 10).
    """
    (mean, low, high), (mean_2, low_2, high_2) = one, other
    difference = mean - mean_2
    return (
        difference,
        difference - np.hypot(mean - low, high_2 - mean_2),
        difference + np.hypot(high - mean, mean_2 - low_2),
    )


def student_half_width(values: np.ndarray) -> float:
    """Half of Student's 95 % interval around the mean of values; 0 for a single one."""
    k = len(values)
    return 0.0 if k == 1 else student.ppf(0.975, k - 1) * np.std(values, ddof=1) / np.sqrt(k)
