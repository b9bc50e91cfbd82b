"""Checkpoints: everything that training needs to go on as if it had never stopped.

A checkpoint is a folder `step-0000500` with a Hugging Face checkpoint in it (so it can be used as a model at
once), the optimizer's state and the random state (`optimizer.safetensors`), and `training.json` with the step
and the checksums of all other files. It appears under its name only when it is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import atomic
from inheritune.config import Training
from inheritune.recipe_file import to_yaml

logger = logging.getLogger(__name__)

RECORD = "training.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass
class TrainState:
    """How far a training has come; everything else follows from it and the recipe.

    Args:
        step: optimizer steps done. The data position follows from it (`data.order`).
        seconds: spent training so far, over all starts of the program.
        recipe: fingerprint of the settings; another recipe's checkpoint is not taken up.
    """

    step: int = 0
    seconds: float = 0.0
    recipe: str = ""


class DamagedCheckpointError(Exception):
    """A checkpoint whose files do not have the checksums that were written with them."""


def fingerprint(training: Training) -> str:
    """Short hash of the settings that a checkpoint belongs to."""
    return hashlib.sha256(to_yaml(training).encode()).hexdigest()[:16]


def save(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: TrainState, keep: int
) -> Path:
    """Write a checkpoint into `folder` and remove all but the newest `keep`."""
    path = folder / f"step-{state.step:07d}"
    with atomic.directory(path) as temporary:
        model.save_pretrained(temporary)
        save_file(_optimizer_tensors(model, optimizer), temporary / OPTIMIZER)
        files = sorted(entry.name for entry in temporary.iterdir())
        record = {**asdict(state), "sha256": {name: atomic.sha256(temporary / name) for name in files}}
        atomic.write_json(temporary / RECORD, {**record, "checksum": _checksum(record)})
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def newest(folder: Path, recipe: str) -> tuple[Path, TrainState] | None:
    """The newest checkpoint of this recipe whose checksums are right; damaged ones are passed over with a warning.

    Raises:
        ValueError: checkpoints exist, but they belong to another recipe, or every one is damaged.
    """
    atomic.remove_leftovers(folder)
    candidates = _all(folder)
    for path in reversed(candidates):
        try:
            state = _verified(path)
        except DamagedCheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
            continue
        if state.recipe != recipe:
            raise ValueError(
                f"{path} was written with other training settings; remove it, or use another directory"
            )
        return path, state
    if candidates:
        raise ValueError(
            f"every checkpoint in {folder} is damaged; remove the folder to train from the beginning"
        )
    return None


def restore_optimizer(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state and the random state back."""
    tensors = load_file(path / OPTIMIZER)
    _restore_random_state(tensors)
    for name, parameter in model.named_parameters():
        keys = [
            key for key in tensors if key.startswith("optimizer.") and key[10:].rpartition(".")[0] == name
        ]
        if keys:
            optimizer.state[parameter] = {
                key.rpartition(".")[2]: tensors[key].to(parameter.device) for key in keys
            }


def _optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value.detach().contiguous()
    return tensors


def _restore_random_state(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(atomic.TEMPORARY_SUFFIX))


def _verified(path: Path) -> TrainState:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if record.pop("checksum") != _checksum(record):
            raise DamagedCheckpointError(
                f"the checkpoint {path} is damaged: {RECORD} has changed since it was written"
            )
        checksums = record.pop("sha256")
        state = TrainState(**record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: {RECORD} cannot be read") from error
    for name, expected in checksums.items():
        file = path / name
        if not file.is_file() or atomic.sha256(file) != expected:
            raise DamagedCheckpointError(
                f"the checkpoint {path} is damaged: {name} has changed since it was written"
            )
    return state


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
