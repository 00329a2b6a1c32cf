"""The training loop: step, log, evaluate, save, stop.

`Trainer.run()` yields events and prints nothing. `State`, the weights and the optimizer's state are all that a run
needs to resume; every random draw is a function of the seed and the step, so an interrupted and resumed run ends with
the same bits as an uninterrupted one.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microgpt_cli import randomness
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.checkpoints.async_saver import Saver, copy_stream, saves_in_background, snapshot
from microgpt_cli.compute import Compute
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.dataset import Splits, gather_windows, sample_starts, windows
from microgpt_cli.engines.autograd import CompilerFailed
from microgpt_cli.errors import RunStopped
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout
from microgpt_cli.training.metrics import JsonLines
from microgpt_cli.training.optimizers import make_optimizer
from microgpt_cli.training.schedule import lr_at
from microgpt_cli.training.thread_tuner import ThreadTuner
from microgpt_cli.training.update import Update

EVAL_TOKENS = 1 << 20  # maximum for an evaluation by default: 1,048,576
EVAL_BATCH_TOKENS = 1 << 13  # per forward pass of an evaluation, approximately
FIRST_LOSS_SCALE, LOSS_SCALE_GROWTH_STEPS = 2.0**16, 2000  # as in torch.amp.GradScaler
MAX_SKIPPED_STEPS = 20  # consecutive float16 steps whose gradient overflowed


@dataclass
class State:
    """The progress of a run, stored in checkpoints."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0
    val_loss: float | None = None
    evaluated_step: int = 0  # step of val_loss
    best_val_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0  # since the best one
    unlogged: list[tuple[float, float]] = field(default_factory=list)  # (loss, grad_norm) since the last log line
    train_seconds: float = 0.0  # in steps only, without evaluation and saving
    loss_scale: float = 1.0  # float16 only
    steps_at_scale: int = 0  # since loss_scale changed
    metrics_bytes: int = 0  # sizes of the log files
    timings_bytes: int = 0


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is complete."""

    step: int


@dataclass(frozen=True)
class Logged:
    """A line was appended to `metrics.jsonl`: means over the steps since the previous one."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_sec: float


