"""What a run will cost: parameters, tokens, FLOPs, memory and hours, before anything runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import psutil
import torch
from transformers import PretrainedConfig

from inheritune import UserError
from inheritune.config import Data, ModelSource, Recipe, Study, Training, TrainRecipe
from inheritune.corrected_teacher import teacher_training
from inheritune.data.answers import bytes_per_token, read_record
from inheritune.data.loader import TrainingData, open_data
from inheritune.data.shards import NoShardsError
from inheritune.evaluation.evaluate import check_settings
from inheritune.learning_rate import USUALLY, rate_steps
from inheritune.models.architecture import cut_config, layer_count, parameter_count
from inheritune.models.presets import from_config
from inheritune.models.size import flops_per_token, on_meta, training_memory
from inheritune.quantities import memory
from inheritune.runtime.hardware import choose_hardware, computes_in_bf16
from inheritune.single_model import (
    affordable_steps,
    answered,
    check_inputs,
    initial_config,
    scratch_config,
    source_config,
    teacher_of,
    training_flops,
)
from inheritune.start_depth import probe_trainings, shortened, start_depth
from inheritune.study import check_rows, recipe_of, rows_of
from inheritune.training.checks import check_room
from inheritune.training.distillation import check_teacher
from inheritune.training.final_model import saved_dtype
from inheritune.training.loss import NextTokenLoss
from inheritune.training.memory import memory_per_process
from inheritune.training.micro_batch import choose_micro_batch, fitting_step, step_of, windows_per_process
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import Strategy, check_strategy, fitting_strategy, place
from inheritune.training.step import Stepper
from inheritune.training.teacher import asking_flops

BYTES = 4
"""Of a float32."""
STATES = 3
"""Numbers of a checkpoint for each parameter: the weight, and AdamW's two means."""

MEASURED_LAYERS = 2
MEASURED_STEPS = 3

KNOWN_RATES = {"NVIDIA H100 80GB HBM3": 4.4e14}
"""GPU as torch names it -> FLOP/s in bf16, compiled: GPT-2 medium's in `benchmarks/gpu.py`, the least there."""


Configs = Callable[[ModelSource], PretrainedConfig]
"""Configuration of a pretrained model, wherever it is; of a row of a study, before it is trained."""


@dataclass(frozen=True)
class Work:
    """What a stage computes with: a model, how it is trained, on windows of so many tokens, and its teacher.

    `answers`: whether the teacher was asked before.
    """

    config: PretrainedConfig
    training: Training
    window: int
    teacher: PretrainedConfig | None = None
    answers: bool = False


@dataclass(frozen=True)
class Stage:
    """One training, or a teacher that is asked once.

    Args:
        name: "reference", "answers", "round 1", or a row of a study.
        layers: depth of the model.
        parameters: of the model, tied ones once.
        steps: of the training; 0 for a reference that is trained already.
        tokens: trained on, or asked about.
        epochs: over the training windows; None where the data is not there yet, and its size not in the recipe.
        flops: of the training.
        memory: bytes of weights, gradients and optimizer, and of a teacher's weights; activations come on top, for
            which see `stage_memory`.
        work: what is trained; None of a model that is trained already.
    """

    name: str
    layers: int
    parameters: int
    steps: int
    tokens: int
    epochs: float | None
    flops: float
    memory: int
    work: Work | None = None

    def seconds(self, flops_per_second: float) -> float:
        """How long the stage takes at this rate."""
        return self.flops / flops_per_second


@dataclass(frozen=True)
class Plan:
    """The stages of a run, as many rounds as it can have; it ends at the first that reaches parity."""

    stages: list[Stage]
    validation: Mapping[Path, TrainingData]
    """What losses are measured on, by the folder of the data."""
    notes: Sequence[str] = ()
    """What else there is to know."""

    @property
    def models_on_disk(self) -> int:
        """Bytes of the models that are left behind; the final one is the last round's, under a second name."""
        return sum(
            saved_dtype(stage.work.training, stage.work.config).itemsize * stage.parameters
            for stage in self.stages
            if stage.work
        )

    @property
    def checkpoints_on_disk(self) -> int:
        """Bytes of the most checkpoints that there are at a time: one is written before another is deleted."""
        return max(
            (
                (stage.work.training.checkpoints.keep + 1) * STATES * BYTES * stage.parameters
                for stage in self.stages
                if stage.work
            ),
            default=0,
        )


