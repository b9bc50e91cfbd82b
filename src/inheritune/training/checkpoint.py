"""Checkpoints: everything that training needs to resume as if it had never stopped.

A checkpoint is a folder `step-0000500` with a Hugging Face checkpoint in it (so it can be used as a model at once),
the optimizer's state, and `training.json` with the step and the checksums of all other files. It appears under its
name only when it is complete and on the disk.

It does not depend on how the training is spread over processes. The weights are written whole. The optimizer's
state is `optimizer.safetensors`, or, where every process holds a share of it, a folder `optimizer/` of safetensors
files that `torch.distributed.checkpoint` writes and reads, each process its part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.data.shards import DataIdentity, check_same_data
from inheritune.recipe_file import changes
from inheritune.runtime import files
from inheritune.runtime.world import World
from inheritune.training.parallel import is_share, whole

logger = logging.getLogger(__name__)

RECORD = "training.json"
OPTIMIZER = "optimizer"
WRITER = "inheritune-checkpoint"
"""Name of the threads that write."""


@dataclass
class TrainState:
    """How far a training has come; everything else follows from it and the recipe.

    Args:
        step: optimizer steps done. The data position follows from it (`data.order`), and random numbers too.
        seconds: spent training so far, over all starts of the program.
        settings: those that decide the weights; a checkpoint is not resumed with others.
        data: that is trained on; None where an old checkpoint does not say.
    """

    step: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    data: DataIdentity | None = None


class DamagedCheckpointError(Exception):
    """A checkpoint whose files do not have the checksums that were written with them."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged: {why}")


