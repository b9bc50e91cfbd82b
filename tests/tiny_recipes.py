"""Recipes that run in a second or two."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from inheritune.config import Recipe, Training
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import place
from inheritune.training.step import Stepper

ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 4,
    "n_embd": 32,
    "n_head": 2,
    "activation_function": "gelu_pytorch_tanh",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "frozen_biases": True,
}


def training(**changes: Any) -> dict[str, Any]:
    """Values of a `training` of 12 steps in float32 on the CPU."""
    return {
        "steps": 12,
        "tokens_per_step": 128,
        "precision": "fp32",
        "device": "cpu",
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"warmup_steps": 2, "final_learning_rate": 1e-4},
        "checkpoints": {"every": 3},
        "log_every": 2,
        "tracking": {"tensorboard": False},
        **changes,
    }


def values(data: Path, **changes: Any) -> dict[str, Any]:
    """Values of a recipe whose reference is trained first."""
    return {
        "name": "tiny",
        "data": {"path": str(data), "window": 32},
        "reference": {"architecture": ARCHITECTURE},
        "training": training(),
        **changes,
    }


def recipe(data: Path, **changes: Any) -> Recipe:
    """A recipe whose reference is trained first."""
    return parse_recipe(values(data, **changes), Recipe)


def make_stepper(model: PreTrainedModel, optimizer: torch.optim.Optimizer, settings: Training) -> Stepper:
    """A stepper of the next-token loss, in this process alone."""
    hardware = choose_hardware(settings)
    return Stepper(place(NextTokenLoss(model), settings, hardware, window=64), optimizer, settings, hardware)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM to this process while it works on the given step of the reference."""
    original = Stepper.__call__

    def call(self: Stepper, number: int, *rest: object, **options: object) -> object:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "__call__", call)
