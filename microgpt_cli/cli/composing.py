"""From checked arguments to a config: Hydra composes `conf/`, the verb's dataclass checks every key.

Only this module and multirun.py use Hydra; their functions import it when they need it.
"""

from __future__ import annotations

import copy
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microgpt_cli.cli import overrides
from microgpt_cli.cli.verb import Verb
from microgpt_cli.config.schema import Leaf, Node, flatten, groups, kinds
from microgpt_cli.errors import UserError
from microgpt_cli.runs import escape

HERE = Path(__file__).resolve().parent.parent
MAX_LINE = 2000  # characters of an error message
# in a wheel conf/ is inside the package, in a checkout beside it
CONF = next((path for path in (HERE / "conf", HERE.parent / "conf") if (path / "train.yaml").is_file()), HERE / "conf")


def group_choices(schema: type[Node]) -> dict[str, list[str]]:
    """The config groups of a verb, each with the choices in `conf/`."""
    return {name: sorted(path.stem for path in (CONF / name).glob("[!_]*.yaml")) for name in groups(schema)}


def version_base() -> dict[str, str]:
    """The argument that Hydra 1.3 requires and Hydra 1.4 warns about."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def register(verbs: Mapping[str, Verb], verb: str) -> None:
    """Register the schema of a verb with Hydra, under the name of each verb that shares it."""
    from hydra.core.config_store import ConfigStore

    store, schema = ConfigStore.instance(), verbs[verb].schema
    node = _without_values(schema)
    for name, other in verbs.items():
        if other.schema is schema and f"_{name}.yaml" not in store.repo:  # Hydra 1.4 warns of a second registration
            store.store(name=f"_{name}", node=node)


def _without_values(schema: type[Any]) -> Any:
    """A structured config without the dataclass defaults: on a command line all values come from YAML."""
    from omegaconf import MISSING, OmegaConf

    node = OmegaConf.structured(schema)
    for name, kind in kinds(schema).items():
        node[name] = _without_values(kind) if isinstance(kind, type) and issubclass(kind, Node) else MISSING
    return node


def flag(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, or None if it is absent."""
    return flags[flags.index(name) + 1] if name in flags else None


def compose(verbs: Mapping[str, Verb], verb: str, words: overrides.Words) -> Any:
    """The composed config with its `hydra` node; the schema checks the types."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    register(verbs, verb)
    conf = Path(flag(words.flags, "--config-path") or CONF).absolute()
    extra = flag(words.flags, "--config-dir")
    search = [f"hydra.searchpath=[{overrides.quote('file://' + os.path.abspath(extra))}]"] if extra else []
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf), **version_base(), job_name=verb):
        name = flag(words.flags, "--config-name") or verb
        composed = hydra.compose(name, [*words.overrides, *search], return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    return composed


def select(composed: Any) -> dict[str, Any]:
    """Dotted key → value of a composed config, without its `hydra` node."""
    from omegaconf import OmegaConf

    return flatten(OmegaConf.to_container(_without_hydra(composed), resolve=True))  # type: ignore[arg-type]


def _without_hydra(composed: Any) -> Any:
    """The verb's own config, typed by its schema."""
    from omegaconf import open_dict

    plain = copy.deepcopy(composed)
    with open_dict(plain):
        plain.pop("hydra", None)
    return plain


def to_config(verb: str, spec: Verb, composed: Any) -> Any:
    """The verb's dataclass with checked ranges. Raises `UserError` if a key has no value."""
    from omegaconf import OmegaConf

    plain = _without_hydra(composed)
    missing = sorted(OmegaConf.missing_keys(plain))
    if missing:
        raise UserError(f"{missing[0]} is required, for example: {spec.example}")
    config = OmegaConf.to_object(plain)
    if not isinstance(config, spec.schema):
        raise UserError(f"not a config of microgpt {verb}: its defaults list must start with _{verb}")
    return config


def hydra_files(composed: Any) -> dict[str, str]:
    """The files that Hydra would write to `.hydra/`."""
    from omegaconf import OmegaConf

    return {
        "config.yaml": OmegaConf.to_yaml(_without_hydra(composed)),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(composed, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(composed.hydra.overrides.task),
    }


def interrupt_in_context(error: BaseException) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt in the context of an error: OmegaConf can fail while it handles one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause


def explain(error: Exception, verb: str, words: overrides.Words, schema: dict[str, Leaf]) -> Exception:
    """Errors of Hydra and OmegaConf as a one-line `UserError`; any other error unchanged."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    frames = traceback.extract_tb(error.__traceback__)
    plugin = next((frame for frame in frames if re.search("hydra_plugins(?!.microgpt)", frame.filename)), None)
    if plugin and not isinstance(error, HydraException | OmegaConfBaseException):
        return UserError(f"broken Hydra plugin, uninstall it: {plugin.filename}: {one_line(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options or [] if not name.startswith("_")]
        best = overrides.nearest(choice, options)
        hint = (f"did you mean {best!r}? " if best else "") + (f"choices: {', '.join(options)}" if options else "")
        return UserError(f"{group}={choice}: no such choice; {hint}" if group else f"no config named {choice!r}")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    if isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key or "")
        value = next((word.partition("=")[2] for word in words.overrides if word.partition("=")[0] == key), None)
        if key in schema and value is not None:
            leaf = schema[key]
            return UserError(f"{key}={value}: must be of type {leaf.type_name}{' or null' if leaf.optional else ''}")
        return UserError(f"{str(cause).splitlines()[0]}{f' ({key})' if key else ''}")
    composing = any(Path(frame.filename).name == "config_loader_impl.py" for frame in frames)
    if isinstance(error, HydraException) or composing:  # syntax, encoding, unexpected types
        deep = isinstance(error, RecursionError)
        return UserError("a value or a config file is nested too deeply" if deep else one_line(error))
    return error


def one_line(error: BaseException) -> str:
    """An error as one line, escaped for a terminal: it may quote an untrusted file."""
    line = escape.one_line(str(error))
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} …"
