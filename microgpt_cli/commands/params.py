"""`microgpt params`: parameters of a model part by part, with formulas, FLOPs and bytes."""

import dataclasses
import json

from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import data_size
from microgpt_cli.commands.model_source import described
from microgpt_cli.compute import choose
from microgpt_cli.config import ParamsConfig
from microgpt_cli.model.accounting import (
    Quantity,
    Row,
    embedding_parameters,
    flops_per_token,
    memory,
    parameter_rows,
    total_parameters,
)
from microgpt_cli.model.gpt import GPT


def run(config: ParamsConfig, invocation: Invocation) -> None:
    """Count the model that the groups describe, or that of a run."""
    what = described(config, invocation)
    model, optim = what.model(real=False), what.trained.optim if what.trained else config.optim
    if config.format == "plain":
        print(_plain(model, config))
        return
    device = choose(config.device, "float32").device.type
    engine = "native" if device == "cpu" else "torch"  # as engine=auto chooses where there is a C compiler
    costs = memory(model, config.batch_size, optim, engine)
    if config.format == "json":
        print(_json(model, config, costs))
    else:
        step = f"{config.batch_size} × {model.config.block_size} tokens, optim={optim.kind}, engine={engine}"
        print(_table(model, config, costs, step))


def _table(model: GPT, config: ParamsConfig, costs: dict[str, Quantity], step: str) -> str:
    rows = parameter_rows(model, config.depth)
    total = total_parameters(model)
    names = [f"{'  ' * row.depth}{row.name}" for row in rows]
    first = max(map(len, [*names, "without embeddings"]))
    formula = max(len(row.formula) for row in rows)
    numbers = len(f"{total:,}")
    lines = [f"{'part':{first}}  {'parameters':>{max(numbers, 10)}}   share  formula"]
    lines += [
        f"{name:{first}}  {row.count:>{max(numbers, 10)},}  {row.count / total:6.2%}  {row.formula}"
        for name, row in zip(names, rows, strict=True)
    ]
    lines += ["─" * (first + max(numbers, 10) + formula + 12)]
    lines += [f"{'total':{first}}  {total:>{max(numbers, 10)},}"]
    lines += [f"{'without embeddings':{first}}  {total - embedding_parameters(model):>{max(numbers, 10)},}", ""]
    lines += [_sentence(row) for row in rows if row.depth == 0] + [""]
    flops = flops_per_token(model)
    lines += [f"FLOPs per token, forward and backward: {flops.value:,} = {flops.formula}"]
    lines += [f"Bytes of a float32 training step, {step}:"]
    lines += [
        f"  {name:12}{data_size(cost.value):>10}  {cost.value:,} = {cost.formula}" for name, cost in costs.items()
    ]
    lines += [f"  {'total':12}{data_size(sum(cost.value for cost in costs.values())):>10}"]
    return "\n".join(lines)


def _sentence(row: Row) -> str:
    """The line that the article's listing prints."""
    return f"{row.name}: {row.count / 1e6}M parameters"


def _plain(model: GPT, config: ParamsConfig) -> str:
    return "\n".join(_sentence(row) for row in parameter_rows(model, config.depth))


def _json(model: GPT, config: ParamsConfig, costs: dict[str, Quantity]) -> str:
    total = total_parameters(model)
    page = {
        "parts": [dataclasses.asdict(row) for row in parameter_rows(model, config.depth)],
        "total": total,
        "without_embeddings": total - embedding_parameters(model),
        "flops_per_token": dataclasses.asdict(flops_per_token(model)),
        "bytes": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
    }
    return json.dumps(page, indent=2, ensure_ascii=False)
