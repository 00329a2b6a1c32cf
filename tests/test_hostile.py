"""Files that were damaged, or made to harm: one line or a sound model, never another error, and never their code.

A forger rewrites the manifest with the file, so most cases here come with a manifest that agrees with them.
"""

import ast
import contextlib
import dataclasses
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt_cli
from microgpt_cli import cli
from microgpt_cli.data import tokenizers
from microgpt_cli.data.tokens import Splits
from microgpt_cli.errors import UserError
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Draws, Sampler
from microgpt_cli.runs import folder as layout
from microgpt_cli.runs import storage
from microgpt_cli.training import checkpoint, meta
from microgpt_cli.training.device import choose
from microgpt_cli.training.trainer import State, Trainer

CPU_SECONDS, EXTRA_BYTES = 2.0, 512 << 20  # what one file may cost
MODEL, OPTIM, META = checkpoint.MODEL, checkpoint.OPTIM, checkpoint.META
CONFIG, TOKENIZER, MANIFEST, BEST = layout.CONFIG, layout.TOKENIZER, layout.MANIFEST, layout.BEST


# What is watched while a hostile file is used

# what no file may bring about: other programs, other machines, objects made from a pickle
ALARMS = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
ALARMS += ("socket.connect", "ctypes.dlopen", "marshal.loads", "code.__new__")
watching: list[str] | None = None


def _watch(event: str, _args: tuple[object, ...]) -> None:
    if watching is not None and event in ALARMS:
        watching.append(event)


choose("cpu", "float32")  # opens the C library, once
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


@pytest.fixture
def step(trained: Path, tmp_path: Path) -> Path:
    """The only checkpoint of a copied run."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    newest, *others = layout.step_folders(run)
    for other in others:
        shutil.rmtree(other)
    (run / layout.CHECKPOINTS / BEST).write_bytes(storage.json_bytes({"checkpoint": newest.name}))
    return newest


# 1,000 bits and 100 ends


def damaged(step: Path, flips: int, truncations: int) -> Iterator[tuple[Path, bytes]]:
    """(file, its bytes with one bit another or with the end cut off), every file of the checkpoint in turn."""
    draw = random.Random(0)
    names = [*checkpoint.FILES, MANIFEST]
    for number in range(flips + truncations):
        path = step / names[number % len(names)]
        data = path.read_bytes()
        place = draw.randrange(len(data))
        if number < flips:
            yield path, data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        else:  # of each file first the last byte alone
            yield path, data[:-1] if number < flips + len(names) else data[:place]


@pytest.mark.parametrize(
    ("flips", "truncations"), [(100, 10), pytest.param(1000, 100, marks=pytest.mark.stress)], ids=["some", "all"]
)
def test_every_flipped_bit_and_every_lost_end_is_noticed(step: Path, flips: int, truncations: int) -> None:
    noticed = 0
    for path, data in damaged(step, flips, truncations):
        whole = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(UserError):
            checkpoint.load(step)
        path.write_bytes(whole)
        noticed += 1
    assert noticed == flips + truncations
    checkpoint.load(step)


@pytest.mark.stress
def test_verifying_a_checkpoint_does_not_import_the_compiler(step: Path) -> None:
    """Any arithmetic on the meta device does: 480 modules, and seconds at each start."""
    code = f"""import sys; from pathlib import Path; from microgpt_cli.training import checkpoint
