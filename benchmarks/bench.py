"""What the project says about its speed, measured anew: `make bench`, about five minutes on two cores.

    python benchmarks/bench.py [only=training,start,…] [text=FILE] [rounds=5] [threads=N] [name=NAME]
    python benchmarks/bench.py only=threads         # whole runs, quiet and beside others: minutes more
    python benchmarks/bench.py only=loss            # a whole recipe beside the plain loop's: minutes more
    python benchmarks/bench.py page=NAME           # put the table of a stored result into docs/performance.md

Ours and the plain way (`plain.py`, and the article's `generate`) run in turns in this process; the median of the rounds
counts. A table at the end holds each figure against its goal; all of it goes to `results/bench_NAME.json`. With
`only=`, the other parts of a result that is there already stay as they are.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import evaluating
import machine
import sample_speed
import threads as cpu_threads
import torch
import train_speed
from timing import Ratio

from microgpt_cli.cli import main as cli
from microgpt_cli.errors import UserError

PAGE = Path(__file__).resolve().parent.parent / "docs/performance.md"
BEGIN, END = "<!-- bench: python benchmarks/bench.py page=NAME writes this -->\n", "<!-- end of bench -->\n"


@dataclass(frozen=True)
class Row:
    """One figure and what it is held against."""

    part: str
    what: str
    measured: str
    goal: str = ""
    ratio: float | None = None
    ratio_min_max: list[float] = field(default_factory=list)
    met: bool | None = None


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    text: str
    rounds: int
    progress: Callable[[str], None]


# Sizes with their batches, and how many times as fast as the plain way they are to be.
ON_CPU = {"micro": (32, 1.5), "mini": (12, 2.0), "small": (16, 3.5)}
ON_GPU = {"micro": (64, 10.0), "mini": (64, 10.0), "small": (64, 2.0), "gpt2": (16, 1.15)}
BF16_SHARE = {"small": 0.6}  # of the CPU's bfloat16 matrix rate, to be reached
SAMPLED = {"micro": (1, 64), "small": (1, 64), "gpt2": (1,)}  # size → samples at once
SAMPLED_GOALS = {"micro": 5.0, "small": 50.0, "gpt2": 5.0}  # one sample, times as fast as the plain way
START_SEC = {"help": 0.1, "params": 0.5, "first_step": 0.8}  # at most; but for the first, beyond import torch
FIRST_TOKEN_SEC, FIRST_TOKEN_GB = 1.0, 1.1  # at most, of GPT-2's size; the seconds beyond import torch
EVALUATING = 0.05  # of a run at most
QUIET_THREADS, BUSY_THREADS = 0.97, 0.9  # of what OpenMP's own spinning gives; of what one thread gives
SPEEDRUN = 10.0  # times as fast as the plain way's work


def training(settings: Settings) -> Iterator[Row]:
    """Training steps beside the plain way's, and the share of the machine's matrix rate that they reach."""
    settings.progress("matrix products")
    rates = machine.matrix_rates()
    listed = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
    yield Row("training", "matrix product of this machine", f"{listed} GFLOP/s")
    cuda = torch.cuda.is_available()
    for size, (batch, goal) in (ON_GPU if cuda else ON_CPU).items():
        words = [f"model={size}", "arch=gpt2", "optim=adamw", f"batch_size={batch}"]
        vocab_size = 50304 if size == "gpt2" else 65
        config = cli.load_config("train", words)
        found = train_speed.compare(config, size, vocab_size, rounds=settings.rounds, progress=settings.progress)
        measured = f"{found['ours_tokens_per_sec']:,} tokens/s, plain {found['plain_tokens_per_sec']:,}"
        ratio = Ratio(found["ratio"], *found["ratio_min_max"])
        yield against(goal, ratio, "training", f"train {size}, {found['batch']}, {found['ours']}", measured)
        if cuda:
            yield Row("training", f"MFU of {size}", f"{found['ours_mfu']}, plain {found['plain_mfu']}")
        else:
            share = 1e9 * found["ours_gflops_6n"] / rates["bfloat16"]
            goal_share = BF16_SHARE.get(size)
            yield Row(
                "training",
                f"share of the bfloat16 rate, {size}",
                f"{share:.0%} (6N: {found['ours_gflops_6n']:,.0f} GFLOP/s)",
                f"≥ {goal_share:.0%}" if goal_share else "",
                met=share >= goal_share if goal_share else None,
            )


def threads(settings: Settings) -> Iterator[Row]:
    """The default number of threads on a quiet machine and beside others' work."""
    for size in ("micro", "mini"):
        found = cpu_threads.measure(
            size, cpu_threads.STEPS[size], min(settings.rounds, cpu_threads.ROUNDS), settings.progress
        )
        for name, situation, goal, other in (
            ("quiet_default_to_spinning", cpu_threads.QUIET, QUIET_THREADS, "spinning"),
            ("busy_default_to_one", cpu_threads.BUSY, BUSY_THREADS, "one"),
            ("two_runs_default_to_one", cpu_threads.TWO_RUNS, BUSY_THREADS, "one"),
        ):
            rates = found["tokens_per_sec"][situation]
            measured = f"{rates['default']:,} tokens/s, {other} {rates[other]:,}"
            yield against(goal, Ratio(*found[name]), "threads", f"train {size}, {situation}", measured)