def plan(recipe: Recipe | TrainRecipe | Study, *, without_data: bool = False) -> Plan:
    """Cost of every stage. Reads configurations and manifests, no weights.

    Args:
        recipe: to plan.
        without_data: go by the recipe alone where its data is not there yet.

    Raises:
        UserError: as running it would.
    """
    if isinstance(recipe, Study):
        return plan_study(recipe, without_data=without_data)
    if not without_data:
        check_inputs(recipe)
    if isinstance(recipe, Recipe) and recipe.evaluation is not None:
        check_settings(recipe.evaluation)
    data, notes = _data(recipe.data, without_data), list[str]()
    stages, _ = _stages(recipe, data, source_config, notes)
    return Plan(stages, {recipe.data.path: data} if data else {}, notes)


def plan_study(
    study: Study,
    known: Mapping[str, PretrainedConfig] = MappingProxyType({}),
    *,
    without_data: bool = False,
) -> Plan:
    """Cost of every row of a study: of those with more seeds, of one.

    Args:
        study: to plan; rows may start from other rows that are not trained yet.
        known: configurations of pretrained models that need not be looked for.
        without_data: as of `plan`.

    Raises:
        UserError: as running it would.
    """
    validation: dict[Path, TrainingData] = {}
    notes: list[str] = []
    configs = dict(known)
    stages: dict[str, list[Stage]] = {}
    spent: dict[str, float] = {}
    place = Path(study.name)

    def config_of(source: ModelSource) -> PretrainedConfig:
        return configs[source.pretrained] if source.pretrained in configs else source_config(source)

    rows = [row for row in rows_of(study) if row.seed == study.seeds[0]]
    check_rows(study, rows, place)
    for row in rows:
        recipe = recipe_of(study, row, place)
        data = _data(recipe.data, without_data)
        validation |= {recipe.data.path: data} if data else {}
        if row.flops_of and isinstance(recipe, TrainRecipe):
            budget = sum(spent[name] for name in row.flops_of)
            recipe = recipe_of(study, row, place, affordable_steps(recipe, budget, data, config_of))
        found, configs[str(row.model(place))] = _stages(recipe, data, config_of, notes)
        single = isinstance(recipe, TrainRecipe)
        # Of Algorithm 1 up to the first round; how many there are is not known before.
        first = ("teacher", "answers", "round 1")
        paid = [
            one
            for one in found
            if single or one.name in first or one.name.startswith(("learning rate,", "probe,"))
        ]
        spent[row.name] = sum(one.flops for one in paid)
        stages[row.name] = [
            replace(stage, name=row.name if single else f"{row.name}, {stage.name}")
            for stage in found
            if stage.flops  # a reference that is another row's is planned there
        ]
    return Plan([stage for row in stages.values() for stage in row], validation, list(dict.fromkeys(notes)))


def _data(settings: Data, without_data: bool) -> TrainingData | None:
    try:
        return open_data(settings.model_copy(update={"verify": False}))
    except NoShardsError:
        if without_data:
            return None
        raise


def _stages(
    recipe: Recipe | TrainRecipe, data: TrainingData | None, config_of: Configs, notes: list[str]
) -> tuple[list[Stage], PretrainedConfig]:
    """A single training, or the reference and every round that Algorithm 1 can come to; and what is left by it.

    That is the configuration of the model, of Algorithm 1 the first round's.
    """
    if isinstance(recipe, TrainRecipe):
        config, source = initial_config(recipe, data, config_of), teacher_of(recipe)
        teacher = None if source is None else config_of(source)
        if teacher is not None:
            check_teacher(teacher, config)
        answers = recipe.distillation is not None and teacher is None
        if answers:
            notes.append(_answers_there(recipe, data))
        return [stage(recipe.name, config, recipe.training, recipe.data, data, teacher, answers)], config
    config = reference_config(recipe, data, config_of)
    depth = layer_count(config)
    stages = [stage("reference", config, recipe.reference.training, recipe.data, data)]
    first = start_depth(recipe.start_layers, depth)
    answers = recipe.distillation is not None and recipe.distillation.draws is not None
    teacher = config if recipe.distillation and not answers else None
    correction = teacher_training(recipe, config)
    if correction is not None:
        stages.append(stage("teacher", config, correction, recipe.data, data))
    if answers:
        stages.append(asking_stage(recipe, config, data, notes))
    if recipe.training.optimizer.learning_rate == "auto":
        short = shortened(recipe.training, rate_steps(recipe.training.steps))
        name = f"learning rate, {USUALLY} times {short.steps} steps"
        one = stage(name, cut_config(config, first), short, recipe.data, data, teacher, answers)
        stages.append(replace(one, tokens=USUALLY * one.tokens, flops=USUALLY * one.flops))
    probes = probe_trainings(depth, recipe.training) if recipe.start_layers == "auto" else []
    for layers, training in probes:
        name = f"probe, {layers} layers, {training.steps} steps"
        stages.append(stage(name, cut_config(config, layers), training, recipe.data, data, teacher, answers))
    for number in range(recipe.grow.max_rounds):
        layers = first + number * recipe.grow.layers
        if layers < depth:
            cut = cut_config(config, layers)
            name = f"round {number + 1}"
            stages.append(stage(name, cut, recipe.training, recipe.data, data, teacher, answers))
    if recipe.parity.control:
        stages.append(stage("control", config, recipe.training, recipe.data, data))
    return stages, cut_config(config, first)


