"""Memory of the CPU that a step has freed is there for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's `mallopt(3)`."""

KEPT = 256 * 2**20
"""Bytes of the largest block that is kept. A step's tensors of some megabytes come again and again; larger ones, if
kept too, took up to half as much memory again, as no two of them fit the same gap."""

OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, and have large tensors in huge pages; to be called before torch is used.

    By itself glibc gives every larger block back to the kernel, which clears it, page by page, each time it is asked
    for again. On two cores that was a quarter of the quickstart's time. What the user has set stays; elsewhere than
    with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(OF_THE_USER) for name in os.environ):
        return
    mallopt(MMAP_THRESHOLD, KEPT)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
