"""A trained model is read from its own files alone: once, whole, checked, and without the optimizer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import preset

from microgpt_cli.checkpoints import checkpoint, tensor_file
from microgpt_cli.checkpoints.model_files import load_model
from microgpt_cli.checkpoints.tensor_file import open_tensors
from microgpt_cli.cli.main import main
from microgpt_cli.data.tokenizers import ByteTokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage

SHARED = (layout.MODEL, layout.CONFIG, layout.TOKENIZER)


@pytest.fixture
def step(trained: Path, tmp_path: Path) -> Path:
    """The newest step of a copy of a finished run."""
    return layout.step_folders(Path(shutil.copytree(trained, tmp_path / "run")))[0]


@pytest.fixture
def shared(step: Path, tmp_path: Path) -> Path:
    """A folder with a model's own files, as one person would send them to another."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in SHARED:
        shutil.copy(step / name, folder / name)
    return folder


def test_the_model_equals_the_one_of_the_whole_checkpoint(step: Path) -> None:
    loaded, whole = load_model(step), checkpoint.load(step)
    expected = checkpoint.build_model(whole, torch.device("cpu"))
    for (name, ours), (_, theirs) in zip(loaded.model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert (loaded.step, loaded.meta, loaded.config) == (whole.step, whole.meta, whole.config)
    assert "not verified" not in loaded.origin


@pytest.mark.parametrize("arch", ["article", "gpt2", "modern"])
def test_every_architecture_keeps_ties_and_tables(arch: str, step: Path, shared: Path) -> None:
    config = storage.parse_json((shared / layout.CONFIG).read_bytes(), "")
    config["model"] = vars(preset("micro", arch))
    (shared / layout.CONFIG).write_bytes(storage.json_bytes(config))
    (shared / layout.TOKENIZER).write_bytes(storage.json_bytes(ByteTokenizer().to_json()))
    model = GPT(preset("micro", arch), 256).eval()
    (shared / layout.MODEL).write_bytes(checkpoint._tensor_bytes(checkpoint.weights_of(model)))
    read = load_model(shared).model.eval()
    idx = torch.arange(12).view(1, -1)
    assert torch.equal(read(idx)[0], model(idx)[0])
    assert (read.lm_head.weight is read.token_embedding_table.weight) == model.config.tied_head


def test_reading_a_model_touches_no_optimizer(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = storage.opened
    monkeypatch.setattr(storage, "opened", lambda path, limit: opened.append(path.name) or original(path, limit))
    load_model(step)
    assert sorted(opened) == sorted({*layout.STEP_FILES, layout.MANIFEST} - {layout.OPTIM})  # each of them once


def test_sampling_imports_nothing_of_training() -> None:
    code = "import sys, microgpt_cli.commands.sample; print([m for m in sys.modules if 'microgpt_cli.training' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*SHARED, layout.META, layout.MANIFEST])
def test_a_damaged_file_of_a_verified_model_is_refused(step: Path, name: str) -> None:
    path = step / name
    data = path.read_bytes()
    middle = len(data) // 2
    for damaged in (data[:-1], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], data + b"\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=str(step)):
            load_model(step)
    path.write_bytes(data)
    load_model(step)


def test_a_flipped_bit_anywhere_is_called_damage_and_not_what_follows_from_it(step: Path) -> None:
    path = step / layout.MODEL
    data = path.read_bytes()
    for place in (3, 8, 40, 300, len(data) - 1):  # the header's length, the header, the numbers
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        with pytest.raises(UserError, match="damaged: its size or checksum"):
            load_model(step)


def test_a_tensor_larger_than_a_piece_is_read_checked_and_hashed_whole(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(step).model.state_dict()
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 64)
    for name, tensor in load_model(step).model.state_dict().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("place", [0, 17, 99])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_found_wherever_they_are(
    place: int, number: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 64)
    numbers = torch.randn(10, 10)
    numbers.view(-1)[place] = number
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({"a": numbers}))
    with (
        pytest.raises(UserError, match="a contains NaN or Inf"),
        open_tensors(path, None, {"a": torch.empty(10, 10, device="meta")}) as file,
    ):
        file.read_into({"a": torch.empty(10, 10)})


def test_a_model_alone_is_sampled_with_a_note(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", f"ckpt={shared}", "max_new_tokens=3", "device=cpu"]) == 0
    out, err = capsys.readouterr()
    assert len(out.strip("\n")) >= 1
    assert "not verified: no MANIFEST.json" in err


def test_a_checkpoint_without_its_optimizer_serves_all_but_resuming(
    step: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in layout.step_folders(step.parent.parent):
        (folder / layout.OPTIM).unlink()
    for words in (["sample", "max_new_tokens=3"], ["inspect", "prompt=a"], ["eval"], ["params"]):
        assert main([words[0], f"ckpt={step}", *words[1:]]) == 0, words
    assert "not verified" not in capsys.readouterr().err
    assert main(["train", f"resume={step.parent.parent}"]) == 2
    assert "optim.safetensors: missing (the optimizer's state)" in capsys.readouterr().err


def test_a_model_alone_is_evaluated_and_not_resumed(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"ckpt={shared}"]) == 0
    assert "step unknown (not verified" in capsys.readouterr().err
    assert main(["train", f"resume={shared}"]) == 2
    assert "optim.safetensors is missing (the optimizer's state)" in capsys.readouterr().err
