"""`filter="model.n_layer>4 and status=finished"`: select the runs to list.

    filter    = condition ("and" condition)*
    condition = NAME ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~") VALUE

NAME is a column or a setting. VALUE is a number, true, false, null or a string, optionally quoted; `~` tests for a
substring. A run without a value satisfies neither < nor >.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from microgpt_cli.cli.overrides import nearest
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import leaves
from microgpt_cli.errors import UserError
from microgpt_cli.runs.reading import STATUSES, Run
from microgpt_cli.runs.table import resolve, value_of

NAME, SIGN, VALUE = r"([\w./ ]*[\w./])", r"(==|!=|<=|>=|=|<|>|~)", r"""("[^"]*"|'[^']*'|.*?)"""
CONDITION = re.compile(rf"\s*{NAME}\s*{SIGN}\s*{VALUE}(?:\s+(and)(?:\s|$)|\s*$)", re.DOTALL)
ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EXAMPLE = 'filter="model.n_layer>4 and status=finished"'


def matching(runs: Sequence[Run], text: str) -> list[Run]:
    """The runs that satisfy every condition.

    Raises:
        UserError: the filter does not follow the grammar above, or names an unknown column or setting.
    """
    conditions, position, more = [], 0, True
    while more:
        match = CONDITION.match(text, position)
        if match is None:
            raise UserError(f"filter={text}: {text[position:]!r} is not a condition; use the form {EXAMPLE}")
        conditions.append(_condition(match, runs, text))
        position, more = match.end(), match[4] is not None
    return [run for run in runs if all(condition(run) for condition in conditions)]


def _condition(match: re.Match[str], runs: Sequence[Run], text: str) -> Callable[[Run], bool]:
    name, sign, value = resolve(match[1], runs, f"filter={text}"), match[2], match[3]
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if sign in ORDERS:
        number = _number(value)
        if number is None:
            raise UserError(f"filter={text}: {name}{sign} needs a number, not {value!r}")
        return lambda run: _is_number(have := value_of(run, name)) and ORDERS[sign](have, number)
    if sign == "~":
        return lambda run: value in str(value_of(run, name) or "")
    _check_choice(name, value, text)
    return lambda run: _equals(value_of(run, name), value) != (sign == "!=")


def _check_choice(name: str, value: str, text: str) -> None:
    """Raises `UserError` for a value that no run can have: a misspelled one would silently match nothing."""
    choices = next((leaf.choices for leaf in leaves(TrainConfig) if leaf.name == name), ())
    choices = STATUSES if name == "status" else choices
    if choices and value not in (*choices, "null"):
        best = nearest(value, choices)
        hint = f"did you mean {best!r}? " if best else ""
        raise UserError(f"filter={text}: {name}={value}: {hint}choose one of {', '.join(choices)}")


def _equals(have: Any, value: str) -> bool:
    number = _number(value)
    if have is None or isinstance(have, bool):
        return value == {None: "null", True: "true", False: "false"}[have]
    return str(have) == value or (_is_number(have) and number is not None and math.isclose(have, number))


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
