"""The samples of a run as a film: what is shown, piece by piece, and for how long."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from microgpt_cli.runs.samples import Sample

CHARACTERS_PER_SEC, LONGEST_SEC = 90, 60  # of typing; a film of many samples is typed faster
PAUSE_SEC, PAUSES_SEC = 1.2, 20  # after a sample, and after all of them together


@dataclass(frozen=True)
class Frame:
    """A piece of text, and how long it stands before the next comes."""

    sample: int  # counted from 0
    text: str
    seconds: float
    is_header: bool = False


def film(samples: Sequence[Sample], losses: Mapping[int, float]) -> Iterator[Frame]:
    """A header, then character by character what the model wrote, for each sample.

    Args:
        samples: in order.
        losses: step → val_loss, of each evaluation.
    """
    rate = max(CHARACTERS_PER_SEC, sum(len(sample.text) for sample in samples) / LONGEST_SEC)
    pause = min(PAUSE_SEC, PAUSES_SEC / max(1, len(samples)))
    width = len(f"{samples[-1].step:,}") if samples else 0
    for i, sample in enumerate(samples):
        yield Frame(i, f"step {sample.step:>{width},}{_loss(sample.step, losses)}\n", pause / 3, is_header=True)
        for char in visible(sample.text):
            yield Frame(i, char, 1 / rate)
        yield Frame(i, "\n\n" if i + 1 < len(samples) else "\n", pause)


def visible(text: str) -> str:
    """A text with nothing in it that a terminal would obey: a model may have learnt escape codes."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def _loss(step: int, losses: Mapping[int, float]) -> str:
    """The val_loss of the last evaluation until then."""
    steps = sorted(losses)
    known = bisect.bisect_right(steps, step)
    if not known:
        return ""
    at = steps[known - 1]
    return f"  val_loss {losses[at]:.4f}" + ("" if at == step else f" at step {at:,}")
