"""Models in GGUF, llama.cpp's format: which file is meant. transformers reads it whole and dequantizes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from inheritune import UserError
from inheritune.config import Pretrained

SUFFIX = ".gguf"


def located(source: Pretrained) -> tuple[str, str | None]:
    """Where a model is, a folder or an id on the hub, and the name of its file there if that is a GGUF.

    A GGUF is named by its path, by its folder where there is nothing else to read, or as OWNER/NAME/FILE.gguf.

    Raises:
        UserError: a folder with several.
    """
    name, path = str(source.name), Path(source.name)
    if path.suffix == SUFFIX:
        if path.is_file():
            return str(path.parent), path.name
        on_hub = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", name)
        if on_hub and not path.parent.exists():
            return on_hub[1], on_hub[2]
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if len(found) > 1:
            raise UserError(f"{path} has {len(found)} GGUF files: name one, such as {found[0]}")
        if found:
            return name, found[0].name
    return name, None


def arguments(source: Pretrained) -> dict[str, Any]:
    """How `from_pretrained` of transformers is told which model is meant."""
    place, file = located(source)
    given = {
        "pretrained_model_name_or_path": place,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }
    return given if file is None else {**given, "gguf_file": file}
