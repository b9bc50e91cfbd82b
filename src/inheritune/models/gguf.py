"""Models in GGUF, llama.cpp's format: transformers reads such a file as a whole, and dequantizes it."""

from __future__ import annotations

import copy
import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from inheritune import UserError
from inheritune.config import Pretrained

SUFFIX = ".gguf"
NEEDED = ("gguf", "accelerate")
"""Libraries that transformers reads such files with."""

SCALED = "rope_freqs.weight"
"""Tensor that scales rotary positions, which transformers passes over."""


def located(source: Pretrained) -> tuple[str, str | None]:
    """Where a model is, a folder or an id on the hub, and the name of its file there if that is a GGUF.

    A GGUF is named by its path, by its folder where there is nothing else to read, or as OWNER/NAME/FILE.gguf.

    Raises:
        UserError: no such file, or a folder with several.
    """
    name, path = str(source.name), Path(source.name)
    if path.suffix == SUFFIX:
        if path.is_file():
            return str(path.parent), path.name
        on_hub = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", name)
        if on_hub and not path.parent.exists():
            return on_hub[1], on_hub[2]
        if not path.is_dir():
            raise UserError(f"there is no file {name}")
    if name.strip() and path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if len(found) > 1:
            raise UserError(f"{path} has {len(found)} GGUF files: name one, such as {found[0]}")
        if found:
            return name, found[0].name
    return name, None


def given(source: Pretrained) -> dict[str, Any]:
    """How `from_pretrained` of transformers is told which model is meant."""
    place, file = located(source)
    named = {
        "pretrained_model_name_or_path": place,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }
    return named if file is None else {**named, "gguf_file": file}


def gguf_path(source: Pretrained) -> Path | None:
    """The file itself, downloaded where it is on the hub; None if the model is none of that format.

    Raises:
        UserError: a library is not installed, or there is no such file.
    """
    place, file = located(source)
    if file is None:
        return None
    if missing := [library for library in NEEDED if importlib.util.find_spec(library) is None]:
        raise UserError(
            f"{source} is a GGUF file, and to read it {missing[0]} is needed: pip install 'inheritune[gguf]'"
        )
    if Path(place).is_dir():
        return Path(place, file)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place, file, revision=source.revision))


def gguf_config(source: Pretrained, path: Path) -> Any:
    """The configuration that transformers makes of a GGUF file; its type is that of the weights, or bfloat16.

    Raises:
        UserError: the file is broken or a part of one, or its architecture or a type of its tensors is not known.
    """
    size = path.stat()
    return copy.deepcopy(_read(source, path, (size.st_mtime_ns, size.st_size)))


@lru_cache(maxsize=4)
def _read(source: Pretrained, path: Path, _: tuple[int, int]) -> Any:
    """Of a file as it is now: it takes seconds, and is asked for several times."""
    import torch
    from transformers import AutoConfig
    from transformers.integrations.gguf.reader import GgufHeader

    from inheritune.models.layer_fields import lines_of

    try:
        header = GgufHeader.from_file(str(path))
        end = header.data_start + max((one.offset + one.nbytes for one in header.tensors), default=0)
    except Exception as error:  # whatever bytes lead to
        raise UserError(
            f"{path} cannot be read: it is damaged, or no GGUF of a kind that transformers knows "
            f"({lines_of(error)[0]})"
        ) from error
    names = {one.name for one in header.tensors}
    if end > path.stat().st_size:
        raise UserError(f"{path} is cut off: download or copy it again")
    if not names or re.search(r"-\d{5}-of-\d{5}$", path.stem):
        raise UserError(f"{path} is a part of a model: merge the parts first (llama-gguf-split --merge)")
    if SCALED in names:
        raise UserError(
            f"{source} has scaled rotary positions ({SCALED}), which transformers does not read from GGUF: take the "
            "model in safetensors"
        )
    try:
        config = AutoConfig.from_pretrained(**given(source))
    except Exception as error:
        raise UserError(
            f"transformers cannot read {source}, a GGUF of the architecture {header.architecture!r}: "
            f"{lines_of(error)[0]}"
        ) from error
    config.__dict__.pop("_model_name_or_path", None)
    config.dtype = header.dtype or torch.bfloat16
    return config
