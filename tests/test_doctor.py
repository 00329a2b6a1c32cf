"""`microgpt doctor`: it says what a run would need, and leaves no trace."""

import dataclasses
import hashlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import TEXT, TINY, Run

from microgpt_cli.cli import main as cli
from microgpt_cli.commands import doctor
from microgpt_cli.compute import choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data import dataset
from microgpt_cli.data.dataset import Splits
from microgpt_cli.model.accounting import meta_model
from microgpt_cli.runs import storage
from microgpt_cli.training import probe
from microgpt_cli.training.probe import Throughput


def everything(*folders: Path) -> dict[str, tuple[int, str]]:
    """All files and folders, with their times and bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for folder in folders
        for path in [folder, *folder.rglob("*")]
    }


def config(*words: str) -> TrainConfig:
    loaded = cli.load_config("train", [*TINY, *words])
    assert isinstance(loaded, TrainConfig)
    return loaded


def test_it_takes_every_key_of_train_with_the_same_values() -> None:
    for words in ([], ["model=mini", "experiment=article"], ["optim.learning_rate=0.01", "data=shakespeare"]):
        assert cli.load_config("doctor", words) == cli.load_config("train", words)
    assert cli.group_choices("doctor") == cli.group_choices("train")


def test_it_writes_nothing_at_all(
    microgpt: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run, no folder, no cache of a large text: not one call that changes a disk, and no file anew."""
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 1000)  # train would cache this text
    monkeypatch.setattr(doctor, "IN_MEMORY_BYTES", 1000)

    def refused(*_: object) -> None:
        raise AssertionError("doctor changes the disk")

    for name in ("create", "open_end", "write", "mkdir", "rename", "symlink", "unlink"):
        monkeypatch.setattr(storage, name, refused)
    before = everything(tmp_path)
    ran = microgpt("doctor", *TINY, f"data.path={text_file}", f"out_dir={tmp_path / 'new' / 'run'}", "max_steps=9")
    assert ran.status == 0, ran.err
    assert everything(tmp_path) == before
    assert "of which the first 991 bytes are checked" in ran.out  # whole lines


def test_a_download_is_looked_at_in_memory(microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(TEXT.encode()))
    before = everything(tmp_path)
    words = ["data=shakespeare", f"data.sha256={hashlib.sha256(TEXT.encode()).hexdigest()}"]
    ran = microgpt("doctor", *TINY, *words, f"data.size_bytes={len(TEXT)}", "max_steps=2")
    assert ran.status == 0, ran.err
    assert f"{len(TEXT):,} characters" in ran.out
    assert everything(tmp_path) == before


def test_it_says_all_of_it_and_ends_with_the_run_to_type(microgpt: Run, text_file: Path) -> None:
    words = [*TINY, f"data.path={text_file}", "max_steps=20", "early_stop_patience=null"]
    ran = microgpt("doctor", *words)
    assert ran.status == 0, ran.err
    names = {line[:9].strip() for line in ran.out.splitlines()}
    assert {"machine", "device", "dtype", "engine", "threads", "compiler", "data", "split", "baselines"} <= names
    assert {"model", "memory", "disk", "speed", "time", "epochs", "small", "copied", "repeated"} <= names
    typed = shlex.split(ran.out.splitlines()[-1].partition("microgpt train")[2])
    assert cli.load_config("train", typed) == cli.load_config("train", words)


def test_odd_characters_and_those_of_the_held_out_part_alone_are_named(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(
        "\ufeff" + "".join(f"Line {i} of a text.\r\n" for i in range(300)) + "Ω", newline=""
    )
    out = microgpt("doctor", *TINY, "data.path=t.txt", "max_steps=2").out
    assert "unusual   U+000D, 300 times: Windows line ending" in out
    assert "unusual   U+FEFF ZERO WIDTH NO-BREAK SPACE, once: invisible" in out
    assert "occur only in the validation split, so they can't be learned: 'Ω'" in out


def test_any_bytes_can_be_looked_at_as_bytes(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(bytes(range(256)) * 20)
    ran = microgpt("doctor", *TINY, "data.path=t.bin", "tokenizer=byte", "max_steps=2")
    assert ran.status == 0, ran.err
    assert "not UTF-8; read as bytes" in ran.out


def test_too_little_memory_names_a_batch_that_fits(
    microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = config()
    model = meta_model(composed.model, len(set(TEXT)))
    engine = choose("cpu", "auto", "auto", trained=composed.model).engine
    enough = {n: probe.needed_bytes(model, composed, engine, n) for n in (1, 2, 4)}
    words = ["doctor", *TINY, f"data.path={text_file}", "max_steps=2"]
    monkeypatch.setattr(probe, "free_bytes", lambda _: int(1.12 * enough[2]))
    ran = microgpt(*words)
    assert ran.status == 1
    assert "try batch_size=2 grad_accum_steps=2: as many tokens per step" in ran.err
    assert ran.err.count("\n") == 1
    assert not re.search("^speed ", ran.out, re.MULTILINE)  # it was not tried
    monkeypatch.setattr(probe, "free_bytes", lambda _: enough[1] // 2)
    assert "one sequence at a time does not fit" in microgpt(*words).err
    monkeypatch.setattr(probe, "free_bytes", lambda _: None)  # a system that does not tell
    assert microgpt(*words).status == 0


def test_a_full_disk_is_told_before_the_run(microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("Usage", (), {"free": 10})())
    ran = microgpt("doctor", *TINY, f"data.path={text_file}", "max_steps=2")
    assert ran.status == 1
    assert "disk: not enough free space at " in ran.err


def test_a_compiler_that_is_missing_is_told(microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    ran = microgpt("doctor", *TINY, f"data.path={text_file}", "max_steps=2", "compile=true")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "no g++ or clang++ on the path; try compile=false" in ran.err


def test_the_forecast_adds_up_what_the_trainer_does() -> None:
    run = config("max_steps=100", "eval_interval=30", "sample_interval=50", "checkpoint_interval=0")
    whole = probe.forecast(run, Throughput(0.5, 0.001, 0.01, 10), 200, 10, 20, 400_000_000)
    assert whole.training == 50
    assert whole.evaluating == pytest.approx(4 * 200 * 0.001)  # at 30, 60, 90 and 100
    assert whole.sampling == pytest.approx((10 + 20) * 0.01)  # at 50, and the last
    assert whole.saving == pytest.approx(4 * 2.05)
    assert whole.total == pytest.approx(50 + 0.8 + 0.3 + 8.2)
    seldom = dataclasses.replace(run, eval_interval=0, sample_interval=0)
    assert probe.forecast(seldom, Throughput(0.5, 0.001, 0.01, 10), 200, 10, 20, 0).evaluating == pytest.approx(0.2)


def test_the_probe_makes_the_steps_that_it_says() -> None:
    ids = torch.randint(20, (500,), dtype=torch.uint8)
    throughput = probe.estimate(config("model.dropout=0.1"), Splits(ids[:400], ids[400:]), 20, choose("cpu", "auto"))
    assert throughput.steps == probe.PROBE_STEPS
    assert min(throughput.step, throughput.eval_token, throughput.sample_token) > 0
