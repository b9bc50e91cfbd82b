"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests share `tiny_models`

from slow_tests import SAMPLED, SLOW

# Tiny models are fastest on one thread, and tests run in as many processes as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# The same examples every time, and no deadline: a loaded machine is not a failure.
settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=False, database=None)
settings.load_profile("reproducible")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as `slow` what `slow_tests` lists, and give it more time than the others."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        path, _, test = item.nodeid.split("[", 1)[0].partition("::")
        cases.setdefault(path, []).append(item)
        cases.setdefault(f"{path}::{test}", []).append(item)
    slow = [item for name in SLOW for item in cases.get(name, [])]
    slow += [item for name, n in SAMPLED.items() for k, item in enumerate(cases.get(name, [])) if k % n]
    for item in slow:
        item.add_marker("slow")
        item.add_marker(pytest.mark.timeout(900))
    if not any("::" in argument for argument in config.args):
        here = {path for name in (*SLOW, *SAMPLED) if (path := name.split("::")[0]) in cases}
        gone = [
            n for n in (*SLOW, *SAMPLED) if n not in cases and (n.split("::")[0] in here or not _exists(n))
        ]
        if gone:
            raise pytest.UsageError(f"tests/slow_tests.py lists what is no test: {', '.join(gone)}")


def _exists(name: str) -> bool:
    return (Path(__file__).parents[1] / name.split("::", maxsplit=1)[0]).exists()
