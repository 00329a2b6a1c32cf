"""Compiled C code: built once, cached, rebuilt when damaged, replaced by torch where there is no compiler."""

import ctypes
import errno
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Run, preset
from support.decoding import lively
from support.engines import by_autograd, distance, loss_and_gradients
from support.models import disturbed

from microgpt_cli.commands import train as train_command
from microgpt_cli.compute import choose
from microgpt_cli.engines.cpu import build, decode, muon
from microgpt_cli.engines.cpu.build import Library, Unavailable, load, will_compile
from microgpt_cli.engines.cpu.kernels import ARGUMENTS, Heads, Kernels
from microgpt_cli.errors import UserError
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.training.optimizers import NEWTON_SCHULZ, STEPS


@pytest.fixture
def compiler() -> None:
    """Skip the test where there is none."""
    try:
        load("layer_ops")
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def home(compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder, on a machine with a compiler, in a process that has loaded no library."""
    as_if_new()
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    as_if_new()


def as_if_new() -> None:
    """Forget what was loaded, as a new process would not know it."""
    build._load_once.cache_clear()


def cached(home: Path) -> list[Path]:
    return sorted((home / build.CACHE_FOLDER).glob("*"))


def works(loaded: Library) -> bool:
    x, sums = torch.ones(3, 20), torch.zeros(20)
    loaded.functions.add_rows.argtypes = ARGUMENTS["add_rows"]
    status = loaded.functions.add_rows(x.data_ptr(), sums.data_ptr(), 3, 20)
    return status == 0 and sums.tolist() == [3.0] * 20


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


def test_a_library_is_compiled_once_and_cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert will_compile("layer_ops")
    first = load("layer_ops")
    assert works(first)
    assert [first.path] == cached(home)
    assert not first.note
    assert not will_compile("layer_ops")
    as_if_new()
    monkeypatch.setattr(build, "_compile_and_publish", lambda *_: pytest.fail("compiled again"))
    assert not will_compile("layer_ops")
    assert works(load("layer_ops"))
    assert load("layer_ops") is load("layer_ops")


def test_each_element_type_has_its_own_library(home: Path) -> None:
    assert works(load("layer_ops"))
    assert will_compile("layer_ops", "BFLOAT16")
    load("layer_ops", "BFLOAT16")
    assert len(cached(home)) == 2


def test_the_build_hash_tells_flags_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.build_hash()
    assert load("layer_ops").build_hash == before
    monkeypatch.setenv("MICROGPT_CFLAGS", "-O1")
    assert build.build_hash() != before


def test_the_processor_has_a_name() -> None:
    assert build.processor()


def test_a_damaged_library_is_rebuilt(home: Path) -> None:
    program = [
        sys.executable,
        "-c",
        "from microgpt_cli.engines.cpu.build import load; load('layer_ops').functions.add_rows",
    ]
    subprocess.run(program, check=True)  # this process would not read the file again
    [file] = cached(home)
    whole = file.read_bytes()
    for damage in (b"", b"no library", whole[:1000], whole[:-1000]):
        file.write_bytes(damage)
        subprocess.run(program, check=True)
        assert [path.read_bytes()[:1000] for path in cached(home)] == [whole[:1000]]


def test_without_a_cache_it_is_compiled_for_this_process_and_says_so(home: Path) -> None:
    (home / ".cache").write_text("a file where a folder should be")
    assert will_compile("layer_ops")
    loaded = load("layer_ops")
    assert works(loaded)
    assert loaded.path is None
    assert loaded.note.startswith("CPU kernels can't be cached and are compiled by every process: ")
    assert str(home / ".cache") in loaded.note
    assert [path.name for path in home.iterdir()] == [".cache"]


def test_a_home_mounted_noexec_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.CDLL

    def mapped(name: str | None) -> ctypes.CDLL:
        if name is not None and name.startswith(str(home)):
            raise OSError(errno.EPERM, f"{name}: failed to map segment from shared object")
        return real(name)

    monkeypatch.setattr(ctypes, "CDLL", mapped)
    loaded = load("layer_ops")
    assert works(loaded)
    assert "failed to map segment" in loaded.note


def test_a_folder_that_others_may_write_to_is_not_trusted(home: Path) -> None:
    folder = home / build.CACHE_FOLDER
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    loaded = load("layer_ops")
    assert works(loaded)
    assert loaded.note.endswith(f"others may write to {folder}")
    assert cached(home) == []
    folder.chmod(0o700)
    as_if_new()
    assert works(load("layer_ops"))
    assert len(cached(home)) == 1


def test_cc_comes_first_with_its_flags(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(home / "my bin" / "mine", f'echo "$@" >> {home}/log', 'exec cc "$@"')
    monkeypatch.setenv("CC", f"'{home}/my bin/mine' -DMINE")
    assert works(load("layer_ops"))
    assert all(line.startswith("-DMINE") for line in (home / "log").read_text().splitlines())
    as_if_new()
    monkeypatch.setenv("CC", str(home / "missing"))
    assert works(load("layer_ops"))
    as_if_new()
    monkeypatch.setenv("CC", "cc '")
    with pytest.raises(Unavailable, match="CC or MICROGPT_CFLAGS can't be parsed: No closing quotation"):
        load("layer_ops")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_library_uses_the_openmp_that_torch_has_loaded(
    home: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With libomp in the place of torch's libgomp; in a process of its own, for two runtimes should not meet."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    where = subprocess.run([compiler, "-print-file-name=libomp.so.5"], capture_output=True, text=True, check=True)
    candidates = [Path(where.stdout.strip()), *Path("/usr/lib").glob("llvm-*/lib/libomp.so.5")]
    libomp = next((path.resolve() for path in candidates if path.is_file()), None)
    if libomp is None:
        pytest.skip("libomp is not installed")
    program = f"""
import ctypes
from pathlib import Path
from microgpt_cli.engines.cpu import build
openmp = Path("{libomp}")
ctypes.CDLL(str(openmp), ctypes.RTLD_GLOBAL)
build._openmp_of_torch = lambda: openmp
found = build.load("layer_ops")
x, sums = (ctypes.c_float * 60000)(*[1] * 60000), (ctypes.c_float * 20)()
assert found.functions.add_rows(x, sums, ctypes.c_long(3000), ctypes.c_long(20)) == 0
assert list(sums) == [3000] * 20, list(sums)
assert build._openmp_of(found.functions) == openmp
assert "libgomp" not in Path("/proc/self/maps").read_text()
"""
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_clang_is_refused_beside_libgomp(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(home / "bin" / "clang", "echo '#define __clang__ 1'")
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setattr(build, "_openmp_of_torch", lambda: Path("/torch/lib/libgomp.so.1"))
    with pytest.raises(Unavailable) as raised:
        load("layer_ops")
    why = "clang's OpenMP (libomp) would run beside the libgomp.so.1 that PyTorch has loaded"
    assert str(raised.value) == f"{home}/bin/clang: {why}"
    assert not will_compile("layer_ops")


def test_a_second_openmp_runtime_is_refused(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(build._builds())
    assert first.openmp is not None
    monkeypatch.setattr(build, "_openmp_of", lambda _: Path("/elsewhere/libgomp.so.1"))
    with pytest.raises(Unavailable, match=f"linked /elsewhere/libgomp.so.1 instead of PyTorch's {first.openmp}"):
        build._load_build(first, "layer_ops", ())


def gradients_are_autograds(arch: str) -> None:
    model = disturbed(preset("micro", arch))
    expected_loss, expected = by_autograd(model, torch.float32, 29)
    loss, found = loss_and_gradients(model, torch.float32, 29)
    torch.testing.assert_close(loss, expected_loss)
    for name, grad in found.items():
        assert distance(grad, expected[name]) < 1e-5, name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other instructions")
@pytest.mark.parametrize("without", [["-mno-avx512f"], ["-mno-avx512f", "-mno-avx"]])
def test_narrower_vectors_give_the_same_results(
    home: Path, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, *without))
    for arch in ("gpt2", "modern"):
        gradients_are_autograds(arch)
    model = lively("micro", "modern")
    given = model, [1, 2, 3], 60, Sampler(0.9), UniformStream(5, 1)
    assert list(generate(*given, native=True)) == list(generate(*given[:-1], UniformStream(5, 1)))
    if without == ["-mno-avx512f"]:
        assert decode.load(torch.float16)
    else:
        with pytest.raises(Unavailable, match="this processor has no float16 conversion"):
            decode.load(torch.float16)


def test_processes_that_compile_at_the_same_time_do_not_collide(home: Path) -> None:
    program = "from microgpt_cli.engines.cpu.build import load; load('layer_ops').functions.add_rows"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(cached(home)) == 1  # and nothing half written beside it


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (None, "no C compiler found (cc, gcc, clang)"),
        ("echo 'In file included from a.h' >&2; echo 'a.h:1: error: no math.h' >&2; exit 1", "error: no math.h"),
        ("exit 3", "exit status 3"),
        ('while [ "$1" ] && [ "$1" != -o ]; do shift; done; : > "${2:-/dev/null}"', "compiled can't be loaded"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_named(
    home: Path, line: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "bin").mkdir()
    if line is not None:
        script(home / "bin" / "cc", line)
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(Unavailable) as raised:
        load("layer_ops")
    assert reason in str(raised.value)
    assert not cached(home)


HUGE = 1 << 46  # floats, which is more than there is address space


def test_a_kernel_without_memory_raises_memory_error(compiler: None) -> None:
    kernels, nothing = Kernels(torch.float32), torch.empty(0)
    heads = Heads(0, 1, 1, HUGE)
    wide = torch.empty(1).expand(1, 1 << 24, 1 << 24)
    update = muon.NativeMuon([(wide, wide, wide, 1.0)], False, NEWTON_SCHULZ, STEPS)
    rows, qkv = torch.empty(0, HUGE), torch.empty(0, 3 * HUGE)
    for call in (
        lambda: kernels.add_rows(rows, nothing),
        lambda: kernels.norm_backward(rows, None, (rows, nothing, nothing), nothing, nothing, None, True),
        lambda: kernels.attention(qkv, heads),
        lambda: kernels.attention_backward(rows, qkv, nothing, heads),
        lambda: update(0.1, 1.0, 0.9, 0.0),
    ):
        with pytest.raises(MemoryError, match="can't allocate memory") as raised:
            call()
        assert train_command._is_out_of_memory(raised.value)


def test_a_decoder_without_memory_raises_memory_error(compiler: None) -> None:
    model = lively("micro", "gpt2")
    decoder = decode.NativeDecoder(decode.NativeWeights(model, torch.float32), 8, Sampler())
    decoder._model.V = HUGE  # of `generate`'s probabilities
    with pytest.raises(MemoryError, match="can't allocate memory"):
        next(decoder.write(torch.tensor([1]), 0, UniformStream(0, 1).tensors(torch.device("cpu"))))
    decoder._model.positions = HUGE  # of each thread's attention scores
    with pytest.raises(MemoryError, match="can't allocate memory"):
        decoder.forward(torch.tensor([1]), 0)


def test_training_continues_without_a_compiler_and_says_why(
    microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["model.n_layer=1", "max_steps=2", f"data.path={text_file}", "device=cpu"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    as_if_new()
    ran = microgpt("train", *words)
    assert ran.status == 0
    assert "engine    torch: autograd; no C compiler found (cc, gcc, clang)" in ran.out
    refused = microgpt("train", *words, "engine=native")
    as_if_new()
    assert refused.status == 2
    assert "engine=native: no C compiler found (cc, gcc, clang); try engine=auto" in refused.err


def test_verify_does_not_replay_native_steps_without_a_compiler(
    microgpt: Run, text_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model.n_layer=1", "max_steps=4", "checkpoint_interval=2", f"data.path={text_file}", "device=cpu"]
    assert microgpt("train", *words, f"out_dir={home / 'run'}").status == 0
    whole = microgpt("verify", f"ckpt={home / 'run'}", "replay=2")
    assert whole.status == 0
    assert "are bit-identical to" in whole.out
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    as_if_new()
    refused = microgpt("verify", f"ckpt={home / 'run'}", "replay=2")
    assert refused.status == 2
    assert (
        "replay=2: the run was trained with engine=native, which is not available: no C compiler found (cc, gcc, clang)"
        in refused.err
    )


@pytest.mark.parametrize(
    ("device", "compile", "why"),
    [
        ("meta", "auto", "the C kernels run on a CPU, not on meta"),
        ("cpu", "true", "compile=true applies to engine=torch"),
    ],
)
def test_native_is_refused_where_it_can_not_compute(compiler: None, device: str, compile: str, why: str) -> None:
    trained = preset("micro", "article")
    with pytest.raises(UserError, match=f"engine=native: {why}; try engine=auto"):
        choose(device, "float32", "native", compile, trained=trained)
    compute = choose(device, "float32", "auto", compile, trained=trained)
    assert compute.engine == "torch"
    assert compute.compile == (compile == "true")


def test_a_cpu_with_a_compiler_uses_it(home: Path) -> None:
    compute = choose("cpu", "float32", "auto", "auto", trained=preset("micro", "modern"))
    assert compute.engine == "native"
    assert not compute.compile
    assert compute.reasons["engine"] == "native: fused C kernels, following the model's forward pass"
    asked = choose("cpu", "float32", "torch", "auto", trained=preset("micro", "modern"))
    assert asked.engine == "torch"
    assert asked.reasons["engine"] == "torch: as asked"


@pytest.mark.parametrize("kind", ["relu", "gelu", "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_inf_are_passed_on(compiler: None, kind: str, dtype: torch.dtype) -> None:
    kernels = Kernels(dtype)
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38] + [1.0] * 20], dtype=dtype)
    y = kernels.activate(kind, x, None)
    assert y[0, 0].isnan()
    assert y[0, 1] == float("inf")
    qkv = torch.zeros(4, 3 * 16, dtype=dtype)
    qkv[1, 3] = float("nan")
    found, _ = kernels.attention(qkv, Heads(1, 4, 1, 16))
    assert found.isnan().any(1).tolist() == [False, True, False, False]
