"""One dataclass for each node of `conf/`, a file a node or verb: type, unit, meaning and range of every key.

Types live here, values in the YAML files under `conf/`. What a program makes without Hydra (a model, a text, a
tokenizer, an optimizer, a run) has the same values as defaults, and a test compares the two. A dataclass checks itself
when it is made, so a config that exists is a config that is right.
"""

from microgpt_cli.config.compare import CompareConfig
from microgpt_cli.config.data import DataConfig
from microgpt_cli.config.diagram import DiagramConfig
from microgpt_cli.config.eval import EvalConfig
from microgpt_cli.config.inspect import InspectConfig
from microgpt_cli.config.model import ModelConfig
from microgpt_cli.config.optim import OptimConfig
from microgpt_cli.config.params import ParamsConfig
from microgpt_cli.config.replay import ReplayConfig
from microgpt_cli.config.report import ReportConfig
from microgpt_cli.config.runs import RunsConfig
from microgpt_cli.config.sample import SampleConfig
from microgpt_cli.config.shapes import ShapesConfig
from microgpt_cli.config.sweep import SearchConfig, SweepConfig
from microgpt_cli.config.tokenizer import TokenizerConfig
from microgpt_cli.config.train import TrainConfig
from microgpt_cli.config.verify import VerifyConfig

__all__ = [
    "CompareConfig",
    "DataConfig",
    "DiagramConfig",
    "EvalConfig",
    "InspectConfig",
    "ModelConfig",
    "OptimConfig",
    "ParamsConfig",
    "ReplayConfig",
    "ReportConfig",
    "RunsConfig",
    "SampleConfig",
    "SearchConfig",
    "ShapesConfig",
    "SweepConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VerifyConfig",
]
