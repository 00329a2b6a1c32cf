"""Verdicts on runs: the logs of real ones, and silence where the numbers say nothing."""

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from microgpt_cli.cli import main as cli
from microgpt_cli.config import TrainConfig
from microgpt_cli.runs.diagnose import Finding, Setting, judge

# Runs of `microgpt train`, each with what was typed and its log, losses and norms to three digits.
REAL: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "fixtures" / "judged.json").read_text())
MANUAL = Setting(4.635, 3.247, 2.396, "characters", 336_080, 37_341, 214_631)


def lines_of(name: str) -> list[dict[str, float]]:
    run = REAL[name]
    training = [
        {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": 1e-3} for step, loss, norm in run["training"]
    ]
    held_out = [{"step": step, "val_loss": loss} for step, loss in run["held_out"]]
    return sorted(training + held_out, key=lambda line: (line["step"], "val_loss" in line))


@functools.cache
def config_of(name: str) -> TrainConfig:
    config = cli.load_config("train", REAL[name]["typed"])
    assert isinstance(config, TrainConfig)
    return config


def verdict(name: str, lines: list[dict[str, float]] | None = None) -> list[Finding]:
    setting = Setting(**REAL[name]["setting"])
    return judge(lines_of(name) if lines is None else lines, config_of(name), setting)


# The run, what its course is called (None: nothing is said of it), and the override that is proposed.
COURSES = [
    ("600 steps", "improving", "max_steps=1200"),
    ("60 steps", "improving", "max_steps=120"),
    ("learning rate 3e-5", "slow", "optim.learning_rate=0.0003"),
    ("learning rate 0.01", "improving", "max_steps=800"),
    ("learning rate 0.03", "stuck", "optim.learning_rate=0.003"),
    ("learning rate 0.1", "stuck", "optim.learning_rate=0.003"),
    ("learning rate 0.3", "stuck", "optim.learning_rate=0.003"),
    ("learning rate 0.3, no clipping", "stuck", "optim.learning_rate=0.003"),
    ("learning rate 1", "spikes", "optim.learning_rate=0.003"),
    ("20,000 characters, 600 steps", None, ""),
    ("5,000 characters", "overfitting", "model.dropout=0.2"),
    ("5,000 characters, dropout", "overfitting", "early_stop_patience=3"),
    ("a small model", "settled", "model.n_embd=32"),
]


@pytest.mark.parametrize(("name", "kind", "overrides"), COURSES)
def test_real_runs_are_judged_as_a_person_would(name: str, kind: str | None, overrides: str) -> None:
    found = verdict(name)
    assert [finding.kind for finding in found] == ["bigram", *([kind] if kind else [])]
    assert [finding.overrides for finding in found[1:]] == ([overrides] if kind else [])
    if overrides:
        assert str(found[1]).endswith(f"; try {overrides}")
        typed = {word.partition("=")[0]: word for word in [*REAL[name]["typed"], *overrides.split()]}
        cli.load_config("train", list(typed.values()))  # it can be typed


def test_the_table_has_every_kept_run() -> None:
    assert {name for name, *_ in COURSES} == set(REAL)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in COURSES if kind])
def test_a_verdict_does_not_hang_on_noise(name: str, kind: str) -> None:
    """Another seed moves a training line by 0.01 or so, and a held-out loss by less."""
    for seed in range(10):
        draw = random.Random(seed)
        lines = [
            line
            | {
                key: line[key] + draw.gauss(0, size)
                for key, size in (("loss", 0.01), ("val_loss", 0.002))
                if key in line
            }
            for line in lines_of(name)
        ]
        assert [finding.kind for finding in verdict(name, lines)][1:] == [kind]


@pytest.mark.parametrize("name", REAL)
def test_no_beginning_of_a_run_is_called_what_it_is_not(name: str) -> None:
    """Cut short anywhere, a run is never said to overfit before it does, nor a good rate to be too high."""
    kind = next(kind for known, kind, _ in COURSES if known == name)
    for end in range(len(lines_of(name))):
        found = {finding.kind for finding in verdict(name, lines_of(name)[:end])}
        allowed = {"stuck", "spikes"} if kind in ("stuck", "spikes") else {kind}
        assert found <= {"bigram", "improving", "settled", "slow"} | allowed


@pytest.mark.parametrize(
    ("val_loss", "words"),
    [
        (1.5, "0.896 below counting pairs of characters (2.396)"),
        (2.4, "level with counting pairs of characters"),
        (2.6, "0.204 above counting pairs of characters (2.396): it has not yet learnt even those"),
        (3.25, "no better than counting single characters (3.247)"),
        (4.7, "no better than guessing (4.635)"),
    ],
)
def test_a_loss_is_held_against_what_counting_reaches(val_loss: float, words: str) -> None:
    [found] = judge([{"step": 9, "val_loss": val_loss}], config_of("600 steps"), MANUAL)[:1]
    assert words in found.text


def test_a_short_held_out_text_settles_less() -> None:
    lines = [{"step": 9, "val_loss": 2.3}]
    assert "below" in judge(lines, config_of("600 steps"), MANUAL)[0].text
    few = dataclasses.replace(MANUAL, val_tokens=100)
    assert "level with" in judge(lines, config_of("600 steps"), few)[0].text


def test_nothing_is_said_of_a_run_that_was_never_evaluated() -> None:
    assert judge([], config_of("600 steps"), MANUAL) == []
    assert verdict("600 steps", [line for line in lines_of("600 steps") if "loss" in line]) == []


def test_a_flat_course_with_noise_is_neither_improving_nor_overfitting() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        lines: list[dict[str, float]] = []
        for step in range(10, 610, 10):
            lines.append({"step": step, "loss": 2 + draw.gauss(0, 0.03), "grad_norm": 1.0})
            if step % 50 == 0:
                lines.append({"step": step, "val_loss": 2 + draw.gauss(0, 0.01)})
        kinds = {finding.kind for finding in judge(lines, config_of("600 steps"), MANUAL)}
        assert not kinds & {"improving", "overfitting", "spikes", "stuck"}


def test_a_loss_that_falls_all_along_is_not_stuck_even_if_its_gradient_shrinks() -> None:
    lines: list[dict[str, float]] = []
    for step in range(10, 610, 10):
        lines.append({"step": step, "loss": 4.6 - step / 400, "grad_norm": 2 - step / 310})
        if step % 50 == 0:
            lines.append({"step": step, "val_loss": 4.6 - step / 400})
    assert [finding.kind for finding in judge(lines, config_of("600 steps"), MANUAL)] == ["bigram", "improving"]


def test_a_run_that_was_stopped_says_what_was_left() -> None:
    lines = [line for line in lines_of("600 steps") if line["step"] <= 300]
    assert str(verdict("600 steps", lines)[1]).endswith("in the last quarter of the steps, and 300 were left")


def test_train_ends_with_its_verdict(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    words = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=8", "batch_size=4", "device=cpu"]
    ran = microgpt("train", *words, f"data.path={text_file}", "max_steps=60", "eval_interval=10", "out_dir=run")
    judged = [line for line in ran.out.splitlines() if line.startswith("judged ")]
    assert len(judged) in (1, 2)
    assert "counting pairs of characters" in ran.out or "no better than" in ran.out
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["parameters"] == sum(about["parts"].values())
