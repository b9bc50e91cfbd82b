"""What a run will cost, before anything runs: parameters, tokens, FLOPs, memory, hours, disk (`inheritune plan`)."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.config import Data, ModelSource, Recipe, Study, Training, TrainRecipe
from inheritune.corrected_teacher import teacher_training
from inheritune.data.answers import bytes_per_token, read_record
from inheritune.data.loader import TrainingData, open_data
from inheritune.data.prepare import few_held_out
from inheritune.data.shards import MANIFEST, NoShardsError, read_manifest
from inheritune.evaluation.evaluate import check_settings
from inheritune.learning_rate import MOST, rate_steps
from inheritune.models.architecture import cut_config, layer_count, parameter_count
from inheritune.models.presets import from_config
from inheritune.models.size import flops_per_token, on_meta, training_memory
from inheritune.quantities import count, duration, memory
from inheritune.runtime.hardware import choose_hardware, computes_in_bf16
from inheritune.shown import Shown
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

if TYPE_CHECKING:
    from inheritune.report.view import View

BYTES = 4
"""Of a float32."""
STATES = 3
"""Numbers of a checkpoint for each parameter: the weight, and AdamW's two means."""

MEASURED_LAYERS = 2
MEASURED_STEPS = 3

KNOWN_RATES = {"NVIDIA H100 80GB HBM3": 4.4e14}
"""GPU as torch names it -> FLOP/s in bf16, compiled: GPT-2 medium's in `benchmarks/gpu.py`, the least there."""

HEADINGS = ("stage", "layers", "params", "tokens", "epochs", "FLOPs", "memory", "time")
"""Of `Plan.rows`; the time only where a rate is known."""


def plan(
    recipe: Recipe | TrainRecipe | Study,
    *,
    flops_per_second: float | None = None,
    measure: bool = False,
    processes: int = 1,
    device: str | None = None,
    without_data: bool = False,
) -> Plan:
    """Cost of every stage, from configurations and manifests alone; arguments and errors as of `api.plan`."""
    if flops_per_second is not None and not 0 < flops_per_second < math.inf:
        raise UserError(f"flops_per_second is {flops_per_second}, but must be a positive number")
    if processes < 1:
        raise UserError(f"processes is {processes}, but must be at least 1")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device is {device!r}, but must be cpu or cuda")
    if measure and isinstance(recipe, Study):
        raise UserError("a rate is measured for a single recipe; give that of a study (flops_per_second)")
    if not isinstance(recipe, Study) and not without_data:
        check_inputs(recipe)
    if isinstance(recipe, Recipe) and recipe.evaluation is not None:
        check_settings(recipe.evaluation)
    found = Found(without_data)
    stages = study_stages(recipe, found) if isinstance(recipe, Study) else stages_of(recipe, found)
    needs = {stage.name: stage.step_memory(processes, device) for stage in stages if stage.training}
    rate, rate_is = flops_per_second, "given"
    if measure and not isinstance(recipe, Study):
        rate, rate_is = measured_rate(recipe), "measured here"
        each_its_own = choose_hardware(recipe.training).device.type == "cuda"  # on a CPU they share its cores
        if processes > 1 and each_its_own:
            rate, rate_is = processes * rate, f"{processes} x what was measured here"
    if rate is None and (known := known_rate(recipe, device)):
        rate, rate_is = processes * known, f"{processes} x what this kind of GPU was measured to do"
    notes = list(dict.fromkeys(found.notes))
    return Plan(recipe.name, stages, found.validation, notes, needs, processes, rate, rate_is)