def asking_stage(
    recipe: Recipe, config: PretrainedConfig, data: TrainingData | None, notes: list[str]
) -> Stage:
    """Cost of asking the reference once about all that the rounds read; what it takes on the disk is a warning."""
    assert recipe.distillation is not None and recipe.distillation.draws is not None
    model, window, training = on_meta(config), recipe.data.window, recipe.training
    available = data.windows if data else (recipe.data.tokens or 2**63) // window
    windows = min(training.steps * windows_per_process(training, window), available)
    vocabulary = config.get_text_config().vocab_size
    size = windows * window * bytes_per_token(recipe.distillation.draws, vocabulary)
    notes.append(f"the reference's answers take about {memory(size)} on the disk")
    return Stage(
        name="answers",
        layers=layer_count(config),
        parameters=parameter_count(model),
        steps=0,
        tokens=windows * window,
        epochs=windows / data.windows if data else None,
        flops=asking_flops(model, window, windows),
        memory=4 * parameter_count(model),
    )


def _answers_there(recipe: TrainRecipe, data: TrainingData | None) -> str:
    """What the answers that a recipe names have cost, after checking that they fit."""
    assert recipe.distillation is not None and recipe.distillation.answers is not None
    folder = recipe.distillation.answers
    unverified = recipe.model_copy(update={"data": recipe.data.model_copy(update={"verify": False})})
    found = None if data is None else answered(unverified, data).answers
    record = read_record(folder) if found is None else found.record
    return (
        f"the answers in {folder} took {record.flops:.1e} FLOPs, once for all that learn from them, and are "
        f"{memory(record.bytes)}"
    )


def measured_rate(recipe: Recipe | TrainRecipe) -> float:
    """FLOP/s of this machine at this recipe's shapes: a few real steps of the reference cut to two layers.

    Steps of a shallow model of the same width run the same matrix products as a deep one's, so their rate
    carries over; that of the embeddings and the head, which weigh more in it, is the difference.
    """
    window = recipe.data.window
    training = recipe.training.with_rate(1e-4)  # any: it does not change the time
    hardware = choose_hardware(training)
    config = reference_config(recipe, None) if isinstance(recipe, Recipe) else initial_config(recipe, None)
    shallow = cut_config(config, min(MEASURED_LAYERS, layer_count(config)))
    check_room(shallow, hardware.device)
    model = from_config(shallow, seed=0).to(hardware.device)
    placed = place(NextTokenLoss(model), training, hardware, window)
    stepper = Stepper(placed, make_optimizer(model, training.optimizer), training, hardware)
    size = choose_micro_batch(placed, training, hardware, window).micro_batch
    vocabulary = config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (size, window), device=hardware.device)
    seconds = []
    for step in range(1 + MEASURED_STEPS):  # the first warms up, and compiles
        started = time.perf_counter()
        stepper(step, [(tokens, tokens)])
        seconds.append(time.perf_counter() - started)
    return flops_per_token(model, window) * size * window / statistics.median(seconds[1:])


