"""Switch training steps between the run's number of CPU threads and one thread, whichever is currently faster.

On an idle machine more threads are faster. While other processes use the cores, the threads of a small step mostly wait
for each other, and a single thread can be several times as fast.

The number of threads can change the order of summation, and equal commands must give equal bits whatever else the
machine does. So the tuner switches only if a step gives the same bits with both, compared on a batch of the run: the
order depends on shapes and threads, not on values. If bits differ, the run keeps its threads and reports that the
machine is busy.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

FIRST_STEP = 3  # no measurement up to this step
INTERVAL_SEC = 10.0  # between two measurements, at first; doubled after each change
MAX_STEP_SEC = 0.5  # in longer steps, waiting is a small share of the time
ROUNDS = 3
GAIN = 1.1  # least speed-up for a change


class ThreadTuner:
    """Times trial steps and sets the number of threads for the next steps.

    Args:
        rehearse: makes a trial step, which changes neither weights nor optimizer: starts of windows → all results.
        threads: of the run.
        give_up: called before each trial step; if true, the measurement is cancelled.
        clock: seconds.
        set_threads: sets the number of threads of torch.
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
        self._steps, self._wait, self._measured_at = 0, INTERVAL_SEC, -float("inf")
        self._is_on, self._same_bits = threads > 1, False

    def step(self, starts: Tensor) -> str | None:
        """Set the number of threads for the next step, after a measurement if one is due.

        Args:
            starts: of the windows of the step.

        Returns:
            A message if the number has changed, or would have if bits were equal.
        """
        self._steps += 1
        message = None
        if self._is_on and self._steps > FIRST_STEP and self._clock() - self._measured_at >= self._wait:
            message = self._measure(starts)
            self._measured_at = self._clock()
        self._set_threads(self.now)
        return message

    def after_step(self) -> None:
        """Restore the run's number of threads for evaluation, sampling and saving, whose bits were not compared."""
        self._set_threads(self.threads)

    def _measure(self, starts: Tensor) -> str | None:
        seconds = {self.threads: 0.0, 1: 0.0}
        for count in seconds:  # also the warm-up
            if self._timed(count, starts) > MAX_STEP_SEC:
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
