"""`microgpt train`: text in, a run's folder out."""

import dataclasses
import itertools
import os
import platform
import signal
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from microgpt_cli import __version__, randomness, signals
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.commands import Invocation, dataset_cache, lr_find
from microgpt_cli.commands.console import say, thousands
from microgpt_cli.commands.resume import config_from_run, resumed_config
from microgpt_cli.commands.train_report import conclude, go_on, introduce, smaller_batch
from microgpt_cli.compute import Compute, choose
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.baselines import Baselines, baselines
from microgpt_cli.data.dataset import Splits, split
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.engines.structure import difference
from microgpt_cli.errors import Interrupted, RunStopped, UserError
from microgpt_cli.generation.generate import generate, text_of
from microgpt_cli.generation.precision import choose_native
from microgpt_cli.generation.sampling import Draws, Sampler
from microgpt_cli.model.accounting import parameter_rows, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, plots, storage
from microgpt_cli.runs.escape import readable
from microgpt_cli.runs.samples import Sample, append_sample, drop_samples_after
from microgpt_cli.sweeps.study import TrialPruner, trial_pruner
from microgpt_cli.training import metrics
from microgpt_cli.training.trackers import Trackers, require
from microgpt_cli.training.trainer import Evaluated, Logged, Retuned, Saved, State, Stepped, Trainer, Warned

SAMPLE_TOKENS, LAST_SAMPLE_TOKENS = 150, 500


@dataclass(frozen=True)
class Session:
    """What a run is made of, all of it checked before its folder is made."""

    config: TrainConfig
    model: GPT
    tokenizer: Tokenizer
    text_name: str
    splits: Splits
    compute: Compute
    facts: dict[str, Any]  # what each checkpoint notes
    compare: Baselines
    resumed: checkpoint.Checkpoint | None
    pruner: TrialPruner | None  # of the search that the run is a trial of
    invocation: Invocation

    @property
    def in_sweep(self) -> bool:
        return self.invocation.sweep_dir is not None


def run(config: TrainConfig, invocation: Invocation) -> None:
    """Train a new run, or go on with an old one."""
    threads = torch.get_num_threads()
    try:
        _run(config, invocation)
    finally:
        torch.set_num_threads(threads)  # for the next run in this process


def _run(config: TrainConfig, invocation: Invocation) -> None:
    if config.resume is not None:
        for name in ("lr_find", "profile"):
            if getattr(config, name):
                raise UserError(f"{name}=true resume={config.resume}: it begins with fresh weights; leave resume out")
        if config.from_run is not None:
            raise UserError(f"from_run={config.from_run}: a run is resumed or begun anew from another, not both")
        run_folder = layout.find_run(config.resume, "resume")
        if not layout.step_folders(run_folder):
            if (run_folder / layout.MODEL).is_file() and not (run_folder / layout.OPTIM).is_file():
                raise UserError(f"resume={config.resume}: {layout.OPTIM} is missing{checkpoint.NO_OPTIMIZER}")
            raise UserError(
                f"resume={config.resume}: no checkpoint in this folder; give a run's, as in outputs/train/…"
            )
        with layout.locked(run_folder):
            resumed, problems = checkpoint.newest(run_folder)
            for problem in problems:
                say(f"warning   {problem}; falling back to step {resumed.step:,}")
            config = resumed_config(config, resumed.config, invocation.typed, run_folder)
            _train(config, invocation, run_folder, resumed)
        return
    if config.from_run is not None:
        config = config_from_run(config, invocation.typed)
    if config.lr_find and config.profile:
        raise UserError("lr_find=true profile=true: one at a time; neither leaves a model for the other")
    if config.lr_find:
        lr_find.run(config, invocation)
        return
    if config.profile:
        from microgpt_cli.commands import profile  # a run has no profiler in memory

        profile.run(config, invocation)
        return
    _train(config, invocation, None, None)


