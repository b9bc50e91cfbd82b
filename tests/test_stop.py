"""Stopped by a signal, every verb says at once what it does until then and what is kept, and resumes where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import stop_runner
from forks import forked

NOTHING: dict[str, list[str]] = {
    "prepare-reading": [],
    "analyze": [],
    "inherit": [],
    "loading": [],
    "samples": [],
}
KEPT: dict[str, list[str]] = {
    "answers": ["answers-00000.safetensors"],
    "tasks": ["items/large/boolq.json", "items/large/sciq.json", "items/small/boolq.json"],
    "losses": ["items/large/validation-*.json"],
    "speed": ["items/speed-*.json"],
    "run": ["reference/validation.json"],
}
"""Files that are there after the signal, and that the second start leaves as they are."""
LEFT = {
    "prepare-training": ["unfinished/progress.json", "unfinished/tokenizer/tokenizer.json"],
    "prepare-encoding": ["unfinished/progress.json", "unfinished/train-00000.bin"],
    "attention": ["layers.json"],
}
"""Files that are there after the signal."""
INTERRUPTED = 130


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `stop_runner` says of every case."""
    cases = forked(stop_runner.stopped, tmp_path_factory.mktemp("stopped"))
    assert cases.keys() == {*NOTHING, *KEPT, *LEFT}
    return cases


def test_it_is_said_at_once_and_the_same_command_ends_well(stopped: dict[str, dict[str, Any]]) -> None:
    for name, case in stopped.items():
        assert case["code"] == INTERRUPTED, (name, case["said"])
        assert "Traceback" not in case["said"], name
        said = case["said"].strip().splitlines()
        if name == "loading":  # there is nothing to be finished
            assert said == ["interrupted; what is finished is kept, and the same command resumes"]
        else:
            assert said[-2].endswith("; a second signal ends it at once"), name
            kept = said[-2].split("; ")[-2]
            assert "same command" in kept and said[-1].endswith(f": stopped; {kept}"), name
        assert case["again"] == 0, name
        assert not [path for path in case["left"] + case["after"] if ".tmp" in path], name


def test_what_is_finished_is_kept_and_not_done_again(stopped: dict[str, dict[str, Any]]) -> None:
    for name, patterns in KEPT.items():
        kept = [path for path in stopped[name]["kept"] if any(Path(path).match(p) for p in patterns)]
        assert len(kept) == len(patterns), (name, stopped[name]["left"])
    for name, paths in LEFT.items():
        assert set(paths) <= set(stopped[name]["left"]), name


def test_what_is_not_finished_leaves_nothing(stopped: dict[str, dict[str, Any]]) -> None:
    for name in NOTHING:
        assert not stopped[name]["there"], (name, stopped[name]["left"])
