"""Diagnoses of runs, on the logs of real ones; nothing is reported where no rule applies."""

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
from microgpt_cli.runs.diagnose import Finding, RunContext, diagnose

# Runs of `microgpt train`: the overrides, and the log with losses and gradient norms to three digits.
REAL: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "fixtures" / "diagnosed_runs.json").read_text())
CONTEXT = RunContext(4.635, 3.247, 2.396, "characters", 336_080, 37_341, 214_631)


def lines_of(name: str) -> list[dict[str, float]]:
    run = REAL[name]
    training = [
        {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": 1e-3} for step, loss, norm in run["training"]
    ]
    validation = [{"step": step, "val_loss": loss} for step, loss in run["held_out"]]
    return sorted(training + validation, key=lambda line: (line["step"], "val_loss" in line))


@functools.cache
def config_of(name: str) -> TrainConfig:
    config = cli.load_config("train", REAL[name]["typed"])
    assert isinstance(config, TrainConfig)
    return config


def diagnosis(name: str, lines: list[dict[str, float]] | None = None) -> list[Finding]:
    context = RunContext(**REAL[name]["setting"])
    return diagnose(lines_of(name) if lines is None else lines, config_of(name), context)


# The run, the kind of its diagnosis (None: no finding), and the suggested overrides.
EXPECTED = [
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
    ("a small model", "plateau", "model.n_embd=32"),
]


@pytest.mark.parametrize(("name", "kind", "overrides"), EXPECTED)
def test_real_runs_get_the_expected_diagnosis_and_override(name: str, kind: str | None, overrides: str) -> None:
    found = diagnosis(name)
    assert [finding.kind for finding in found] == ["bigram", *([kind] if kind else [])]
    assert [finding.overrides for finding in found[1:]] == ([overrides] if kind else [])
    if overrides:
        assert str(found[1]).endswith(f"; try {overrides}")
        typed = {word.partition("=")[0]: word for word in [*REAL[name]["typed"], *overrides.split()]}
        cli.load_config("train", list(typed.values()))  # the overrides are valid


def test_every_logged_run_has_an_expected_diagnosis() -> None:
    assert {name for name, *_ in EXPECTED} == set(REAL)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in EXPECTED if kind])
def test_diagnosis_is_stable_under_noise(name: str, kind: str) -> None:
    """Another seed changes a logged training loss by about 0.01, and a validation loss by less."""
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
        assert [finding.kind for finding in diagnosis(name, lines)][1:] == [kind]


@pytest.mark.parametrize("name", REAL)
def test_truncated_logs_give_no_premature_diagnosis(name: str) -> None:
    """However short the log, overfitting is not reported early, nor a good learning rate called too high."""
    kind = next(kind for known, kind, _ in EXPECTED if known == name)
    for end in range(len(lines_of(name))):
        found = {finding.kind for finding in diagnosis(name, lines_of(name)[:end])}
        allowed = {"stuck", "spikes"} if kind in ("stuck", "spikes") else {kind}
        assert found <= {"bigram", "improving", "plateau", "slow"} | allowed


@pytest.mark.parametrize(
    ("val_loss", "words"),
    [
        (1.5, "0.896 nats below the bigram baseline (2.396)"),
        (2.4, "equal to the bigram baseline (2.396) within noise"),
        (2.6, "0.204 nats above the bigram baseline (2.396): the model has not yet learned bigram statistics"),
        (3.25, "no better than the unigram baseline (3.247)"),
        (4.7, "no better than the uniform baseline (4.635)"),
    ],
)
def test_best_loss_is_compared_with_the_baselines(val_loss: float, words: str) -> None:
    [found] = diagnose([{"step": 9, "val_loss": val_loss}], config_of("600 steps"), CONTEXT)[:1]
    assert words in found.text


def test_margin_grows_for_few_validation_tokens() -> None:
    lines = [{"step": 9, "val_loss": 2.3}]
    assert "below" in diagnose(lines, config_of("600 steps"), CONTEXT)[0].text
    few = dataclasses.replace(CONTEXT, val_tokens=100)
    assert "equal to" in diagnose(lines, config_of("600 steps"), few)[0].text


def test_run_without_evaluation_has_no_diagnosis() -> None:
    assert diagnose([], config_of("600 steps"), CONTEXT) == []
    assert diagnosis("600 steps", [line for line in lines_of("600 steps") if "loss" in line]) == []


def test_constant_loss_with_noise_is_neither_improving_nor_overfitting() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        lines: list[dict[str, float]] = []
        for step in range(10, 610, 10):
            lines.append({"step": step, "loss": 2 + draw.gauss(0, 0.03), "grad_norm": 1.0})
            if step % 50 == 0:
                lines.append({"step": step, "val_loss": 2 + draw.gauss(0, 0.01)})
        kinds = {finding.kind for finding in diagnose(lines, config_of("600 steps"), CONTEXT)}
        assert not kinds & {"improving", "overfitting", "spikes", "stuck"}


def test_steadily_decreasing_loss_is_not_stuck_even_if_its_gradient_shrinks() -> None:
    lines: list[dict[str, float]] = []
    for step in range(10, 610, 10):
        lines.append({"step": step, "loss": 4.6 - step / 400, "grad_norm": 2 - step / 310})
        if step % 50 == 0:
            lines.append({"step": step, "val_loss": 4.6 - step / 400})
    assert [finding.kind for finding in diagnose(lines, config_of("600 steps"), CONTEXT)] == ["bigram", "improving"]


def test_stopped_run_reports_remaining_steps() -> None:
    lines = [line for line in lines_of("600 steps") if line["step"] <= 300]
    assert str(diagnosis("600 steps", lines)[1]).endswith("in the last quarter of the steps, with 300 steps left")


def test_train_prints_the_diagnosis(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    words = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=8", "batch_size=4", "device=cpu"]
    ran = microgpt("train", *words, f"data.path={text_file}", "max_steps=60", "eval_interval=10", "out_dir=run")
    findings = [line for line in ran.out.splitlines() if line.startswith("diagnosis ")]
    assert len(findings) in (1, 2)
    assert "the bigram baseline" in ran.out or "no better than" in ran.out
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["parameters"] == sum(about["parts"].values())
