"""Validation of a checkpoint's `meta.json`: type and range of every value that is used.

Checksums detect damage but not forgery, so only values that the program could have written are accepted.
"""

import re
from typing import Any, NamedTuple

from microgpt_cli.config.schema import LARGEST_INT
from microgpt_cli.config.train import LARGEST_STEP
from microgpt_cli.errors import UserError
from microgpt_cli.runs.storage import LARGEST_NUMBER

FORMAT = 1


class Number(NamedTuple):
    """The type and the inclusive range of a number."""

    kind: type[int] | type[float]
    low: float
    high: float
    optional: bool = False

    def allows(self, value: Any) -> bool:
        return self.optional if value is None else type(value) is self.kind and self.low <= value <= self.high


COUNT, STEP = Number(int, 0, LARGEST_INT), Number(int, 0, LARGEST_STEP)
FLOAT = Number(float, -LARGEST_NUMBER, LARGEST_NUMBER)
STATE = {
    "step": STEP,
    "tokens": COUNT,
    "val_loss": FLOAT._replace(optional=True),
    "evaluated_step": STEP,
    "best_val_loss": FLOAT._replace(optional=True),
    "best_step": STEP._replace(optional=True),
    "stale_evaluations": COUNT,
    "train_seconds": Number(float, 0, 1e12),
    "loss_scale": Number(float, 2.0**-100, 2.0**100),
    "steps_at_scale": COUNT,
    "metrics_bytes": COUNT,
    "timings_bytes": COUNT,
}
MIN_SECONDS = 1e-9  # of training, if there was a step
TEXTS = ("microgpt", "torch", "python", "device", "dtype")
MAX_TEXT = 200


def check(meta: Any, where: str) -> dict[str, Any]:
    """Return `meta` if it is valid. Unknown keys are ignored.

    Raises:
        UserError: a value is missing, of the wrong type, out of range or inconsistent.
    """
    if not isinstance(meta, dict) or type(meta.get("format")) is not int or meta["format"] != FORMAT:
        raise UserError(f"{where}: not of format {FORMAT}")
    state = meta.get("state")
    if not isinstance(state, dict) or set(state) != {*STATE, "unlogged"}:
        raise UserError(f"{where}: state must have the keys {', '.join([*STATE, 'unlogged'])}")
    wrong = [f"state.{name}" for name, number in STATE.items() if not number.allows(state[name])]
    wrong += [name for name in TEXTS if not _is_text(meta.get(name))]
    wrong += [] if Number(int, 1, LARGEST_INT).allows(meta.get("threads")) else ["threads"]
    wrong += [] if re.fullmatch("[0-9a-f]{64}", str(meta.get("text_sha256"))) else ["text_sha256"]
    wrong += [] if _is_pairs(state["unlogged"]) else ["state.unlogged"]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is missing, of the wrong type or out of range")
    step = state["step"]
    if (
        meta.get("step") != step
        or max(state["evaluated_step"], state["best_step"] or 0, len(state["unlogged"])) > step
        or (state["evaluated_step"] == 0) != (state["val_loss"] is None)
        or (state["best_step"] is None) != (state["best_val_loss"] is None)
        or (step > 0 and (state["tokens"] == 0 or state["train_seconds"] < MIN_SECONDS))
    ):
        raise UserError(f"{where}: inconsistent with step {step}")
    return meta


def engine_of(meta: dict[str, Any]) -> tuple[str, str]:
    """The engine of a checkpoint and whether its model was compiled, as the keys have them; before 0.3 in one entry."""
    compiled = meta.get("compile", False)
    engine = meta.get("engine", "native" if compiled == "native" else "torch")
    return engine, str(compiled is True).lower()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_TEXT


def _is_pairs(value: Any) -> bool:
    """Whether this is a list of (loss, gradient norm) pairs."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(FLOAT.allows, pair)) for pair in value
    )