def start(settings: Settings) -> Iterator[Row]:
    """What commands take to begin, beyond `import torch`."""
    import start_up

    settings.progress("fresh processes")
    found = start_up.measure(settings.rounds)
    seconds, beside = found["seconds"], found["beside_import_torch"]
    spans = found["seconds_min_max"]
    for name, what in (("help", "microgpt --help"), ("params", "microgpt params"), ("first_step", "the first step")):
        beyond = name in beside
        measured = f"{seconds[name]:.2f} s" + (f", {beside[name]:.2f} s beyond import torch" if beyond else "")
        low, high = spans[name]
        yield Row(
            "start",
            f"until {what} {'is logged' if name == 'first_step' else 'ends'}",
            f"{measured} ({low}–{high})",
            f"≤ {START_SEC[name]:g} s{' beyond' if beyond else ''}",
            met=(beside if beyond else seconds)[name] <= START_SEC[name],
        )


def first_token(settings: Settings) -> Iterator[Row]:
    """A trained model of GPT-2's size: the time to its first token and the memory, in fresh processes."""
    import first_token

    settings.progress("fresh processes")
    found = first_token.measure(settings.rounds)
    for name, beside in found["beside_import_torch"].items():
        low, high = found["seconds_min_max"][name]
        ours, memory = name == "ours", found["memory_bytes"][name] / 1e9
        yield Row(
            "first_token",
            f"{found['model']} from its files to the first token, {name}",
            f"{beside:.2f} s beyond import torch ({found['seconds'][name]:.2f} s, {low}–{high}), {memory:.2f} GB",
            f"≤ {FIRST_TOKEN_SEC:g} s beyond, ≤ {FIRST_TOKEN_GB:g} GB" if ours else "",
            met=beside <= FIRST_TOKEN_SEC and memory <= FIRST_TOKEN_GB if ours else None,
        )


def sampling(settings: Settings) -> Iterator[Row]:
    """One sample beside the article's `generate`, and many at once beside one."""
    for size, batches in SAMPLED.items():
        rates = {}
        for count in batches:
            settings.progress(f"{size}: {count} at once")
            found = sample_speed.compare(size=size, num_samples=count, rounds=min(settings.rounds, 3))
            per_second = found["tokens_per_sec"]
            rates[count] = per_second["ours"]
            if count == 1:
                ratio = Ratio(found["times_plain"], *found["times_plain_min_max"])
                measured = f"{per_second['ours']:,.0f} tokens/s, plain {per_second['plain']:,.3g}"
                yield against(SAMPLED_GOALS[size], ratio, "sampling", f"sample {size}, {found['dtype']}", measured)
            else:
                what = f"sample {size}, {count} at once, beside one"
                yield Row("sampling", what, f"{rates[count]:,.0f} tokens/s", ratio=round(rates[count] / rates[1], 1))


def evaluation(settings: Settings) -> Iterator[Row]:
    """How much of a run goes into evaluating."""
    runs: dict[str, list[str]] = {"the default run": []}
    for name in evaluating.NEWCOMERS.split(","):
        runs[f"experiment={name}"] = evaluating.of_experiment(name, settings.text)
    for name, words in runs.items():
        settings.progress(name)
        try:
            share = evaluating.share(words)
        except RuntimeError as error:  # no text and no network
            yield Row("evaluating", f"evaluation in {name}", f"not measured: {error}")
            continue
        met = share <= EVALUATING
        yield Row("evaluating", f"evaluation in {name}", f"{share:.1%}", f"≤ {EVALUATING:.0%}", met=met)


def loss(settings: Settings) -> Iterator[Row]:
    """The whole process of `speedrun_cpu` beside nanoGPT's laptop recipe, which ends at the same loss."""
    import speedrun

    text = settings.text or os.environ.get("MICROGPT_SHAKESPEARE")
    if not text:
        raise UserError("the loss is one on Tiny Shakespeare: give its file with text=")
    settings.progress("speedrun_cpu, whole processes")
    found = speedrun.measure(text, min(settings.rounds, 3))
    ours, plain = found["ours_sec"], found["plain_sec"]
    ratio = Ratio(found["ratio"], plain / max(ours), plain / min(ours))
    losses = " ".join(f"{value:.3f}" for value in found["ours_val_loss"])
    measured = f"{statistics.median(ours):.1f} s to {losses}; the plain way {plain:.0f} s"
    yield against(SPEEDRUN, ratio, "loss", "speedrun_cpu, the whole process", measured)


