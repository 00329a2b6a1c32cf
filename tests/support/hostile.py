"""What the tests of hostile files share: how they are watched, forged and mutated.

A forger rewrites the manifest with the file, so most cases come with a manifest that agrees with them.
"""

import contextlib
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt_cli.commands.params  # noqa: F401
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.data.dataset import Splits
from microgpt_cli.errors import UserError
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Draws, Sampler
from microgpt_cli.model.accounting import meta_model
from microgpt_cli.runs import layout, storage
from microgpt_cli.training.trainer import Trainer

CPU_SECONDS, EXTRA_BYTES = 2.0, 512 << 20  # what one file may cost
MODEL, OPTIM, META = checkpoint.MODEL, checkpoint.OPTIM, checkpoint.META
CONFIG, TOKENIZER, MANIFEST, BEST = layout.CONFIG, layout.TOKENIZER, layout.MANIFEST, layout.BEST
DEEP = b"[" * 100_000 + b"]" * 100_000
SHELL = {"_target_": "os.system", "command": "touch canary"}

# what no file may bring about: other programs, other machines, objects made from a pickle
ALARMS = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
ALARMS += ("socket.connect", "ctypes.dlopen", "marshal.loads", "code.__new__")
watching: list[str] | None = None


def _watch(event: str, _args: tuple[object, ...]) -> None:
    if watching is not None and event in ALARMS:
        watching.append(event)


# What a process imports at the first use is not a file's doing: the C library, Hydra's plugins, the meta device.
choose("cpu", "float32")
meta_model(cli.load_config("train", ["model=micro"]).model, 5)
cli.load_config("params", [])
sys.addaudithook(_watch)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let `UserError` pass as an answer, and hold everything else to what one file may cost and do."""
    global watching
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_BYTES, hard))
    watching, began = [], time.process_time()
    try:
        with contextlib.suppress(UserError):
            yield
        seconds, alarms = time.process_time() - began, watching
    finally:
        watching = None
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert seconds < CPU_SECONDS
    assert not alarms


def use(run: Path) -> None:
    """All that the verbs do with a run's files: find, load, build, sample, and get ready to train on."""
    loaded = checkpoint.load(layout.find_checkpoint(str(run)))
    model = checkpoint.build_model(loaded, torch.device("cpu")).eval()
    prompt = list(range(min(3, model.vocab_size)))
    columns = list(generate(model, prompt, 3, Sampler(), Draws(0, 1)))
    loaded.tokenizer.decode([column[0] for column in columns]).encode()
    config = dataclasses.replace(loaded.config, max_steps=loaded.step + 1)
    ids = torch.zeros(20, dtype=torch.uint8)
    Trainer(run, config, model, Splits(ids, ids), choose("cpu", "float32"), {}, loaded)


def forge(step: Path, name: str, data: bytes) -> None:
    """Put `data` in place of a file, and rewrite the manifest to match."""
    (step / name).write_bytes(data)
    manifest = json.loads((step / MANIFEST).read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": storage.sha256(data)}
    (step / MANIFEST).write_bytes(storage.json_bytes(manifest))


def refusal(run: Path) -> str:
    """What is said of a run that must not be taken for sound."""
    said: list[str] = []
    with guarded():
        try:
            use(run)
        except UserError as error:
            said.append(str(error))
    assert said, "it was taken for sound"
    return said[0]


def tensors(*entries: tuple[str, object, object, object], data: bytes = b"", header: bytes | None = None) -> bytes:
    """A file of tensors: (name, dtype, shape, offsets) and the bytes, or a header as it is."""
    if header is None:
        header = json.dumps({n: {"dtype": d, "shape": s, "data_offsets": o} for n, d, s, o in entries}).encode()
    return len(header).to_bytes(8, "little") + header + data


BAD_VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 10**9, 2**31, 2**63, 10**400, 1e308, -0.0, 5e-324, "", "\0", "\ud800", "${x}"]),
    st.sampled_from([[], {}, [[]], SHELL, "cuda:9999999999", "x" * 5000, "../../x", "~", "NaN", [10**9] * 9]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)),
)
SNIPPETS = (
    b"NaN",
    b"1e999",
    b"-Infinity",
    b'"seed":1,',
    b"[" * 3000,
    b"{",
    b"}",
    b"\0",
    b"\xff",
    b'"\\ud800"',
    b"9" * 5000,
)


def mutate_bytes(data: bytes, draw: Callable[..., Any]) -> bytes:
    """Flip, cut, repeat or put something between, up to three times."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if data:
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[at + draw(st.integers(1, 64)) :]
            case 2:
                data = data[:at] + draw(st.sampled_from(SNIPPETS)) + data[at:]
            case 3:
                data = data[:at]
            case _:
                data = data[:at] + draw(st.binary(max_size=8)) + data[at:]
    return data


def mutate_json(node: Any, draw: Callable[..., Any]) -> Any:
    """Go down to some node, and put something else in its place, remove it, or put something beside it."""
    if not isinstance(node, dict | list) or not node or draw(st.integers(0, 5)) == 0:
        return draw(BAD_VALUES)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = draw(st.sampled_from(keys))
    match draw(st.integers(0, 5)):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[draw(st.text(max_size=5) | st.sampled_from(keys))] = draw(BAD_VALUES)
        case _:
            node[key] = mutate_json(node[key], draw)
    return node


def hammer(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], tries: int, same: bool) -> None:
    """Run `check` on so many draws: the same ones each time, as at a commit, or others each time, as under stress."""
    settings(max_examples=tries, deadline=None, database=None, derandomize=same)(given(strategy)(check))()