class Saver:
    """Writes checkpoints beside the training: it waits only while tensors are copied to the host's memory.

    At most one checkpoint is being written. What went wrong with it is raised when the next one is saved, or at the
    end, by all processes together.

    Args:
        folder: of the checkpoints.
        keep: how many of them; older ones are removed once a new one is complete.
        world: the processes that save together.
        step: of the checkpoint that the training resumes from; 0 at its beginning.
    """

    def __init__(self, folder: Path, keep: int, world: World, step: int = 0) -> None:
        self.folder, self.keep, self.world = folder, keep, world
        self.last = _path_of(folder, step) if step else None
        """The newest good checkpoint: resumed from, or written since; after `wait`."""
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        # A channel of its own, so that saving and training do not read each other's messages.
        self.channel = dist.new_group(backend="gloo") if world.size > 1 else None

    def save(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Begin to write a checkpoint; every process calls this at the same step."""
        self.wait()
        before, path = self.last, _path_of(self.folder, state.step)
        self.last = path
        token = self.world.on_first(lambda: uuid.uuid4().hex[:8])
        weights = weights_on_host(model, self.world)
        moments = _optimizer_on_host(model, optimizer, self.world)
        record = {**asdict(state), "data": state.data and state.data.model_dump()}

        def write() -> None:
            try:
                self._write(path, token, model, weights, moments, record)
                if self.world.first:
                    self._prune(before, path)
            except BaseException as error:
                self.error = error

        # A process that has to end does not wait for the disk: what is not complete does not count.
        self.thread = threading.Thread(target=write, name=WRITER, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: it could not be written; in every process.
        """
        if self.thread is None:
            return
        self.thread.join()
        self.thread, error, self.error = None, self.error, None
        if isinstance(error, OSError) and self.world.size == 1:
            raise error
        for rank, why in enumerate(self.world.gather(error and f"{type(error).__name__}: {error}")):
            if why:
                raised = RuntimeError(f"process {rank} could not write its part of a checkpoint: {why}")
                raise files.as_disk_error(raised, self.folder) or raised from error

    def _write(
        self,
        path: Path,
        token: str,
        model: PreTrainedModel,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        record: dict[str, Any],
    ) -> None:
        spread = any(is_share(tensor) for tensor in moments.values())
        if not self.world.first:
            if spread:
                _save_shares(moments, files.temporary_name(path, token), self.channel)
            return
        with files.directory(path, token) as temporary:
            if spread:
                _save_shares(moments, temporary, self.channel)
            else:
                save_file(moments, temporary / f"{OPTIMIZER}.safetensors")
            model.save_pretrained(temporary, state_dict=weights)
            written = sorted(entry for entry in temporary.rglob("*") if entry.is_file())
            sums = {entry.relative_to(temporary).as_posix(): files.sha256(entry) for entry in written}
            full = {**record, "sha256": sums}
            files.write_json(temporary / RECORD, {**full, "checksum": _checksum(full)})

    def _prune(self, before: Path | None, path: Path) -> None:
        """Remove what is too old, and what came after the checkpoint before this one: a past that was left.

        The training went back behind those, as the newest were damaged.
        """
        found = all_in(self.folder)
        earlier = [one for one in found if before is not None and _order(one) <= _order(before)]
        kept = [*earlier, path][-self.keep :]
        for other in found:
            if other not in kept:
                shutil.rmtree(other)


def newest(folder: Path, wanted: TrainState) -> tuple[Path, TrainState] | None:
    """The newest checkpoint whose checksums are right; damaged ones are passed over with a warning.

    Args:
        folder: of the checkpoints.
        wanted: the settings and the data of the training that is to resume.

    Raises:
        UserError: checkpoints exist, but they are of other settings or other data, or every one is damaged.
    """
    for thread in threading.enumerate():  # of a training in this process that ended by an exception
        if thread.name == WRITER:
            thread.join()
    files.remove_leftovers(folder)
    candidates = all_in(folder)
    for path in reversed(candidates):
        try:
            state = _verified(path)
        except DamagedCheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
            continue
        # A setting that the checkpoint does not name did not exist yet when it was written.
        known = {key: value for key, value in wanted.settings.items() if key in state.settings}
        changed = changes({key: state.settings[key] for key in known}, known)
        if changed:
            raise UserError(
                f"{path} was written with other settings ({'; '.join(changed)}); resume with those, or use another "
                "directory"
            )
        check_same_data(state.data, wanted.data, f"the checkpoints in {folder}")
        return path, replace(state, settings=wanted.settings, data=wanted.data)
    if candidates:
        raise UserError(
            f"every checkpoint in {folder} is damaged; remove the folder to train from the beginning"
        )
    return None


def restore_optimizer(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Put the optimizer's state back, each process its part, however it was spread when it was saved."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    file = path / f"{OPTIMIZER}.safetensors"
    if file.exists() and not any(is_share(p) for p in parameters.values()):
        tensors = load_file(file)
    else:
        tensors = _load_shares(path if file.exists() else path / OPTIMIZER, parameters, world)
    for key, tensor in tensors.items():
        name, _, kind = key.removeprefix("optimizer.").rpartition(".")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = tensor.to(parameter.device, copy=True)  # aligned as a new one


def all_in(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if not path.name.endswith(files.TEMPORARY_SUFFIX)]
    return sorted(found, key=_order)


def _order(path: Path) -> tuple[int, str]:
    """That of the steps: ten million of them have a digit more."""
    return len(path.name), path.name


def _path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def weights_on_host(model: PreTrainedModel, world: World) -> dict[str, Tensor]:
    """All weights in the first process's memory; nothing in the others'."""
    weights: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}  # a tied weight stays one tensor
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in copies:
            full = whole(tensor.detach())  # put together one by one, by all processes
            copies[id(tensor)] = _copied(full) if world.first else full.new_empty(0)
        weights[name] = copies[id(tensor)]
    return weights if world.first else {}


def _optimizer_on_host(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, world: World
) -> dict[str, Tensor]:
    """The optimizer's state in this host's memory: all of it on the first process, or everybody's part."""
    state = {
        f"optimizer.{name}.{kind}": value.detach()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    if any(is_share(value) for value in state.values()):
        mesh = dist.init_device_mesh("cpu", (world.size,))
        return {name: _share_on_host(value, mesh) for name, value in state.items()}
    return {name: _copied(value) for name, value in state.items()} if world.first else {}


def _share_on_host(tensor: Tensor, mesh: dist.DeviceMesh) -> Tensor:
    """This process's share of a tensor, as a share on CPUs."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return _copied(tensor)
    local = _copied(tensor.to_local())
    return DTensor.from_local(
        local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _save_shares(shares: dict[str, Tensor], folder: Path, channel: Any) -> None:
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder / OPTIMIZER), save_distributed=True)
    dcp.save(dict(shares), storage_writer=writer, process_group=channel)


def _load_shares(folder: Path, parameters: dict[str, torch.nn.Parameter], world: World) -> dict[str, Tensor]:
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for key, entry in reader.read_metadata().state_dict_metadata.items():
        if key.startswith("optimizer.") and isinstance(entry, dcp.metadata.TensorStorageMetadata):
            parameter = parameters[key.removeprefix("optimizer.").rpartition(".")[0]]
            like = entry.size == parameter.shape
            tensors[key] = torch.zeros_like(parameter) if like else torch.zeros(entry.size)
    dcp.load(tensors, storage_reader=reader, no_dist=world.size == 1)
    return tensors


def _verified(path: Path) -> TrainState:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if record.pop("checksum") != _checksum(record):
            raise DamagedCheckpointError(path, f"{RECORD} has changed since it was written")
        checksums = record.pop("sha256")
        record.pop("recipe", None)  # a hash over all settings, in checkpoints of version 0.1
        data = record.pop("data", None)
        state = TrainState(**record, data=data and DataIdentity.model_validate(data))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(path, f"{RECORD} cannot be read") from error
    for name, expected in checksums.items():
        file = path / name
        if not file.is_file() or files.sha256(file) != expected:
            raise DamagedCheckpointError(path, f"{name} has changed since it was written")
    return state


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