before = len(sys.modules); checkpoint.load(Path({str(step)!r})); print(len(sys.modules) - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20


# A kept corpus of JSON


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    """Set dotted keys of a JSON file (`state__step=3`); `...` removes one."""

    def edit(step: Path) -> None:
        data = json.loads((step / name).read_bytes())
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            node = data
            for parent in parents:
                node = node[parent]
            if value is ...:
                del node[last]
            else:
                node[last] = value
        forge(step, name, json.dumps(data).encode())

    return edit


def raw(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda step: forge(step, name, data)


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def replace(step: Path) -> None:
        data = (step / name).read_bytes()
        assert old in data
        forge(step, name, data.replace(old, new, 1))

    return replace


def manifest(data: bytes) -> Callable[[Path], None]:
    def write(step: Path) -> None:
        (step / MANIFEST).write_bytes(data)

    return write


def best(data: bytes) -> Callable[[Path], None]:
    def write(step: Path) -> None:
        (step.parent / BEST).write_bytes(data)

    return write


def pipe(step: Path) -> None:
    """Opening it would wait for ever."""
    import os

    (step / META).unlink()
    os.mkfifo(step / META)


def folder_instead(step: Path) -> None:
    (step / TOKENIZER).unlink()
    (step / TOKENIZER).mkdir()


def sparse_weights(step: Path) -> None:
    """40 GB of nothing, at the cost of none."""
    with (step / MODEL).open("r+b") as file:
        file.truncate(40 << 30)


def another_step(step: Path) -> None:
    step.rename(step.with_name("step-99999999"))


DEEP = b"[" * 100_000 + b"]" * 100_000
SHELL = {"_target_": "os.system", "command": "touch canary"}
# What is done to a checkpoint, and what the line must say of it.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "config: names code": (edited(CONFIG, model=SHELL), "model.n_layer is missing"),
    "config: names code beside the keys": (edited(CONFIG, model___target_="os.system"), "model._target_ is unknown"),
    "config: interpolates": (edited(CONFIG, seed="${oc.env:HOME}"), "seed='${oc.env:HOME}' must be of type int"),
    "config: a hydra node": (edited(CONFIG, hydra={"callbacks": {"x": SHELL}}), "hydra is unknown"),
    "config: a billion wide": (edited(CONFIG, model__n_embd=10**9), "model.n_embd=1000000000: must be at most 65,536"),
    "config: as wide as allowed": (edited(CONFIG, model__n_embd=1 << 16), "must be F32 of shape"),
    "config: as deep as allowed": (edited(CONFIG, model__n_layer=1000), "is missing"),
    "config: a long context": (edited(CONFIG, model__block_size=1 << 24), "position_embedding_table.weight must be"),
    "config: long tables": (edited(CONFIG, model__block_size=1 << 24, model__position="rotary"), "too large"),
    "config: no heads": (edited(CONFIG, model__n_head=0), "must be at least 1"),
    "config: digits without end": (edited(CONFIG, seed=10**4000), "must be at most"),
    "config: not a float": (edited(CONFIG, optim__eps=10**400), "must be of type float"),
    "config: an infinite float": (replaced(CONFIG, b'"seed": 1337', b'"seed": 1e999'), "not a finite number"),
    "config: NaN": (replaced(CONFIG, b'"seed": 1337', b'"seed": NaN'), "not a finite number"),
    "config: truth for a number": (edited(CONFIG, seed=True), "seed=True must be of type int"),
    "config: a key twice": (replaced(CONFIG, b'"seed"', b'"seed": 1, "seed"'), "key 'seed' stands twice"),
    "config: deep": (raw(CONFIG, DEEP), "not a valid JSON file"),
    "config: deep inside": (edited(CONFIG, seed=json.loads("[" * 200 + "]" * 200)), "nested deeper than 20"),
    "config: half a surrogate pair": (edited(CONFIG, data__path="\ud800"), "data.path=\ud800: holds half a surrogate"),
    "config: NUL": (edited(CONFIG, data__path="a\0b"), "holds a NUL character"),
    "config: a download elsewhere": (edited(CONFIG, data__file_name="/etc/x"), "must be a name alone"),
    "config: a download of a file": (edited(CONFIG, data__url="file:///etc/passwd"), "must begin with https://"),
    "config: a list": (raw(CONFIG, b"[]"), "the file must be an object"),
    "config: not UTF-8": (raw(CONFIG, b"\xff\xfe{}"), "not a valid JSON file"),
    "config: another model": (edited(CONFIG, model__n_layer=2), "is missing"),
    "config: threads": (edited(CONFIG, threads=10**6), "threads=1000000: must be at most 1,024"),
    "meta: another format": (edited(META, format=2), "not of format 1"),
    "meta: no state": (edited(META, state=...), "state must have the keys"),
    "meta: a state that names code": (edited(META, state=SHELL), "state must have the keys"),
    "meta: a key too many": (edited(META, state__extra=1), "state must have the keys"),
    "meta: text for a step": (edited(META, state__step="30"), "state.step is missing, of a wrong type"),
    "meta: a step below zero": (edited(META, state__step=-1, step=-1), "state.step is missing, of a wrong type"),
    "meta: a step without end": (edited(META, state__step=10**18, step=10**18), "state.step"),
    "meta: two steps": (edited(META, step=31), "contradicts itself about step 30"),
    "meta: the best of another run": (edited(META, state__best_step=31), "contradicts itself"),
    "meta: tokens without steps": (edited(META, state__tokens=0), "contradicts itself"),
    "meta: a loss that is text": (edited(META, state__val_loss="2"), "state.val_loss"),
    "meta: a loss that is not finite": (replaced(META, b'"val_loss": ', b'"val_loss": 1e999, "x": '), "finite"),
    "meta: a log of negative length": (edited(META, state__metrics_bytes=-5), "state.metrics_bytes"),
    "meta: what was not logged": (edited(META, state__unlogged=[[1.0]]), "state.unlogged"),
    "meta: no checksum of the text": (edited(META, text_sha256=...), "text_sha256"),
    "meta: words for a terminal": (edited(META, device="\x1b]0;owned\x07"), "device"),
    "meta: a longer name": (edited(META, torch="2" * 300), "torch"),
    "meta: 100,000 pairs": (edited(META, state__unlogged=[[1.0, 1.0]] * 100_000), "more than 200,000 values"),
    "meta: a pipe": (pipe, "not a plain file"),
    "meta: another folder": (another_step, "of step 30, which is not the folder's"),
    "tokenizer: code": (raw(TOKENIZER, json.dumps(SHELL).encode()), "not a tokenizer of format 1"),
    "tokenizer: kind": (edited(TOKENIZER, kind="bpe"), "not a tokenizer of kind char or byte"),
    "tokenizer: ids": (edited(TOKENIZER, chars={"a": 10**9}), "chars must be a text"),
    "tokenizer: no characters": (edited(TOKENIZER, chars=""), "chars must be a text"),
    "tokenizer: one character twice": (edited(TOKENIZER, chars="aab"), "chars must be a text"),
    "tokenizer: another order": (edited(TOKENIZER, chars="ba"), "chars must be a text"),
    "tokenizer: half a surrogate pair": (edited(TOKENIZER, chars="a\ud800"), "half a surrogate pair"),
    "tokenizer: all of Unicode": (edited(TOKENIZER, chars="".join(map(chr, range(0xD800)))), "must be F32 of shape"),
    "tokenizer: one character more": (edited(TOKENIZER, chars="".join(map(chr, range(33)))), "must be F32 of shape"),
    "tokenizer: bytes for characters": (raw(TOKENIZER, b'{"format": 1, "kind": "byte"}'), "must be F32 of shape"),
    "tokenizer: deep": (raw(TOKENIZER, b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "not a valid JSON file"),
    "tokenizer: a million objects": (raw(TOKENIZER, b"[" + b"{}," * 999_999 + b"{}]"), "more than 200,000 values"),
    "tokenizer: millions of lists": (raw(TOKENIZER, b"[" + b"[]," * 5_000_000 + b"[]]"), "more than 200,000 values"),
    "tokenizer: 17 MB": (raw(TOKENIZER, b" " * (17 << 20)), "larger than the 16,777,216 bytes"),
    "tokenizer: a folder": (folder_instead, "Is a directory"),
    "manifest: empty": (manifest(b""), "not a valid JSON file"),
    "manifest: no files": (manifest(b'{"format": 1}'), "must name"),
    "manifest: other files": (manifest(b'{"format": 1, "files": {"../../x": {}}}'), "must name"),
    "manifest: deep": (manifest(b'{"format": 1, "files": ' + DEEP + b"}"), "not a valid JSON file"),
    "manifest: infinite": (manifest(b'{"format": 1e999}'), "not a finite number"),
    "manifest: truth for a number": (manifest(b'{"format": true, "files": {}}'), "must name"),
    "best: deep": (best(DEEP), "not a valid JSON file"),
    "weights: sparse": (sparse_weights, "larger than"),
}


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


@pytest.mark.parametrize(("attack", "says"), CASES.values(), ids=CASES)
def test_a_kept_attack_is_answered_in_one_line(
    attack: Callable[[Path], None], says: str, step: Path, tmp_path: Path
) -> None:
    attack(step)
    said = refusal(tmp_path / "run")
    assert says in said
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"checkpoint": "../../../etc"}', b'{"checkpoint": "a\\u0000b"}'])
def test_a_note_of_the_best_that_names_nothing_is_passed_over(data: bytes, step: Path, tmp_path: Path) -> None:
    best(data)(step)
    assert layout.find_checkpoint(str(tmp_path / "run")) == step


def test_the_schema_of_the_state_is_that_of_the_trainer() -> None:
    assert {*meta.STATE, "unlogged"} == {item.name for item in dataclasses.fields(State)}


def test_the_verbs_say_it_in_one_line_and_let_no_file_speak_to_the_terminal(
    step: Path, microgpt: Run, tmp_path: Path
) -> None:
    edited(CONFIG, **{"\x1b]0;owned\x07\n\u202e": 1})(step)
    for words in (["sample", "run"], ["params", "run"], ["eval", "run"], ["train", "resume=run"]):
        ran = microgpt(*words)
        assert ran.status == 2
        assert ran.err.count("\n") == 1
        assert "\\x1b]0;owned\\x07" in ran.err
        assert not {"\x1b", "\x07", "\u202e"} & {*ran.err}


def test_a_run_from_elsewhere_does_not_say_where_to_write(step: Path, microgpt: Run, tmp_path: Path) -> None:
    """Its text is fetched from where it says, so the folder that this is put into must not be its own choice."""
    elsewhere = tmp_path / "elsewhere"
    edited(
        CONFIG,
        data__cache_dir=str(elsewhere),
        data__path=None,
        data__source="download",
        data__url="http://127.0.0.1:9/x",
        data__file_name="x",
        data__sha256="0" * 64,
        data__size_bytes=1,
    )(step)
    for words in (["eval", "run"], ["train", "resume=run", "max_steps=40"]):
        ran = microgpt(*words)
        assert ran.status == 2
        assert "no download" in ran.err
        assert not elsewhere.exists()


# safetensors


def tensors(*entries: tuple[str, object, object, object], data: bytes = b"", header: bytes | None = None) -> bytes:
    """A file of tensors: (name, dtype, shape, offsets) and the bytes, or a header as it is."""
    if header is None:
        header = json.dumps({n: {"dtype": d, "shape": s, "data_offsets": o} for n, d, s, o in entries}).encode()
    return len(header).to_bytes(8, "little") + header + data


def rewritten(change: Callable[[dict[str, Any], bytearray], None]) -> Callable[[bytes], bytes]:
    """Change the header and the numbers of a file of tensors."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header, numbers = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
        change(header, numbers)
        return tensors(header=json.dumps(header).encode(), data=bytes(numbers))

    return rewrite


def put(name: str, **fields: object) -> Callable[[bytes], bytes]:
    return rewritten(lambda header, _: header[name].update(fields))


def many(header: dict[str, Any], numbers: bytearray) -> None:
    header.update({f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)})


def overlapping(header: dict[str, Any], numbers: bytearray) -> None:
    header["ln_f.bias"]["data_offsets"] = header["ln_f.weight"]["data_offsets"]


def swapped(header: dict[str, Any], numbers: bytearray) -> None:
    header["ln_f.bias"], header["lm_head.bias"] = header["lm_head.bias"], header["ln_f.bias"]


def number(value: bytes) -> Callable[[bytes], bytes]:
    def write(header: dict[str, Any], numbers: bytearray) -> None:
        numbers[-4:] = value

    return rewritten(write)


F32 = "ln_f.weight must be F32 of shape [16]"
TENSOR_CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "not a valid JSON file"),
    "seven bytes": (lambda _: b"\0" * 7, "not a valid JSON file"),
    "a pickle": (lambda _: b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.", "not a valid JSON file"),
    "a header of 2^63 bytes": (lambda data: b"\xff" * 7 + b"\x7f" + data[8:], "not a valid JSON file"),
    "a header longer than the file": (lambda data: (10**6).to_bytes(8, "little") + data[8:], "not a valid JSON file"),
    "a header of nothing": (lambda _: tensors(header=b""), "not a valid JSON file"),
    "a header that is a list": (lambda _: tensors(header=b"[]"), "not a valid safetensors file"),
    "a header that is deep": (lambda _: tensors(header=DEEP), "not a valid JSON file"),
    "a header that is huge": (lambda _: tensors(header=b" " * (2 << 20)), "larger than"),
    "a name twice": (lambda _: tensors(header=b'{"a": {}, "a": {}}'), "key 'a' stands twice"),
    "100,000 tensors": (rewritten(many), "larger than"),
    "a tensor missing": (rewritten(lambda header, _: header.pop("ln_f.weight")), "ln_f.weight is missing"),
    "a tensor too many": (rewritten(lambda header, _: header.update({"../x": {}})), "../x is not part of this model"),
    "truth": (put("ln_f.weight", dtype="BOOL"), F32),
    "halves": (put("ln_f.weight", dtype="F16"), F32),
    "numbers of 6 bits": (put("ln_f.weight", dtype="F6_E2M3"), F32),
    "a type that is none": (put("ln_f.weight", dtype="os.system"), F32),
    "a type that is a list": (put("ln_f.weight", dtype=["F32"]), F32),
    "a shape that overflows": (put("ln_f.weight", shape=[2**32, 2**32]), F32),
    "a shape below zero": (put("ln_f.weight", shape=[-16]), F32),
    "a shape of floats": (put("ln_f.weight", shape=[16.5]), F32),
    "a shape of none": (put("ln_f.weight", shape=None), F32),
    "no offsets": (rewritten(lambda header, _: header["ln_f.weight"].pop("data_offsets")), "not a valid safetensors"),
    "offsets outside": (put("ln_f.weight", data_offsets=[10**9, 10**9 + 64]), "not a valid safetensors file"),
    "offsets backwards": (put("ln_f.weight", data_offsets=[64, 0]), "not a valid safetensors file"),
    "offsets below zero": (put("ln_f.weight", data_offsets=[-64, 0]), "not a valid safetensors file"),
    "offsets that overflow": (put("ln_f.weight", data_offsets=[2**64 - 1, 2**64 + 63]), "not a valid safetensors"),
    "offsets that overlap": (rewritten(overlapping), "not a valid safetensors file"),
    "offsets of one another": (rewritten(swapped), "ln_f.bias must be F32 of shape [16]"),
    "metadata that is no text": (rewritten(lambda h, _: h.update(__metadata__={"a": 1})), "not a valid safetensors"),
    "bytes that belong to none": (lambda data: data + b"1234", "not a valid safetensors file"),
    "bytes missing": (lambda data: data[:-4], "not a valid safetensors file"),
    "NaN": (number(b"\0\0\xc0\x7f"), "holds numbers that are not finite"),
    "infinity": (number(b"\0\0\x80\xff"), "holds numbers that are not finite"),
}


@pytest.mark.parametrize(("attack", "says"), TENSOR_CASES.values(), ids=TENSOR_CASES)
def test_kept_tensors_are_answered_in_one_line(
    attack: Callable[[bytes], bytes], says: str, step: Path, tmp_path: Path
) -> None:
    forge(step, MODEL, attack((step / MODEL).read_bytes()))
    said = refusal(tmp_path / "run")
    assert said.startswith(str(step / MODEL))
    assert says in said
    assert not list(tmp_path.rglob("canary"))


def test_an_optimizer_that_is_not_finite_is_refused_too(step: Path) -> None:
    forge(step, OPTIM, number(b"\0\0\xc0\x7f")((step / OPTIM).read_bytes()))
    with pytest.raises(UserError, match=r"optim\.safetensors: .* not finite"):
        checkpoint.load(step)


# Mutations: 10,000 of them in `make stress`, some at every commit

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


@st.composite
def mutations(draw: Callable[..., Any], whole: dict[str, bytes]) -> tuple[str, bytes, bool]:
    """(file, its new bytes, whether the manifest is made to agree)."""
    name = draw(st.sampled_from([*whole]))
    data = whole[name]
    if name.endswith(".json") and draw(st.integers(0, 3)):
        data = json.dumps(mutate_json(json.loads(data), draw)).encode()
    elif name in (MODEL, OPTIM) and draw(st.integers(0, 3)):
        length = int.from_bytes(data[:8], "little")
        header = mutate_json(json.loads(data[8 : 8 + length]), draw)
        data = tensors(header=json.dumps(header).encode(), data=data[8 + length :])
    else:
        data = mutate_bytes(data, draw)
    return name, data, name not in (MANIFEST, BEST) and draw(st.integers(0, 9)) > 0


def hammer(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], tries: int) -> None:
    """Run `check` on so many draws; the same ones each time at a commit, others each time under stress."""
    few = tries < 1000
    settings(max_examples=tries, deadline=None, database=None, derandomize=few)(given(strategy)(check))()


TRIES = pytest.mark.parametrize("tries", [150, pytest.param(8000, marks=pytest.mark.stress)], ids=["some", "thousands"])


@TRIES
def test_a_mutated_checkpoint_is_refused_or_sound(tries: int, step: Path, tmp_path: Path) -> None:
    paths = {name: step / name for name in (*checkpoint.FILES, MANIFEST)} | {BEST: step.parent / BEST}
    whole = {name: path.read_bytes() for name, path in paths.items()}

    def check(mutation: tuple[str, bytes, bool]) -> None:
        name, data, agrees = mutation
        if agrees:
            forge(step, name, data)
        else:
            paths[name].write_bytes(data)
        try:
            with guarded():
                use(tmp_path / "run")
        finally:
            paths[name].write_bytes(whole[name])
            paths[MANIFEST].write_bytes(whole[MANIFEST])

    hammer(mutations(whole), check, tries)
    use(tmp_path / "run")


@pytest.mark.parametrize("tries", [100, pytest.param(2000, marks=pytest.mark.stress)], ids=["some", "thousands"])
def test_a_mutated_tokenizer_is_refused_or_gives_text(tries: int) -> None:
    whole = {"char.json": b'{"format": 1, "kind": "char", "unknown": "error", "chars": "abc\\ufffd"}'}
    whole["byte.json"] = b'{"format": 1, "kind": "byte"}'

    def check(mutation: tuple[str, bytes, bool]) -> None:
        with guarded():
            tokenizer = tokenizers.from_json(storage.parse_json(mutation[1], "f"), "f")
            text = tokenizer.decode(range(min(tokenizer.vocab_size, 100)))
            tokenizer.decode(tokenizers.unpack(tokenizer.encode(text), tokenizer.itemsize)).encode()

    hammer(mutations(whole), check, tries)


# YAML in a folder given with --config-dir: code by definition, but a mistake in it is still one line

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_CASES = {
    "an alias bomb": (BOMB, "holds more than 2,000 values, aliases written out"),
    "an alias of itself": ("a: &a [*a]\n", "holds more than 2,000 values"),
    "deep": ("[" * 5000, "nested deeper than 20 levels"),
    "huge": ("# " + "x" * 70_000, "larger than the 65,536 bytes"),
    "an object": ('!!python/object/apply:os.system ["touch canary"]\n', "could not determine a constructor"),
    "a module": ("n_layer: !!python/module:os\n", "could not determine a constructor"),
    "a target": ("_target_: os.system\ncommand: touch canary\n", "Key '_target_' not in 'ModelConfig'"),
    "the environment": ("n_layer: ${oc.env:MICROGPT_NONE}\n", "Environment variable 'MICROGPT_NONE' not found"),
    "an interpolation of nothing": ("n_layer: ${nope}\n", "Interpolation key 'nope' not found"),
    "half an interpolation": ("n_layer: ${\n", "no viable alternative"),
    "half a list": ("n_layer: [1\n", "expected ',' or ']'"),
    "a tabulator": ("\t- x\n", "cannot start any token"),
    "a key twice": ("n_layer: 1\nn_layer: 2\n", "found duplicate key n_layer"),
    "a key that is none": ("? {a: b}\n: c\n", "found unhashable key"),
    "two documents": ("n_layer: 1\n---\nn_layer: 2\n", "expected a single document"),
    "a list": ("- 1\n", "list is not a subclass of ModelConfig"),
    "a text": ("just text\n", "Key 'just text' not in 'ModelConfig'"),
    "a date": ("n_layer: 2024-01-01\n", "could not be converted to Integer"),
    "5,000 digits": (f"n_layer: {'9' * 5000}\n", "Exceeds the limit"),
    "not a number": ("n_layer: .nan\n", "could not be converted to Integer"),
    "too little": ("n_layer: 1\n", "is required"),
    "nothing": ("", "is required"),
    "a default that is none": ("defaults: [nope]\n", "no such choice"),
    "defaults that are none": ("defaults: 3\n", "defaults must be a list"),
    "half a package": ("# @package\nn_layer: 1\n", "Expected header format"),
    "half a surrogate pair": ('position: "\\ud800"\n', "is required"),
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of one's own: `--config-dir my model=own`."""
    path = tmp_path / "my" / "model" / "own.yaml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(("text", "says"), YAML_CASES.values(), ids=YAML_CASES)
def test_a_mistake_in_ones_own_yaml_is_one_line(text: str, says: str, own: Path, microgpt: Run, tmp_path: Path) -> None:
    own.write_text(text)
    began = time.process_time()
    ran = microgpt("params", "--config-dir", "my", "model=own")
    assert time.process_time() - began < CPU_SECONDS
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["my"]


def test_yaml_that_is_not_utf8_is_named(own: Path, microgpt: Run) -> None:
    own.write_bytes(b"n_layer: \xff\n")
    assert (
        "my/model/own.yaml: not UTF-8 text: invalid start byte at byte 9"
        in microgpt("params", "--config-dir", "my", "model=own").err
    )


def test_aliases_in_reason_are_welcome(own: Path, microgpt: Run) -> None:
    own.write_text("n_layer: &n 2\nn_head: *n\nn_embd: 8\nblock_size: 4\ndropout: 0.0\n")
    assert "8 × 2" not in microgpt("params", "--config-dir", "my", "model=own", "format=plain").err
    assert microgpt("params", "--config-dir", "my", "model=own").status == 0


def test_a_callback_in_ones_own_yaml_is_not_called_where_hydra_only_composes(microgpt: Run, tmp_path: Path) -> None:
    path = tmp_path / "my" / "experiment" / "own.yaml"
    path.parent.mkdir(parents=True)
    shell = "{_target_: subprocess.call, args: [touch, canary]}"
    path.write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {shell}}}, job_logging: {{x: {shell}}}}}\n")
    ran = microgpt("train", "--config-dir", "my", "experiment=own", "data.path=nope.txt")
    assert "no such file" in ran.err
    assert not list(tmp_path.rglob("canary"))