def known_rate(recipe: Recipe | TrainRecipe | Study, device: str | None = None) -> float | None:
    """FLOP/s of the GPU that is here, if it was measured before and the recipe trains on it, compiled and in bf16."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    if not isinstance(recipe, Study):
        training = recipe.training
        if training.device == "cpu" or training.precision == "fp32" or training.compile is False:
            return None
    return KNOWN_RATES.get(torch.cuda.get_device_name())


def reference_config(
    recipe: Recipe, data: TrainingData | None, config_of: Configs = source_config
) -> PretrainedConfig:
    """Configuration of the reference, whether it exists already or is trained first."""
    source = recipe.reference
    return scratch_config(source, data, recipe.data.window) if source.architecture else config_of(source)


def stage(
    name: str,
    config: PretrainedConfig,
    training: Training | None,
    settings: Data,
    data: TrainingData | None,
    teacher: PretrainedConfig | None = None,
    answers: bool = False,
) -> Stage:
    """Cost of one training; of none, if the model is trained already.

    `answers`: whether a teacher was asked before.
    """
    model, window = on_meta(config), settings.window
    steps = training.steps if training else 0
    tokens = steps * training.tokens_per_step if training else 0
    teacher_shape = None if teacher is None else on_meta(teacher)
    memory = training_memory(model) + (4 * parameter_count(teacher_shape) if teacher_shape else 0)
    available = data.windows * window if data else settings.tokens
    return Stage(
        name=name,
        layers=layer_count(config),
        parameters=parameter_count(model),
        steps=steps,
        tokens=tokens,
        epochs=tokens / available if available and tokens else None,
        flops=training_flops(model, training, window, teacher_shape) if training else 0.0,
        memory=memory,
        work=Work(config, training, window, teacher, answers) if training else None,
    )


@dataclass(frozen=True)
class StageMemory:
    """About how many bytes the tensors of a step take in each process at their peak.

    Args:
        strategy: what the training would use.
        needs: strategy -> bytes; of one process alone too.
        windows: strategy -> windows in one forward pass.
        room: bytes of a process's device; None of a GPU that is not here.
    """

    strategy: Strategy
    needs: Mapping[Strategy, int]
    windows: Mapping[Strategy, int]
    room: int | None

    @property
    def chosen(self) -> int:
        """What the training would take."""
        return self.needs[self.strategy]

    @property
    def micro_batch(self) -> int:
        """Windows in one forward pass of the training."""
        return self.windows[self.strategy]


def plan_memory(planned: Plan, processes: int = 1, device: str | None = None) -> dict[str, StageMemory]:
    """Memory of every stage that trains, by name; arguments and errors as of `stage_memory`."""
    found = {stage.name: stage_memory(stage, processes, device) for stage in planned.stages}
    return {name: memory for name, memory in found.items() if memory is not None}


def stage_memory(stage: Stage, processes: int = 1, device: str | None = None) -> StageMemory | None:
    """Memory of a stage's steps; None of a model that is not trained.

    Args:
        stage: of a plan.
        processes: that train together.
        device: "cpu" or "cuda", where the recipe leaves it open; by default what is here. A GPU need not be here.

    Raises:
        UserError: a number of processes that does not divide the windows of a step, or what else training refuses.
    """
    if processes < 1:
        raise UserError(f"{processes} processes cannot train: give 1 or more")
    work = stage.work
    if work is None:
        return None
    training = work.training
    here = "cuda" if torch.cuda.is_available() else "cpu"
    on = torch.device(training.device if training.device != "auto" else device or here)
    automatic = on.type == "cuda" or computes_in_bf16(on)
    bf16 = automatic if training.precision == "auto" else training.precision == "bf16"
    teacher = None if work.teacher is None else on_meta(work.teacher)
    step = step_of(on_meta(work.config), training, work.window, on, bf16, teacher, work.answers)
    room = _room(on, processes)
    counts: dict[Strategy, int] = {"single": 1}
    strategy: Strategy = "single"
    if processes > 1:
        counts |= {"ddp": processes, "fsdp": processes}
        wanted = training.parallel.strategy
        # A GPU that is not here is taken to have room for a whole model.
        strategy = fitting_strategy(stage.memory, room or 2**63) if wanted == "auto" else wanted
        check_strategy(strategy, training)
    steps = {each: fitting_step(step, training, each, count, room) for each, count in counts.items()}
    return StageMemory(
        strategy,
        {each: memory_per_process(steps[each], each, count) for each, count in counts.items()},
        {each: steps[each].micro_batch for each in steps},
        room,
    )


def _room(on: torch.device, processes: int) -> int | None:
    """Bytes of the device of each process; None of a GPU that is not here. Processes on CPUs share this machine."""
    if on.type == "cpu":
        return psutil.virtual_memory().total // processes
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