def _train(
    config: TrainConfig, invocation: Invocation, run_folder: Path | None, resumed: checkpoint.Checkpoint | None
) -> None:
    require(config.logger)
    compute = choose(
        _device(config, invocation),
        config.dtype,
        config.engine,
        config.compile,
        config.threads,
        work_flops(config),
        config.model,
        config.batch_size,
        resumed.meta["threads"] if resumed else None,
    )
    tokenizer_of_run = resumed.tokenizer if resumed else None
    corpus, tokenizer, ids, text_sha256 = dataset_cache.read(config.data, config.tokenizer, tokenizer_of_run)
    if corpus.note:
        say(f"note      {corpus.note}")
    splits = split(ids, config.data.val_fraction, config.model.block_size)
    facts = _facts(compute, text_sha256)
    if resumed is not None:
        _check_same(resumed, facts)
        model = checkpoint.build_model(resumed, compute.device)
    else:
        torch.manual_seed(randomness.derive(config.seed, randomness.WEIGHTS))
        model = GPT(config.model, tokenizer.vocab_size).to(compute.device)
    compare = baselines(splits.train, splits.val, tokenizer.vocab_size)
    pruner = trial_pruner(invocation.sweep_dir) if invocation.sweep_dir is not None else None
    session = Session(
        config, model, tokenizer, corpus.name, splits, compute, facts, compare, resumed, pruner, invocation
    )
    if run_folder is not None:  # resumed, and locked already
        _train_in(run_folder, session)
        return
    files = {layout.TOKENIZER: tokenizer.to_json(), layout.CONFIG: dataclasses.asdict(config)}
    written = {name: storage.json_bytes(data) for name, data in files.items()}
    with layout.new(config.out_dir, invocation.sweep_dir, written, invocation.hydra_files) as made:
        _train_in(made, session)


def _device(config: TrainConfig, invocation: Invocation) -> str:
    """Where to compute: jobs of a sweep that run side by side have the GPUs of a machine dealt out to them."""
    if invocation.worker is None or config.device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return config.device
    return f"cuda:{invocation.worker() % torch.cuda.device_count()}"


def work_flops(config: TrainConfig) -> float:
    """About how much a run computes: 6 FLOPs a token for each weight of the blocks."""
    size = config.model
    tokens = config.max_steps * config.batch_size * config.grad_accum_steps * size.block_size
    return 6.0 * 12 * size.n_layer * size.n_embd**2 * tokens


def _facts(compute: Compute, text_sha256: str) -> dict[str, Any]:
    """What a checkpoint notes about where it was made: bits can be equal only where these are."""
    return {
        "text_sha256": text_sha256,
        "microgpt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else compute.device.type,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "threads": compute.threads,
        "engine": compute.engine,
        "compile": compute.compile,
    }


def _check_same(resumed: checkpoint.Checkpoint, facts: dict[str, Any]) -> None:
    """Refuse another text; say so when bits can't be equal."""
    if resumed.meta["text_sha256"] != facts["text_sha256"]:
        raise UserError(
            "resume: the text has changed since the run began (its checksum is another); "
            "give the old text with data.path=, or start a new run"
        )
    changed = [
        f"{k} {resumed.meta.get(k)} → {v}" for k, v in facts.items() if k != "text_sha256" and resumed.meta.get(k) != v
    ]
    if changed:
        say(f"note      not bit for bit what one uninterrupted run gives: {', '.join(changed)}")


