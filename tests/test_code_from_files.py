"""Nothing in the package makes code of data, looked up on the syntax tree: no pickle, `torch.load`, `eval`, `exec`."""

import ast
from pathlib import Path

import pytest
from conftest import Tried

import microgpt_cli
from microgpt_cli.cli import main as cli

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "runpy",
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "numpy.save", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.UnsafeLoader", "yaml.Loader"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method"),
    *("logging.config.dictConfig", "importlib.import_module", "ctypes.CDLL", "ctypes.cdll"),
}
FORBIDDEN_TEXT = ("_target_", "allow_pickle", "weights_only")
ALLOWED = {
    ("verb.py", "importlib.import_module"),  # of a function that the table of verbs names
    ("build.py", "subprocess.run"),  # the C compiler, given the package's own C
    ("build.py", "ctypes.CDLL"),  # what it made
    ("compute.py", "ctypes.CDLL"),  # glibc
}


def code_from_files(source: str, name: str) -> set[str]:
    """What a module has that could make code of data: modules, functions by whatever name, words."""
    tree = ast.parse(source)
    meant: dict[str, str] = {}  # a name → what it was imported as
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meant |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES}
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            meant |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
            found |= {module} if module.partition(".")[0] in FORBIDDEN_MODULES else set()
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            word = ".".join([meant.get(first, first), *rest])
            if word in FORBIDDEN_CALLS and (word != "compile" or node in called):  # also a name of one of our keys
                found.add(word)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {word for word in FORBIDDEN_TEXT if word in node.value}
        if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_TEXT:
            found.add(str(node.arg))
    return {word for word in found if (name, word) not in ALLOWED}


PACKAGE = sorted(Path(microgpt_cli.__file__).parent.rglob("*.py"))


def test_nothing_in_the_package_makes_code_of_data(tried: Tried) -> None:
    assert len(PACKAGE) > 30
    for path in PACKAGE:
        tried("no code from files: a module of the package")
        assert not code_from_files(path.read_text(encoding="utf-8"), path.name), path
    for path in cli.CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "source",
    [
        *(
            "import pickle",
            "import pickle as p",
            "from pickle import loads",
            "import joblib",
            "from shelve import open",
        ),
        *("import torch\ntorch.load(x)", "import torch as t\nt.load(x)", "from torch import load\nload(x)"),
        *(
            "from torch import load as read\nread(x)",
            "f = __import__",
            "eval(x)",
            "exec(x)",
            "compile(x)",
            "run = eval",
        ),
        *("import numpy as np\nnp.load(x)", "f(allow_pickle=True)", "f(weights_only=False)", "{'_target_': x}"),
        *("from hydra.utils import instantiate\ninstantiate(x)", "import hydra\nhydra.utils.instantiate(x)"),
        *("import importlib\nimportlib.import_module(x)", "from yaml import load\nload(x)", "import os\nos.system(x)"),
        *("f'{x}_target_'", "from logging.config import dictConfig\ndictConfig(x)"),
    ],
)
def test_that_would_be_found(source: str) -> None:
    assert code_from_files(source, "x.py")


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.compile(x)", "import safetensors.torch\nsafetensors.torch.load(x)"]
)
def test_what_looks_like_it_is_not(source: str) -> None:
    assert not code_from_files(source, "x.py")
