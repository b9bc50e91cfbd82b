"""Freed memory of the CPU that stays with the process, and what the user has set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from inheritune.runtime.allocator import keep_freed_memory
if "kept" in sys.argv:
    keep_freed_memory()
import torch
def step():
    for size in (40, 8, 90):
        torch.ones(size * 2**18)  # float32: that many MiB
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(*arguments: str, **variables: str) -> int:
    """Pages that the kernel had to clear in five steps after the first five; without huge ones, unless told."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = {**own, "THP_MEM_ALLOC_ENABLE": "0", **variables}
    command = [sys.executable, "-c", STEPS, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    given_back, kept = pages(), pages("kept")
    assert given_back > 5 * 100 * 2**20 // 4096  # most of 138 MiB, in every step
    assert kept < given_back / 20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_the_user_has_set_stays() -> None:
    assert pages("kept", MALLOC_MMAP_THRESHOLD_="1048576") > 5 * 100 * 2**20 // 4096


@pytest.mark.parametrize("given", [None, "0"])
def test_huge_pages_are_asked_for_unless_the_user_has_said(given: str | None) -> None:
    say = "import os; from inheritune.runtime.allocator import keep_freed_memory as keep; keep()"
    variables = {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    environment = {
        name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"
    } | variables
    command = [sys.executable, "-c", f"{say}; print(os.environ.get('THP_MEM_ALLOC_ENABLE'))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (given or ("1" if sys.platform == "linux" else "None"))
