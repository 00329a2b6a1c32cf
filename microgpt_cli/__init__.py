"""microgpt: train, sample, measure and understand small GPTs, from the command line or from Python.

    from microgpt_cli import GPT, ModelConfig, TrainConfig, generate, load_run, train

Each name is imported when it is used, since torch takes a second to import. docs/python.md shows them at work.
"""

__version__ = "0.2.0"
__all__ = ["GPT", "ModelConfig", "TrainConfig", "generate", "load_run", "train"]

TYPE_CHECKING = False  # typing's, which would be an import
if TYPE_CHECKING:
    from microgpt_cli.api import generate, load_run, train
    from microgpt_cli.config import ModelConfig, TrainConfig
    from microgpt_cli.model.gpt import GPT


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "GPT":
        from microgpt_cli.model import gpt

        return gpt.GPT
    if name in ("ModelConfig", "TrainConfig"):
        from microgpt_cli import config

        return getattr(config, name)
    from microgpt_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