@dataclass(frozen=True)
class Evaluated:
    """The validation split was evaluated."""

    step: int
    val_loss: float
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint was published."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """The run continues, but not as requested."""

    message: str


@dataclass(frozen=True)
class Retuned:
    """The thread tuner changed the number of CPU threads, or reports that a change would alter the results."""

    message: str


Event = Stepped | Logged | Evaluated | Saved | Warned | Retuned


class Trainer:
    """Trains a model in the folder of a run, whose lock the caller holds.

    Args:
        run: the folder; it contains `config.json` and `tokenizer.json`.
        config: of the run.
        model: on the device of `compute`.
        splits: token ids.
        compute: device, precision, compilation.
        facts: recorded in each checkpoint beside the state: hashes, versions.
        resumed: the checkpoint to resume from, or None for a new run.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        model: GPT,
        splits: Splits,
        compute: Compute,
        facts: dict[str, Any],
        resumed: checkpoint.Checkpoint | None = None,
    ) -> None:
        self.run_folder, self.config, self.model, self.compute = run, config, model, compute
        self.splits, self.facts = splits, facts
        self.optimizer = make_optimizer(model.named_parameters(), config.optim, compute.engine == "native")
        self.state = State(loss_scale=FIRST_LOSS_SCALE if compute.dtype == torch.float16 else 1.0)
        self.stop_signal: int | None = None  # set from outside; the run stops within a micro-batch
        self.is_pruned = False  # set from outside after an evaluation
        if resumed is not None:
            checkpoint.copy_tensors(resumed.optim, self.optimizer.state(), resumed.path / layout.OPTIM)
            self.state = State(**resumed.meta["state"])
        self.update = Update(model, self.optimizer, splits.train, config, compute)
        self._tuner: ThreadTuner | None = None
        if _may_tune(config, compute):
            self._tuner = ThreadTuner(
                self.update.rehearse, compute.threads, give_up=lambda: self.stop_signal is not None
            )
        self.saver = Saver(saves_in_background(compute.device))
        self._unfetched: list[Tensor] = []  # (loss, grad_norm) of steps, still on the device
        self._saved_step = self.state.step if resumed is not None else None
        self._logged_at = (self.state.step, self.state.train_seconds)

    @property
    def eval_tokens(self) -> int:
        """The number of validation tokens that an evaluation predicts."""
        wanted = self.config.eval_tokens or EVAL_TOKENS
        return min(wanted, len(self.splits.val) - 1)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not improved for `early_stop_patience` evaluations."""
        patience = self.config.early_stop_patience
        return patience is not None and self.state.stale_evaluations >= patience

    @property
    def is_finished(self) -> bool:
        return self.state.step >= self.config.max_steps or self.stopped_early or self.is_pruned

    def run(self) -> Iterator[Event]:
        """Train until the last step, an early stop, pruning or a stop signal, and save a last checkpoint.

        Raises:
            RunStopped: a loss or a gradient is not finite; existing checkpoints stay.
        """
        if self._saved_step is not None:
            checkpoint.finish_save(self.run_folder, self.state.best_step)
        # truncates what a killed run logged after its last checkpoint
        self.metrics = JsonLines(self.run_folder / layout.METRICS, self.state.metrics_bytes)
        self.timings = JsonLines(self.run_folder / layout.TIMINGS, self.state.timings_bytes)
        try:
            yield from self._check_engine()
            finished = False
            while not finished:
                if self._due(self.config.eval_interval) and self.state.evaluated_step != self.state.step:
                    yield from self._evaluate()
                finished = self.is_finished or self.stop_signal is not None
                if self._saved_step != self.state.step and (finished or self._save_due()):
                    yield from self._save()
                if not finished:
                    yield from self._step()
                if finished or self.saver.is_done:
                    yield from self._saved()
        finally:
            with suppress(Exception):  # report the first error
                self.saver.finish()
            self.metrics.close()
            self.timings.close()

    def _check_engine(self) -> Iterator[Event]:
        """Compare the engine with autograd on a sequence of the next step, before any update."""
        T = self.config.model.block_size
        starts = sample_starts(len(self.splits.train), 1, T, self.config.seed, self.state.step)
        warning = self.update.check_engine(*gather_windows(self.splits.train, starts, T, self.compute.device))
        self.facts = self.facts | {"engine": self.update.engine.name}
        if warning is not None:
            yield Warned(warning)

    def note_time(self, what: str, began: float) -> None:
        """Log the duration of something other than a step, since `began` (`time.perf_counter`)."""
        self.timings.append(step=self.state.step, **{f"{what}_seconds": round(time.perf_counter() - began, 6)})

    def _due(self, interval: int) -> bool:
        step = self.state.step
        return step > 0 and (step >= self.config.max_steps or (interval > 0 and step % interval == 0))

    def _save_due(self) -> bool:
        step, interval = self.state.step, self.config.checkpoint_interval
        at_best = self.state.best_step == step and step > 0
        return at_best or (interval > 0 and step > 0 and step % interval == 0)

    def _step(self) -> Iterator[Event]:
        """Make one optimizer step; a stop signal cancels it between two micro-batches."""
        config, state = self.config, self.state
        began = time.perf_counter()
        B, T = config.batch_size * config.grad_accum_steps, config.model.block_size
        # sampled for the whole step, independently of its division into micro-batches
        starts = sample_starts(len(self.splits.train), B, T, config.seed, state.step)
        if config.model.dropout > 0:
            torch.manual_seed(randomness.derive(config.seed, randomness.DROPOUT, state.step))
        learning_rate = lr_at(state.step, config.max_steps, config.optim)
        if self._tuner is not None:
            message = self._tuner.step(starts)
            if message is not None:
                yield Retuned(message)
        try:
            done = self.update(starts, learning_rate, state.loss_scale, lambda: self.stop_signal is not None)
        except CompilerFailed as error:
            yield Warned(f"torch.compile failed, continuing without it: {error}")
            return
        finally:
            if self._tuner is not None:
                self._tuner.after_step()
        if done is None:
            return
        self._unfetched.append(done)
        state.step += 1
        state.tokens += B * T
        if self.compute.device.type == "cpu" or self.compute.dtype == torch.float16 or self._needs_losses():
            self._fetch_losses()
        state.train_seconds += time.perf_counter() - began
        if state.step % config.log_interval == 0:
            yield self._log(learning_rate)
        yield Stepped(state.step)

    def _needs_losses(self) -> bool:
        """Whether logging, evaluation or saving follows this step and needs its loss."""
        step, config = self.state.step, self.config
        return step % config.log_interval == 0 or self._due(config.eval_interval) or self._save_due()

    def _fetch_losses(self) -> None:
        """Fetch losses and gradient norms from the device and stop the run if one is not finite."""
        state, config = self.state, self.config
        if not self._unfetched:
            return
        fetched = torch.stack(self._unfetched).tolist()
        first = state.step - len(self._unfetched)
        self._unfetched.clear()
        for offset, (loss, norm) in enumerate(fetched):
            if math.isfinite(loss) and math.isfinite(norm):
                state.unlogged.append((loss, norm))
            elif (
                self.compute.dtype == torch.float16
                and math.isfinite(loss)
                and state.loss_scale > 2.0**-MAX_SKIPPED_STEPS
            ):
                state.loss_scale, state.steps_at_scale = state.loss_scale / 2, 0  # the update was skipped
                return
            else:
                rate = lr_at(first + offset, config.max_steps, config.optim)
                raise RunStopped(
                    f"step {first + offset + 1}: loss {loss:g}, gradient norm {norm:g} at learning rate {rate:g}; "
                    f"stopped before the update. Try optim.learning_rate={rate / 3:.2g}"
                    + ("" if config.optim.grad_clip else " or optim.grad_clip=1")
                )
        if self.compute.dtype == torch.float16:
            state.steps_at_scale += 1
            if state.steps_at_scale >= LOSS_SCALE_GROWTH_STEPS:
                state.loss_scale, state.steps_at_scale = state.loss_scale * 2, 0

    def _log(self, learning_rate: float) -> Logged:
        state = self.state
        self._fetch_losses()
        losses, norms = zip(*state.unlogged, strict=True) if state.unlogged else ((math.inf,), (math.inf,))
        loss, norm = math.fsum(losses) / len(losses), math.fsum(norms) / len(norms)
        state.unlogged.clear()
        steps, seconds = state.step - self._logged_at[0], state.train_seconds - self._logged_at[1]
        self._logged_at = (state.step, state.train_seconds)
        speed = steps * state.tokens / state.step / seconds
        if math.isfinite(loss):  # infinite if float16 overflowed in every step since
            self.metrics.append(
                step=state.step, tokens=state.tokens, loss=loss, learning_rate=learning_rate, grad_norm=norm
            )
            self.timings.append(step=state.step, seconds=round(state.train_seconds, 6), tokens_per_sec=round(speed, 1))
        return Logged(state.step, loss, learning_rate, norm, speed)

    def _evaluate(self) -> Iterator[Event]:
        """Evaluate on the validation split; a stop signal cancels it between two batches."""
        self._fetch_losses()
        began = time.perf_counter()
        sums, count = [], 0
        for loss, tokens in evaluate(self.model, self.splits.val[: self.eval_tokens + 1], self.compute):
            sums.append(loss)
            count += tokens
            if self.stop_signal is not None:
                return
        total = math.fsum(torch.stack(sums).tolist())
        state = self.state
        if not math.isfinite(total):
            raise RunStopped(f"step {state.step}: val_loss {total / count:g}; nothing of this step was saved")
        state.val_loss, state.evaluated_step = total / count, state.step
        is_best = state.best_val_loss is None or state.val_loss < state.best_val_loss
        if is_best:
            state.best_val_loss, state.best_step, state.stale_evaluations = state.val_loss, state.step, 0
        else:
            state.stale_evaluations += 1
        self.metrics.append(step=state.step, tokens=state.tokens, val_loss=state.val_loss)
        self.note_time("evaluating", began)
        self._saved_step = None  # a checkpoint of this step, if any, lacks this loss
        yield Evaluated(state.step, state.val_loss, is_best)

    def _save(self) -> Iterator[Event]:
        """Save a checkpoint; on a GPU in a background thread, see async_saver.py."""
        self._fetch_losses()
        began, state = time.perf_counter(), self.state
        yield from self._saved()
        weights, optim_state = checkpoint.weights_of(self.model), self.optimizer.state()
        broken = _first_not_finite({**weights, **optim_state})
        if broken is not None:
            raise RunStopped(f"step {state.step}: {broken} is not finite; it was not saved")
        state.metrics_bytes, state.timings_bytes = self.metrics.size_bytes(), self.timings.size_bytes()
        meta = {**self.facts, "state": asdict(state)}
        if self.saver.background:
            weights, optim_state = snapshot(weights), snapshot(optim_state)
        step, best, stream = state.step, state.best_step, copy_stream(self.compute.device)

        def publish() -> Path:
            for lines in (self.metrics, self.timings):
                lines.sync()  # the log up to a checkpoint must be durable
            with stream:
                return checkpoint.save(self.run_folder, step, weights, optim_state, meta, best)

        self.saver.start(step, publish)
        self._saved_step = state.step
        self.note_time("saving", began)
        if self.saver.is_done:
            yield from self._saved()

    def _saved(self) -> Iterator[Saved]:
        """Wait for a save in progress and yield its event."""
        done = self.saver.finish()
        if done is not None:
            yield Saved(*done)


def _may_tune(config: TrainConfig, compute: Compute) -> bool:
    """Whether the thread tuner may run; with dropout its trial steps would consume random numbers."""
    return (
        compute.threads_are_chosen
        and compute.threads > 1
        and compute.device.type == "cpu"
        and not compute.compile
        and config.model.dropout == 0
    )


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that contains NaN or Inf, with one synchronization of the device."""
    norms = torch.stack(list(torch._foreach_norm(list(tensors.values())))).tolist()
    suspects = [tensor for tensor, norm in zip(tensors.items(), norms, strict=True) if not math.isfinite(norm)]
    return next((name for name, tensor in suspects if not torch.isfinite(tensor).all()), None)


@torch.no_grad()
def evaluate(model: GPT, ids: Tensor, compute: Compute, batch_size: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """The loss of a model over consecutive windows of `ids`; every id but the first is predicted once.

    Args:
        batch_size: windows per forward pass; by default 8,192 tokens.

    Yields:
        The sum of the losses of a batch in nats (), on the device, and its number of tokens.
    """
    was_training = model.training
    model.eval()
    try:
        T = model.config.block_size
        for idx, targets in windows(ids, batch_size or max(1, EVAL_BATCH_TOKENS // T), T):
            with compute.autocast():
                _, loss = model(idx.to(compute.device), targets.to(compute.device))
            assert loss is not None
            yield loss.double() * targets.numel(), targets.numel()
    finally:
        model.train(was_training)