YAML_WORDS = (
    "n_layer",
    "n_head: ",
    "n_embd: 8",
    "dropout: 0.0",
    ": ",
    "\n",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
)
YAML_WORDS += (
    "!!python/object/apply:os.system [x]",
    "!!binary ",
    "${",
    "}",
    "${oc.env:HOME}",
    "${model}",
    "_target_: x",
)
YAML_WORDS += (
    "defaults:",
    "<<: ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "---",
    "...",
    "\t",
    "\0",
    "\x85",
    "é",
    "???",
    "1e999",
    "~",
)
YAML_WORDS += ("hydra: ", "@package _global_", "99999999999999999999", ".nan", "on", "2024-01-01", "%", "@", "`")


@pytest.mark.parametrize("tries", [25, pytest.param(1000, marks=pytest.mark.stress)], ids=["some", "thousands"])
def test_mutated_yaml_is_refused_or_composes(tries: int, own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = (cli.CONF / "model" / "micro.yaml").read_bytes()
    words = st.lists(st.sampled_from(YAML_WORDS) | st.text(max_size=3), max_size=8).map("".join)

    @st.composite
    def texts(draw: Callable[..., Any]) -> bytes:
        at = draw(st.integers(0, len(whole)))
        if draw(st.booleans()):
            return mutate_bytes(whole, draw)
        return whole[:at] + draw(words).encode("utf-8", "surrogatepass") + whole[at:]

    def check(text: bytes) -> None:
        own.write_bytes(text)
        with guarded():
            status = cli.main(["params", "--config-dir", "my", "model=own", "format=plain"])
            captured = capfd.readouterr()
            assert (status, captured.err.count("\n")) in ((0, 0), (2, 1)), captured.err

    hammer(texts(), check, tries)


# No code from files

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "runpy",
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "numpy.save", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.UnsafeLoader", "yaml.Loader"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method"),
    *("logging.config.dictConfig", "importlib.import_module"),
}
FORBIDDEN_TEXT = ("_target_", "allow_pickle", "weights_only")
ALLOWED = {("verb.py", "importlib.import_module")}  # of a function that the table of verbs names


