"""`microgpt sample`: generate text from a prompt. Only the text goes to standard output."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from tqdm import tqdm

from microgpt_cli.checkpoints.model_files import load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.prompts import encode_prompt, read_prompt
from microgpt_cli.compute import Compute, choose
from microgpt_cli.config import SampleConfig
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.engines.structure import difference
from microgpt_cli.errors import UserError
from microgpt_cli.generation.dtype_policy import choose_dtype, choose_native, choose_threads
from microgpt_cli.generation.generate import Stops, decode_stream, generate, truncate_at
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, outputs
from microgpt_cli.runs.escape import readable


class Sink(Protocol):
    """A destination of text."""

    def write(self, text: str, /) -> object: ...


class Terminal:
    """Standard output where a person reads: U+FFFD for bytes that are no characters."""

    def write(self, text: str, /) -> None:
        sys.stdout.write(readable(text))


def run(config: SampleConfig, invocation: Invocation) -> None:
    """Write the prompt and its continuation to standard output or to a file."""
    if outputs.is_stdout(config.out):
        config = replace(config, out=None)
    path = layout.find_checkpoint(config.ckpt)
    compute = choose(config.device, "auto" if config.cache else config.dtype, threads=config.threads)
    loaded = load_model(path, compute.device)
    prompt = read_prompt(config.prompt, config.prompt_file)
    context = loaded.config.model.block_size
    ids, count = encode_prompt(prompt, loaded.tokenizer, context)
    model = loaded.model.eval()
    if config.threads is None and config.cache and compute.device.type == "cpu":
        torch.set_num_threads(choose_threads(model, config.num_samples))
    if "ckpt" not in invocation.typed or config.ckpt == "latest" or loaded.manifest is None:
        print(f"from {loaded.origin}", file=sys.stderr)
    if count > context:
        print(f"the prompt has {count:,} tokens; the model uses the last {context:,}", file=sys.stderr)
    unlike = difference(model) if config.cache else None
    if unlike is not None:
        print(f"warning: {unlike}", file=sys.stderr)
    if config.compile == "true" and config.cache and unlike is None:
        raise UserError("compile=true: torch.compile compiles the model's forward pass; add cache=false")
    with _output(config.out) as sink:
        _write(config, compute, model, loaded.tokenizer, prompt, ids, sink)
    if config.out is not None:
        print(f"written to {config.out}", file=sys.stderr)


@contextlib.contextmanager
def _output(out: str | None) -> Iterator[Sink]:
    """Standard output, or a file that is written atomically at the end."""
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        if not sys.stdout.isatty():
            yield sys.stdout
            return
        yield Terminal()
        sys.stdout.write("\n")
        return
    target = outputs.file_to_write(out)
    parts: list[str] = []

    class Parts:
        def write(self, text: str, /) -> None:
            parts.append(text)

    yield Parts()
    try:
        outputs.write(target, "".join(parts).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(f"out={out}: {error.strerror or error}") from error


def _write(
    config: SampleConfig, compute: Compute, model: GPT, tokenizer: Tokenizer, prompt: str, ids: list[int], sink: Sink
) -> None:
    """Generate all samples as one batch; a single one is streamed if `config.stream`."""
    sampler = Sampler(config.temperature, config.top_k, config.top_p)
    draws = UniformStream(config.seed, config.num_samples)
    live = config.stream and config.out is None and config.num_samples == 1
    stops = Stops(config.num_samples, tokenizer.text_stream, None if live else config.stop)
    dtype, why = choose_dtype(config.dtype, model, config.num_samples)
    native = choose_native(config.engine, model, dtype, config.num_samples, config.cache)
    if config.dtype == "auto" and dtype != torch.float32 and compute.device.type == "cpu" and config.cache:
        print(f"dtype {str(dtype).removeprefix('torch.')}: {why}", file=sys.stderr)
    with contextlib.nullcontext() if config.cache else compute.autocast():
        steps = generate(
            model, ids, config.max_new_tokens, sampler, draws, config.num_samples,
            cache=config.cache, dtype=dtype, native=native, compile=config.compile == "true", stopped=stops.is_done,
        )  # fmt: skip
        if live:
            _stream(prompt, truncate_at(decode_stream(steps, 0, tokenizer.text_stream()), config.stop), sink)
            return
        made = []
        for tokens in tqdm(steps, total=config.max_new_tokens, unit="token", disable=None, leave=False, delay=0.5):
            made.append(tokens)
            stops.feed(tokens)
    for row in range(config.num_samples):
        text = "".join(truncate_at(decode_stream(iter(made), row, tokenizer.text_stream()), config.stop))
        if row:
            sink.write("\n")
        sink.write(prompt + text)


def _stream(prompt: str, pieces: Iterator[str], sink: Sink) -> None:
    sink.write(prompt)
    for piece in pieces:
        sink.write(piece)
        sys.stdout.flush()
