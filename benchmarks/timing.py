"""Several ways to do the same work, timed in turns: the machine's moods meet all of them alike.

A way is a function that does so many units of its work (steps, tokens), to the end: on a GPU it waits for it.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Way = Callable[[int], object]
ROUNDS, ROUND_SECONDS, TRIAL_UNITS = 5, 1.5, 3


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median of the rounds, the least and the most."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Timed:
    """What was found of one way."""

    first_seconds: float  # of the first few units: what warms up, compiles, records
    units: int  # in a round
    rounds: list[float]  # seconds a unit in each of them

    @property
    def seconds(self) -> float:
        """A unit's, in the median round."""
        return statistics.median(self.rounds)


def in_turns(
    ways: Mapping[str, Way],
    rounds: int = ROUNDS,
    round_seconds: float = ROUND_SECONDS,
    trial_units: int = TRIAL_UNITS,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Timed]:
    """Time all of `ways` in each round, one after the other, each for about `round_seconds`.

    Args:
        rounds: how often.
        trial_units: done twice beforehand, to warm up and to find how many make a round.
        progress: called with what is being timed.
    """
    first, units = {}, {}
    for name, way in ways.items():
        progress(f"{name}, warming up")
        first[name] = seconds_of(way, trial_units)
        units[name] = max(1, round(round_seconds / (seconds_of(way, trial_units) / trial_units)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            progress(f"{name}, round {number + 1} of {rounds}")
            found[name].append(seconds_of(way, units[name]) / units[name])
    return {name: Timed(first[name], units[name], found[name]) for name in ways}


def seconds_of(way: Way, units: int) -> float:
    began = time.perf_counter()
    way(units)
    return time.perf_counter() - began


def times_as_fast(fast: Sequence[float], slow: Sequence[float]) -> Ratio:
    """How many times as fast one is as the other, round by round, from the seconds of both."""
    ratios = [b / a for a, b in zip(fast, slow, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def repeated(step: Callable[[int], object]) -> Way:
    """A way out of a function that makes the step of this number; the numbers go on from call to call."""
    numbers = itertools.count(1)

    def way(count: int) -> None:
        for number in itertools.islice(numbers, count):
            step(number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return way