def _train_in(run_folder: Path, session: Session) -> None:
    """Train in a folder that is locked and holds `config.json` and `tokenizer.json`."""
    config, resumed, tokenizer, compare = session.config, session.resumed, session.tokenizer, session.compare
    trainer = Trainer(run_folder, config, session.model, session.splits, session.compute, session.facts, resumed)
    if resumed is not None and _is_concluded(trainer):
        more = "early_stop_patience=null" if trainer.stopped_early else f"max_steps={2 * trainer.state.step}"
        how = "stopped early" if trainer.stopped_early else "finished already"
        raise UserError(f"resume={run_folder}: {how}, at step {trainer.state.step:,}; to go on, give {more}")
    trackers = Trackers(config.logger, lambda problem: say(f"warning   {problem}"))
    try:
        if resumed is not None:
            storage.replace(run_folder / layout.CONFIG, storage.json_bytes(dataclasses.asdict(config)))
            storage.replace(run_folder / layout.TOKENIZER, storage.json_bytes(tokenizer.to_json()))
            # The last sample of all follows the last checkpoint, so it is written again.
            drop_samples_after(run_folder, trainer.state.step - trainer.is_finished)
        _point_latest(run_folder)
        about = _about(trainer, tokenizer, compare, session.text_name)
        storage.replace(run_folder / layout.ABOUT, storage.json_bytes(about))
        introduce(trainer, tokenizer, compare, session.text_name)
        unlike = difference(trainer.model)
        if unlike is not None:
            say(f"note      {unlike}")
        if resumed is not None and resumed.config.max_steps != config.max_steps and config.optim.schedule != "constant":
            say("note      the learning rate follows max_steps: from here on it is that of a run of another length")
        step = trainer.state.step
        for where in trackers.start(run_folder, dataclasses.asdict(config), step, os.environ).values():
            say(f"tracker   {where}")
        with _stop_signals(trainer):
            _drive(trainer, tokenizer, compare, trackers, session.pruner)
        text = ""
        if _status(trainer) != "interrupted":
            text = sample_text(trainer, tokenizer, SAMPLE_TOKENS if session.in_sweep else LAST_SAMPLE_TOKENS)
            append_sample(run_folder, Sample(trainer.state.step, text))
            text = readable(text)
            trackers.text(trainer.state.step, text)
        _draw(trainer, compare)
        _write_result(trainer, _status(trainer))
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            _write_result(trainer, "failed")
        with suppress(OSError):
            _draw(trainer, compare)
        trackers.close(failed=True)
        if _is_out_of_memory(error):
            raise RunStopped(f"out of memory: {smaller_batch(config, run_folder)}") from error
        if isinstance(error, UserError):
            raise RunStopped(f"{error}. What was saved is kept: {run_folder}") from error
        if isinstance(error, OSError) and error.filename:
            raise RunStopped(f"{storage.explain(error)}, then {go_on(run_folder, config, resumed)}") from error
        raise
    trackers.close()
    if _status(trainer) == "interrupted":
        assert trainer.stop_signal is not None  # nothing else ends a run before its end
        where = f"stopped at step {trainer.state.step:,}, saved"
        raise Interrupted(f"{where}; {go_on(run_folder, config, resumed)}", trainer.stop_signal)
    conclude(trainer, about, text)
    if trainer.stop_signal is not None and session.in_sweep and session.invocation.worker is None:
        raise Interrupted("", trainer.stop_signal)  # too late for this run, and in time for the sweep


def _is_concluded(trainer: Trainer) -> bool:
    """Whether nothing is left to do, not even to write the result."""
    if not trainer.is_finished or trainer.state.evaluated_step != trainer.state.step:
        return False
    try:
        result = storage.parse_json(storage.read_bytes(trainer.run_folder / layout.RESULT), layout.RESULT)
    except UserError:
        return False
    return isinstance(result, dict) and result.get("status") == _status(trainer)


def _status(trainer: Trainer) -> str:
    """A signal that came after the last evaluation has interrupted nothing."""
    if not trainer.is_finished or trainer.state.evaluated_step != trainer.state.step:
        return "interrupted"
    if trainer.is_pruned:
        return "pruned"
    return "stopped_early" if trainer.stopped_early else "finished"


