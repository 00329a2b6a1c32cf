"""A kept corpus of JSON made to harm (config, meta, tokenizer, manifest, best): one line, and never its code."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run, Tried
from support.hostile import BEST, CONFIG, DEEP, MANIFEST, META, MODEL, SHELL, TOKENIZER, forge, refusal

from microgpt_cli.checkpoints import meta
from microgpt_cli.runs import layout
from microgpt_cli.training.trainer import State


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


@pytest.mark.parametrize(("attack", "says"), CASES.values(), ids=CASES)
def test_a_kept_attack_is_answered_in_one_line(
    attack: Callable[[Path], None], says: str, step: Path, tmp_path: Path, tried: Tried
) -> None:
    tried("a kept hostile file")
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
