"""The node `data`: where text comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class DataConfig(Node):
    """Where text comes from, and how it is split."""

    NODE: ClassVar[str] = "data."
    GROUPS: ClassVar[tuple[str, ...]] = ("data",)

    source: str = key("kind of source", choices=("pydocs", "download", "path", "run"), default="pydocs")
    path: str | None = key("your own text: a file, a folder of .txt and .md, or a glob", default=None)
    val_fraction: float = key("fraction of the text, from its end, used for validation", above=0, below=1, default=0.1)
    folder: str = key("folder that is searched for a downloaded text first", default="data")
    cache_dir: str = key("folder for downloads and encoded datasets", default="~/.cache/microgpt")
    url: str | None = key("URL of a download", default=None)
    file_name: str | None = key("name of the downloaded file", default=None)
    sha256: str | None = key("checksum that the file must have", default=None)
    size_bytes: int | None = key("size that the file must have, bytes", at_least=1, default=None)

    def check(self) -> None:
        # A run that came from elsewhere brings these along: they must not reach other files than the cache's own.
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise UserError(f"data.url={self.url}: must begin with https:// or http://")
        if self.file_name is not None and (re.search(r"[/\\:]", self.file_name) or self.file_name.startswith(".")):
            raise UserError(f"data.file_name={self.file_name}: must be a name alone, without a folder")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UserError(f"data.sha256={self.sha256}: must be 64 hexadecimal digits")