@dataclass(frozen=True)
class Plan(Shown):
    """What a run will cost.

    Args:
        name: of the recipe.
        stages: as many as there can be; rounds end at the first that reaches parity.
        validation: what losses are measured on, by the folder of the data.
        notes: what else there is to know.
        memory: of every stage that trains, by its name.
        processes: that train together.
        rate: FLOP/s to plan the time with; None where it is not known.
        rate_is: where that is from.
    """

    name: str
    stages: Sequence[Stage]
    validation: Mapping[Path, TrainingData]
    notes: Sequence[str]
    memory: Mapping[str, StageMemory]
    processes: int
    rate: float | None
    rate_is: str

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages at the rate."""
        return None if self.rate is None else self.flops / self.rate

    @property
    def models_on_disk(self) -> int:
        """Bytes of the most models that there are at a time; the final one is the last round's, under a second name.

        Those of rates and of probes are deleted when all of their kind are measured, the others are left behind.
        """
        most = left = 0
        for kind, stages in groupby(self.stages, key=lambda stage: stage.before):
            size = sum(stage.models_on_disk for stage in stages)
            most = max(most, left + size)
            left += 0 if kind in ("rates", "probes") else size
        return most

    @property
    def checkpoints_on_disk(self) -> int:
        """Bytes of the most checkpoints that there are at a time: one is written before another is deleted."""
        states = (
            (stage.training.checkpoints.keep + 1) * stage.parameters
            for stage in self.stages
            if stage.training
        )
        return STATES * BYTES * max(states, default=0)

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the rows."""
        return HEADINGS if self.rate else HEADINGS[:-1]

    @property
    def rows(self) -> list[list[str]]:
        """A row of cells for each stage, and one for all of them where several train."""
        found = []
        for stage in self.stages:
            tokens = count(stage.tokens) if stage.tokens else "trained"
            epochs = f"{stage.epochs:.2f}" if stage.epochs is not None else "?"
            room = memory(self.memory[stage.name].chosen) if stage.training else "-"
            size = [str(stage.layers), count(stage.parameters)]
            found.append([stage.name, *size, tokens, epochs, *self._spent(stage.flops, room)])
        if len(self.memory) > 1:
            tokens = count(sum(stage.tokens for stage in self.stages))
            found.append(["at most", "", "", tokens, "", *self._spent(self.flops, "")])
        return found

    def _spent(self, flops: float, room: str) -> list[str]:
        time = [duration(flops / self.rate)] if self.rate else []
        return [f"{flops:.1e}".replace("e+", "e"), room, *time]

    @property
    def words(self) -> list[str]:
        """What the table does not say: memory, rate, data and disk."""
        return [
            "Rounds end at the first that reaches parity. Memory: about what a process's tensors take at the peak of "
            "a step, by a formula; the program, a GPU's context and an allocator's reserve come on top.",
            *self._memory_words(),
            *([f"Times at {self.rate:.3g} FLOP/s ({self.rate_is})."] if self.rate else []),
            *self._disk_words(),
        ]

    def _memory_words(self) -> Iterator[str]:
        """About the stage that needs most: its micro-batch, and what it would take with each strategy."""
        if not self.memory:
            return
        name, largest = max(self.memory.items(), key=lambda item: item[1].chosen)
        yield f"Largest: {name}, with {_windows(largest.micro_batch)} in one forward pass."
        if self.processes > 1:
            each = {
                strategy: f"{memory(size)} ({_windows(largest.windows[strategy])})"
                for strategy, size in largest.needs.items()
            }
            yield (
                f"In each of {self.processes} processes about: ddp {each['ddp']}, fsdp {each['fsdp']}; the recipe "
                f"takes {largest.strategy}. One process alone: {each['single']}."
            )
        if largest.room is not None:
            fits = "fits this machine" if largest.chosen <= largest.room else "does not fit this machine"
            yield f"It {fits}: about {memory(largest.chosen)} of {memory(largest.room)} for each process."

    def _disk_words(self) -> Iterator[str]:
        """What is validated on, and what is written, beside the room for it here."""
        yield from (f"note: {note}" for note in self.notes)
        for path, data in self.validation.items():
            yield f"Validation: {_windows(data.validation_windows)} of {data.window:,} tokens in {path}."
            few = few_held_out(read_manifest(path)) if (path / MANIFEST).exists() else None
            if few:
                yield f"note: {few}"
        models, checkpoints = self.models_on_disk, self.checkpoints_on_disk
        if models:
            free = shutil.disk_usage(".").free
            enough = "" if models + checkpoints <= free else ", which is too little"
            yield (
                f"Disk: up to {memory(models)} of models, and {memory(checkpoints)} of checkpoints while the largest "
                f"trains; here {memory(free)} are free{enough}."
            )

    def _view(self) -> View:
        from inheritune.report.table import Table
        from inheritune.report.view import View

        table = Table(self.name, [f"<{self.headings[0]}", *self.headings[1:]], self.rows)
        return View(self.words, [table])


