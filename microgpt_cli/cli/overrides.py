"""From command-line arguments to Hydra overrides: check keys against the schema, quote strings, separate flags.

Pure functions without Hydra. Hydra's grammar interprets quotes, commas, equals signs and `${…}` in values, and its
flags must not be between overrides; users need to know neither.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from microgpt_cli.config.schema import Leaf
from microgpt_cli.errors import UserError

# Hydra's flags that take a value; `--info` takes one only if it is one of INFO_WORDS.
SHORT = {"-c": "--cfg", "-p": "--package", "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}
SHORT |= {"-i": "--info", "-m": "--multirun", "-r": "--run", "-h": "--help"}
VALUE_FLAGS = ("--cfg", "--info", "--package", "--config-path", "--config-name", "--config-dir")
PLAIN_FLAGS = ("--help", "--hydra-help", "--resolve", "--multirun", "--run")
INFO_WORDS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAG_WORDS = {"--cfg": ("job", "hydra", "all"), "--info": INFO_WORDS}
# What people type who come from other tools, and the keys that may be meant: the first one that the verb has.
SYNONYMS = {
    "max_steps": "steps step iters iterations max_iters n_steps num_steps epoch epochs n_epochs num_epochs",
    "optim.learning_rate": "lr rate max_lr",
    "optim.weight_decay": "wd decay",
    "optim.warmup_steps": "warmup warmup_iters",
    "batch_size": "bs batch n_batch",
    "model.block_size": "context ctx n_ctx context_length context_size seq_len sequence_length max_seq_len",
    "model.n_layer": "layers depth n_layers num_layers",
    "model.n_head": "heads n_heads num_heads",
    "model.n_embd": "width dim d_model n_embed hidden_size embedding_size",
    "data.path": "text file dataset input corpus txt",
    "dtype": "precision",
    "device": "gpu cuda",
    "temperature": "temp",
    "num_samples": "n samples n_samples",
    "max_new_tokens": "length tokens max_length max_tokens n_tokens num_tokens",
    "prompt": "text start",
    "ckpt": "checkpoint model run",
    "out": "output out_file output_file",
    "out_dir": "out output output_dir",
}
TEXT_FILE = re.compile(r".*\.(txt|md|csv|tsv|jsonl?|log|gz|zip)", re.IGNORECASE | re.DOTALL)
OVERRIDE = re.compile(r"(?P<prefix>\+{0,2}|~)(?P<key>[A-Za-z_][\w.@/-]*)(?:=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """The parsed arguments after the verb."""

    flags: tuple[str, ...]  # of Hydra, with their values
    overrides: tuple[str, ...]  # in Hydra's grammar
    typed: tuple[str, ...]  # keys and groups that are set, without Hydra's own


def sort_words(
    words: Iterable[str],
    leaves: Mapping[str, Leaf],
    groups: Mapping[str, Iterable[str]],
    positional: tuple[str, ...],
    sweep_leaves: Mapping[str, Leaf] = MappingProxyType({}),
) -> Words:
    """Separate flags, overrides and positional arguments, check every key, and quote the values for Hydra.

    Args:
        words: the arguments after the verb.
        leaves: the keys of the verb, by dotted name.
        groups: the groups of the verb with their choices.
        positional: the keys that positional arguments set, in order.
        sweep_leaves: the keys of the sweep itself, which are in `hydra.sweeper`.

    Raises:
        UserError: an unknown flag or key, a key with no value or two, or an unexpected argument.
    """
    flags, rest = _split_flags(list(words))
    sweep = "--multirun" in flags
    overrides, typed, free, several = [], [], list(positional), []
    given: dict[str, str] = {}  # key → the argument that set it
    for word in rest:
        match = OVERRIDE.fullmatch(word)
        is_bare = match is None or (
            match["prefix"] != "~" and (match["value"] is None or _is_path(match["key"], word, leaves, groups))
        )
        if is_bare:
            if not free:
                raise UserError(_bare(word, leaves, groups))
            if leaves[free[0]].type_name == "list":
                several.append(word)
                continue
            key, value = free.pop(0), word
        else:
            assert match is not None
            key, value = match["key"], match["value"]
        if key in given:  # Hydra would silently use the last one
            raise UserError(f"{key} is given twice, as {given[key]!r} and {word!r}; omit one of them")
        given[key] = word
        if not is_bare:
            if key == "hydra" or key.startswith(("hydra.", "hydra/")):
                overrides.append(word)
                continue
            if match and match["prefix"] == "~":
                raise UserError(f"{word}: keys and groups can't be removed")
            if key in sweep_leaves:
                if not sweep:
                    raise UserError(f"{word}: only for sweeps; add -m")
                overrides.append(
                    "hydra.sweeper." + _override(key, value, sweep_leaves, {}, False).removeprefix("sweep.")
                )
                continue
        overrides.append(_override(key, value, {**leaves, **sweep_leaves}, groups, sweep))
        typed.append(key)
    if several and free[0] in given:
        raise UserError(f"{free[0]} is given twice, as {given[free[0]]!r} and {several[0]!r}; omit one of them")
    if several:
        overrides.append(f"{free[0]}=[{','.join(map(quote, several))}]")
        typed.append(free[0])
    return Words(tuple(flags), tuple(overrides), tuple(typed))


def _bare(word: str, leaves: Mapping[str, Leaf], groups: Mapping[str, Iterable[str]]) -> str:
    """The problem with a word that stands alone."""
    if word in leaves or word in groups:
        return f"{word} needs a value: {word}=VALUE, without spaces around the equals sign"
    if "data.path" in leaves and re.match("https?://", word):
        return f"{word!r} is an address: download it, then give data.path=FILE"
    if "data.path" in leaves and _names_text(word):
        return f"{word!r} is not of the form key=value; that is a file: data.path={word}"
    return f"{word!r} is not of the form key=value{_suggest(word, [*leaves, *groups])}"


def _names_text(word: str) -> bool:
    """Whether a word is the path of a text, there or not."""
    return os.path.exists(word) or TEXT_FILE.fullmatch(word) is not None


def _split_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """Flags, in their long form and followed by their values, and all other arguments."""
    flags: list[str] = []
    rest: list[str] = []
    while words:
        word = words.pop(0)
        typed, equals, value = word.partition("=")
        name = SHORT.get(typed, typed)
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif name in PLAIN_FLAGS and not equals:
            flags.append(name)
        elif name in VALUE_FLAGS:
            if name == "--info" and not equals:
                value = words.pop(0) if words and words[0] in INFO_WORDS else "all"
            elif not equals:
                value = words.pop(0) if words else ""
            if not value or value.startswith("-"):
                raise UserError(f"{typed} needs a value")
            if value not in FLAG_WORDS.get(name, (value,)):
                raise UserError(f"{typed} {value}: choose one of {', '.join(FLAG_WORDS[name])}")
            if name in flags:
                raise UserError(f"{typed} is given twice")
            flags += [name, value]
        else:
            known = (*PLAIN_FLAGS, *VALUE_FLAGS, "--version")
            close = difflib.get_close_matches(typed, known, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            value = value if equals else words[0] if words and not words[0].startswith("-") else "VALUE"
            name = typed.lstrip("-").replace("-", "_")
            example = f", as in {name}={value}" if name and not close and "=" not in value else ""
            raise UserError(f"unknown flag {word}{hint}; options are given as key=value{example}")
    return flags, rest


def _is_path(key: str, word: str, leaves: Mapping[str, Leaf], groups: Mapping[str, Iterable[str]]) -> bool:
    """Whether an argument with an equals sign is a path, as in `outputs/lr=1e-3`."""
    return key not in leaves and key not in groups and not key.startswith("hydra") and os.path.exists(word)


def _override(
    key: str, value: str, leaves: Mapping[str, Leaf], groups: Mapping[str, Iterable[str]], sweep: bool
) -> str:
    leaf = leaves.get(key)
    if leaf is None and key not in groups:
        inside = [name for name in leaves if name.startswith(f"{key}.")]
        hint = f"; its keys are {', '.join(inside)}" if inside else _suggest(key, [*leaves, *groups])
        raise UserError(f"unknown key {key!r}{hint}")
    if key == "data" and "data.path" in leaves and value not in groups["data"] and _names_text(value):
        raise UserError(f"data={value}: that is a file: data.path={value}")
    if leaf is not None and leaf.type_name == "str":
        if leaf.optional and value == "null":
            return f"{key}=null"
        if sweep and ("," in value or re.match(r"(choice|shuffle|tag|glob|range)\(", value)):
            return f"{key}={value}"
        return f"{key}={quote(value)}"
    if value == "":
        raise UserError(f"{key}= needs a value")
    if leaf is not None and leaf.type_name == "list":
        return f"{key}={_lists(value, sweep)}"
    if leaf is None and value[0] == "[":
        raise UserError(f"{key}={value}: give one choice; several need a sweep: -m {key}={value.strip('[]')}")
    if not sweep and "," in value and value[0] not in "[{('\"":
        raise UserError(f"{key}={value}: several values need a sweep; add -m")
    return f"{key}={value}"


def _lists(value: str, sweep: bool) -> str:
    """Quote a list of strings: `a`, `[a,b]` or `null`, the empty list; in a sweep, `a,[a,b]` is two lists."""
    lists = re.findall(r"\[[^\]]*\]?|[^,\[]+", value) if sweep else [value]
    made = []
    for text in lists:
        inner = "" if text == "null" else text[1:-1] if text[0] == "[" and text[-1] == "]" else text
        items = [item.strip().strip("'\"") for item in inner.split(",")] if inner.strip() else []
        made.append(f"[{','.join(map(quote, items))}]")
    return ",".join(made)


def quote(text: str) -> str:
    r"""Quote a string for Hydra's override grammar so that Hydra and OmegaConf take it literally.

    OmegaConf reads `${` in a value as an interpolation unless a backslash precedes it, and then also reads
    pairs of backslashes before that. Hydra reads a backslash before the closing quote, or before an inner one, as an
    escape, and then also reads pairs of backslashes before that.
    """
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def _suggest(word: str, names: Iterable[str]) -> str:
    """A hint such as `; did you mean 'model.n_layer'?`, or an empty string."""
    best = nearest(word, names)
    return f"; did you mean {best!r}?" if best else ""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The closest name, compared by full name and by last part, or None."""
    names = list(names)
    meant = [key for key, words in SYNONYMS.items() if word.rpartition(".")[2].lower() in words.split()]
    for key in meant:
        if word not in names and key in names:
            return key
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    if close:
        return close[0]
    by_last: dict[str, str] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], name)
    close = difflib.get_close_matches(word.rpartition(".")[2], by_last, n=1, cutoff=0.75)
    return by_last[close[0]] if close else next(iter(difflib.get_close_matches(word, names, n=1)), None)
