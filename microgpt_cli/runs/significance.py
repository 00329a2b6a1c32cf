"""Whether two means differ by more than chance: paired tests and Welch's t-test, without scipy.

R. A. Fisher, The Design of Experiments (1935), section 21, for the sign-flip test; B. L. Welch, Biometrika 34 (1947)
28; the incomplete beta function as in Press et al., Numerical Recipes, section 6.4.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

MAX_EXACT = 16  # differences whose 2¹⁵ choices of signs, up to the sign of all, are enumerated
RANDOM_FLIPS = 20_000
MAX_TERMS, PRECISION, TINY = 500, 1e-14, 1e-300  # of the continued fraction


class TTest(NamedTuple):
    """A t statistic, its degrees of freedom, and the two-sided p-value."""

    t: float
    degrees: float
    p: float


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation if there are two or more values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def welch_t_test(a: Sequence[float], b: Sequence[float]) -> TTest:
    """Compare the means of two samples of at least two values each, without assuming equal variances."""
    (mean_a, sd_a), (mean_b, sd_b) = mean_and_sd(a), mean_and_sd(b)
    assert sd_a is not None
    assert sd_b is not None
    part_a, part_b = sd_a**2 / len(a), sd_b**2 / len(b)
    if part_a + part_b == 0:  # no variance
        return TTest(0.0, math.inf, 1.0) if mean_a == mean_b else TTest(math.inf, math.inf, 0.0)
    t = (mean_b - mean_a) / math.sqrt(part_a + part_b)
    share = part_a / (part_a + part_b)  # ratios, because squares of tiny variances underflow
    degrees = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return TTest(t, degrees, incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)))


def paired_t_test(differences: Sequence[float]) -> TTest:
    """Compare the mean of two or more differences with 0; they are taken as normally distributed."""
    mean, sd = mean_and_sd(differences)
    assert sd is not None
    degrees = len(differences) - 1
    if sd == 0:
        return TTest(0.0, degrees, 1.0) if mean == 0 else TTest(math.copysign(math.inf, mean), degrees, 0.0)
    t = mean / (sd / math.sqrt(len(differences)))
    return TTest(t, degrees, incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)))


def sign_flip_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of the mean of differences, if each could as well have had the other sign.

    Exact for up to MAX_EXACT differences: the share of all choices of signs whose sum is at least as far from 0. For
    more, the share among random choices and the given one.
    """
    observed = abs(math.fsum(differences))
    least = observed - 1e-12 * math.fsum(map(abs, differences))  # equal sums differ by rounding
    if len(differences) <= MAX_EXACT:
        sums = [differences[0]]  # the other half of the choices are the negatives of these
        for difference in differences[1:]:
            sums = [total + signed for total in sums for signed in (difference, -difference)]
        return sum(abs(total) >= least for total in sums) / len(sums)
    draw = random.Random(0)
    extreme = 0
    for _ in range(RANDOM_FLIPS):
        bits = draw.getrandbits(len(differences))
        total = sum(-value if bits >> i & 1 else value for i, value in enumerate(differences))
        extreme += abs(total) >= least
    return (extreme + 1) / (RANDOM_FLIPS + 1)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x from 0 to 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # converges slowly here, but not for the mirrored arguments
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    fraction = c = 1.0  # Lentz's method
    d = 0.0
    for term in range(MAX_TERMS):
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
    return value if abs(value) > TINY else TINY
