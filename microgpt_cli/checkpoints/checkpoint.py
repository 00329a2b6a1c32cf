"""Checkpoints: published whole or not at all, verified byte by byte, no pickle.

    ckpt/step-00001000/
        model.safetensors     weights by name, tied ones once
        optim.safetensors     the optimizer's state, by `adamw/PARAMETER/STATE`
        meta.json             step, tokens, best, the tail of the log, hashes, versions
        config.json  tokenizer.json
        MANIFEST.json         size and sha256 of all the others; written last

A step's folder needs nothing outside itself. There is no random state to keep: draws are functions of seed and step.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from microgpt_cli.checkpoints.meta import FORMAT
from microgpt_cli.checkpoints.meta import check as check_meta
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import from_json
from microgpt_cli.data import tokenizers
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.model.accounting import meta_model
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage
from microgpt_cli.training.optimizers import make_optimizer

MODEL, OPTIM, META = "model.safetensors", "optim.safetensors", "meta.json"
FILES = (MODEL, OPTIM, META, layout.CONFIG, layout.TOKENIZER)
HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 1 << 20, 1 << 8  # largest header of a file of tensors that is read
ROTARY_BYTES = 128 << 20  # largest tables of rotary positions: no tensor of the file shows what these take
KEEP_LAST = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its bytes were hashed, and these same bytes were parsed."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    meta: dict[str, Any]
    model: dict[str, Tensor]
    optim: dict[str, Tensor]

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def save(
    run: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optim_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    best: int | None,
) -> Path:
    """Publish a checkpoint of a run, then remove the ones that need not be kept: all but the last two and the best.

    Args:
        run: the run's folder, whose lock the caller holds.
        step: finished optimizer steps.
        weights: the model's, by every name that they have.
        optim_state: the optimizer's.
        meta: what else the run needs to go on; plain JSON.
        best: the step with the lowest val_loss so far.
    """
    parent = run / layout.CHECKPOINTS
    final = parent / layout.step_name(step)
    if parent.exists():
        storage.remove_stale_folders(parent)
    else:
        storage.make_folder(parent)
    if final.exists():
        try:
            load(final)
        except UserError:
            storage.rename(final, parent / f".broken-{final.name}-{os.getpid()}")
        else:
            storage.sync_folder(parent)  # whoever made it may have died before doing so
    if not final.exists():
        files = {
            MODEL: _tensor_bytes(weights),
            OPTIM: _tensor_bytes(optim_state),
            META: storage.json_bytes({"format": FORMAT, "step": step, **meta}),
            layout.CONFIG: storage.read_bytes(run / layout.CONFIG),
            layout.TOKENIZER: storage.read_bytes(run / layout.TOKENIZER),
        }
        manifest = {name: {"bytes": len(data), "sha256": storage.sha256(data)} for name, data in files.items()}
        files[layout.MANIFEST] = storage.json_bytes({"format": FORMAT, "files": manifest})
        storage.publish_folder(final, files)
    _keep(parent, best)
    return final


def take_over(run: Path, best: int | None) -> None:
    """Finish a save that stopped after it had published its checkpoint, which the run now goes on from."""
    parent = run / layout.CHECKPOINTS
    storage.sync_folder(parent)  # its name must be durable before anything relies on it
    storage.remove_stale_folders(parent)
    _keep(parent, best)


def _keep(parent: Path, best: int | None) -> None:
    """Note which step is the best, and remove all but the last two and that one."""
    steps = layout.step_folders(parent.parent)
    best_name = layout.step_name(best) if best is not None else None
    noted = parent / layout.BEST
    if best_name is not None and parent / best_name in steps:
        data = storage.json_bytes({"checkpoint": best_name})
        if not noted.is_file() or noted.read_bytes() != data:
            storage.replace(noted, data)
    storage.remove_folders(parent, [old.name for old in steps[KEEP_LAST:] if old.name != best_name])


def load(path: Path, weights: bool = True) -> Checkpoint:
    """Read a checkpoint's folder, every byte verified before it is used.

    Args:
        path: a `step-…` folder.
        weights: whether the tensors are wanted too.

    Raises:
        UserError: a file is missing, changed, or not what it should be.
    """
    noted = _manifest(path)
    parsed = {
        name: storage.parse_json(_verified(path / name, noted[name], storage.JSON_BYTES), str(path / name))
        for name in FILES
        if name.endswith(".json")
    }
    meta = check_meta(parsed[META], str(path / META))
    if layout.STEP_NAME.fullmatch(path.name) and path.name != layout.step_name(meta["step"]):
        raise UserError(f"{path / META}: of step {meta['step']:,}, which is not the folder's")
    config = from_json(TrainConfig, parsed[layout.CONFIG], str(path / layout.CONFIG))
    tokenizer = tokenizers.from_json(parsed[layout.TOKENIZER], str(path / layout.TOKENIZER))
    model: dict[str, Tensor] = {}
    optim: dict[str, Tensor] = {}
    if weights:
        size = config.model
        tables = 4 * size.n_layer * size.block_size * (size.n_embd // size.n_head)
        if size.position == "rotary" and tables > ROTARY_BYTES:
            raise UserError(f"{path / layout.CONFIG}: model.block_size={size.block_size} is too large for a checkpoint")
        expected = dict(meta_model(size, tokenizer.vocab_size).named_parameters())
        model = _read_tensors(path / MODEL, noted[MODEL], expected)
        optim = _read_tensors(path / OPTIM, noted[OPTIM], make_optimizer(expected.items(), config.optim).state())
    return Checkpoint(path, config, tokenizer, meta, model, optim)


def _manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint's folder notes of each file."""
    where = path / layout.MANIFEST
    written = storage.read_bytes(where)
    manifest = storage.parse_json(written, str(where))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    noted = manifest.get("files")
    if not isinstance(noted, dict) or set(noted) != set(FILES):
        raise UserError(f"{where}: must name {', '.join(FILES)}")
    if written != storage.json_bytes(manifest):
        raise UserError(f"{where}: damaged: not written as we write it")
    return noted


