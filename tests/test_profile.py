"""`microgpt train profile=true`: the phases and operations of a step, and the trace."""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TEXT, TINY, Run

from microgpt_cli.cli import main as cli
from microgpt_cli.commands import profile as command
from microgpt_cli.compute import choose
from microgpt_cli.data.dataset import Splits
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import profile
from microgpt_cli.training.profile import STEP, Operation, Profile

CHARS = sorted(set(TEXT))
IDS = torch.tensor([CHARS.index(char) for char in TEXT], dtype=torch.uint8)
PHASES = ["windows", "forward", "backward", "optimizer"]
CPU, CUDA = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


@dataclass
class Average:
    """A row of torch's `key_averages`."""

    key: str
    device_type: object
    self_device_time_total: float = 0.0
    device_time_total: float = 0.0
    is_user_annotation: bool = False
    count: int = 1
    flops: int = 0


@pytest.fixture(scope="module")
def found() -> Profile:
    settings = cli.load_config("train", [*TINY, "optim=adamw", "grad_accum_steps=2"])
    seen: list[str] = []
    model = GPT(settings.model, len(CHARS))
    result = profile.profile(
        model, Splits(IDS[:-500], IDS[-500:]), settings, choose("cpu", "float32", threads=1), seen.append
    )
    made = (profile.WARMUP_STEPS, profile.TIMED_STEPS, profile.PROFILED_STEPS)
    assert seen == ["warming up"] * made[0] + ["timing"] * made[1] + ["profiling"] * made[2]
    return result


def marks(trace: bytes) -> Iterable[str]:
    return (event["name"] for event in json.loads(trace)["traceEvents"] if event.get("cat") == "user_annotation")


def test_phases_and_operations_each_sum_to_the_step_time(found: Profile) -> None:
    assert list(found.phases) == [*PHASES, "the rest"]
    assert all(seconds > 0 for seconds in found.phases.values())
    assert found.seconds == pytest.approx(sum(found.phases.values()), rel=0.02)
    assert [row.seconds for row in found.operations] == sorted((row.seconds for row in found.operations), reverse=True)


def test_operations_are_counted(found: Profile) -> None:
    calls = {row.name: row.calls / found.steps for row in found.operations}
    assert calls["aten::_fused_adamw_"] >= 1
    assert calls["aten::embedding_dense_backward"] == 2  # micro-batches
    [head] = [row for row in found.operations if row.name == "aten::mm"]
    assert head.flops > 0


def test_native_kernels_are_counted() -> None:
    settings = cli.load_config("train", [*TINY, "optim=adamw"])
    compute = choose("cpu", "float32", "auto", threads=1, trained=settings.model)
    if compute.engine != "native":
        pytest.skip(compute.reasons["engine"])
    seen = profile.profile(
        GPT(settings.model, len(CHARS)), Splits(IDS[:-500], IDS[-500:]), settings, compute, lambda doing: None
    )
    calls = {row.name: row.calls / seen.steps for row in seen.operations}
    assert calls["native::attention"] == calls["native::attention_backward"] == settings.model.n_layer
    assert list(seen.phases) == [*PHASES, "the rest"]


def test_trace_contains_each_step_and_its_phases(found: Profile) -> None:
    names = list(marks(found.trace))
    assert names.count(STEP) == names.count("windows") == names.count("optimizer") == found.steps
    assert names.count("forward") == names.count("backward") == 2 * found.steps


def test_on_a_gpu_only_kernels_are_counted() -> None:
    rows = [
        Average("aten::mm", CPU, self_device_time_total=5e6),
        Average("sm90_gemm", CUDA, self_device_time_total=5e6, count=3),
        Average("elementwise_kernel", CUDA, self_device_time_total=7e6),
        Average("forward", CPU, device_time_total=4e6, is_user_annotation=True),
        Average("forward", CUDA, self_device_time_total=6e6, device_time_total=6e6, is_user_annotation=True),
        Average("windows", CPU, device_time_total=1e6, is_user_annotation=True),
        Average("optimizer", CPU, device_time_total=2e6, is_user_annotation=True),
        Average("backward", CPU, is_user_annotation=True),  # launched by another thread
        Average(STEP, CPU, device_time_total=7e6, is_user_annotation=True),
    ]
    kernels = profile.on_device(rows)
    assert kernels == [Operation("elementwise_kernel", 7.0, 1, 0), Operation("sm90_gemm", 5.0, 3, 0)]
    assert profile.phases_of(rows, True, 12.0) == {"windows": 1.0, "forward": 4.0, "backward": 5.0, "optimizer": 2.0}
    replayed = [row for row in rows if row.key not in PHASES]  # as one CUDA graph
    assert profile.phases_of(replayed, True, 12.0) == {}


def test_table_sums_to_100_percent_and_fits_the_terminal() -> None:
    rows = [Operation(f"aten::made_up_operation_{number}", 2.0**-number, 10, 0) for number in range(1, 20)]
    shown = command.table(Profile(10, False, 0.1, 0.2, rows, {}, b""), 60)
    assert len(shown) == 1 + command.SHOWN + 2  # a head, the others, all
    assert max(map(len, shown)) <= 60
    shares = [float(line.split("%")[0]) for line in shown[1:]]
    assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=1)


def test_profile_writes_a_trace_and_no_run(
    microgpt: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(command, "LARGE_BYTES", 1 << 30)
    ran = microgpt("train", "profile=true", *TINY, f"data.path={text_file}")
    assert ran.status == 0, ran.err
    [trace] = (tmp_path / "outputs").rglob("trace.json")
    assert f"trace     {trace.relative_to(tmp_path)}\n" in ran.out
    assert STEP in marks(trace.read_bytes())
    assert (trace.parent / ".hydra" / "overrides.yaml").is_file()
    table = ran.out.partition("operation\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == command.SHOWN + 2
    assert all("::" in row or "between operations" in row for row in table[: command.SHOWN])
    assert microgpt("runs").status == 2  # there is none
    assert not (tmp_path / "outputs" / "latest").exists()


def test_large_trace_is_compressed(
    microgpt: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LARGE_BYTES", 1000)
    ran = microgpt("train", "profile=true", *TINY, f"data.path={text_file}", "out_dir=there/it")
    assert ran.status == 0, ran.err
    assert STEP in marks(gzip.decompress((tmp_path / "there" / "it" / "trace.json.gz").read_bytes()))


def test_invalid_combinations_print_one_line_and_write_nothing(
    microgpt: Run, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = ("train", "profile=true", *TINY, f"data.path={text_file}")
    for more, says in (
        ((f"resume={trained}",), "it needs newly initialised weights"),
        (("lr_find=true",), "give one of them"),
        (("-m", "seed=1,2"), "run it without -m"),
        ((f"out_dir={trained}",), "contains a run"),
        ((f"out_dir={text_file}",), "not a folder"),
    ):
        ran = microgpt(*words, *more)
        assert ran.status == 2, more
        assert says in ran.err
        assert ran.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
