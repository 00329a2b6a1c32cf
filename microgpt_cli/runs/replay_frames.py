"""The frames of `microgpt replay`: the samples of a run, character by character, with the duration of each."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from microgpt_cli.runs.escape import escape
from microgpt_cli.runs.samples import Sample

CHARACTERS_PER_SEC, MAX_TYPING_SEC = 90, 60  # many samples are played faster
PAUSE_SEC, MAX_PAUSES_SEC = 1.2, 20  # after each sample, and in total


@dataclass(frozen=True)
class Frame:
    """A piece of text and the time until the next one."""

    sample: int  # index, from 0
    text: str
    seconds: float
    is_header: bool = False


def replay_frames(samples: Sequence[Sample], losses: Mapping[int, float]) -> Iterator[Frame]:
    """For each sample a header frame, then one frame per character.

    Args:
        samples: in order of their steps.
        losses: step → val_loss of each evaluation.
    """
    rate = max(CHARACTERS_PER_SEC, sum(len(sample.text) for sample in samples) / MAX_TYPING_SEC)
    pause = min(PAUSE_SEC, MAX_PAUSES_SEC / max(1, len(samples)))
    width = len(f"{samples[-1].step:,}") if samples else 0
    for i, sample in enumerate(samples):
        yield Frame(i, f"step {sample.step:>{width},}{_loss(sample.step, losses)}\n", pause / 3, is_header=True)
        for char in escape(sample.text, keep="\n\t"):
            yield Frame(i, char, 1 / rate)
        yield Frame(i, "\n\n" if i + 1 < len(samples) else "\n", pause)


def _loss(step: int, losses: Mapping[int, float]) -> str:
    """The val_loss of the last evaluation up to a step."""
    steps = sorted(losses)
    known = bisect.bisect_right(steps, step)
    if not known:
        return ""
    at = steps[known - 1]
    return f"  val_loss {losses[at]:.4f}" + ("" if at == step else f" at step {at:,}")
