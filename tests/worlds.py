"""Worlds of several processes for tests: forked, so that torch is imported once, and joined as torchrun joins them.

A job is

    {"recipe": {...}, "kind": "run" | "train", "directory": ..., "processes": 2,
     "changes": {"1": {"training": ...}}, "kill": {"rank": 1, "saves": 2}, "stop": {"rank": 0, "step": 5},
     "full": {"rank": 1, "windows": 2}, "file_tokens": 128, "constants": {"inheritune.training.parallel.GROUP": 1},
     "environment": {...}}

`changes` are of single processes; `kill` ends one of them in the middle of its so-and-so-many-th checkpoint, and
`stop` sends one of them SIGTERM while it works on a step (0-based); `full` lets one of them run out of memory with
more windows; `file_tokens` are those that a file of a teacher's answers is of; `constants` have these values.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from forks import forked


def run_jobs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs one after the other: the exit codes of their processes, their standard errors, and seconds."""
    return forked(_run, jobs)


def _run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_job(job) for job in jobs]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _job(job: dict[str, Any]) -> dict[str, Any]:
    processes, port = job.get("processes", 1), job.get("port") or free_port()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for rank in job.get("ranks", range(processes)):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **job.get("environment", {}),
            }
            child = os.fork()
            if child == 0:
                _child(job, rank, environment if processes > 1 else {}, Path(folder) / f"{rank}.err")
            children[rank] = child
        codes = {}
        for rank, child in children.items():
            status = os.waitpid(child, 0)[1]
            codes[rank] = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        errors = {rank: (Path(folder) / f"{rank}.err").read_text() for rank in children}
    return {"codes": codes, "errors": errors, "seconds": time.monotonic() - began}


def _child(job: dict[str, Any], rank: int, environment: dict[str, str], errors: Path) -> None:
    """One process, through the command line's own door, so that it says and returns what users see."""
    import yaml

    from inheritune.cli import main

    os.environ.update(environment)
    file = os.open(errors, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    values = job["recipe"] | job.get("changes", {}).get(str(rank), {})
    recipe = errors.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(values))
    if job.get("kill", {}).get("rank") == rank:
        _die_while_saving(job["kill"]["saves"])
    if job.get("stop", {}).get("rank") == rank:
        _stop_in_step(job["stop"]["step"])
    if job.get("full", {}).get("rank") == rank:
        _run_out_of_memory(job["full"]["windows"])
    if "file_tokens" in job:
        from inheritune.data import answers

        answers.FILE_TOKENS = job["file_tokens"]
    for name, value in job.get("constants", {}).items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)
    sys.argv = ["inheritune", job.get("kind", "train"), str(recipe), "-o", job["directory"]]
    code = 1
    try:
        main.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    sys.stderr.flush()
    os._exit(code)


def _die_while_saving(after: int) -> None:
    """Let this process kill itself in the middle of its `after`-th checkpoint."""
    from inheritune.training import checkpoint

    saves = 0
    for name in ("save_file", "_save_shares"):
        original = getattr(checkpoint, name)

        def save(*arguments: Any, original: Any = original) -> None:
            nonlocal saves
            saves += 1
            if saves == after:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments)

        setattr(checkpoint, name, save)


def _stop_in_step(step: int) -> None:
    from inheritune.training.step import Stepper

    original = Stepper.__call__

    def call(self: Stepper, number: int, *rest: Any, **options: Any) -> Any:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *rest, **options)

    Stepper.__call__ = call  # type: ignore[method-assign]


def _run_out_of_memory(windows: int) -> None:
    import torch

    from inheritune.training.loss import NextTokenLoss

    original = NextTokenLoss.forward

    def forward(self: NextTokenLoss, inputs_bt: torch.Tensor, targets_bt: torch.Tensor) -> torch.Tensor:
        if len(inputs_bt) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, inputs_bt, targets_bt)

    NextTokenLoss.forward = forward  # type: ignore[method-assign]