def _point_latest(run_folder: Path) -> None:
    """A convenience, without which a run can do: the working directory may be read-only and `out_dir` elsewhere."""
    try:
        layout.point_latest(run_folder)
    except OSError as error:
        say(f"warning   resume=latest will not find this run: {storage.explain(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _about(trainer: Trainer, tokenizer: Tokenizer, compare: Baselines, text_name: str) -> dict[str, Any]:
    """What a run is held against when it is judged or reported, so that neither needs the text or torch again."""
    return {
        "text": text_name,
        "text_sha256": trainer.facts["text_sha256"],
        "unit": tokenizer.unit,
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": len(trainer.splits.train),
        "val_tokens": trainer.eval_tokens,
        "baselines": dataclasses.asdict(compare),
        "parameters": total_parameters(trainer.model),
        "parts": {row.name: row.count for row in parameter_rows(trainer.model)},
        "machine": trainer.compute.reasons,
    }


def _stop_signals(trainer: Trainer) -> AbstractContextManager[None]:
    """Let a signal finish the micro-step and save; a second one ends at once, unless it is of a kind that repeats."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if trainer.stop_signal is not None:
            if number in signals.REPEATED:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        trainer.stop_signal = number

    # only SIGUSR2 where somebody waits for it, as submitit does: a queue has its own way with the others
    queue = [signal.SIGUSR2] if hasattr(signal, "SIGUSR2") and callable(signal.getsignal(signal.SIGUSR2)) else []
    return signals.heard_by(stop, queue or signals.STOP_SIGNALS)


def _drive(
    trainer: Trainer, tokenizer: Tokenizer, compare: Baselines, trackers: Trackers, pruner: TrialPruner | None
) -> None:
    """Run the trainer and show what happens: one bar, and lines above it. A judge may end it after an evaluation."""
    config, state = trainer.config, trainer.state
    loss = float("nan")
    with tqdm(
        total=config.max_steps,
        initial=state.step,
        disable=None,
        desc="step",
        bar_format="{desc} {n_fmt}/{total_fmt} {bar} {elapsed} ETA {remaining}{postfix}",
        smoothing=0.05,
    ) as bar:
        for event in trainer.run():
            trackers.log(event)
            match event:
                case Stepped(step):
                    bar.update()
                    if config.sample_interval and step % config.sample_interval == 0 and step < config.max_steps:
                        began = time.perf_counter()
                        text = sample_text(trainer, tokenizer, SAMPLE_TOKENS)
                        trainer.note_time("sampling", began)
                        if trainer.stop_signal is None:
                            append_sample(trainer.run_folder, Sample(step, text))
                            trackers.text(step, readable(text))
                        say("          " + " ".join(readable(text).split())[:100])
                case Logged(_, loss, learning_rate, _, tokens_per_sec):
                    bar.set_postfix_str(
                        f"loss {loss:.3f}, lr {learning_rate:.1e}, {thousands(tokens_per_sec)} tokens/s", refresh=False
                    )
                case Evaluated(step, val_loss, is_best):
                    verdict = (
                        "best so far" if is_best else f"best {state.best_val_loss:.4f} at step {state.best_step:,}"
                    )
                    say(f"step {step:>6,}  val_loss {val_loss:.4f}  train {loss:.4f}  {verdict}")
                    # the judge hears of the last evaluation, too, though it comes too late to prune
                    prunes = pruner is not None and pruner.should_prune(step, val_loss)
                    trainer.is_pruned = prunes and not trainer.is_finished
                case Warned(message):
                    say(f"warning   {message}")
                case Retuned(message):
                    say(f"threads   {message}")
                case Saved():
                    pass


def sample_text(trainer: Trainer, tokenizer: Tokenizer, tokens: int) -> str:
    """A text that the model writes from nothing, as it stands; cut short by a stop signal, but at the end."""
    model, draws = trainer.model, Draws(trainer.config.seed, 1, trainer.state.step)
    was_training = model.training
    model.eval()
    try:
        sampler, native = (
            Sampler(temperature=0.8),
            choose_native("auto" if trainer.compute.engine == "native" else "torch", model),
        )
        columns = generate(model, [tokenizer.start_id], tokens, sampler, draws, native=native)
        columns = itertools.takewhile(lambda _: trainer.stop_signal is None or trainer.is_finished, columns)
        return "".join(text_of(columns, 0, tokenizer.text_stream()))
    finally:
        model.train(was_training)


def _draw(trainer: Trainer, compare: Baselines) -> None:
    if plots.missing():
        return
    log = metrics.read(trainer.run_folder / layout.METRICS)
    plots.draw_loss(trainer.run_folder / layout.PLOT, log, dataclasses.asdict(compare))


def _write_result(trainer: Trainer, status: str) -> None:
    state: State = trainer.state
    seconds = state.train_seconds
    result = {
        "status": status,
        "text_sha256": trainer.facts["text_sha256"],
        "step": state.step,
        "val_loss": state.val_loss,
        "val_tokens": trainer.eval_tokens,
        "best_val_loss": state.best_val_loss,
        "best_step": state.best_step,
        "tokens": state.tokens,
        "seconds": round(seconds, 3),
        "tokens_per_sec": round(state.tokens / seconds, 1) if seconds else None,
        "parameters": total_parameters(trainer.model),
        "device": str(trainer.compute.device),
        "dtype": str(trainer.compute.dtype).removeprefix("torch."),
    }
    storage.replace(trainer.run_folder / layout.RESULT, storage.json_bytes(result))
