"""Runs from before 0.3, whose one key `compile` also said who computes, are read, resumed and verified."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from support.hostile import CONFIG, META, forge

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.commands.verify import engine_of
from microgpt_cli.compute import why_not_native
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import from_json
from microgpt_cli.runs import layout, storage


def make_old(run: Path, compile: str) -> None:
    """Rewrite a run as it was written before 0.3 with `compile=native` or `compile=false`."""
    for step in layout.step_folders(run):
        config, meta = (json.loads((step / name).read_bytes()) for name in (CONFIG, META))
        del config["engine"], meta["engine"]
        config["compile"], meta["compile"] = compile, "native" if compile == "native" else False
        forge(step, CONFIG, storage.json_bytes(config))
        forge(step, META, storage.json_bytes(meta))
        storage.replace(run / layout.CONFIG, storage.json_bytes(config))


@pytest.mark.parametrize(
    ("changes", "engine", "compile"),
    [
        ({"compile": "native"}, "native", "auto"),
        ({"compile": "false"}, "torch", "false"),
        ({"compile": "auto"}, "auto", "auto"),
        ({"compile": "true"}, "auto", "true"),
        ({"compile": "false", "engine": "native"}, "native", "false"),  # not an old one
    ],
)
def test_the_config_of_an_old_run_says_the_same(
    trained: Path, changes: dict[str, str], engine: str, compile: str
) -> None:
    data = json.loads((trained / layout.CONFIG).read_bytes())
    del data["engine"]
    config = from_json(TrainConfig, data | changes, layout.CONFIG)
    assert (config.engine, config.compile) == (engine, compile)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"compile": "native"}, ("native", "false")),
        ({"compile": False}, ("torch", "false")),
        ({"compile": True}, ("torch", "true")),
        ({}, ("torch", "false")),
        ({"engine": "native", "compile": False}, ("native", "false")),
    ],
)
def test_the_meta_of_an_old_checkpoint_says_the_same(meta: dict[str, Any], expected: tuple[str, str]) -> None:
    assert engine_of(meta) == expected


@pytest.mark.parametrize(("compile", "engine"), [("native", "native"), ("false", "torch")])
def test_an_old_run_resumes_to_the_bits_of_a_new_one(
    microgpt: Run, cheap: None, trained: Path, tmp_path: Path, compile: str, engine: str
) -> None:
    if engine == "native" and why_not_native():
        pytest.skip(why_not_native())
    new, old = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("new", "old"))
    make_old(old, compile)
    for run, words in ((new, [f"engine={engine}"]), (old, [])):
        ran = microgpt("train", f"resume={run}", "max_steps=34", "device=cpu", *words)
        assert ran.status == 0, ran.err
    latest = [checkpoint.load(layout.step_folders(run)[0]) for run in (new, old)]
    assert [began.step for began in latest] == [34, 34]
    assert [began.config.engine for began in latest] == [engine, engine]
    assert latest[1].meta["engine"] == engine
    for name, tensor in latest[0].model.items():
        assert torch.equal(tensor, latest[1].model[name]), name