def against(goal: float, ratio: Ratio, part: str, what: str, measured: str) -> Row:
    """A row whose ratio is to reach a goal."""
    span = [round(ratio.least, 2), round(ratio.most, 2)]
    return Row(part, what, measured, f"≥ {goal:g} ×", round(ratio.median, 2), span, ratio.median >= goal)


PARTS = {
    "training": training,
    "threads": threads,
    "start": start,
    "first_token": first_token,
    "sampling": sampling,
    "evaluating": evaluation,
    "loss": loss,
}
USUAL = "training,start,first_token,sampling,evaluating"


def main(words: list[str]) -> None:
    known = {"only": "", "text": "", "rounds": "5", "threads": "", "name": machine.name_of_machine(), "page": ""}
    given, _ = machine.settings(words, known)
    if given["page"]:
        put_into_page(given["page"])
        return
    chosen = (given["only"] or USUAL).split(",")
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        sys.exit(f"only={given['only']}: choose among {', '.join(PARTS)}")
    if given["threads"]:
        torch.set_num_threads(int(given["threads"]))
    name = f"bench_{given['name']}"
    rows = []
    began = time.perf_counter()
    for number, part in enumerate(chosen):
        heading = f"{part} ({number + 1} of {len(chosen)})"
        progress = shown(heading, began)
        progress("")
        for row in measured(part, Settings(given["text"], int(given["rounds"]), progress)):
            print(f"\r\033[K{line(row)}" if sys.stderr.isatty() else line(row), flush=True)
            rows.append(asdict(row))
        path = store(name, words, rows, chosen)
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{table(rows)}\n\n{machine.describe()['device']}; {minutes:.1f} minutes")
    print(f"stored in {path}")


def measured(part: str, settings: Settings) -> Iterator[Row]:
    """The rows of a part; what ends it is told in a row of its own, for the other parts have taken minutes."""
    try:
        yield from PARTS[part](settings)
    except Exception as error:
        yield Row(part, part, f"failed: {type(error).__name__}: {error}", met=False)


def store(name: str, words: list[str], rows: list[dict[str, object]], replaced: list[str]) -> Path:
    """Write the rows beside those of the parts that were not asked for, which stay as they are."""
    path = machine.RESULTS / f"{name}.json"
    for row in rows:
        row["on"] = date.today().isoformat()
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = [row for row in before if row["part"] not in replaced]
    order = list(PARTS)
    return machine.store(
        name, "bench.py", words, {"rows": sorted(kept + rows, key=lambda row: order.index(row["part"]))}
    )


def shown(heading: str, began: float) -> Callable[[str], None]:
    """What is being measured, in a line that the next one takes the place of; without a terminal, once a part."""

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(
                f"\r\033[K{time.perf_counter() - began:4.0f} s  {heading}: {text}", end="", file=sys.stderr, flush=True
            )
        elif not text:
            print(f"{time.perf_counter() - began:4.0f} s  {heading}", file=sys.stderr, flush=True)

    return progress


def line(row: Row) -> str:
    ratio = f"  {row.ratio:g} ×" if row.ratio is not None else ""
    return f"  {row.what}: {row.measured}{ratio}"


def table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown, which a terminal shows as well."""
    heads = ("what", "measured", "goal", "ratio", "min – max", "met")
    cells = [
        (
            str(row["what"]),
            str(row["measured"]),
            str(row["goal"]),
            "" if row["ratio"] is None else f"{row['ratio']:g} ×",
            " – ".join(f"{value:g}" for value in row["ratio_min_max"]),
            {None: "", True: "yes", False: "no"}[row["met"]],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *cells]
    return "\n".join(f"| {' | '.join(f'{c:{w}}' for c, w in zip(row, widths, strict=True))} |" for row in lines)


def put_into_page(name: str) -> None:
    """Write the table of a stored result between the marks in docs/performance.md."""
    path = machine.RESULTS / f"{name.removesuffix('.json')}.json"
    if not path.exists():
        path = machine.RESULTS / f"bench_{name}.json"
    page = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{what} {version}" for what, version in page["versions"].items())
    caption = f"{page['device']}, {page['threads']} threads, {versions}; {page['measured']}, `{path.name}`:"
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        sys.exit(f"{PAGE}: the marks of the table are missing")
    PAGE.write_text(f"{before}{BEGIN}{caption}\n\n{table(page['rows'])}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
