"""`microgpt train`: train a model on a text and write the folder of the run."""

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
from microgpt_cli.checkpoints.meta import engine_of
from microgpt_cli.commands import Invocation, dataset_cache, lr_find
from microgpt_cli.commands.console import announce_kernels, say, thousands
from microgpt_cli.commands.resume import config_from_run, resumed_config
from microgpt_cli.commands.train_report import conclude, how_to_resume, introduce, smaller_batch
from microgpt_cli.compute import Compute, choose_for_run
from microgpt_cli.config import TrainConfig
from microgpt_cli.data.baselines import Baselines, count_baselines
from microgpt_cli.data.dataset import Splits, split
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.engines.cpu import build
from microgpt_cli.engines.structure import difference
from microgpt_cli.errors import Interrupted, RunStopped, UserError
from microgpt_cli.generation.dtype_policy import choose_native
from microgpt_cli.generation.generate import decode_stream, generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
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
    """The parts of a run, all checked before its folder is created."""

    config: TrainConfig
    model: GPT
    tokenizer: Tokenizer
    text_name: str
    splits: Splits
    compute: Compute
    facts: dict[str, Any]  # environment, recorded in each checkpoint
    baselines: Baselines
    resumed: checkpoint.Checkpoint | None
    pruner: TrialPruner | None  # of the search, if the run is a trial
    invocation: Invocation

    @property
    def in_sweep(self) -> bool:
        return self.invocation.sweep_dir is not None


def run(config: TrainConfig, invocation: Invocation) -> Path | None:
    """Train a new run, or go on with an old one, and return its folder; None if no run was asked for."""
    threads = torch.get_num_threads()
    try:
        return _run(config, invocation)
    finally:
        torch.set_num_threads(threads)  # for the next run in this process


def _run(config: TrainConfig, invocation: Invocation) -> Path | None:
    if config.resume is not None:
        for name in ("lr_find", "profile"):
            if getattr(config, name):
                raise UserError(f"{name}=true resume={config.resume}: it needs newly initialised weights; omit resume")
        if config.from_run is not None:
            raise UserError(f"from_run={config.from_run}: give resume or from_run, not both")
        run_folder = layout.find_run(config.resume, "resume")
        if not layout.step_folders(run_folder):
            if (run_folder / layout.MODEL).is_file() and not (run_folder / layout.OPTIM).is_file():
                raise UserError(f"resume={config.resume}: {layout.OPTIM} is missing{checkpoint.NO_OPTIMIZER}")
            raise UserError(
                f"resume={config.resume}: no checkpoint in this folder; give the folder of a run, as in outputs/train/…"
            )
        with layout.locked(run_folder):
            resumed, problems = checkpoint.newest(run_folder)
            for problem in problems:
                say(f"warning   {problem}; falling back to step {resumed.step:,}")
            config = resumed_config(config, resumed.config, invocation.typed, run_folder)
            return _train(config, invocation, run_folder, resumed)
    if config.from_run is not None:
        config = config_from_run(config, invocation.typed)
    if config.lr_find and config.profile:
        raise UserError("lr_find=true profile=true: give one of them")
    if config.lr_find:
        lr_find.run(config, invocation)
        return None
    if config.profile:
        from microgpt_cli.commands import profile  # imports torch.profiler

        profile.run(config, invocation)
        return None
    return _train(config, invocation, None, None)


def _train(
    config: TrainConfig, invocation: Invocation, run_folder: Path | None, resumed: checkpoint.Checkpoint | None
) -> Path:
    require(config.logger)
    announce_kernels(config.engine, config.device)
    recorded_threads = resumed.meta["threads"] if resumed else None
    compute = choose_for_run(config, _device(config, invocation), recorded_threads)
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
    baselines = count_baselines(splits.train, splits.val, tokenizer.vocab_size)
    pruner = trial_pruner(invocation.sweep_dir) if invocation.sweep_dir is not None else None
    session = Session(
        config, model, tokenizer, corpus.name, splits, compute, facts, baselines, resumed, pruner, invocation
    )
    if run_folder is not None:  # resumed, its folder already locked
        _train_in(run_folder, session)
        return run_folder
    files = {layout.TOKENIZER: tokenizer.to_json(), layout.CONFIG: dataclasses.asdict(config)}
    written = {name: storage.json_bytes(data) for name, data in files.items()}
    with layout.new(config.out_dir, invocation.sweep_dir, written, invocation.hydra_files) as made:
        _train_in(made, session)
    return made


