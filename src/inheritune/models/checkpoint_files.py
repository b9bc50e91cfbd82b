"""What lies in a checkpoint's folder, looked at before anything is made of it.

Every file that a model is read from is named by the user, so whatever is wrong with one is said in a sentence that
names the file and what to do.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.gguf import located
from inheritune.models.layer_fields import lines_of

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"

POINTER = b"version https://git-lfs"
"""How the file begins that git leaves in place of a large one."""

PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
PRIVATE_FORMATS = ("original/consolidated*", "consolidated*", "params.json")
"""Weights as their makers keep them, not as transformers does."""

OURS = ("final", "model", "reference/model")
"""Where a run has its models."""

SAMPLE, SAMPLES = 64, 4096
"""Bytes of a file of weights that are looked at together, and at about how many places, to tell it from another."""


class Tensor(NamedTuple):
    """A tensor as its file describes it: the type is safetensors' name of it, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


def check_place(source: Pretrained) -> None:
    """Make sure that a model is a folder with a configuration, or may be an id on the hub.

    Raises:
        UserError: it is neither; what it seems to be is named.
    """
    place = Path(source.name)
    with reading(place):
        if place.is_file():
            raise UserError(f"{source} is a file: give the folder that it is in, {place.parent}")
        if place.is_dir():
            _check_folder(place)
            return
    try:
        validate_repo_id(str(source))
    except HFValidationError as error:
        raise UserError(f"there is no model at {source}: the folder does not exist") from error


def _check_folder(folder: Path) -> None:
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        raise UserError(adapter_sentence(folder, read_object(adapter)))
    if (folder / CONFIG).exists():
        return
    if models := [folder / name for name in OURS if (folder / name / CONFIG).is_file()]:
        raise UserError(f"{folder} is the directory of a run, not a model: give {models[0]}")
    if private := _private(folder):
        raise UserError(f"{folder} is not a model of transformers: {private}")
    raise UserError(f"{folder} is not a model: the folder has no {CONFIG}")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    with reading(path):
        check_pointer(path)
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
            raise UserError(f"{path} is damaged: it is not JSON ({lines_of(error)[0]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object")
    return value


def read_tensors(folder: Path, weights: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a folder's checkpoint, by name, from the heads of its files; each file is whole.

    Args:
        folder: of the checkpoint.
        weights: name of the file; of the index, where it is not the usual one.

    Raises:
        UserError: no safetensors, a file that is missing or damaged, or an index that does not fit the files.
    """
    with reading(folder):
        for path in (folder / str(weights), folder / INDEX):  # a configuration may name anything
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path} is a link to a file that is not there: download it again")
            if path.exists():
                return _of_index(path) if path.suffix == ".json" else _of_file(path)
        raise UserError(_no_weights(folder))


def _of_file(path: Path) -> dict[str, Tensor]:
    with reading(path):
        check_pointer(path)
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                return {name: Tensor(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        except SafetensorError as error:
            raise UserError(
                f"{path} is damaged or cut off ({lines_of(error)[0]}): download or copy it again"
            ) from error


def _of_index(path: Path) -> dict[str, Tensor]:
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(n, str) for n in places.values()):
        raise UserError(f"{path} is damaged: its `weight_map` should name the file of each tensor")
    held: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        if not shard.is_file():
            raise UserError(f"{path.parent} lacks {name}, which {path.name} names: download or copy it again")
        found = _of_file(shard)
        if twice := sorted(found.keys() & held.keys()):
            raise UserError(f"{path.parent} has {twice[0]} twice, in {held[twice[0]]} and in {name}")
        held.update(dict.fromkeys(found, name))
        tensors.update(found)
    if wrong := [tensor for tensor, name in places.items() if held.get(tensor) != name]:
        raise UserError(
            f"{path} says that {wrong[0]} is in {places[wrong[0]]}, but it is not: the files do not belong together"
        )
    return tensors


def weights_digest(source: Pretrained) -> str | None:
    """Tells the weights of a checkpoint from others: a sha256 over its files' names, sizes and bytes at many places.

    Of an id it is the commit that the hub's cache has. None where nothing is there.
    """
    place, file = located(source)
    folder = Path(place)
    if not folder.is_dir():
        found: Any = None
        with suppress(HFValidationError):  # a folder that is gone
            found = try_to_load_from_cache(place, file or CONFIG, revision=source.revision)
        return Path(found).parent.name if isinstance(found, str) else None
    digest = hashlib.sha256()
    paths = [folder / file] if file else sorted(folder.glob("*.safetensors"))
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as opened:
            for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                opened.seek(start)
                digest.update(opened.read(SAMPLE))
    return digest.hexdigest() if paths else None


def _no_weights(folder: Path) -> str:
    if pickles := [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]:
        return (
            f"{folder} has its weights in {pickles[0]} only: pickle files can run code when they are read, "
            "so only safetensors are read; convert it with transformers' `save_pretrained`"
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        return (
            f"{folder} has a configuration but no weights beside {ggufs[0].name}: give that file, {ggufs[0]}"
        )
    if private := _private(folder):
        return f"{folder} has a configuration, but {private}"
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"{folder} has neither {WEIGHTS} nor {INDEX}, which would say what {others[0]} is a part of"
    return f"{folder} has a configuration but no weights (no .safetensors file)"


def adapter_sentence(source: Pretrained | Path, adapter: Mapping[str, Any]) -> str:
    """Why an adapter is no model, and what to do about it."""
    base = adapter.get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"{source} is an adapter (PEFT){of}, not a model: merge it into its base model first, with "
        "peft's `merge_and_unload`, and save the result with `save_pretrained`"
    )


def _private(folder: Path) -> str | None:
    found = [path for pattern in PRIVATE_FORMATS for path in sorted(folder.glob(pattern))]
    if not found:
        return None
    return (
        f"it has its weights in its makers' own format ({found[0].relative_to(folder)}); convert them "
        "with the script of transformers for this model, or take the version that has model.safetensors"
    )


def check_pointer(path: Path) -> None:
    """Refuse a file that git-LFS has not fetched yet.

    Raises:
        UserError: so it is.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{path} is not the file itself but git-LFS's pointer to it: fetch it with `git lfs pull`, or "
                "download it again"
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one sentence what the system has against reading `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or lines_of(error)[0]
        raise UserError(f"cannot read {error.filename or path}: {reason}") from error


@contextmanager
def downloading(source: Pretrained) -> Iterator[None]:
    """Say in one sentence that the way to the hub failed, wherever below it did.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None and (not isinstance(link, HTTPError) or isinstance(link, HfHubHTTPError)):
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if link is None:
            raise
        raise UserError(
            f"the download of {source} broke off ({lines_of(link)[0]}): the same command resumes it"
        ) from error


@cache
def warn_once(sentence: str) -> None:
    """A model is read many times in a run; what is to be known of it is said once."""
    logger.warning("%s", sentence)
