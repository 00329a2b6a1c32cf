"""The learning rate as a function of the step."""

import pytest
from conftest import optim

from microgpt_cli.training.schedule import lr_at

PEAK, LOW, MAX_STEPS = 1e-2, 1e-3, 100


def rates(schedule: str, warmup_steps: int = 10, low: float | None = LOW) -> list[float]:
    config = optim(learning_rate=PEAK, min_learning_rate=low, schedule=schedule, warmup_steps=warmup_steps)
    return [lr_at(step, MAX_STEPS, config) for step in range(MAX_STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_it_rises_from_above_nothing_to_the_peak(schedule: str) -> None:
    found = rates(schedule)
    assert found[0] == pytest.approx(PEAK / 10)
    assert found[9:11] == pytest.approx([PEAK, PEAK])
    assert found[:10] == sorted(found[:10])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_falls_to_the_least_at_the_last_update(schedule: str) -> None:
    found = rates(schedule)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(LOW)
    assert found[55] == pytest.approx((PEAK + LOW) / 2, rel=0.02)


def test_it_falls_to_a_tenth_of_the_peak_where_no_least_is_given() -> None:
    assert rates("cosine", low=None)[-1] == pytest.approx(PEAK / 10)


def test_the_fall_begins_as_late_as_asked() -> None:
    config = optim(learning_rate=PEAK, min_learning_rate=0.0, schedule="linear", warmup_steps=0, decay_fraction=0.4)
    found = [lr_at(step, MAX_STEPS, config) for step in range(MAX_STEPS)]
    assert set(found[:61]) == {PEAK}
    assert found[61] < PEAK
    assert found[80] == pytest.approx(PEAK / 2, rel=0.05)
    assert found[-1] == 0.0


def test_constant_stays() -> None:
    assert set(rates("constant", warmup_steps=0)) == {PEAK}


def test_a_run_of_one_step_and_a_run_gone_past_its_end_have_a_rate() -> None:
    config = optim(schedule="cosine", warmup_steps=0)
    assert lr_at(0, 1, config) > 0
    assert lr_at(500, 100, config) == pytest.approx(config.last_learning_rate)