def _device(config: TrainConfig, invocation: Invocation) -> str:
    """The key `device`; parallel jobs of a sweep are distributed over the GPUs of the machine."""
    if invocation.worker is None or config.device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return config.device
    return f"cuda:{invocation.worker() % torch.cuda.device_count()}"


def _facts(compute: Compute, text_sha256: str) -> dict[str, Any]:
    """Environment that each checkpoint records; resuming is bit-identical only in an equal one."""
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
        **({"processor": build.processor()} if compute.device.type == "cpu" else {}),
        **({"kernels": build.build_hash()} if compute.engine == "native" else {}),
    }


def _check_same(resumed: checkpoint.Checkpoint, facts: dict[str, Any]) -> None:
    """Raise `UserError` if the text has changed; note when resuming can't be bit-identical."""
    if resumed.meta["text_sha256"] != facts["text_sha256"]:
        raise UserError(
            "resume: the text has changed since the run started (checksum mismatch); "
            "give the original text with data.path=, or start a new run"
        )
    engine, compiled = engine_of(resumed.meta)
    began = resumed.meta | {"engine": engine, "compile": compiled == "true"}
    # runs of before 0.3 recorded neither processor nor kernels
    changed = [f"{key} {began[key]} → {value}" for key, value in facts.items() if began.get(key, value) != value]
    if changed:
        say(f"note      not bit-identical to an uninterrupted run: {', '.join(changed)}")


def _train_in(run_folder: Path, session: Session) -> None:
    """Train in a folder that is locked and holds `config.json` and `tokenizer.json`."""
    config, resumed, tokenizer = session.config, session.resumed, session.tokenizer
    trainer = Trainer(run_folder, config, session.model, session.splits, session.compute, session.facts, resumed)
    if resumed is not None and _is_concluded(trainer):
        more = "early_stop_patience=null" if trainer.stopped_early else f"max_steps={2 * trainer.state.step}"
        how = "stopped early" if trainer.stopped_early else "already finished"
        raise UserError(f"resume={run_folder}: {how} at step {trainer.state.step:,}; to continue, give {more}")
    trackers = Trackers(config.logger, lambda problem: say(f"warning   {problem}"))
    try:
        if resumed is not None:
            storage.replace(run_folder / layout.CONFIG, storage.json_bytes(dataclasses.asdict(config)))
            storage.replace(run_folder / layout.TOKENIZER, storage.json_bytes(tokenizer.to_json()))
            # the final sample follows the last checkpoint, so it is written again
            drop_samples_after(run_folder, trainer.state.step - trainer.is_finished)
        _point_latest(run_folder)
        about = _about(trainer, tokenizer, session.baselines, session.text_name)
        storage.replace(run_folder / layout.ABOUT, storage.json_bytes(about))
        introduce(trainer, tokenizer, session.baselines, session.text_name)
        unlike = difference(trainer.model)
        if unlike is not None:
            say(f"note      {unlike}")
        if resumed is not None and resumed.config.max_steps != config.max_steps and config.optim.schedule != "constant":
            say("note      the learning-rate schedule depends on max_steps: from here on it is that of the new length")
        step = trainer.state.step
        for where in trackers.start(run_folder, dataclasses.asdict(config), step, os.environ).values():
            say(f"tracker   {where}")
        with _stop_signals(trainer):
            _drive(trainer, tokenizer, trackers, session.pruner)
        text = ""
        if _status(trainer) != "interrupted":
            text = sample_text(trainer, tokenizer, SAMPLE_TOKENS if session.in_sweep else LAST_SAMPLE_TOKENS)
            append_sample(run_folder, Sample(trainer.state.step, text))
            text = readable(text)
            trackers.text(trainer.state.step, text)
        _plot(trainer, session.baselines)
        _write_result(trainer, _status(trainer))
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            _write_result(trainer, "failed")
        with suppress(OSError):
            _plot(trainer, session.baselines)
        trackers.close(failed=True)
        if _is_out_of_memory(error):
            raise RunStopped(f"out of memory: {smaller_batch(config, run_folder)}") from error
        if isinstance(error, UserError):
            raise RunStopped(f"{error}. Saved files are kept in {run_folder}") from error
        if isinstance(error, OSError) and error.filename:
            raise RunStopped(f"{storage.explain(error)}, then {how_to_resume(run_folder, config, resumed)}") from error
        raise
    trackers.close()
    if _status(trainer) == "interrupted":
        assert trainer.stop_signal is not None  # nothing else interrupts a run
        where = f"stopped at step {trainer.state.step:,}, checkpoint saved"
        raise Interrupted(f"{where}; {how_to_resume(run_folder, config, resumed)}", trainer.stop_signal)
    conclude(trainer, about, text)
    if trainer.stop_signal is not None and session.in_sweep and session.invocation.worker is None:
        raise Interrupted("", trainer.stop_signal)  # the run has finished; stop the sweep


