"""What `inheritune init` writes: a recipe that fits a pretrained model, its text, a budget and this machine."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune import UserError, plain_yaml
from inheritune.card import card_name
from inheritune.config import Recipe
from inheritune.data.prepare import prepare
from inheritune.data.shards import Manifest
from inheritune.learning_rate import USUAL_TOKENS, usual_rate
from inheritune.models.architecture import context_length, layer_count, parameter_count
from inheritune.models.load import load_config
from inheritune.models.size import on_meta
from inheritune.planning import Plan, Stage, known_rate, measured_rate, plan
from inheritune.quantities import count, duration, memory, parse_count
from inheritune.recipe_file import parse_recipe
from inheritune.recipe_schema import editor_line

logger = logging.getLogger(__name__)

KEPT = 2 / 3
"""Of the layers. With 20 of its 30 layers SmolLM2-135M came below its own loss in 47M tokens, with 15 it did not
(`results/real-model`)."""
TRAINING_SHARE = 0.9
"""Of a time budget; the choice of layers, validations and checkpoints take the rest."""
STEPS, LEAST_STEPS = 200, 20
"""To aim at, and below which a schedule is none."""
MOST_EPOCHS = 4
"""Up to about as many, text that is read again is worth what new text is (arXiv 2305.16264)."""


@dataclass(frozen=True)
class Budget:
    """How much one training may take: tokens, or seconds."""

    tokens: int | None = None
    seconds: float | None = None


def parse_budget(text: str) -> Budget:
    """A budget as people write it: 2h, 30min, 50M.

    Raises:
        UserError: it is none.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?(h|min)", text.strip()):
        seconds = float(found[1]) * (3600 if found[2] == "h" else 60)
        if seconds > 0:
            return Budget(seconds=seconds)
    try:
        tokens = parse_count(text)
    except UserError:
        tokens = 0
    if tokens <= 0:
        raise UserError(
            f"the budget is {text!r}, but should be hours such as 2h, minutes such as 30min, or tokens such as 50M"
        )
    return Budget(tokens=tokens)


def prepared(text: str, model: str, beside: Path) -> tuple[Path, Manifest]:
    """Shards of a text in a model's tokens, in `data/` beside the recipe.

    Raises:
        UserError: as `prepare`.
    """
    name = Path(text).name.partition(".")[0].strip("*") or "text"
    data = beside.parent / "data" / name
    return data, prepare(text, data, tokenizer=model)


def new_recipe(model: str, data: Path, budget: Budget) -> str:
    """The text of a recipe for `inheritune run`: one round with two thirds of a model's layers.

    Args:
        model: a trained one, by its id or folder.
        data: folder with token shards of its tokenizer.
        budget: of the training; how fast this machine is, is measured if it is in seconds and not known.

    Raises:
        UserError: no such model or data, or a budget for too few steps.
    """
    config = load_config(model)
    depth, parameters = layer_count(config), parameter_count(on_meta(config))
    layers = max(1, min(depth - 1, round(KEPT * depth)))
    window = min(1024, context_length(config) or 1024)
    values: dict[str, Any] = {
        "name": f"{card_name(model).rpartition('/')[2]}-{layers}-layers",
        "data": {"path": str(data), "window": window},
        "reference": {"pretrained": model},
        "start_layers": layers,
        "grow": {"max_rounds": 1},
    }
    tokens, how = _tokens(values, budget)
    per_step = _windows(tokens, window) * window
    steps = tokens // per_step
    if steps < LEAST_STEPS:
        raise UserError(
            f"{count(tokens)} tokens are {steps} steps of one window of {window} tokens, too few to learn from: "
            f"give a larger budget, of {count(LEAST_STEPS * window)} tokens or more"
        )
    peak = usual_rate(parameters, per_step)
    values["training"] = {
        "steps": steps,
        "tokens_per_step": per_step,
        "optimizer": {"learning_rate": float(f"{peak:.1e}")},
        "schedule": {"warmup_steps": steps // 10, "final_learning_rate": float(f"{peak / 10:.1e}")},
    }
    planned = plan(parse_recipe(values, Recipe))
    if (epochs := round_of(planned).epochs) is not None and epochs > MOST_EPOCHS:
        logger.warning(
            "the budget reads the text %.0f times: beyond about %d it teaches little, so give more text or a smaller "
            "budget",
            epochs,
            MOST_EPOCHS,
        )
    return _text(values, depth, how, planned)


def _tokens(values: dict[str, Any], budget: Budget) -> tuple[int, str]:
    """How many tokens a budget pays for, and how that is known."""
    if budget.tokens is not None:
        return budget.tokens, ""
    assert budget.seconds is not None
    window = values["data"]["window"]
    recipe = parse_recipe(
        {**values, "training": {"tokens_per_step": USUAL_TOKENS // window * window}}, Recipe
    )
    known = known_rate(recipe)
    rate = measured_rate(recipe) if known is None else known
    small = round_of(plan(recipe))
    tokens = int(TRAINING_SHARE * budget.seconds * rate * small.tokens / small.flops)
    return tokens, f", about {duration(budget.seconds)} at {rate:.2g} FLOP/s here"


def _windows(tokens: int, window: int) -> int:
    """Windows in a step: a power of two, so that devices can share them and there are steps enough."""
    wanted = min(tokens / STEPS, USUAL_TOKENS) / window
    return 2 ** max(0, math.floor(math.log2(wanted))) if wanted >= 1 else 1


def round_of(planned: Plan) -> Stage:
    """The round that the recipe is about."""
    return next(stage for stage in planned.stages if stage.name == "round 1")


def _text(values: dict[str, Any], depth: int, how: str, planned: Plan) -> str:
    training, small = values["training"], round_of(planned)
    optimizer, schedule = training["optimizer"], training["schedule"]
    needed = planned.memory[small.name].chosen
    epochs = "" if small.epochs is None else f", {small.epochs:.2g} times the text"
    source = values["reference"]["pretrained"]
    return f"""{editor_line("run")}
# {values["start_layers"]} of {depth} layers of {source}, {count(small.parameters)} parameters.
# A step takes about {memory(needed)} on this machine.
name: {_scalar(values["name"])}
data:
  path: {_scalar(values["data"]["path"])}
  window: {values["data"]["window"]}
reference:
  pretrained: {_scalar(source)}
keep: measured             # the layers with the lowest loss as they are, found on this text
start_layers: {values["start_layers"]}
grow:
  mode: append             # what a round has trained stays, and the layers that help most come back
  layers: 2
  max_rounds: 1            # more: until it is as good as the reference; each round takes the budget again
parity:
  control: false           # true: train the reference on for the same steps, to see what the text alone brings
training:                  # {count(small.tokens)} tokens{how}{epochs}
  steps: {training["steps"]}
  tokens_per_step: {training["tokens_per_step"]}
  optimizer:
    learning_rate: {optimizer["learning_rate"]:.1e}   # auto: found by short trainings, from 50 steps on
  schedule:
    warmup_steps: {schedule["warmup_steps"]}
    final_learning_rate: {schedule["final_learning_rate"]:.1e}
"""


def _scalar(text: str) -> str:
    """A text as YAML, in quotes where it needs them."""
    plain = re.fullmatch(r"[\w./-]+", text, re.ASCII) and plain_yaml.parse(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
