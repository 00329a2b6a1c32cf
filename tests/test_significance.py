"""Welch's t-test against published values."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.runs.significance import (
    incomplete_beta,
    mean_and_sd,
    paired_t_test,
    sign_flip_test,
    welch_t_test,
)

# Two-sided critical values of Student's t, from published tables.
TABLE = [
    (1, 12.706, 0.05),
    (2, 9.925, 0.01),
    (5, 2.571, 0.05),
    (10, 3.169, 0.01),
    (30, 2.042, 0.05),
    (120, 2.617, 0.01),
]


@pytest.mark.parametrize(("degrees", "t", "p"), TABLE)
def test_p_values_match_published_tables(degrees: int, t: float, p: float) -> None:
    assert incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) == pytest.approx(p, rel=2e-3)


def test_incomplete_beta_matches_binomial_tail_for_integers() -> None:
    """I_x(a, b) of whole numbers is the probability of at least a successes in a + b - 1 trials."""
    for a, b, x in ((2, 3, 0.4), (5, 1, 0.9), (1, 7, 0.05), (20, 30, 0.4)):
        tries = a + b - 1
        chance = sum(math.comb(tries, k) * x**k * (1 - x) ** (tries - k) for k in range(a, tries + 1))
        assert incomplete_beta(a, b, x) == pytest.approx(chance, rel=1e-12)
    assert incomplete_beta(2, 3, 0.0) == 0
    assert incomplete_beta(2, 3, 1.0) == 1


def test_welch_matches_a_worked_example() -> None:
    """Means 2 and 5, variances 1 and 7 of three values each: t = 3 / sqrt(8/3), (8/3)² / ((1/3)²/2 + (7/3)²/2)."""
    test = welch_t_test([1, 2, 3], [2, 6, 7])
    assert test.t == pytest.approx(3 / math.sqrt(8 / 3))
    assert test.degrees == pytest.approx((8 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (7 / 3) ** 2 / 2))
    assert 0.05 < test.p < 0.3


def test_false_positive_rate_matches_the_significance_level() -> None:
    draw = random.Random(1)
    few = sum(welch_t_test(*[[draw.gauss(0, s) for _ in range(4)] for s in (1, 3)]).p < 0.01 for _ in range(4000))
    assert 15 < few < 75


def test_zero_variance() -> None:
    assert welch_t_test([1, 1], [1, 1]).p == 1
    assert welch_t_test([1, 1], [2, 2]).p == 0


@given(
    st.lists(st.floats(-1e50, 1e50), min_size=2, max_size=6), st.lists(st.floats(-1e50, 1e50), min_size=2, max_size=6)
)
def test_p_value_is_in_range_and_symmetric_for_any_samples(a: list[float], b: list[float]) -> None:
    test = welch_t_test(a, b)
    assert 0 <= test.p <= 1
    assert test.p == pytest.approx(welch_t_test(b, a).p, abs=1e-9)


def test_standard_deviation_of_one_value_is_none() -> None:
    assert mean_and_sd([3.0]) == (3.0, None)
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_sign_flips_match_enumeration_by_hand() -> None:
    """Of the eight sums of ±1 ±2 ±3, four are 4 or farther from 0: 6, 4, -4, -6."""
    assert sign_flip_test([1, 2, 3]) == 2 / 8
    assert sign_flip_test([-1, 2, 3]) == 4 / 8
    assert sign_flip_test([1.0] * 8) == 2 / 2**8
    assert sign_flip_test([0.0] * 8) == 1
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1  # whatever rounding makes of the sums
    assert sign_flip_test([1e-300, 2e-300]) == 2 / 4


def test_sign_flips_of_many_differences_are_drawn() -> None:
    assert sign_flip_test([1.0] * 50) == 1 / 20_001
    assert sign_flip_test([1.0, -1.0] * 25) > 0.9
    draw = random.Random(1)
    values = [draw.gauss(0.4, 1) for _ in range(17)]
    exact = sum(
        abs(sum(-v if k >> i & 1 else v for i, v in enumerate(values))) >= abs(sum(values)) for k in range(1 << 17)
    ) / (1 << 17)
    assert sign_flip_test(values) == pytest.approx(exact, abs=0.015)


def test_paired_t_matches_a_worked_example() -> None:
    """Differences 1, 2, 3: t = 2 / (1 / √3); with two degrees of freedom p = 1 - t / √(t² + 2)."""
    test = paired_t_test([1, 2, 3])
    assert test.t == pytest.approx(2 * math.sqrt(3))
    assert test.p == pytest.approx(1 - test.t / math.sqrt(test.t**2 + 2))
    assert paired_t_test([0, 0]).p == 1
    assert paired_t_test([-1, -1]).p == 0
    assert paired_t_test([-3, -2, -1]).p == pytest.approx(test.p)


@pytest.mark.parametrize("count", [3, 8, 12])
def test_false_positive_rate_of_paired_tests(count: int) -> None:
    draw = random.Random(2)
    samples = [[draw.gauss(0, 1) for _ in range(count)] for _ in range(1000)]
    of_signs = sum(sign_flip_test(sample) < 0.05 for sample in samples)
    assert of_signs <= 75
    assert 25 < sum(paired_t_test(sample).p < 0.05 for sample in samples) < 75
