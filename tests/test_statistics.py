"""How sure one can be of a figure: against the formulas."""

import math

import numpy as np
import pytest

from spamgpt.statistics import (
    newcombe_difference,
    paired_difference,
    student_half_width,
    wilson_interval,
)


@pytest.mark.parametrize("correct, total", [(287, 300), (0, 10), (10, 10), (1, 2), (149, 149)])
def test_wilson_interval_equals_its_formula(correct, total):
    z = 1.959963984540054  # 97.5 % of the normal distribution are below
    p = correct / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    assert wilson_interval(correct, total) == pytest.approx((middle - half, middle + half))


def test_the_lecture_result_is_known_to_two_points_only():
    low, high = wilson_interval(287, 300)
    assert (round(low, 3), round(high, 3)) == (0.927, 0.975)


def test_more_confidence_needs_a_wider_interval():
    low95, high95 = wilson_interval(287, 300)
    low99, high99 = wilson_interval(287, 300, confidence=0.99)
    assert low99 < low95 < 287 / 300 < high95 < high99


def test_a_paired_difference_forgets_what_is_hard_for_both():
    """Two that fail on the same 20 of 100, but for two messages: known to a few points."""
    right = np.repeat([1, 0], [80, 20])
    other = np.repeat([1, 0], [78, 22])
    mean, low, high = paired_difference(right, other)
    assert mean == pytest.approx(0.02)
    assert -0.01 < low < 0 < high < 0.05
    assert paired_difference(other, right) == pytest.approx((-mean, -high, -low))
    assert paired_difference(right, right) == (0, 0, 0)


def test_single_differences_are_taken_message_by_message():
    """As wide as 1.96 standard errors of the mean difference."""
    right, other = np.array([1, 1, 0.5, 1, 0]), np.array([0, 1, 0, 1, 1])
    mean, low, high = paired_difference(right, other)
    gains = [1, 0, 0.5, 0, -1]
    half = 1.959963984540054 * np.std(gains, ddof=1) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))


def test_the_difference_of_two_shares_is_newcombe_s():
    """His table II, example (a), method 10: 56/70 - 48/80 = 0.2, from 0.0524 to 0.3339."""
    one, other = ((k / n, *wilson_interval(k, n)) for k, n in ((56, 70), (48, 80)))
    found = newcombe_difference(one, other)
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert newcombe_difference(other, one) == pytest.approx((-found[0], -found[2], -found[1]))


def test_a_few_values_have_student_s_interval():
    values = [0.9, 0.92, 0.97]
    expected = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)  # two degrees of freedom
    assert student_half_width(values) == pytest.approx(expected)
    assert student_half_width([0.9]) == 0
    assert student_half_width([0.9, 0.9]) == 0
