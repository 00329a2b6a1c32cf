"""Load a trained model for sampling, evaluation and inspection.

Reads `model.safetensors`, `config.json`, `tokenizer.json` and, where present, `meta.json` and `MANIFEST.json` from the
folder of a checkpoint (see checkpoint.py). The optimizer's state is not read and may be absent. Without a manifest,
names, shapes and finiteness are still checked, but other damage is not detected.
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

MAX_ROTARY_BYTES = 128 << 20  # limit for the rotary tables, whose size the file does not bound


@dataclass(frozen=True)
class Description:
    """The contents of a checkpoint's folder except its tensors."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    manifest: dict[str, Any] | None  # None: not verified
    meta: dict[str, Any] | None  # None: a bare model

    @property
    def step(self) -> int | None:
        return None if self.meta is None else int(self.meta["step"])

    @property
    def step_text(self) -> str:
        return "unknown" if self.step is None else f"{self.step:,}"

    @property
    def origin(self) -> str:
        """The folder, the step, and whether the files were verified, for messages."""
        note = "" if self.manifest else f" (not verified: no {layout.MANIFEST})"
        return f"{self.path}, step {self.step_text}{note}"

    @cached_property
    def meta_model(self) -> GPT:
        """The model on the meta device.

        Raises:
            UserError: its rotary tables are too large.
        """
        size = self.config.model
        tables = 4 * size.n_layer * size.block_size * (size.n_embd // size.n_head)
        if size.position == "rotary" and tables > MAX_ROTARY_BYTES:
            raise UserError(
                f"{self.path / layout.CONFIG}: model.block_size={size.block_size} is too large for a checkpoint"
            )
        return meta_model(size, self.tokenizer.vocab_size)

    def manifest_entry(self, name: str) -> Any:
        """Size and checksum of a file, or None without a manifest."""
        return self.manifest and self.manifest[name]


@dataclass(frozen=True)
class TrainedModel(Description):
    """A model with its weights, its tokenizer, and where they come from; unpacks into model and tokenizer."""

    model: GPT

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))


def describe(path: Path) -> Description:
    """Read config and tokenizer of a checkpoint's folder, verified if it has a manifest.

    Raises:
        UserError: a file is missing, changed or invalid.
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
        raise UserError(f"{path / layout.META}: step {meta['step']:,} does not match the folder")
    config = from_json(TrainConfig, parsed[layout.CONFIG], str(path / layout.CONFIG))
    tokenizer = tokenizers.from_json(parsed[layout.TOKENIZER], str(path / layout.TOKENIZER))
    return Description(path, config, tokenizer, manifest, meta)


def load_model(path: Path, device: torch.device | None = None) -> TrainedModel:
    """Load the model of a checkpoint's folder, verified if it has a manifest.

    The file is read directly into the model's uninitialised parameters.

    Args:
        path: a `step-…` folder, or one with the files of a model.
        device: of the model (None: the CPU).

    Raises:
        UserError: a file is missing, changed or invalid.
    """
    described = describe(path)
    expected = dict(described.meta_model.named_parameters())
    with open_tensors(path / layout.MODEL, described.manifest_entry(layout.MODEL), expected) as file:
        model = empty_model(described.config.model, described.tokenizer.vocab_size)
        file.read_into(dict(model.named_parameters()))
    model = model.to(device) if device is not None else model
    return TrainedModel(path, described.config, described.tokenizer, described.manifest, described.meta, model)


def _manifest(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint's manifest by file name."""
    where = path / layout.MANIFEST
    data = storage.read_bytes(where)
    manifest = storage.parse_json(data, str(where))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    entries = manifest.get("files")
    if not isinstance(entries, dict) or set(entries) != set(layout.STEP_FILES):
        raise UserError(f"{where}: must name {', '.join(layout.STEP_FILES)}")
    if data != storage.json_bytes(manifest):
        raise UserError(f"{where}: corrupt manifest: not in canonical form")
    return entries