def _is_concluded(trainer: Trainer) -> bool:
    """Whether the run is finished and its result written."""
    if not trainer.is_finished or trainer.state.evaluated_step != trainer.state.step:
        return False
    try:
        result = storage.parse_json(storage.read_bytes(trainer.run_folder / layout.RESULT), layout.RESULT)
    except UserError:
        return False
    return isinstance(result, dict) and result.get("status") == _status(trainer)


def _status(trainer: Trainer) -> str:
    """The status for result.json; a signal after the last evaluation does not count as an interruption."""
    if not trainer.is_finished or trainer.state.evaluated_step != trainer.state.step:
        return "interrupted"
    if trainer.is_pruned:
        return "pruned"
    return "stopped_early" if trainer.stopped_early else "finished"


def _point_latest(run_folder: Path) -> None:
    """Update `outputs/latest`, best effort: the working directory may be read-only."""
    try:
        layout.point_latest(run_folder)
    except OSError as error:
        say(f"warning   outputs/latest not updated, so resume=latest will not find this run: {storage.explain(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _about(trainer: Trainer, tokenizer: Tokenizer, baselines: Baselines, text_name: str) -> dict[str, Any]:
    """Facts for about.json that diagnosis and reports need, so that they load neither the text nor torch."""
    return {
        "text": text_name,
        "text_sha256": trainer.facts["text_sha256"],
        "unit": tokenizer.unit,
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": len(trainer.splits.train),
        "val_tokens": trainer.eval_tokens,
        "baselines": dataclasses.asdict(baselines),
        "parameters": total_parameters(trainer.model),
        "parts": {row.name: row.count for row in parameter_rows(trainer.model)},
        "machine": trainer.compute.reasons,
    }


def _stop_signals(trainer: Trainer) -> AbstractContextManager[None]:
    """On a stop signal, finish the micro-batch and save; a second one kills the process, except kinds that repeat."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if trainer.stop_signal is not None:
            if number in signals.REPEATED:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        trainer.stop_signal = number

    # under submitit, which handles SIGUSR2, only that signal: the queue sends the others for its own purposes
    queue = [signal.SIGUSR2] if hasattr(signal, "SIGUSR2") and callable(signal.getsignal(signal.SIGUSR2)) else []
    return signals.handle_signals(stop, queue or signals.STOP_SIGNALS)


def _drive(trainer: Trainer, tokenizer: Tokenizer, trackers: Trackers, pruner: TrialPruner | None) -> None:
    """Run the trainer, show a progress bar and print its events; the pruner may stop it after an evaluation."""
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
                    best = "best so far" if is_best else f"best {state.best_val_loss:.4f} at step {state.best_step:,}"
                    say(f"step {step:>6,}  val_loss {val_loss:.4f}  train {loss:.4f}  {best}")
                    # the pruner also records the last evaluation, which is too late to prune
                    prunes = pruner is not None and pruner.should_prune(step, val_loss)
                    trainer.is_pruned = prunes and not trainer.is_finished
                case Warned(message):
                    say(f"warning   {message}")
                case Retuned(message):
                    say(f"threads   {message}")
                case Saved():
                    pass


def sample_text(trainer: Trainer, tokenizer: Tokenizer, tokens: int) -> str:
    """An unconditional sample of the current model; a stop signal truncates it, except after the last step."""
    model, draws = trainer.model, UniformStream(trainer.config.seed, 1, trainer.state.step)
    was_training = model.training
    model.eval()
    try:
        native = choose_native("auto" if trainer.compute.engine == "native" else "torch", model)
        steps = generate(model, [tokenizer.start_id], tokens, Sampler(temperature=0.8), draws, native=native)
        steps = itertools.takewhile(lambda _: trainer.stop_signal is None or trainer.is_finished, steps)
        return "".join(decode_stream(steps, 0, tokenizer.text_stream()))
    finally:
        model.train(was_training)


def _plot(trainer: Trainer, baselines: Baselines) -> None:
    if plots.missing():
        return
    log = metrics.read(trainer.run_folder / layout.METRICS)
    plots.draw_loss(trainer.run_folder / layout.PLOT, log, dataclasses.asdict(baselines))


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
        "engine": trainer.update.engine.name,
    }
    storage.replace(trainer.run_folder / layout.RESULT, storage.json_bytes(result))
