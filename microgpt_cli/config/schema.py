"""How a config's keys are declared, checked when one is made, listed for help, and read back from a run's JSON.

The keys themselves are in the other files of this package.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from microgpt_cli.errors import UserError

ConfigT = TypeVar("ConfigT", bound="Node")
LARGEST_INT = 2**63 - 1  # what torch and the file formats hold


def key(
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    may_be_empty: bool = False,
    absent: Any = dataclasses.MISSING,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A field of a config: what it means, and the range or the choices that a value must keep to.

    A key that is younger than runs that are to be read says in `absent` what those runs had. What a program makes
    without Hydra has in `default` the value that `conf/` gives it, too.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    texts = {"meaning": meaning, "choices": choices, "may_be_empty": may_be_empty, "absent": absent}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=texts | bounds)
    return field(default=default, metadata=texts | bounds)


@dataclass
class Node:
    """A node of the config tree, range-checked when made."""

    NODE: ClassVar[str] = ""  # where the node hangs in the tree: "" is the root
    GROUPS: ClassVar[tuple[str, ...]] = ()  # the folders of `conf/` whose choices give it values

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            problem = _problem(getattr(self, item.name), item.metadata)
            if problem:
                value = getattr(self, item.name)
                typed = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
                raise UserError(f"{self.NODE}{item.name}={typed}: {problem}")
        self.check()

    def check(self) -> None:
        """Checks between keys; the ranges of single keys are in their `key(...)`."""

    @classmethod
    def upgraded(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The stored config of an older version in the keys of this one."""
        return data


def _problem(value: Any, limits: Any) -> str:
    """What is wrong with a value, or nothing. NaN fails every bound."""
    if value is None or not limits:
        return ""
    if isinstance(value, list):
        return next(filter(None, (_problem(item, limits) for item in value)), "")
    if limits["choices"] and value not in limits["choices"]:
        quoted = " (in YAML, in quotes)" if str(value).lower() in limits["choices"] else ""
        close = difflib.get_close_matches(str(value), limits["choices"], n=1)
        hint = f"did you mean {close[0]!r}? " if close and not quoted else ""
        return f"{hint}choose one of {', '.join(limits['choices'])}{quoted}"
    if limits["at_least"] is not None and not value >= limits["at_least"]:
        return f"must be at least {limits['at_least']:,}"
    if limits["above"] is not None and not value > limits["above"]:
        return f"must be above {limits['above']:,}"
    if limits["at_most"] is not None and not value <= limits["at_most"]:
        return f"must be at most {limits['at_most']:,}"
    if limits["below"] is not None and not value < limits["below"]:
        return f"must be below {limits['below']:,}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and value > LARGEST_INT:
        return f"must be at most {LARGEST_INT:,}"
    return _problem_of_text(value, limits["may_be_empty"]) if isinstance(value, str) else ""


def _problem_of_text(value: str, may_be_empty: bool) -> str:
    """What no path and no text of ours can be. The command line can't hold a NUL or such a surrogate; a YAML can."""
    if not value and not may_be_empty:
        return "needs a value"
    if "\0" in value:
        return "holds a NUL character"
    try:
        value.encode("utf-8", "surrogateescape")  # bytes of the command line that are not UTF-8 are let through
    except UnicodeEncodeError:
        return "holds half a surrogate pair"
    return ""


@dataclass(frozen=True)
class Leaf:
    """One key of a schema, for help, completion and suggestions."""

    name: str  # dotted, as typed: "optim.learning_rate"
    type_name: str  # "int", "float", "bool", "str", "list" (of texts)
    optional: bool  # takes null
    meaning: str
    choices: tuple[str, ...]


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted key → value."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def leaves(schema: type[Any], prefix: str = "") -> Iterator[Leaf]:
    """Every key of a schema, in the order in which it is declared."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kind, optional = _required(hints[item.name])
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type[Any], kind), f"{prefix}{item.name}.")
        else:
            meta = item.metadata
            yield Leaf(prefix + item.name, kind.__name__, optional, meta["meaning"], meta["choices"])


def absent_values(schema: type[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → what runs had that are older than the key, for the keys that say so."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kind, _ = _required(hints[item.name])
        if dataclasses.is_dataclass(kind):
            values |= absent_values(typing.cast(type[Any], kind), f"{prefix}{item.name}.")
        elif item.metadata["absent"] is not dataclasses.MISSING:
            values[prefix + item.name] = item.metadata["absent"]
    return values


def kinds(schema: type[Any]) -> dict[str, Any]:
    """The type of each key of a node, null left out: another node's class, or that of a value."""
    hints = typing.get_type_hints(schema)
    return {item.name: _required(hints[item.name])[0] for item in dataclasses.fields(schema)}


def groups(schema: type[Node]) -> list[str]:
    """The config groups of a verb, those of its nodes first."""
    nodes = [kind for kind in kinds(schema).values() if isinstance(kind, type) and issubclass(kind, Node)]
    return [name for node in (*nodes, schema) for name in node.GROUPS]


def _required(hint: Any) -> tuple[Any, bool]:
    """`int | None` → (int, True); `int` → (int, False)."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in hint.__args__ if kind is not types.NoneType), True
    return hint, False


def from_json(schema: type[ConfigT], data: Any, where: str, prefix: str = "") -> ConfigT:
    """A config from a run's own `config.json`: plain data, every key there, nothing interpolated or imported.

    Args:
        schema: the dataclass to make.
        data: what `json.loads` gave.
        where: the file, for messages.
        prefix: the keys that lead to `data`, for messages.

    Raises:
        UserError: a key is missing, unknown, or of the wrong type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: {prefix or 'the file'} must be an object")
    data = schema.upgraded(data)
    hints = typing.get_type_hints(schema)
    names = [item.name for item in dataclasses.fields(schema)]
    absent = {item.name: item.metadata.get("absent", dataclasses.MISSING) for item in dataclasses.fields(schema)}
    data = {name: value for name, value in absent.items() if value is not dataclasses.MISSING} | data
    for name in [*names, *data]:
        if name not in data or name not in names:
            raise UserError(f"{where}: {prefix}{name} is {'missing' if name not in data else 'unknown'}")
    values: dict[str, Any] = {}
    for name in names:
        kind, optional = _required(hints[name])
        value = data[name]
        if dataclasses.is_dataclass(kind):
            value = from_json(typing.cast(type[Any], kind), value, where, f"{prefix}{name}.")
        elif kind is float and type(value) is int and abs(value) <= LARGEST_INT:
            value = float(value)
        elif not (_is_a(value, kind) or (value is None and optional)):
            raise UserError(f"{where}: {prefix}{name}={value!r} must be of type {kind.__name__}")
        values[name] = value
    return schema(**values)


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        return type(value) is list and all(type(item) is str for item in value)
    return type(value) is kind
