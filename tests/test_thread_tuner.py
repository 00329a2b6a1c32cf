"""When a run makes its steps with one of its threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run

from microgpt_cli import compute, threads
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.cli import main as cli
from microgpt_cli.data.dataset import sample_starts
from microgpt_cli.errors import UserError
from microgpt_cli.model.gpt import GPT
from microgpt_cli.training import thread_tuner
from microgpt_cli.training.thread_tuner import ThreadTuner
from microgpt_cli.training.update import Update


class Machine:
    """A machine on which a step takes so many seconds with so many threads; its bits may depend on them."""

    def __init__(self, seconds: dict[int, float], same_bits: bool = True) -> None:
        self.seconds, self.same_bits, self.now, self.threads, self.rehearsals = seconds, same_bits, 0.0, 0, 0

    def set_threads(self, count: int) -> None:
        self.threads = count

    def rehearse(self, _starts: torch.Tensor) -> list[torch.Tensor]:
        self.now += self.seconds[self.threads]
        self.rehearsals += 1
        return [torch.tensor(1.0 if self.same_bits else float(self.threads))]

    def train(self, tuner: ThreadTuner, steps: int) -> list[str]:
        """Make steps; what was told."""
        told = []
        for _ in range(steps):
            told.append(tuner.step(torch.zeros(1)))
            self.now += self.seconds[self.threads]
            tuner.after_step()
            assert self.threads == tuner.threads
        return [line for line in told if line is not None]


def tuner_of(machine: Machine, count: int = 2) -> ThreadTuner:
    return ThreadTuner(machine.rehearse, count, clock=lambda: machine.now, set_threads=machine.set_threads)


def test_quiet_machine_keeps_its_threads_and_says_nothing() -> None:
    machine = Machine({2: 0.005, 1: 0.007})
    tuner = tuner_of(machine)
    assert machine.train(tuner, 50_000) == []
    assert tuner.now == 2
    assert machine.rehearsals * 0.007 < 0.01 * machine.now  # what looking costs


def test_busy_machine_uses_one_thread_while_it_is_busy() -> None:
    machine = Machine({2: 0.030, 1: 0.010})
    tuner = tuner_of(machine)
    [told] = machine.train(tuner, 2000)
    assert told == (
        "1 of 2 from here on: a step takes 30 ms with 2 threads and 10 ms with 1; the weights are the same with either"
    )
    assert tuner.now == 1
    machine.seconds = {2: 0.005, 1: 0.007}
    [told] = machine.train(tuner, 5000)
    assert told.startswith("2 of 2 from here on")
    assert tuner.now == 2


def test_number_of_threads_never_varies_where_it_would_change_bits() -> None:
    machine = Machine({4: 0.030, 1: 0.010}, same_bits=False)
    tuner = tuner_of(machine, 4)
    [told] = machine.train(tuner, 5000)
    assert told.startswith("the machine is busy: a step takes 30 ms with 4 threads and 10 ms with 1; the run keeps 4")
    assert tuner.now == 4


def test_little_gain_and_long_steps_change_nothing() -> None:
    for seconds in ({2: 0.0105, 1: 0.010}, {2: 60.0, 1: 10.0}):
        machine = Machine(seconds)
        tuner = tuner_of(machine)
        assert machine.train(tuner, 50) == []
        assert tuner.now == 2
    assert machine.rehearsals == 1


def test_nothing_is_measured_before_the_first_steps_nor_once_the_run_is_to_stop() -> None:
    machine = Machine({2: 0.030, 1: 0.010})
    assert machine.train(tuner_of(machine), thread_tuner.FIRST_STEP) == []
    assert machine.rehearsals == 0
    stopped = ThreadTuner(machine.rehearse, 2, lambda: True, lambda: machine.now, machine.set_threads)
    assert machine.train(stopped, 10) == []
    assert machine.rehearsals == 0


@pytest.mark.parametrize("optim", ["muon", "adamw"])
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_rehearsed_step_changes_nothing(optim: str, engine: str) -> None:
    config = cli.load_config("train", [*TINY, f"optim={optim}", f"engine={engine}"])
    chosen = compute.choose("cpu", "float32", engine, threads=1, trained=config.model)
    ids = torch.randint(20, (500,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ended = []
    for rehearsals in (0, 2):
        torch.manual_seed(0)
        model = GPT(config.model, 20)
        update = Update.fresh(model, ids, config, chosen)
        for step in range(3):
            starts = sample_starts(len(ids), config.batch_size, config.model.block_size, 0, step)
            for _ in range(rehearsals):
                assert len(update.rehearse(starts)) > 1
            update(starts, 1e-2, 1.0, lambda: False)
        ended.append([*model.state_dict().values(), *update.optimizer.state().values()])
    assert all(torch.equal(*pair) for pair in zip(*ended, strict=True))


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("words", [["model=micro"], ["model=mini"], ["model=micro", "arch=modern", "batch_size=27"]])
def test_training_in_c_has_the_same_bits_with_any_number_of_threads(
    words: list[str], dtype: str, restored_threads: None
) -> None:
    config = cli.load_config("train", [*words, "model.n_layer=1"])
    try:
        chosen = compute.choose("cpu", dtype, "native", threads=1, trained=config.model)
    except UserError as why:  # no compiler
        pytest.skip(str(why))
    ids = torch.randint(65, (5000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    starts = sample_starts(len(ids), config.batch_size, config.model.block_size, 0, 0)
    torch.manual_seed(0)
    update = Update.fresh(GPT(config.model, 65), ids, config, chosen)
    made = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        made.append([tensor.clone() for tensor in update.rehearse(starts)])
    assert all(torch.equal(one, other) for others in made[1:] for one, other in zip(made[0], others, strict=True))


def test_a_run_on_a_busy_machine_gives_the_weights_of_a_quiet_one(
    microgpt: Run, text_file: Path, cheap: None, monkeypatch: pytest.MonkeyPatch, restored_threads: None
) -> None:
    monkeypatch.setattr(threads, "limit", lambda: threads.Limit(2, "2 cores"))
    used, count_of_torch, update = set[int](), torch.get_num_threads, Update.__call__
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(Update, "__call__", lambda *given: used.add(count_of_torch()) or update(*given))
    common = ["train", "data.path=my.txt", "device=cpu", "max_steps=8", "model.n_layer=1", "eval_interval=4"]
    for name, seconds in (("quiet", {2: 0.005, 1: 0.007}), ("busy", {2: 0.030, 1: 0.010})):
        monkeypatch.setattr(ThreadTuner, "_timed", lambda self, count, starts, seconds=seconds: seconds[count])
        ran = microgpt(*common, f"out_dir={name}")
        assert ran.status == 0, ran.err
        is_native = "engine    native" in ran.out
        told = "threads   1 of 2 from here on" if is_native else "the run keeps 2"
        assert (told in ran.out) == (name == "busy")
        assert used == ({1, 2} if name == "busy" and is_native else {2})
    made, other = (checkpoint.newest(Path(name))[0] for name in ("quiet", "busy"))
    assert made.meta["threads"] == other.meta["threads"] == 2
    assert all(torch.equal(tensor, other.model[name]) for name, tensor in made.model.items())
    assert all(torch.equal(tensor, other.optim[name]) for name, tensor in made.optim.items())