def _windows(number: int) -> str:
    return f"{number} window{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Stage:
    """A model that is trained, some number of times alike, or was trained before; or a teacher that is asked once.

    Args:
        name: "reference", "answers", "round 1", or a row of a study.
        config: of the model.
        training: None of a reference that is trained already, and of a teacher that is asked.
        window: tokens.
        available: tokens to train on; None where the data is not there yet, and its size not in the recipe.
        teacher: whose logits the model learns.
        answers: whether it learns those of a teacher that was asked before.
        asked: windows that it is asked about.
        times: that it is trained, at most.
        before: what Algorithm 1 does in it between the reference and the first round, if it is there.
    """

    name: str
    config: PretrainedConfig
    training: Training | None
    window: int
    available: int | None
    teacher: PretrainedConfig | None = None
    answers: bool = False
    asked: int = 0
    times: int = 1
    before: Literal["teacher", "answers", "rates", "probes"] | None = None

    @cached_property
    def shape(self) -> PreTrainedModel:
        """The model without its weights."""
        return on_meta(self.config)

    @cached_property
    def teacher_shape(self) -> PreTrainedModel | None:
        """The teacher likewise."""
        return None if self.teacher is None else on_meta(self.teacher)

    @property
    def layers(self) -> int:
        """Depth of the model."""
        return layer_count(self.config)

    @cached_property
    def parameters(self) -> int:
        """Of the model, tied ones once."""
        return parameter_count(self.shape)

    @property
    def steps(self) -> int:
        """Of a training."""
        return self.training.steps if self.training else 0

    @property
    def tokens(self) -> int:
        """Trained on, or asked about."""
        if self.training is None:
            return self.asked * self.window
        return self.times * self.steps * self.training.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """Over the training windows, in one training; None where it is not known, or there is none."""
        return self.tokens / self.times / self.available if self.available and self.tokens else None

    @cached_property
    def flops(self) -> float:
        """Of all its trainings, or of asking."""
        if self.training is None:
            return asking_flops(self.shape, self.window, self.asked)
        return self.times * training_flops(self.shape, self.training, self.window, self.teacher_shape)

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients and optimizer, and of a teacher's weights; activations come on top."""
        if self.asked:
            return BYTES * self.parameters
        teacher = BYTES * parameter_count(self.teacher_shape) if self.teacher_shape else 0
        return training_memory(self.shape) + teacher

    @property
    def models_on_disk(self) -> int:
        """Bytes of what its trainings leave behind."""
        if self.training is None:
            return 0
        return self.times * saved_dtype(self.training, self.config).itemsize * self.parameters

    def step_memory(self, processes: int = 1, device: str | None = None) -> StageMemory:
        """Memory of a training's steps.

        Args:
            processes: that train together.
            device: "cpu" or "cuda", where the recipe leaves it open; by default what is here. A GPU need not be here.

        Raises:
            UserError: processes that do not divide the windows of a step, or what else training refuses.
        """
        training = self.training
        assert training is not None, "it is trained"
        here = "cuda" if torch.cuda.is_available() else "cpu"
        on = torch.device(training.device if training.device != "auto" else device or here)
        automatic = on.type == "cuda" or computes_in_bf16(on)
        bf16 = automatic if training.precision == "auto" else training.precision == "bf16"
        step = step_of(self.shape, training, self.window, on, bf16, self.teacher_shape, self.answers)
        room = _room(on, processes)
        counts: dict[Strategy, int] = {"single": 1}
        strategy: Strategy = "single"
        if processes > 1:
            counts |= {"ddp": processes, "fsdp": processes}
            wanted = training.parallel.strategy
            # A GPU that is not here is taken to have room for a whole model.
            strategy = fitting_strategy(self.memory, room or 2**63) if wanted == "auto" else wanted
            check_strategy(strategy, training)
        steps = {each: fitting_step(step, training, each, number, room) for each, number in counts.items()}
        return StageMemory(
            strategy,
            {each: memory_per_process(steps[each], each, number) for each, number in counts.items()},
            {each: steps[each].micro_batch for each in steps},
            room,
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


def _room(on: torch.device, processes: int) -> int | None:
    """Bytes of the device of each process; None of a GPU that is not here. Processes on CPUs share this machine."""
    if on.type == "cpu":
        return psutil.virtual_memory().total // processes
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


@dataclass
class Found:
    """What was found beside the recipe: data and models, and what there is to say of them."""

    without_data: bool
    """Go by the recipe alone where its data is not there yet."""
    configs: dict[str, PretrainedConfig] = field(default_factory=dict)
    """Of what rows of a study will leave, by its folder."""
    validation: dict[Path, TrainingData] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def config_of(self, source: ModelSource) -> PretrainedConfig:
        """Of a pretrained model, wherever it is; of a row of a study, before it is trained."""
        found = self.configs.get(source.pretrained or "")
        return source_config(source) if found is None else found

    def open(self, settings: Data) -> TrainingData | None:
        """The data, unread; None if it is not there yet."""
        try:
            data = open_data(settings.model_copy(update={"verify": False}))
        except NoShardsError:
            if self.without_data:
                return None
            raise
        self.validation[settings.path] = data
        return data


def stages_of(recipe: Recipe | TrainRecipe, found: Found) -> list[Stage]:
    """A single training; or the reference, what is paid before the first round, and every round that there can be."""
    data, training = found.open(recipe.data), recipe.training
    available = data.windows * data.window if data else recipe.data.tokens
    stage = partial(Stage, window=recipe.data.window, available=available)
    if isinstance(recipe, TrainRecipe):
        config, source = initial_config(recipe, data, found.config_of), teacher_of(recipe)
        teacher = None if source is None else found.config_of(source)
        if teacher is not None:
            check_teacher(teacher, config)
        answers = recipe.distillation is not None and teacher is None
        if answers:
            found.notes.append(_answers_there(recipe, data))
        return [stage(recipe.name, config, training, teacher=teacher, answers=answers)]

    config = reference_config(recipe, data, found.config_of)
    depth = layer_count(config)
    first = start_depth(recipe, depth)
    stages = [stage("reference", config, recipe.reference.training)]
    correction = teacher_training(recipe, config)
    if correction is not None:
        stages.append(stage("teacher", config, correction, before="teacher"))
    draws = recipe.distillation.draws if recipe.distillation else None
    if draws is not None:
        wanted = training.steps * windows_per_process(training, recipe.data.window)
        asked = min(wanted, (available or 2**63) // recipe.data.window)
        size = asked * recipe.data.window * bytes_per_token(draws, config.get_text_config().vocab_size)
        found.notes.append(f"the reference's answers take about {memory(size)} on the disk")
        stages.append(stage("answers", config, None, asked=asked, before="answers"))
    live = recipe.distillation is not None and draws is None
    small = partial(stage, teacher=config if live else None, answers=draws is not None)
    if training.optimizer.learning_rate == "auto":
        short = shortened(training, rate_steps(training.steps))
        name = f"learning rate, up to {MOST} times {short.steps} steps"
        stages.append(small(name, cut_config(config, first), short, times=MOST, before="rates"))
    for layers, short in probe_trainings(depth, training) if recipe.start_layers == "auto" else []:
        name = f"probe, {layers} layers, {short.steps} steps"
        stages.append(small(name, cut_config(config, layers), short, before="probes"))
    for number in range(recipe.grow.max_rounds):
        layers = first + number * recipe.grow.layers
        if layers < depth:
            stages.append(small(f"round {number + 1}", cut_config(config, layers), training))
    if recipe.parity.control:
        stages.append(stage("control", config, training))
    return stages


def study_stages(study: Study, found: Found) -> list[Stage]:
    """Of every row, which may start from rows that are not trained yet; where it has more seeds, of one."""
    folder, spent, stages = Path(study.name), dict[str, float](), list[Stage]()
    rows = [row for row in rows_of(study) if row.seed == study.seeds[0]]
    check_rows(study, rows, folder)
    for row in rows:
        recipe = recipe_of(study, row, folder)
        if row.flops_of and isinstance(recipe, TrainRecipe):
            budget = sum(spent[name] for name in row.flops_of)
            steps = affordable_steps(recipe, budget, found.open(recipe.data), found.config_of)
            recipe = recipe_of(study, row, folder, steps)
        own, single = stages_of(recipe, found), isinstance(recipe, TrainRecipe)
        own = [replace(one, name=row.name if single else f"{row.name}, {one.name}") for one in own]
        # Of Algorithm 1 up to the first round, without the reference; how many there are is not known before.
        paid = own if single else own[1 : 2 + sum(stage.before is not None for stage in own)]
        spent[row.name] = sum(stage.flops for stage in paid)
        found.configs[str(row.model(folder))] = paid[-1].config
        # A reference that is another row's is planned there.
        stages += [stage for stage in own if stage.tokens]
    return stages


def reference_config(
    recipe: Recipe, data: TrainingData | None, config_of: Callable[[ModelSource], PretrainedConfig]
) -> PretrainedConfig:
    """Configuration of the reference, whether it exists already or is trained first."""
    source = recipe.reference
    return scratch_config(source, data, recipe.data.window) if source.architecture else config_of(source)


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
    if isinstance(recipe, TrainRecipe):
        config = initial_config(recipe, None)
    else:
        config = reference_config(recipe, None, source_config)
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
