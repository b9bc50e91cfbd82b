"""GPU kernels that add in a fixed order, so that the same training gives the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inheritune import UserError
from inheritune.config import Training


@contextmanager
def repeatable(training: Training) -> Iterator[None]:
    """Compute with torch's deterministic kernels, where `deterministic` is set and there is a GPU.

    On a CPU the order is fixed anyway. See `torch.use_deterministic_algorithms`.

    Raises:
        UserError: the model needs a kernel that torch has in no such form.
    """
    if not training.deterministic or not torch.cuda.is_available():
        yield
        return
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is used first
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # for finding bugs, and slow
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        what = str(error).partition(" does not have a deterministic implementation")[0]
        raise UserError(
            f"`training.deterministic` is set, but {what}, which this model needs, has no deterministic kernel: "
            "leave the setting out"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
