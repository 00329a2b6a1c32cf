"""Is the difference of two means more than the noise of what they are means of? Welch's t-test, without scipy.

B. L. Welch, Biometrika 34 (1947) 28; the incomplete beta function as in Press et al., Numerical Recipes, section 6.4.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

MOST_TERMS, PRECISION, TINIEST = 500, 1e-14, 1e-300  # of the continued fraction


class Welch(NamedTuple):
    """The statistic, its degrees of freedom, and how often chance alone would give as large a one (two-sided)."""

    t: float
    degrees: float
    p: float


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation where there are two values or more."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def welch(a: Sequence[float], b: Sequence[float]) -> Welch:
    """Compare two samples of at least two values each, whose variances need not be equal."""
    (mean_a, sd_a), (mean_b, sd_b) = mean_and_sd(a), mean_and_sd(b)
    assert sd_a is not None
    assert sd_b is not None
    part_a, part_b = sd_a**2 / len(a), sd_b**2 / len(b)
    if part_a + part_b == 0:  # no noise at all
        return Welch(0.0, math.inf, 1.0) if mean_a == mean_b else Welch(math.inf, math.inf, 0.0)
    t = (mean_b - mean_a) / math.sqrt(part_a + part_b)
    share = part_a / (part_a + part_b)  # as shares, for squares of the tiniest variances would be 0
    degrees = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return Welch(t, degrees, incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x from 0 to 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    fraction = c = 1.0  # Lentz's method
    d = 0.0
    for term in range(MOST_TERMS):
        m = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _not_zero(1 + numerator * d)
        c = _not_zero(1 + numerator / c)
        fraction *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return front * (fraction - 1) / a


def _not_zero(value: float) -> float:
    return value if abs(value) > TINIEST else TINIEST
