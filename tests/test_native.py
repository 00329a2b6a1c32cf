"""C that is compiled here: made once, kept, made anew when damaged, done without where there is no compiler."""

import ctypes
import dataclasses
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_by_hand
import torch
from conftest import Run, preset
from test_decoding import lively

from microgpt_cli.compute import choose, for_vocabulary
from microgpt_cli.engines.cpu import build, decode
from microgpt_cli.engines.cpu.build import Unavailable, load
from microgpt_cli.engines.cpu.passes import ARGUMENTS, NativePasses
from microgpt_cli.errors import UserError
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Draws, Sampler


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder, on a machine with a compiler, in a process that has loaded nothing."""
    try:
        load("passes")
    except Unavailable as why:
        pytest.skip(str(why))
    build._loaded.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    build._loaded.cache_clear()


def made(home: Path) -> list[Path]:
    return sorted((home / build.PLACE).glob("*"))


def works(functions: ctypes.CDLL) -> bool:
    x, sums = torch.ones(3, 20), torch.zeros(20)
    functions.add_rows.argtypes = ARGUMENTS["add_rows"]
    functions.add_rows(x.data_ptr(), sums.data_ptr(), 3, 20)
    return sums.tolist() == [3.0] * 20


def test_it_is_made_once_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert works(load("passes"))
    [file] = made(home)
    assert file.suffix == ".so"
    build._loaded.cache_clear()
    monkeypatch.setattr(build, "_made", lambda *_: pytest.fail("compiled again"))
    assert works(load("passes"))
    assert load("passes") is load("passes")


def test_other_numbers_are_another_library(home: Path) -> None:
    assert works(load("passes"))
    load("passes", "BFLOAT16")
    assert len(made(home)) == 2


def test_a_damaged_one_is_made_anew(home: Path) -> None:
    program = [sys.executable, "-c", "from microgpt_cli.engines.cpu.build import load; load('passes').add_rows"]
    subprocess.run(program, check=True)  # this process would not look at the file again
    [file] = made(home)
    whole = file.read_bytes()
    for damage in (b"", b"no library", whole[:1000], whole[:-1000]):
        file.write_bytes(damage)
        subprocess.run(program, check=True)
        assert [path.read_bytes()[:1000] for path in made(home)] == [whole[:1000]]


def test_without_a_place_to_keep_it_it_is_made_for_this_process(home: Path) -> None:
    (home / ".cache").write_text("a file where a folder should be")
    assert works(load("passes"))
    assert [path.name for path in home.iterdir()] == [".cache"]


def test_a_folder_that_others_may_write_to_is_not_trusted(home: Path) -> None:
    folder = home / build.PLACE
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert works(load("passes"))
    assert made(home) == []
    folder.chmod(0o700)
    build._loaded.cache_clear()
    assert works(load("passes"))
    assert len(made(home)) == 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other instructions")
@pytest.mark.parametrize("without", [["-mno-avx512f"], ["-mno-avx512f", "-mno-avx"]])
def test_processors_with_less_room_get_the_same(
    home: Path, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, *without))
    for arch in ("gpt2", "modern"):
        test_by_hand.test_in_float32_it_is_autograds_to_rounding(NativePasses, arch, {"block_size": 32}, 29)
    model = lively("micro", "modern")
    given = model, [1, 2, 3], 60, Sampler(0.9), Draws(5, 1)
    assert list(generate(*given, native=True)) == list(generate(*given[:-1], Draws(5, 1)))
    if without == ["-mno-avx512f"]:
        assert decode.load(torch.float16)
    else:
        with pytest.raises(Unavailable, match="this processor converts no float16"):
            decode.load(torch.float16)


def test_processes_that_make_it_at_once_do_not_meet(home: Path) -> None:
    program = "from microgpt_cli.engines.cpu.build import load; load('passes').add_rows"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(made(home)) == 1  # and nothing half made beside it


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "no C compiler here (cc)"),
        ("echo 'In file included from a.h' >&2; echo 'a.h:1: error: no math.h' >&2; exit 1", "error: no math.h"),
        ("exit 3", "exit status 3"),
        ("echo '#define __clang__ 1'", "is clang, whose OpenMP is not torch's"),
        ('for last; do :; done; while [ "$1" ] && [ "$1" != -o ]; do shift; done; : > "${2:-/dev/null}"', "be loaded"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_named(
    home: Path, script: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = home / "bin"
    tools.mkdir()
    if script is not None:
        (tools / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(Unavailable) as raised:
        load("passes")
    assert said in str(raised.value)
    assert not made(home)


def test_training_goes_on_without_a_compiler_and_says_why(
    microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["model.n_layer=1", "max_steps=2", f"data.path={text_file}", "device=cpu"]
    monkeypatch.setenv("PATH", str(tmp_path))
    build._loaded.cache_clear()
    ran = microgpt("train", *words)
    assert ran.status == 0
    assert "compile   no: no C compiler here (cc), and torch.compile costs more than it saves here" in ran.out
    refused = microgpt("train", *words, "compile=native")
    build._loaded.cache_clear()
    assert refused.status == 2
    assert "compile=native: no C compiler here (cc); try compile=auto" in refused.err


def test_steps_made_in_c_are_not_repeated_without_a_compiler(
    microgpt: Run, text_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model.n_layer=1", "max_steps=4", "checkpoint_interval=2", f"data.path={text_file}", "device=cpu"]
    assert microgpt("train", *words, f"out_dir={home / 'run'}").status == 0
    whole = microgpt("verify", f"ckpt={home / 'run'}", "replay=2")
    assert whole.status == 0
    assert "are bit-identical to" in whole.out
    monkeypatch.setenv("PATH", str(home))
    build._loaded.cache_clear()
    refused = microgpt("verify", f"ckpt={home / 'run'}", "replay=2")
    assert refused.status == 2
    assert "replay=2: this run was trained in part in C, and here: no C compiler here (cc)" in refused.err


def test_what_compile_native_cannot_do_is_refused() -> None:
    for device, trained, why in (
        ("cpu", preset("micro", "article", dropout=0.1), "nothing in C for dropout or a context of over 256"),
        ("cpu", None, "nothing is trained"),
        ("meta", preset("micro", "article"), "not for meta"),
    ):
        with pytest.raises(UserError, match=f"compile=native: {why}; try compile=auto"):
            choose(device, "float32", "native", trained=trained)


def test_a_large_vocabulary_is_left_to_torch_and_told() -> None:
    compute = choose("cpu", "float32", "false")
    native = dataclasses.replace(compute, native=True)
    assert for_vocabulary(native, "auto", 4095) is native
    larger = for_vocabulary(native, "auto", 4096)
    assert not larger.native
    assert larger.reasons["compile"] == "no: nothing in C for 4,096 tokens and more"
    with pytest.raises(UserError, match="compile=native: nothing in C for 4,096 tokens and more; try compile=auto"):
        for_vocabulary(native, "native", 4096)


def test_a_cpu_with_a_compiler_uses_it(home: Path) -> None:
    compute = choose("cpu", "float32", "auto", trained=preset("micro", "modern"))
    assert compute.native
    assert not compute.compile
    assert compute.reasons["compile"] == "in part: what stands between the matrix products, in C"
    assert not choose("cpu", "float32", "false", trained=preset("micro", "modern")).native


@pytest.mark.parametrize("kind", ["relu", "gelu", "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_not_hidden(home: Path, kind: str, dtype: torch.dtype) -> None:
    passes = NativePasses(dtype)
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38] + [1.0] * 20], dtype=dtype)
    y, _ = passes.activate(kind, (x, None))
    assert y[0, 0].isnan()
    assert y[0, 1] == float("inf")
    qkv = torch.zeros(4, 3 * 16, dtype=dtype)
    qkv[1, 3] = float("nan")
    layer = torch.nn.Module()
    layer.n_head, layer.qk_norm, layer.rotary, layer.qkv = 1, False, None, torch.nn.Linear(16, 48, bias=False)
    found, _ = passes.attention(layer, qkv, 4)  # type: ignore[arg-type]
    assert found.isnan().any(1).tolist() == [False, True, False, False]
