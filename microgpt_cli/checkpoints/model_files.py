"""A trained model from its files: what sampling, evaluation and inspection read, and no more.

Of a checkpoint's folder (see checkpoint.py) these are `model.safetensors`, `config.json`, `tokenizer.json` and, where
present, `meta.json` and `MANIFEST.json`. The optimizer's state is not read and may be absent. Without a manifest names,
shapes and numbers are still checked, but damage that keeps them valid goes unnoticed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from microgpt_cli.checkpoints.meta import FORMAT
from microgpt_cli.checkpoints.meta import check as check_meta
from microgpt_cli.checkpoints.tensor_file import damaged, open_tensors
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import from_json
from microgpt_cli.data import tokenizers
from microgpt_cli.data.tokenizers import Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.model.accounting import empty_model, meta_model
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, storage

ROTARY_BYTES = 128 << 20  # largest tables of rotary positions: no tensor of the file shows what these take


@dataclass(frozen=True)
class Description:
    """What a checkpoint's folder says beside its tensors."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    manifest: dict[str, Any] | None  # None: nothing to verify against
    meta: dict[str, Any] | None  # None: a model without its run

    @property
    def step(self) -> int | None:
        return None if self.meta is None else int(self.meta["step"])

    @property
    def step_text(self) -> str:
        return "unknown" if self.step is None else f"{self.step:,}"

    @property
    def origin(self) -> str:
        """The folder, the step, and whether the bytes were verified, for a person."""
        note = "" if self.manifest else f" (not verified: no {layout.MANIFEST} to compare its files with)"
        return f"{self.path}, step {self.step_text}{note}"

    @cached_property
    def meta_model(self) -> GPT:
        """The model's shapes.

        Raises:
            UserError: they ask for tables that no file backs.
        """
        size = self.config.model
        tables = 4 * size.n_layer * size.block_size * (size.n_embd // size.n_head)
        if size.position == "rotary" and tables > ROTARY_BYTES:
            raise UserError(
                f"{self.path / layout.CONFIG}: model.block_size={size.block_size} is too large for a checkpoint"
            )
        return meta_model(size, self.tokenizer.vocab_size)

    def noted(self, name: str) -> Any:
        """What the manifest says of a file; None without one."""
        return self.manifest and self.manifest[name]


@dataclass(frozen=True)
class TrainedModel(Description):
    """A model with its weights, its tokenizer, and where they come from; unpacks into model and tokenizer."""

    model: GPT

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))


def describe(path: Path) -> Description:
    """Read the configuration and the tokenizer of a checkpoint's folder, verified where it has a manifest.

    Raises:
        UserError: a file is missing, changed, or not what it should be.
    """
    manifest = _manifest(path) if (path / layout.MANIFEST).exists() else None
    needed = [layout.CONFIG, layout.TOKENIZER, *([layout.META] if (path / layout.META).exists() else [])]
    parsed: dict[str, Any] = {}
    for name in needed:
        data = storage.read_bytes(path / name)
        if manifest is not None and manifest[name] != {"bytes": len(data), "sha256": storage.sha256(data)}:
            raise damaged(path / name)
        parsed[name] = storage.parse_json(data, str(path / name))
    meta = check_meta(parsed[layout.META], str(path / layout.META)) if layout.META in parsed else None
    if meta is not None and layout.STEP_NAME.fullmatch(path.name) and path.name != layout.step_name(meta["step"]):
        raise UserError(f"{path / layout.META}: of step {meta['step']:,}, which is not the folder's")
    config = from_json(TrainConfig, parsed[layout.CONFIG], str(path / layout.CONFIG))
    tokenizer = tokenizers.from_json(parsed[layout.TOKENIZER], str(path / layout.TOKENIZER))
    return Description(path, config, tokenizer, manifest, meta)


def load_model(path: Path, device: torch.device | None = None) -> TrainedModel:
    """Read the model of a checkpoint's folder, every byte verified where it has a manifest.

    The numbers go from the file into the model's parameters, which are neither drawn first nor held twice.

    Args:
        path: a `step-…` folder, or one with the files of a model.
        device: where to put the model (None: the CPU).

    Raises:
        UserError: a file is missing, changed, or not what it should be.
    """
    told = describe(path)
    expected = dict(told.meta_model.named_parameters())
    with open_tensors(path / layout.MODEL, told.noted(layout.MODEL), expected) as file:
        model = empty_model(told.config.model, told.tokenizer.vocab_size)
        file.read_into(dict(model.named_parameters()))
    model = model.to(device) if device is not None else model
    return TrainedModel(path, told.config, told.tokenizer, told.manifest, told.meta, model)


def _manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint's folder notes of each file."""
    where = path / layout.MANIFEST
    written = storage.read_bytes(where)
    manifest = storage.parse_json(written, str(where))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    noted = manifest.get("files")
    if not isinstance(noted, dict) or set(noted) != set(layout.STEP_FILES):
        raise UserError(f"{where}: must name {', '.join(layout.STEP_FILES)}")
    if written != storage.json_bytes(manifest):
        raise UserError(f"{where}: damaged: not written as we write it")
    return noted
