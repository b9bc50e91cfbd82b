"""Killed at any moment and started again, a run ends with the weights of one that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_data

KILLS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    data = tiny_data.write_shards(tmp_path / "data")
    runner = Path(__file__).with_name("kill_runner.py")
    done = subprocess.run(
        [sys.executable, runner, data, tmp_path, str(KILLS), "1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= KILLS
    assert result["while_saving"] >= 3
    assert set(result["disturbed"]) == {result["undisturbed"]}
