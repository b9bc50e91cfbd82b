"""Memory that ran out: how torch says so, and what a user can do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from inheritune import UserError

MESSAGES = re.compile(
    r"CUDA error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)"
    r"|\[enforce fail at alloc_cpu\.cpp:\d+\].*(can't allocate|not enough) memory"
)
"""How errors of the CUDA runtime, of cuBLAS and of the CPU's allocator begin, which have no type of their own."""

SHARED_OUT = "share the model out over several GPUs with torchrun and `parallel: fsdp`"
LESS_PER_WINDOW = f"`training.activation_checkpointing: all` or a smaller `data.window`, or {SHARED_OUT}"
"""What to set, where fewer windows in a forward pass are no remedy; and where they are, but not the only one."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, dist.DistBackendError):  # NCCL's, which has buffers of its own on the GPU
        return "out of memory" in str(error)
    return isinstance(error, RuntimeError) and MESSAGES.match(str(error)) is not None


@contextmanager
def needing_memory(what: str, advice: str) -> Iterator[None]:
    """Within the block, running out of memory is a `UserError`.

    Args:
        what: needs it, as the subject of the sentence.
        advice: what to do, as its end.

    Raises:
        UserError: there was not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise UserError(f"{what} ran out of memory: {advice}") from error
