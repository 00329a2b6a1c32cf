"""A kept corpus of safetensors made to harm: one line that names the file, and never another error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Tried
from support.hostile import DEEP, MODEL, OPTIM, forge, refusal, tensors

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.errors import UserError


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
    "nothing": (lambda _: b"", "not a valid safetensors file"),
    "seven bytes": (lambda _: b"\0" * 7, "not a valid safetensors file"),
    "a pickle": (lambda _: b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.", "not a valid safetensors file"),
    "a header of 2^63 bytes": (lambda data: b"\xff" * 7 + b"\x7f" + data[8:], "not a valid safetensors file"),
    "a header longer than the file": (
        lambda data: (10**6).to_bytes(8, "little") + data[8:],
        "not a valid safetensors file",
    ),
    "a header of nothing": (lambda _: tensors(header=b""), "not a valid JSON file"),
    "a header that is a list": (lambda _: tensors(header=b"[]"), "not a valid safetensors file"),
    "a header that is deep": (lambda _: tensors(header=DEEP), "nested deeper than 20 levels"),
    "a header that is huge": (lambda _: tensors(header=b" " * (2 << 20)), "larger than"),
    "a name twice": (lambda _: tensors(header=b'{"a": {}, "a": {}}'), "duplicate key 'a'"),
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
    "NaN": (number(b"\0\0\xc0\x7f"), "contains NaN or Inf"),
    "infinity": (number(b"\0\0\x80\xff"), "contains NaN or Inf"),
}


@pytest.mark.parametrize(("attack", "says"), TENSOR_CASES.values(), ids=TENSOR_CASES)
def test_kept_tensors_are_answered_in_one_line(
    attack: Callable[[bytes], bytes], says: str, step: Path, tmp_path: Path, tried: Tried
) -> None:
    tried("a kept hostile file")
    forge(step, MODEL, attack((step / MODEL).read_bytes()))
    said = refusal(tmp_path / "run")
    assert said.startswith(str(step / MODEL))
    assert says in said
    assert not list(tmp_path.rglob("canary"))


def test_the_header_is_checked_whatever_the_library_does(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets and metadata are refused by our own line, before safetensors sees the file."""
    whole = (step / MODEL).read_bytes()

    def load(data: bytes) -> dict[str, torch.Tensor]:
        raise AssertionError("a file that should have been refused was handed to safetensors")

    monkeypatch.setattr(safetensors.torch, "load", load)
    for name in ("no offsets", "offsets outside", "offsets that overlap", "bytes missing", "metadata that is no text"):
        forge(step, MODEL, TENSOR_CASES[name][0](whole))
        with pytest.raises(UserError, match="not a valid safetensors file: "):
            checkpoint.load(step)


def test_an_optimizer_that_is_not_finite_is_refused_too(step: Path) -> None:
    forge(step, OPTIM, number(b"\0\0\xc0\x7f")((step / OPTIM).read_bytes()))
    with pytest.raises(UserError, match=r"optim\.safetensors: .* NaN or Inf"):
        checkpoint.load(step)
