"""The scripts under `examples/`, with torchrun: one machine, two "machines" on loopback, and SLURM's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import tiny_data
import tiny_recipes
from inheritune.run_directory import read_starts
from worlds import free_port

ROOT = Path(__file__).parents[1]
TIMEOUT = 240


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    data = tiny_data.write_shards(tmp_path / "data")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipes.values(data, parity={"margin": 100.0})))
    return path


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PROCESSES": "1", **more}


def processes(run: Path) -> int:
    """How many processes a run says that it had, once it is complete."""
    assert json.loads((run / "summary.json").read_text())["verdict"] == "parity"
    assert (run / "final/model.safetensors").exists()
    return int(read_starts(run)[-1]["processes"])


def test_one_machine(recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "examples/one-machine.sh", recipe, "-o", tmp_path / "run"],
        cwd=ROOT,
        env=environment(PROCESSES="2"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert processes(tmp_path / "run") == 2
    assert done.stdout.count("report:") == 1, "only one process speaks"


def test_two_machines(recipe: Path, tmp_path: Path) -> None:
    meet = f"127.0.0.1:{free_port()}"
    machines = [
        subprocess.Popen(
            ["bash", "examples/several-machines.sh", recipe, "-o", tmp_path / "run"],
            cwd=ROOT,
            env=environment(MACHINES="2", MEET=meet, RUN="test"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [machine.communicate(timeout=TIMEOUT)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert processes(tmp_path / "run") == 2


def test_slurm(recipe: Path, tmp_path: Path) -> None:
    """With SLURM's two commands replaced: names of machines, and a start on each of them."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/sh\nprintf '127.0.0.1\\nother\\n'\n")
    (commands / "srun").write_text(
        "#!/usr/bin/env bash\nshift\n"
        'for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & jobs="${jobs:-} $!"; done\n'
        'for job in $jobs; do wait "$job" || exit 1; done\n'
    )
    for command in commands.iterdir():
        command.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "two", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    values = environment(PORT=str(free_port()), **slurm)
    values["PATH"] = f"{commands}{os.pathsep}{values['PATH']}"
    done = subprocess.run(
        ["bash", "examples/slurm.sbatch", recipe, "-o", tmp_path / "run"],
        cwd=ROOT,
        env=values,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert processes(tmp_path / "run") == 2


def test_processes_whose_torchrun_was_killed_save_and_stop(tmp_path: Path) -> None:
    """They get no signal; and while they work, nobody else may start in their directory."""
    data = tiny_data.write_shards(tmp_path / "data")
    training = tiny_recipes.training(
        steps=100_000, checkpoints={"every": 100_000}, validation={"every": 100_000}
    )
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(tiny_recipes.values(data, training=training)))
    command = ["bash", "examples/one-machine.sh", path, "-o", run]
    with (tmp_path / "said").open("w") as said:
        torchrun = subprocess.Popen(
            command, cwd=ROOT, env=environment(PROCESSES="2"), stdout=said, stderr=said
        )
    metrics, deadline = run / "reference/metrics.jsonl", time.monotonic() + TIMEOUT
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    second = [sys.executable, "-m", "inheritune", "run", path, "-o", run]
    refused = subprocess.run(second, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert refused.returncode == 2
    assert "another process is running in" in refused.stderr
    torchrun.kill()
    words = "the same command resumes from there"
    while words not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert words in (tmp_path / "said").read_text()
    assert len(list(run.glob("reference/checkpoints/step-*"))) == 1
