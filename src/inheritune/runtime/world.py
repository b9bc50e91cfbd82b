"""The processes that `torchrun` starts: how they find each other, agree, and notice that one is lost.

A program that is started without torchrun is a world of one process, and everything here does nothing in it.
What a world shares are small things (figures, names, decisions), which travel between the hosts' memories; the
model's tensors are the business of `parallel`.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch import Tensor

from inheritune import UserError, __version__
from inheritune.config import Training
from inheritune.recipe_file import differences, settings_of
from inheritune.runtime.out_of_memory import ran_out_of_memory

P = ParamSpec("P")
T = TypeVar("T")


class PeerLostError(RuntimeError):
    """Another process ended or stopped answering, so that this one cannot continue."""


@dataclass(frozen=True)
class World:
    """This process among those that work together.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine; it has the GPU of that number.
        local_size: processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def on_first(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on rank 0 only, and give its result to all; what it raises, every process raises."""
        if self.size == 1:
            return function(*args, **kwargs)
        message: list[tuple[T | None, Exception | None]] = [(None, None)]
        error: Exception | None = None
        if self.first:
            try:
                message = [(function(*args, **kwargs), None)]
            except Exception as raised:
                error, message = raised, [(None, _sendable(raised))]
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        result, told = message[0]
        if error is not None:
            raise error
        if told is not None:
            raise told
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        dist.all_reduce(count)
        return bool(count)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a small float tensor over the processes, on its own device."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size


ALONE = World()


_MEETINGS = itertools.count()
"""How often this program has met the others."""
_LEFT: list[dist.ProcessGroup | None] = []
"""The last group of processes, after it was left too."""


@contextmanager
def joined(training: Training) -> Iterator[World]:
    """Find the other processes that torchrun started, and leave them at the end.

    Within another `joined` the same world is given, so that a run and its parts may each ask for it.

    Raises:
        UserError: a backend that is not there, processes that did not come, or one that came twice.
        PeerLostError: a process was lost while they worked together.
    """
    world = launched()
    if world.size == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield world
        return
    _join(world, training)
    # DDP may be the last to let go of a group, and would then wait for gloo's threads while these wait for Python's
    # lock (pytorch#56297): this reference outlives it, and gives the lock up first.
    _LEFT[:] = [dist.group.WORLD]
    try:
        yield world
    except Exception as error:
        if not is_lost_peer(error):
            dist.destroy_process_group()
            raise
        raise PeerLostError(
            f"process {world.rank} of {world.size} lost another process ({_first_line(error)}); what was saved is "
            "good: start all of them again, and they resume from the last checkpoint"
        ) from error
    dist.destroy_process_group()


def launched() -> World:
    """What the environment says that torchrun, or whatever started this process, has set.

    Raises:
        UserError: it says something that cannot be.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    said = {name: os.environ[name] for name in names if name in os.environ}
    try:
        size = int(said.get("WORLD_SIZE") or 1)
        if size == 1:
            return ALONE
        rank = int(said["RANK"])
        world = World(rank, size, int(said.get("LOCAL_RANK", rank)), int(said.get("LOCAL_WORLD_SIZE", size)))
    except (KeyError, ValueError):
        world = None
    if world is None or not 0 <= world.rank < world.size:
        told = ", ".join(f"{name}={value}" for name, value in said.items())
        raise UserError(
            f"the environment says {told}, which is not a valid rank and size: start them with torchrun, or "
            "unset these variables"
        )
    return world


def check_same(world: World, recipe: BaseModel) -> None:
    """All processes were given the same recipe and run the same versions.

    Raises:
        UserError: in every process, which one differs and in what.
    """
    mine = (recipe, {"inheritune": __version__, "torch": torch.__version__})
    everyone = world.gather(mine)
    for rank, (theirs, versions) in enumerate(everyone):
        changed = differences(everyone[0][0], theirs, settings_of)
        changed += [f"{k}: {everyone[0][1][k]} -> {v}" for k, v in versions.items() if everyone[0][1][k] != v]
        if changed:
            raise UserError(
                f"process {rank} was started with something else than process 0 ({'; '.join(changed)}): all need "
                "the same recipe and the same versions"
            )


LOST_BY_GLOO = re.compile(r"(Gloo connectFullMesh failed with )?\[\S*/gloo/transport/\S+:\d+\] ")
"""How gloo's errors of a connection begin: with the place in its source that noticed."""

LOST_BY_NCCL = re.compile(
    r"NCCL error in: [^\n]*, remote process exited or there was a network error"
    r"|NCCL error in: [^\n]*, unhandled system error.*\nLast error:\s+([\w/]+ ?: ?)?"
    r"(Connection (closed|refused|reset)|Connect to|Call to (connect|recv|send)|Got completion from peer)"
    r"|NCCL (communicator was aborted on rank|timeout in: )"
    r"|(\[[^\]\n]*\] ?)*(Watchdog caught collective operation timeout|is setting up NCCL communicator)",
    re.DOTALL | re.IGNORECASE,
)
"""How NCCL's begin, as torch words them; its others (of CUDA, of how it is used) are nobody's end."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error is what torch raises when another process ends or stops answering."""
    if isinstance(error, PeerLostError | dist.DistStoreError | dist.DistNetworkError):
        return True
    if ran_out_of_memory(error):
        return False
    if isinstance(error, dist.DistBackendError):
        return LOST_BY_NCCL.match(str(error)) is not None
    return type(error) is RuntimeError and LOST_BY_GLOO.match(str(error)) is not None


def _join(world: World, training: Training) -> None:
    settings = training.parallel
    backend = _backend(training)
    on_gpus = torch.cuda.is_available() and training.device != "cpu"
    if on_gpus:
        check_gpus(world)
    join, timeout = timedelta(seconds=settings.join_seconds), timedelta(seconds=settings.timeout_seconds)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if not os.environ.get("MASTER_ADDR") or not os.environ.get("MASTER_PORT", "").isdigit():
        raise UserError(
            f"the environment says that the {world.size} processes meet at {where}, which is not host:port: start "
            "them with torchrun, or set MASTER_ADDR and MASTER_PORT"
        )
    try:
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=join))
        store.set_timeout(join)
        # A program may join several times, and each time is a meeting of its own.
        store = dist.PrefixStore(f"inheritune/{next(_MEETINGS)}", store)
        # A meeting place that an earlier start left behind remembers who was there.
        if store.add(f"{world.rank}", 1) > 1:
            raise UserError(
                f"process {world.rank} of {world.size} is at {where} already: an earlier start is still running, or "
                "left its meeting place behind; end it, or give torchrun another --rdzv-id or port"
            )
        store.set(f"here/{world.rank}", socket.gethostname())
        store.wait([f"here/{rank}" for rank in range(world.size)], join)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
        dist.barrier()
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise UserError(
            f"process {world.rank} waited {settings.join_seconds:g} s at {where} for all {world.size} processes, and "
            f"they did not come ({_first_line(error)}): is one missing, or is that place an earlier start's?"
        ) from error
    if on_gpus:
        torch.cuda.set_device(world.local_rank)


