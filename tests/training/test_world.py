"""Which errors mean that another process is lost, and which only look like it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import worlds
from inheritune import UserError
from inheritune.config import Training
from inheritune.runtime.out_of_memory import needing_memory, ran_out_of_memory
from inheritune.runtime.world import PeerLostError, is_lost_peer, joined

GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp"
NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1691, "
CUDA_FULL = (
    f"{NCCL}unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
SYSTEM = (
    f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: "
    "System call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\n"
)
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 1 s"
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}/pair.cc:553] Connection closed by peer [127.0.0.1]:34218. This is typically"),
        RuntimeError(
            f"{GLOO}/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"
        ),
        RuntimeError(f"{GLOO}/pair.cc:799] writev [10.0.0.1]:2345: Broken pipe"),
        RuntimeError(f"Gloo connectFullMesh failed with {GLOO}/pair.cc:144] no error"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
        dist.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//1"),
        dist.DistBackendError(
            f"{NCCL}remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call "
            "failed possibly due to a network error or a remote process exiting prematurely.\nLast error:\n"
        ),
        dist.DistBackendError(
            f"{SYSTEM}socketStartConnect: Connect to 10.0.0.1<40123> failed : Connection refused"
        ),
        dist.DistBackendError(
            f"{SYSTEM}Net : Call to recv from 10.0.0.1<40123> failed : Connection reset by peer"
        ),
        dist.DistBackendError(
            f"NCCL communicator was aborted on rank 1. Original reason for failure was: {WATCHDOG}"
        ),
        dist.DistBackendError(WATCHDOG),
        dist.DistBackendError(f"[PG ID 0 PG GUID 0(default_pg) Rank 1] {WATCHDOG}"),
        PeerLostError("process 0 of 2 lost another process"),
    ],
)
def test_what_tells_of_a_lost_process(error: Exception) -> None:
    assert is_lost_peer(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. nccl gloo Connection reset by peer"
        ),
        dist.DistBackendError(CUDA_FULL),
        dist.DistBackendError(
            f"{NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5"
        ),
        dist.DistBackendError(
            f"{SYSTEM}Error while creating shared memory segment /dev/shm/nccl-peer (size 9637888)"
        ),
        RuntimeError("Error(s) in loading state_dict for Gloo: size mismatch"),
        RuntimeError("unable to open file </data/gloo/model.safetensors> in read-only mode: No such file"),
        RuntimeError("[/home/nccl/shards.py:3] Connection closed by peer [127.0.0.1]:1"),
        RuntimeError("broken pipe in the user's own code"),
        RuntimeError(f"process 0 failed: RuntimeError: {GLOO}/pair.cc:553] Connection closed by peer"),
        ConnectionResetError(104, "Connection reset by peer"),
        FileNotFoundError(2, "No such file or directory", "/runs/nccl/recipe.yaml"),
        UserError("there is no folder /data/gloo"),
        ValueError(f"{GLOO}/pair.cc:553] Connection closed by peer"),
    ],
)
def test_what_only_looks_like_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_lost_peer(error)
    # And so it passes as it is.
    monkeypatch.setattr("inheritune.runtime.world._join", lambda world, training: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(type(error)) as caught, joined(Training()):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        dist.DistBackendError(CUDA_FULL),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out(error: Exception) -> None:
    assert ran_out_of_memory(error)
    with pytest.raises(UserError, match=r"^the model ran out of memory: use a smaller one$"):  # noqa: SIM117
        with needing_memory("the model", "use a smaller one"):
            raise error


def test_memory_of_this_machine_that_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert ran_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("a GPU out of memory is sad"), UserError("CUDA error: out of memory")]
)
def test_what_only_speaks_of_memory(error: Exception) -> None:
    assert not ran_out_of_memory(error)
    with pytest.raises(type(error)) as caught, needing_memory("the model", "use a smaller one"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "place", [{}, {"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "x", "MASTER_PORT": "here"}]
)
def test_a_meeting_place_that_is_none(place: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **place}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="which is not host:port: start them with torchrun"),
        joined(Training()),
    ):
        pass


FIRST_FAILS = """
import os
from inheritune import UserError
from inheritune.config import Training
from inheritune.runtime.world import joined
from inheritune.training.step import NonFiniteError
from inheritune.training.validation import NonFiniteLossesError

first = os.fork() != 0
os.environ |= {"RANK": "0" if first else "1", "WORLD_SIZE": "2"}

def fail(error):
    raise error

with joined(Training(device="cpu")) as world:
    errors = NonFiniteLossesError("a loss"), UserError("a file"), OSError(2, "none", "x"), NonFiniteError("it", 3)
    for error in errors:
        try:
            world.on_first(fail, error)
        except Exception as raised:
            assert str(raised) == str(error)
            least = UserError if type(error) is NonFiniteError and not first else type(error)
            assert type(raised) is least, raised
if first:
    assert os.wait()[1] == 0
    print("caught in both")
"""


def test_what_the_first_process_raises_has_its_type_in_all() -> None:
    """Where it can be made of its message, so that all catch it alike."""
    assert said_by_two(FIRST_FAILS) == "caught in both\n"


TWICE = """
import os
from inheritune.config import Training
from inheritune.runtime.world import joined

first = os.fork() != 0
os.environ |= {"RANK": "0" if first else "1", "WORLD_SIZE": "2"}
for turn in range(2):
    with joined(Training(device="cpu")) as world:
        assert world.gather((turn, world.rank)) == [(turn, 0), (turn, 1)]
if first:
    assert os.wait()[1] == 0
    print("met twice")
"""


def test_a_program_may_join_several_times() -> None:
    """As a script that calls several functions of the package does."""
    assert said_by_two(TWICE) == "met twice\n"


def said_by_two(program: str) -> str:
    """What a program prints that forks to be two processes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(worlds.free_port())}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, **place}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
