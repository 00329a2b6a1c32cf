"""Whether a training step uses the threads that were chosen for the run, or one: whichever is faster right now.

On a quiet machine more threads are faster. Where other processes want the same cores, the threads of a small model's
step wait for each other longer than they work, and one thread alone can be several times as fast.

The number of threads changes the order of sums, and equal commands shall give equal bits whatever else the machine
does. So the number varies only where a step gives the same bits with either, which is compared on the run's own batch:
the order of sums depends on shapes and threads, not on what is summed. Where bits differ, the run keeps its number, and
is told that the machine is busy.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

FIRST_STEP = 3  # of a run; it does not wait for a measurement
LOOK_SEC = 10.0  # between two measurements, at first; after each change twice as long
LONGEST_STEP_SEC = 0.5  # what a longer step loses by waiting is little beside its work
ROUNDS = 3
GAIN = 1.1  # as many times as fast a change must be


class ThreadTuner:
    """Measures training steps that change nothing, and says with how many threads to make the next ones.

    Args:
        rehearse: makes a whole step that leaves weights and optimizer as they are: where its windows start → all
            numbers that come out of it.
        threads: that were chosen for the run.
        give_up: asked before each of them; if it says so, the rest is left out.
        clock: seconds.
        set_threads: how many the next operations use.
    """

    def __init__(
        self,
        rehearse: Callable[[Tensor], list[Tensor]],
        threads: int,
        give_up: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self.threads = self.now = threads
        self._rehearse, self._clock, self._set_threads = rehearse, clock, set_threads
        self._give_up = give_up
        self._steps, self._wait, self._looked_at = 0, LOOK_SEC, -float("inf")
        self._is_on, self._same_bits = threads > 1, False

    def step(self, starts: Tensor) -> str | None:
        """Before a step: set the number of threads for it, having measured if it is time.

        Args:
            starts: where the windows of the step begin.

        Returns:
            What to tell: the number has changed, or would if bits allowed.
        """
        self._steps += 1
        told = None
        if self._is_on and self._steps > FIRST_STEP and self._clock() - self._looked_at >= self._wait:
            told = self._look(starts)
            self._looked_at = self._clock()
        self._set_threads(self.now)
        return told

    def after_step(self) -> None:
        """Evaluation, sampling and saving use the run's own number: their bits were not compared."""
        self._set_threads(self.threads)

    def _look(self, starts: Tensor) -> str | None:
        seconds = {self.threads: 0.0, 1: 0.0}
        for count in seconds:  # and warm up
            if self._timed(count, starts) > LONGEST_STEP_SEC:
                self._is_on, self.now = False, self.threads
                return None
        for _ in range(ROUNDS):
            for count in seconds:
                seconds[count] += self._timed(count, starts) / ROUNDS
        if self._give_up():
            return None
        best = min(seconds, key=lambda count: seconds[count])
        if best == self.now or seconds[self.now] < GAIN * seconds[best]:
            return None
        many, one = (f"{1000 * seconds[count]:.3g} ms" for count in (self.threads, 1))
        measured = f"a step takes {many} with {self.threads} threads and {one} with 1"
        if not self._same_bits:
            self._same_bits = self._bits_agree(starts)
        if not self._same_bits:
            self._is_on = False
            return (
                f"the machine is busy: {measured}; the run keeps {self.threads}, since 1 rounds differently; "
                "to change that, stop the run and resume it with threads=1"
            )
        self.now, self._wait = best, 2 * self._wait
        return f"{best} of {self.threads} from here on: {measured}; the weights are the same with either"

    def _timed(self, count: int, starts: Tensor) -> float:
        if self._give_up():
            return 0.0
        self._set_threads(count)
        began = self._clock()
        self._rehearse(starts)
        return self._clock() - began

    def _bits_agree(self, starts: Tensor) -> bool:
        made = []
        for count in (self.threads, 1):
            self._set_threads(count)
            made.append([tensor.clone() for tensor in self._rehearse(starts)])
        return all(torch.equal(*pair) for pair in zip(*made, strict=True))