def _backend(training: Training) -> str:
    """What `init_process_group` is given: gloo between hosts, and the wanted backend between devices."""
    wanted: str = training.parallel.backend
    cuda = training.device != "cpu" and torch.cuda.is_available()
    name = ("nccl" if cuda else "gloo") if wanted == "auto" else wanted
    if not dist.is_available() or not dist.is_backend_available(name):
        raise UserError(f"this torch has no backend {name!r} for parallel training: use `backend: auto`")
    if name == "nccl" and not cuda:
        raise UserError("the backend nccl is for GPUs, and the training is on CPUs: use `backend: auto`")
    return f"cpu:gloo,cuda:{name}" if cuda else name


def check_gpus(world: World) -> None:
    """Every process of this machine has a GPU of its own.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if world.size > 1 and world.local_size > torch.cuda.device_count():
        raise UserError(
            f"{world.local_size} processes were started on a machine with {torch.cuda.device_count()} GPUs: start "
            "one for each GPU, or set `device: cpu`"
        )


def _sendable(error: Exception) -> Exception:
    """An error as it can travel: some of torch's and of pydantic's cannot be unpickled."""
    if type(error) in (UserError, OSError):
        return error
    if isinstance(error, UserError):
        try:
            return type(error)(str(error))  # for those who catch it by its type
        except TypeError:  # it is made of more than a message
            return UserError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename) if error.errno else OSError(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(f"process 0: {error}")
    return RuntimeError(f"process 0 failed: {type(error).__name__}: {error}")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:160] if lines else type(error).__name__
