"""Killed at any moment and started again, every verb ends with what it makes when it is never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("verb", "kills", "first"),
    [
        ("prepare", 8, 0),
        ("run", 8, 10),  # the first operations make a directory a run
        ("train", 6, 8),
        ("study", 6, 0),
        ("evaluate", 6, 0),
    ],
)
def test_kills_change_nothing(tmp_path: Path, verb: str, kills: int, first: int) -> None:
    runner = Path(__file__).with_name("kill_runner.py")
    done = subprocess.run(
        [sys.executable, runner, verb, tmp_path, str(kills), "1", str(first)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= kills + first
    assert result["at_files"] > first
    assert set(result["disturbed"]) == {result["undisturbed"]}
