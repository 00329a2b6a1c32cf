"""Choose the engine of training steps: autograd, or the CPU engine."""

from torch import nn

from microgpt_cli.compute import Compute
from microgpt_cli.engines.autograd import Autograd
from microgpt_cli.engines.cpu.engine import CpuEngine
from microgpt_cli.engines.cpu.record import Unsupported

Engine = Autograd | CpuEngine


def make_engine(model: nn.Module, compute: Compute, shape: tuple[int, int]) -> tuple[Engine, str | None]:
    """The engine of `compute` for batches of `shape` (B, T), and a warning if another one is used."""
    autograd = Autograd(model, compute.dtype, compute.compile, compute.compile_may_fail)
    if compute.engine == "torch":
        return autograd, None
    engine = CpuEngine(model, compute.dtype)
    try:
        engine.plan(shape)
    except Unsupported as why:
        return autograd, f"engine=native does not support this model: {why}; continuing with engine=torch"
    return engine, None
