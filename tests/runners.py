"""Programs beside the tests, each of which forks before torch has threads, and prints what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def ran(program: str, *arguments: object) -> dict[str, Any]:
    """The JSON object in the last line that a program in this folder prints."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
