"""What a run will cost: parameters, tokens, FLOPs, memory and hours, before anything runs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.config import Recipe, Training
from inheritune.data.loader import TrainingData, open_data
from inheritune.models.architecture import cut_config, layer_count, parameter_count
from inheritune.models.presets import from_config
from inheritune.models.pretrained import load_config
from inheritune.models.size import flops_per_token, on_meta, training_memory
from inheritune.recipe import first_cut
from inheritune.single import scratch_config
from inheritune.training.device import choose_hardware, micro_batch
from inheritune.training.loss import NextTokenLoss
from inheritune.training.optimizer import make_optimizer
from inheritune.training.step import Stepper

MEASURED_LAYERS = 2
MEASURED_STEPS = 3


@dataclass(frozen=True)
class Stage:
    """One training of a run.

    Args:
        name: "reference" or "round 1".
        layers: depth of the model.
        parameters: of the model, tied ones once.
        tokens: trained on.
        epochs: over the training split; None where the data is not there yet.
        flops: of the training; 0 for a reference that is trained already.
        memory: bytes of weights, gradients and optimizer; activations come on top.
    """

    name: str
    layers: int
    parameters: int
    tokens: int
    epochs: float | None
    flops: float
    memory: int

    def seconds(self, flops_per_second: float) -> float:
        """How long the stage takes at this rate."""
        return self.flops / flops_per_second


@dataclass(frozen=True)
class Plan:
    """The stages of a run, as many rounds as it can have. It ends at the first that reaches parity."""

    stages: list[Stage]
    warnings: list[str]


def plan(recipe: Recipe) -> Plan:
    """Cost of every stage of a run. Reads configurations and manifests, no weights.

    Raises:
        ValueError: as `recipe.run` would.
    """
    warnings = []
    data: TrainingData | None = None
    try:
        data = open_data(recipe.data.model_copy(update={"verify": False}))
    except FileNotFoundError as error:
        warnings.append(f"{error} (the plan goes by the recipe alone)")
    config = reference_config(recipe, data)
    depth = layer_count(config)
    trained = recipe.reference.training
    stages = [stage("reference", config, trained, recipe.data.window, data)]
    for number in range(1, recipe.grow.max_rounds + 1):
        layers = first_cut(recipe.start_layers, depth) + (number - 1) * recipe.grow.layers
        if layers >= depth:
            break
        cut = cut_config(config, layers)
        stages.append(stage(f"round {number}", cut, recipe.training, recipe.data.window, data))
    return Plan(stages, warnings)


def measured_rate(recipe: Recipe) -> float:
    """FLOP/s of this machine at this recipe's shapes: a few real steps of the reference cut to two layers.

    Steps of a shallow model of the same width run the same matrix products as a deep one's, so their rate
    carries over; that of the embeddings and the head, which weigh more in it, is the difference.
    """
    training, window = recipe.training, recipe.data.window
    hardware = choose_hardware(training)
    config = reference_config(recipe, None)
    shallow = cut_config(config, min(MEASURED_LAYERS, layer_count(config)))
    model = from_config(shallow, seed=0).to(hardware.device)
    stepper = Stepper(NextTokenLoss(model), make_optimizer(model, training.optimizer), training, hardware)
    size = micro_batch(training, window, hardware.device)
    vocabulary = config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (size, window), device=hardware.device)
    seconds = []
    for step in range(1 + MEASURED_STEPS):  # the first warms up, and compiles
        started = time.perf_counter()
        stepper(step, [(tokens, tokens)], 1)
        seconds.append(time.perf_counter() - started)
    return flops_per_token(model, window) * size * window / statistics.median(seconds[1:])


def reference_config(recipe: Recipe, data: TrainingData | None) -> PretrainedConfig:
    """Configuration of the reference, whether it exists already or is trained first."""
    source = recipe.reference
    if source.pretrained is not None:
        return load_config(
            source.pretrained, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    return scratch_config(source, data, recipe.data.window)


def stage(
    name: str, config: PretrainedConfig, training: Training | None, window: int, data: TrainingData | None
) -> Stage:
    """Cost of one training; of none, if the model is trained already."""
    model: PreTrainedModel = on_meta(config)
    tokens = training.steps * training.tokens_per_step if training else 0
    return Stage(
        name=name,
        layers=layer_count(config),
        parameters=parameter_count(model),
        tokens=tokens,
        epochs=tokens / (data.windows * window) if data and training else None,
        flops=flops_per_token(model, window) * tokens,
        memory=training_memory(model),
    )