def _verified(path: Path, noted: Any, limit: int) -> bytes:
    """The bytes of a file, if they are the ones that the manifest notes."""
    data = storage.read_bytes(path, limit)
    if noted != {"bytes": len(data), "sha256": storage.sha256(data)}:
        raise UserError(f"{path}: damaged: its size or checksum is not the one in {layout.MANIFEST}")
    return data


def newest(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with the newer ones.

    Raises:
        UserError: there is none; a run is never started over silently.
    """
    problems: list[str] = []
    for path in layout.step_folders(run):
        try:
            return load(path), problems
        except UserError as error:
            problems.append(str(error))
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"resume={run}: no whole checkpoint in this folder{detail}")


def build_model(checkpoint: Checkpoint, device: torch.device) -> GPT:
    """The model of a checkpoint, with its weights, on a device."""
    model = GPT(checkpoint.config.model, checkpoint.tokenizer.vocab_size)
    copy_tensors(checkpoint.model, dict(model.named_parameters()), checkpoint.path / MODEL)
    return model.to(device)


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: Path) -> None:
    """Fill `target` from `source`, which must have the same names, shapes and types.

    Raises:
        UserError: it has not.
    """
    _check_names(source, target, where)
    for name, tensor in target.items():
        new = source[name]
        if new.shape != tensor.shape or new.dtype != tensor.dtype:
            raise UserError(
                f"{where}: {name} is {new.dtype} {tuple(new.shape)}, "
                f"and the model has {tensor.dtype} {tuple(tensor.shape)}"
            )
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _check_names(given: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            raise UserError(f"{where}: {name} is {'missing' if name not in given else 'not part of this model'}")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by every name that they have: tied ones by several."""
    return dict(model.named_parameters(remove_duplicate=False))


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file, shared tensors once. One key of metadata: with several, their order in the file is random."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    plain = {name: tensors[name].detach().cpu().contiguous() for name in first.values()}
    ties = {name: other for name, other in names.items() if name != other}  # `lm_head.weight` → `token_embedding_…`
    note = json.dumps({"format": FORMAT, "ties": ties}, sort_keys=True)
    return safetensors.torch.save(plain, metadata={"microgpt": note})


def _read_tensors(where: Path, noted: Any, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, if they have the names, shapes and types that are expected, and are finite.

    Args:
        where: the file.
        noted: what the manifest says of it.
        expected: tensors without numbers, on the meta device: a file that asks for more memory than these is not read.
    """
    header_bytes = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(expected)
    size = sum(tensor.nbytes for tensor in expected.values())
    data = _verified(where, noted, header_bytes + 2 * size)  # twice: room for a wrong type, to be named
    length = int.from_bytes(data[:8], "little")
    header = storage.parse_json(data[8 : 8 + min(length, header_bytes)], str(where))
    if not isinstance(header, dict):
        raise UserError(f"{where}: not a valid safetensors file")
    note = header.pop("__metadata__", {})
    if not isinstance(note, dict) or not all(isinstance(value, str) for value in note.values()):
        raise UserError(f"{where}: not a valid safetensors file: its metadata must be text")
    _check_names(header, expected, where)
    for name, tensor in expected.items():
        shown = header[name] if isinstance(header[name], dict) else {}
        if shown.get("dtype") != "F32" or shown.get("shape") != list(tensor.shape):
            raise UserError(f"{where}: {name} must be F32 of shape {list(tensor.shape)}, as in the model")
    if not _tiled({name: header[name].get("data_offsets") for name in expected}, expected, len(data) - 8 - length):
        raise UserError(f"{where}: not a valid safetensors file: its tensors must fill it one after another")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{where}: not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{where}: {name} holds numbers that are not finite; nothing can go on from them")
    return tensors


def _tiled(offsets: Mapping[str, Any], expected: Mapping[str, Tensor], size_bytes: int) -> bool:
    """Whether tensors of these offsets lie one after another and fill the file, as the format demands."""
    spans = [
        (*span, name) for name, span in offsets.items() if isinstance(span, list) and [*map(type, span)] == [int] * 2
    ]
    end = 0
    for start, stop, name in sorted(spans):
        if start != end or stop - start != expected[name].nbytes:
            return False
        end = stop
    return len(spans) == len(expected) and end == size_bytes
