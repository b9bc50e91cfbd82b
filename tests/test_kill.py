"""Killed at any moment and started again, every verb ends with what it makes when it is never killed."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

import tiny_recipes
from forks import forked
from inheritune.run_directory import RunDirectory
from kill_runner import killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("verb", "kills", "first"),
    [
        ("prepare", 8, 0),
        ("run", 6, 6),  # the first operations make a directory a run
        ("probes", 4, 0),
        ("frugal", 4, 0),
        ("answers", 6, 6),
        ("yardsticks", 4, 0),
        ("train", 5, 4),
        ("study", 5, 0),
        ("evaluate", 5, 0),
    ],
)
def test_kills_change_nothing(tmp_path: Path, verb: str, kills: int, first: int) -> None:
    result = forked(killed, verb, tmp_path, kills, first)
    assert result["kills"] >= kills + first
    assert result["at_files"] > first
    assert set(result["disturbed"]) == {result["undisturbed"]}


def test_what_killed_writers_left_in_a_run_is_cleared(tmp_path: Path) -> None:
    left = ["reference/validation.json.0123abcd.tmp", "round-1-2-layers/model.0123abcd.tmp/model.safetensors"]
    for start in range(2):
        with closing(RunDirectory(tmp_path / "run")) as run:
            run.open(tiny_recipes.recipe(tmp_path / "data"), {}, ())
            if start == 0:
                for name in left:
                    (run.path / name).parent.mkdir(parents=True)
                    (run.path / name).write_bytes(b"half")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert (tmp_path / "run/round-1-2-layers").is_dir()
