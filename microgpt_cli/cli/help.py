"""The help pages of `microgpt --help` and `microgpt VERB --help`, from the verb table, the schema and `conf/`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microgpt_cli.config.schema import Leaf

if TYPE_CHECKING:
    from microgpt_cli.cli.verb import Verb

MAX_COLUMN, MIN_MEANING = 24, 50


def tool(verbs: Mapping[str, Verb]) -> str:
    """The page of `microgpt --help`: each verb with one line and one example."""
    lines = ["microgpt: train, sample, measure and understand small GPTs", "", "  microgpt VERB key=value …", ""]
    for name, spec in verbs.items():
        lines += [f"  {name:8} {spec.help}", f"  {'':8} $ {spec.example}"]
    lines += [
        "",
        "  microgpt VERB --help     keys with type, default and meaning, and config groups",
        "  microgpt VERB --cfg job  print the composed config",
        "  microgpt train -m optim.learning_rate=1e-3,3e-3 model=micro,mini   sweeps",
        '  eval "$(microgpt -sc install=bash)"   completes verbs, keys and choices with TAB',
        "",
        "To start: microgpt train",
    ]
    return "\n".join(lines)


def verb(
    name: str,
    spec: Verb,
    leaves: Iterable[Leaf],
    groups: Mapping[str, Iterable[str]],
    conf: Path,
    defaults: Mapping[str, Any],
    sweep_leaves: Mapping[str, Leaf],
) -> str:
    """The page of a verb: keys with type, default and meaning, groups with their choices."""
    lines = [f"microgpt {name}: {spec.help}", "", f"  $ {spec.example}", ""]
    width = shutil.get_terminal_size().columns
    if groups:
        lines += ["Groups: each choice sets several keys; overrides on the command line win", ""]
        for group, choices in groups.items():
            lines.append(f"  {group}=")
            for choice in choices:
                texts = textwrap.wrap(_first_comment(conf / group / f"{choice}.yaml"), max(width - 20, 40))
                lines += [f"    {choice:14} {texts[0]}", *(" " * 19 + line for line in texts[1:])]
        lines.append("")
    lines += ["Keys", ""]
    rows = [(leaf.name, leaf.type_name, _shown(defaults.get(leaf.name)), _meaning(leaf)) for leaf in leaves]
    columns = [min(max(len(row[i]) for row in rows), MAX_COLUMN) for i in range(3)]
    indent = 2 + sum(columns) + 2 * len(columns)
    if width < indent + MIN_MEANING:
        indent = 8  # meanings on their own line
    for key, type_name, default, meaning in rows:
        head = f"  {key:{columns[0]}}  {type_name:{columns[1]}}  {default:{columns[2]}}  "
        texts = [" " * indent + line for line in textwrap.wrap(meaning, max(width - indent, MIN_MEANING))]
        lines += [head.rstrip(), *texts] if indent == 8 else [head + texts[0].strip(), *texts[1:]]
    if sweep_leaves:
        lines += ["", "Keys of a sweep (-m)", ""]
        lines += [f"  {leaf.name:20} {leaf.type_name:6} {leaf.meaning}" for leaf in sweep_leaves.values()]
    if spec.positional:
        several = spec.positional[0] == "paths"
        example = "Bare words are paths" if several else f"A bare word is {spec.positional[0]}"
        lines += ["", f"{example}: {spec.example if several else f'microgpt {name} outputs/latest'}"]
    lines += ["", "Flags, anywhere: --cfg job, --info, --multirun or -m, --config-dir FOLDER, --hydra-help"]
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    """The description of a choice: the first comment of its file, without commands."""
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    return next((line for line in texts if not line.startswith("microgpt ")), texts[0] if texts else "")


def _meaning(leaf: Leaf) -> str:
    return leaf.meaning + (f" ({'|'.join(leaf.choices)})" if leaf.choices else "")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if value == "???":
        return "(required)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return repr(value) if value == "" else str(value)