def code_from_files(source: str, name: str) -> set[str]:
    """What a module has that could make code of data: modules, functions by whatever name, words."""
    tree = ast.parse(source)
    meant: dict[str, str] = {}  # a name → what it was imported as
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meant |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES}
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            meant |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
            found |= {module} if module.partition(".")[0] in FORBIDDEN_MODULES else set()
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            word = ".".join([meant.get(first, first), *rest])
            if word in FORBIDDEN_CALLS and (word != "compile" or node in called):  # also a name of one of our keys
                found.add(word)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {word for word in FORBIDDEN_TEXT if word in node.value}
        if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_TEXT:
            found.add(str(node.arg))
    return {word for word in found if (name, word) not in ALLOWED}


PACKAGE = sorted(Path(microgpt_cli.__file__).parent.rglob("*.py"))


def test_nothing_in_the_package_makes_code_of_data() -> None:
    assert len(PACKAGE) > 30
    for path in PACKAGE:
        assert not code_from_files(path.read_text(encoding="utf-8"), path.name), path
    for path in cli.CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "source",
    [
        *(
            "import pickle",
            "import pickle as p",
            "from pickle import loads",
            "import joblib",
            "from shelve import open",
        ),
        *("import torch\ntorch.load(x)", "import torch as t\nt.load(x)", "from torch import load\nload(x)"),
        *(
            "from torch import load as read\nread(x)",
            "f = __import__",
            "eval(x)",
            "exec(x)",
            "compile(x)",
            "run = eval",
        ),
        *("import numpy as np\nnp.load(x)", "f(allow_pickle=True)", "f(weights_only=False)", "{'_target_': x}"),
        *("from hydra.utils import instantiate\ninstantiate(x)", "import hydra\nhydra.utils.instantiate(x)"),
        *("import importlib\nimportlib.import_module(x)", "from yaml import load\nload(x)", "import os\nos.system(x)"),
        *("f'{x}_target_'", "from logging.config import dictConfig\ndictConfig(x)"),
    ],
)
def test_that_would_be_found(source: str) -> None:
    assert code_from_files(source, "x.py")


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.compile(x)", "import safetensors.torch\nsafetensors.torch.load(x)"]
)
def test_what_looks_like_it_is_not(source: str) -> None:
    assert not code_from_files(source, "x.py")
