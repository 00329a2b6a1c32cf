"""The learning-rate range test, its rule, and `microgpt train lr_find=true`."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from conftest import TEXT, TINY, Run
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.cli import main as cli
from microgpt_cli.commands.lr_find import override
from microgpt_cli.compute import choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import Splits, sample_starts
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import lr_find
from microgpt_cli.training.lr_find import RULES, Rule, Tried, range_test, rate_at, suggestion
from microgpt_cli.training.optimizers import make_optimizer
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.trainer import evaluate
from microgpt_cli.training.update import Update

CHARS = sorted(set(TEXT))
IDS = torch.tensor([CHARS.index(char) for char in TEXT], dtype=torch.uint8)
SPLITS = Splits(IDS[:-500], IDS[-500:])
CPU = choose("cpu", "float32", threads=1)


def config(*words: str) -> TrainConfig:
    loaded: TrainConfig = cli.load_config("train", [*TINY, "optim=adamw", "max_steps=120", *words])
    return loaded


def fresh(settings: TrainConfig) -> GPT:
    torch.manual_seed(1)
    return GPT(settings.model, len(CHARS))


def bowl(best: float, top: float = 4.0, bottom: float = 2.0) -> list[Tried]:
    """A smoothed loss that decreases over two decades up to `best` and increases after it."""
    curve = []
    for step in range(lr_find.STEPS):
        decades = math.log10(rate_at(step) / best)
        loss = bottom + (top - bottom) * (1 - math.exp(-(min(decades, 0.0) ** 2) - max(decades, 0.0) ** 2))
        curve.append(Tried(rate_at(step), loss, loss))
    return curve


def test_learning_rates_increase_by_equal_factors_over_the_range() -> None:
    rates = [rate_at(step) for step in range(lr_find.STEPS)]
    assert rates[0] == pytest.approx(lr_find.LOWEST)
    assert rates[-1] == pytest.approx(lr_find.HIGHEST)
    factors = [b / a for a, b in itertools.pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * len(factors))


@given(best=st.floats(1e-4, 0.3), times=st.floats(0.5, 3.0))
def test_suggestion_is_below_the_minimum_and_independent_of_the_loss_scale(best: float, times: float) -> None:
    curve = bowl(best)
    found = suggestion(curve)
    assert found is not None
    assert best / 20 < found < best
    assert suggestion([Tried(t.learning_rate, times * t.loss, times * t.smoothed) for t in curve]) == found


def test_constant_loss_has_no_suggestion() -> None:
    flat = [Tried(rate_at(step), 4.0, 4.0) for step in range(50)]
    assert suggestion(flat) is None
    assert suggestion([]) is None


def test_range_test_ends_at_a_non_finite_loss() -> None:
    # without normalisation of the gradient, one step at a huge rate is enough
    settings = config("optim.grad_clip=0")
    tried = list(range_test(fresh(settings), SPLITS, settings, CPU))
    assert all(math.isfinite(step.loss) and math.isfinite(step.smoothed) for step in tried)
    assert len(tried) < lr_find.STEPS


def test_curve_does_not_depend_on_the_configured_learning_rate() -> None:
    settings = config()
    first = list(range_test(fresh(settings), SPLITS, settings, CPU))
    other = config("optim.learning_rate=1", "optim.schedule=constant")
    assert list(range_test(fresh(other), SPLITS, other, CPU)) == first


def trained_loss(settings: TrainConfig) -> float:
    """The validation loss of a short run."""
    model = fresh(settings)
    update = Update(model, make_optimizer(model.named_parameters(), settings.optim), SPLITS.train, settings, CPU)
    for step in range(settings.max_steps):
        starts = sample_starts(len(SPLITS.train), settings.batch_size, settings.model.block_size, settings.seed, step)
        update(starts, lr_at(step, settings.max_steps, settings.optim), 1.0, lambda: False)
    sums, counts = zip(*evaluate(model, SPLITS.val, CPU), strict=True)
    return float(sum(sums) / sum(counts))


def test_suggestion_is_within_a_factor_of_3_of_the_best_of_a_sweep() -> None:
    rates = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    losses = {rate: trained_loss(config("batch_size=16", f"optim.learning_rate={rate}")) for rate in rates}
    best = min(losses, key=losses.__getitem__)
    settings = config("batch_size=16")
    found = suggestion(list(range_test(fresh(settings), SPLITS, settings, CPU)))
    assert found is not None
    assert best / 3 <= found <= 3 * best, losses


def test_lr_find_writes_a_plot_and_prints_valid_overrides(
    microgpt: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ran = microgpt("train", "lr_find=true", *TINY, f"data.path={text_file}")
    assert ran.status == 0, ran.err
    [plot] = [path for path in (tmp_path / "outputs").rglob("*") if not path.is_dir()]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"plot      {plot.relative_to(tmp_path)}\n" in ran.out
    shown = ran.out.partition("steps of ")[2].partition("plot ")[0].splitlines()[2:]
    assert len(shown) > 5
    assert max(map(len, shown[:-2])) <= 40
    assert "A smoothed loss against learning rate, B suggested" in ran.out
    overrides = ran.out.rpartition("paste     ")[2].split()
    assert overrides[0].startswith("optim.learning_rate=")
    assert microgpt("train", *overrides, *TINY, f"data.path={text_file}", "max_steps=2").status == 0


def test_final_learning_rate_is_scaled_with_the_peak(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    words = ["optim=adamw", "optim.learning_rate=1e-2", "optim.min_learning_rate=1e-4", "out_dir=there/run"]
    ran = microgpt("train", "lr_find=true", *TINY, f"data.path={text_file}", *words)
    peak, low = (float(word.partition("=")[2]) for word in ran.out.rpartition("paste     ")[2].split())
    assert low == pytest.approx(peak / 100, rel=0.05)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["run-lr_find.png"]  # the run's folder stays free


def test_lr_find_rejects_resume_and_reports_a_constant_loss(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    ran = microgpt("train", "lr_find=true", f"resume={trained}")
    assert ran.status == 2
    assert "it needs newly initialised weights" in ran.err
    (tmp_path / "same.txt").write_text("a" * 2000)  # one character: the first loss is already 0
    ran = microgpt("train", "lr_find=true", *TINY, "data.path=same.txt")
    assert ran.status == 1
    assert "the loss did not decrease at any learning rate" in ran.err
    assert ran.err.count("\n") == 1


def test_adamw_learning_rate_of_muon_is_scaled_too() -> None:
    muon = config("optim=muon", "optim.learning_rate=1e-2", "optim.adamw_learning_rate=5e-3")
    assert override(muon, 4e-2) == "optim.learning_rate=0.04 optim.adamw_learning_rate=0.02"
    tried = list(range_test(fresh(muon), SPLITS, muon, CPU))
    found, careful = suggestion(tried, RULES["muon"]), suggestion(tried, Rule(0.95))
    assert found is not None
    assert careful is not None
    assert found == pytest.approx(2 * careful, rel=0.05)
    assert 1e-3 < found < 1
