"""Models that come with code of their own, which runs where the user says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tiny_data import write_shards
from tiny_models import tiny_model

CONFIGURATION = """from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELING = """from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "own"
    tiny_model("llama", max_position_embeddings=256).save_pretrained(folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    own = {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    return folder


def inheritune(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which knows nothing of the code yet."""
    command = [sys.executable, "-m", "inheritune", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_it_is_cut_evaluated_and_planned_where_it_is_trusted(own: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    recipe = {
        "name": "own",
        "reference": {"pretrained": str(own), "trust_remote_code": True},
        "data": {"path": str(shards), "window": 32, "ignore_tokenizer": True},
        "training": {"steps": 2, "tokens_per_step": 64, "tracking": {"tensorboard": False}},
        "distillation": {},
        "parity": {"stop_at_parity": False},
        "grow": {"max_rounds": 1},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    trusted = "--trust-remote-code"
    for arguments in (
        ("inherit", own, "--layers", "2", trusted, "-o", "cut"),
        (
            "evaluate",
            own,
            "cut",
            trusted,
            "--val",
            shards,
            "--ignore-tokenizer",
            "--window",
            "32",
            "-o",
            "figures",
        ),
        ("evaluate", own, trusted, "--speed", "--batches", "1", "-o", "speed"),
        ("plan", "own.yaml"),
        ("run", "own.yaml", "-o", "run"),
    ):
        done = inheritune(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr[-2000:])
    assert (tmp_path / "cut/modeling_own.py").is_file()
    assert "--trust-remote-code" in (tmp_path / "cut/README.md").read_text()


def test_it_does_not_run_unless_it_is(own: Path, tmp_path: Path) -> None:
    done = inheritune("inherit", own, "--layers", "2", "-o", "cut", cwd=tmp_path)
    assert done.returncode == 2 and "look at that code" in done.stderr
    assert not (tmp_path / "cut").exists()
