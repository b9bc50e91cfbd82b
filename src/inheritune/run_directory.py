"""The directory of a run: which file is where, and whether it may be resumed.

    recipe.yaml            the recipe, every default filled in
    starts.jsonl           one line for each start: time, versions, hardware, precision, command, data
    state.json             progress: phase, round, verdict
    summary.json           the reference and the rounds so far, in figures
    reference/             validation.json; and if it was trained here, what a round has
    reference/validation-NAME.json, round-1-12-layers/validation-NAME.json    losses on other text (`parity.also`)
    reference/forecast.json, probe-12-layers-500-steps/    with `start_layers: auto`: what depths will reach, and why
    learning-rate.json, choice.json, rate-1.2e-03-36-steps/    with `learning_rate: auto`: what was tried, on what
    teacher/               the reference trained on, with `distillation.corrected`: what a round has
    answers/               the reference's answers to the training text, with `distillation.draws`
    round-1-12-layers/     metrics.jsonl; checkpoints/, until it is trained; then validation.json, model/
    round-1-12-layers/decisions.json    with `search: frugal`: why the round ended when it did
    control/               the reference trained on (`parity.control`): what a round has
    final/                 the result, a Hugging Face checkpoint
    reference/analysis.json, final/analysis.json    attention of both models, if it was analyzed
    samples.json           continuations by both models
    report.html

Every file appears at once, so what is there is finished; resuming means doing what is not there yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from inheritune import UserError, plain_yaml
from inheritune.config import Recipe
from inheritune.data.shards import DataIdentity, check_same_data
from inheritune.quantities import bits_per_byte, loss_decimals, signed_interval
from inheritune.recipe_file import AnyRecipe, differences, load_recipe, parse_recipe, to_yaml
from inheritune.runtime import files

RATES_FILE = "learning-rate.json"
STARTS = "starts.jsonl"
BARE = ("recipe.yaml", STARTS, "state.json", "summary.json")
"""What is in a run's directory before anything is computed."""

WORK = ("checkpoints/step-*", "validation.json", "model")
"""What was computed and another recipe would spoil; a mistake found at once leaves none of it."""

DECIDED = ("choice.json", "micro-batch.json")
"""What is decided before a training's first step: layers that were measured, and windows that fit."""

Verdict = Literal["parity", "no parity"]
Phase = Literal["reference", "preparation", "round", "control", "finished"]
"""How far a run is; `preparation` is what comes before the first round where a recipe asks for it: the reference as a
teacher, the learning rate, and where to begin."""
Answer = Literal["holds", "does not hold", "not asked", "not known yet", "not known"]


class Record(BaseModel):
    """Part of a file in a run directory; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ReferenceFigures(Record):
    """The large model: validation loss in nats per token; training FLOPs and steps are None where unknown."""

    layers: int
    parameters: int
    loss: float | None = None
    windows: int | None = None
    training_flops: float | None = None
    steps: int | None = None
    bytes_per_token: float | None = None
    """Of the text that it and the rounds are validated on."""
    also: dict[str, float] = {}
    """Its loss on other text, by the name of that."""


class Difference(Record):
    """A model's loss, and how it differs from another's on the same windows, in nats per token."""

    loss: float
    difference: float
    interval: tuple[float, float]
    """95%, over paired windows."""
    parity: bool
    """Whether the difference is at most the margin."""


class ControlFigures(Record):
    """The reference, trained on for as many steps as the round that the verdict is about."""

    to_reference: Difference
    """Of the control to the untouched reference."""
    to_control: Difference
    """Of the round to the control."""
    steps: int
    training_flops: float
    seconds: float


class Answers(Record):
    """What a verdict says to each of the four questions about being as good."""

    own: Answer
    """The paper's rule, on the recipe's own data."""
    control: Answer
    """The same against the reference trained on."""
    tasks: Answer
    """No task is worse beyond chance; `not known` where some could not be compared and none of the others is."""
    texts: Answer
    """The paper's rule on every other text."""


class Worth(Record):
    """What the size of a difference is in training, by the model's own curve; see `metrics.steps_worth`."""

    steps: int
    tokens: int


class Decision(Record):
    """What `search: frugal` decided after a step of a round; losses in nats per token."""

    step: int
    loss: float
    """On all validation windows where the learning rate has decayed, before that on those of every validation."""
    target: float
    """The reference's loss on the same windows, and the margin."""
    what: Literal["cool down", "train on", "grow", "give up", "parity"]
    """`give up` ends the last round, which nothing follows."""
    next: int | None = None
    """Where it cools down: the steps after which the learning rate has decayed."""
    gain: float | None = None
    """What the decay gained, on the windows of every validation."""
    expected: float | None = None
    """The loss after all steps of the round; None where it is too early to say, or parity holds."""
    low: float | None = None
    high: float | None = None
    """Between these it should be."""

    @property
    def hot(self) -> bool:
        """Whether it was made at the constant rate, where losses are higher than a cooled model's by the gain."""
        return self.what == "cool down" or (self.what == "grow" and self.gain is None)

    def sentence(self) -> str:
        """For the terminal."""
        found = f"step {self.step:,}: loss {self.loss:.4f}, {self.loss - self.target:+.4f} to the target"
        if self.expected is not None:
            found += f"; {self.expected:.4f} [{self.low:.4f}, {self.high:.4f}] is expected in the end"
        return f"{found}: {self.what}" + (f" to step {self.next:,}" if self.next else "")


def is_cooled(decisions: Sequence[Decision]) -> bool:
    """Whether the learning rate of a round with these decisions had decayed where it ended."""
    return not decisions or not (decisions[-1].what == "grow" and decisions[-1].hot)


class RoundFigures(Record):
    """One finished round: `difference` is target minus reference, nats per token, over paired windows."""

    round: int
    layers: int
    parameters: int
    loss: float
    difference: float
    standard_error: float
    interval: tuple[float, float]
    parity: bool
    training_flops: float
    total_training_flops: float
    cost_to_parity: float | None = None
    steps: int
    seconds: float
    directory: str
    kept: list[int] | None = None
    """Which of the reference's layers it has, counted from 0; None in runs of versions that kept the first ones."""
    predicted: float | None = None
    """The loss that was predicted of this depth (`start_layers: auto`)."""
    decisions: list[Decision] = []
    """What `search: frugal` decided during it."""
    also: dict[str, Difference] = {}
    """On other text, by the name of that."""
    worth: Worth | None = None
    """The further training that would close the difference; of a round that is ahead, the last part of its training,
    from where it passed the reference's loss. None where its curve does not say."""

    @property
    def cooled(self) -> bool:
        """Whether the learning rate had decayed; a frugal round may grow before, and then its loss says little."""
        return is_cooled(self.decisions)

    @property
    def as_good(self) -> bool:
        """Whether parity holds on the recipe's own data and on all other text: what ends growth."""
        return self.parity and not self.worse_on

    @property
    def worse_on(self) -> list[str]:
        """The other texts on which parity does not hold."""
        return [name for name, found in self.also.items() if not found.parity]

    @property
    def largest_difference(self) -> float:
        """Over its own data and all other text."""
        return max([self.difference, *(found.difference for found in self.also.values())])


class RateTrial(Record):
    """A short training at one learning rate."""

    learning_rate: float
    loss: float | None
    """Validation loss in the end, nats per token; None where it was not finite."""
    flops: float
    directory: str


class TriedRates(Record):
    """`learning-rate.json`: what `learning_rate: auto` tried, and took."""

    format: Literal[1] = 1
    layers: int
    """Of the cut."""
    steps: int
    """Of each trial."""
    trials: tuple[RateTrial, ...]
    """In the order they were made."""
    learning_rate: float
    """Of the rounds."""


def load_rates(path: Path) -> TriedRates:
    """Read a `learning-rate.json`.

    Raises:
        UserError: it is something else, or damaged.
    """
    return files.read_record(path, TriedRates, "rates that were tried, of format 1")


FIRST_FLOPS = ("teacher_flops", "answers_flops", "probe_flops")
"""Of a summary: what is computed between the reference and the first round."""


class Summary(Record):
    """`summary.json`: the reference and the rounds finished so far, and the verdict once there is one."""

    name: str = ""
    verdict: Verdict | None = None
    margin: float = 0.0
    reference: ReferenceFigures | None = None
    rounds: list[RoundFigures] = []
    probe_flops: float = 0.0
    """Of the short trainings before the first round."""
    learning_rate: float | None = None
    """That was found by some of them (`learning_rate: auto`)."""
    teacher_flops: float = 0.0
    """Of the reference's training before it teaches (`distillation.corrected`)."""
    answers_flops: float = 0.0
    """Of the reference's forward passes before them, with `distillation.draws`."""
    predicted: dict[int, float] = {}
    """Layers -> the loss that these say a round will reach, nats per token."""
    control: ControlFigures | None = None
    control_asked: bool = False
    tasks: Answer = "not asked"
    """Whether no task is worse beyond chance."""
    tasks_not_compared: list[str] = []
    """Tasks that were asked for and could not be compared."""

    @model_validator(mode="after")
    def _rounds_are_compared(self) -> Summary:
        if self.rounds and (self.reference is None or self.reference.loss is None):
            raise UserError("it has rounds but no loss of the reference they were compared with")
        if self.verdict is not None and not self.rounds:
            raise UserError("it has a verdict but no rounds")
        return self

    @property
    def first_flops(self) -> float:
        """Of all that is computed between the reference and the first round."""
        return float(sum(getattr(self, name) for name in FIRST_FLOPS))

    @property
    def reported(self) -> RoundFigures | None:
        """The round a verdict is about: the first with parity, else the closest, without a verdict the last."""
        if self.verdict == "parity":
            return next((entry for entry in self.rounds if entry.as_good), self.rounds[-1])
        if self.verdict == "no parity":
            return min(self.rounds, key=lambda entry: (entry.largest_difference, entry.difference))
        return self.rounds[-1] if self.rounds else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def answers(self) -> Answers | None:
        """Once there is a verdict; in `summary.json` too."""
        entry, control = self.reported, self.control
        if self.verdict is None or entry is None:
            return None
        pending: Answer = "not known yet" if self.control_asked else "not asked"
        return Answers(
            own=answer(entry.parity),
            control=answer(control.to_control.parity) if control else pending,
            tasks=self.tasks,
            texts=answer(not entry.worse_on) if entry.also else "not asked",
        )

    def answers_sentence(self) -> str:
        """What a verdict says to each of the four questions, with the differences; empty without a verdict."""
        answers, entry, control = self.answers, self.reported, self.control
        if answers is None or entry is None:
            return ""
        against = "" if control is None else f" ({_signed(control.to_control)} to the control, which is "
        if control is not None:
            against += f"{_signed(control.to_reference)} to the untouched reference)"
        last = self.rounds[-1]
        final = (
            f" The final model, which samples and tasks are of, is that of the last round ({last.layers} layers)."
            if last.round != entry.round
            else ""
        )
        left = ", ".join(self.tasks_not_compared)
        left = left and f" ({left} could not be compared)"
        texts = ", ".join(f"{name} {_signed(found)}" for name, found in entry.also.items())
        return (
            f"Paper's rule on its own data: {answers.own}. Fair control: {answers.control}{against}. "
            f"Tasks: {answers.tasks}{left}. Other text: {answers.texts}{texts and f' ({texts})'}.{final}"
        )

    def bits_per_byte(self, loss: float | None) -> float | None:
        """One of its losses for each byte of the text; None where that is not known."""
        if self.reference is None or loss is None:
            return None
        return bits_per_byte(loss, self.reference.bytes_per_token)

    def cost(self, entry: RoundFigures) -> float | None:
        """Training FLOPs of all rounds up to this one / of the reference; None where the latter is unknown."""
        if entry.cost_to_parity is not None:
            return entry.cost_to_parity
        if self.reference is None or not self.reference.training_flops:
            return None
        return entry.total_training_flops / self.reference.training_flops


def _signed(found: Difference) -> str:
    decimals = loss_decimals(found.interval)
    return f"{found.difference:+.{decimals}f} {signed_interval(found.interval, decimals)}"


def answer(holds: bool) -> Answer:
    """Of a question that was asked."""
    return "holds" if holds else "does not hold"


class State(Record):
    """`state.json`: how far a run is."""

    phase: Phase
    round: int = 0
    verdict: Verdict | None = None


class RunDirectory:
    """Names and contents of a run's files.

    As a context it is closed at the end, and after an error that came before anything was computed, there is no more
    than before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reference = path / "reference"
        self.control = path / "control"
        self.answers = path / "answers"
        self.teacher = path / "teacher"
        self.final = path / "final"
        self.samples = path / "samples.json"
        self.held: int | None = None
        """Descriptor that keeps other processes out; those that get it hold the directory too."""
        self.made: list[Path] | None = None
        """By `open`, where no run was before: directories, from the inside to the outside."""

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self.made is not None:
            self._take_back(self.made)
        self.close()

    def round(self, number: int, layers: int) -> Path:
        """Directory of a round."""
        return self.path / f"round-{number}-{layers}-layers"

    @property
    def first_round(self) -> int | None:
        """Layers of the first round, if it has begun."""
        begun = next(self.path.glob("round-1-*-layers"), None)
        return None if begun is None else int(begun.name.split("-")[2])

    @property
    def finished(self) -> bool:
        """Whether Algorithm 1 has ended; an evaluation may be left to do."""
        path = self.path / "state.json"
        return path.exists() and _read(State, path).phase == "finished"

    def open(self, recipe: AnyRecipe, environment: dict[str, Any], data: Sequence[DataIdentity]) -> None:
        """Make the directory, or make sure that this start may resume what is in it; hold it until `close`.

        Args:
            recipe: of this start.
            environment: versions, hardware, precision and the models' digests of this start.
            data: what it is trained and validated on.

        Raises:
            UserError: it holds work of a recipe, data, models or precision that would give other weights (they are
                named), it is something else, or another process works in it.
        """
        path, made = self.path / "recipe.yaml", None
        if not path.exists():
            self.check_place()
            made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self.hold()  # until here another process may have made the same directory, whose files are not ours
        if path.exists():
            earlier = load_recipe(path, type(recipe))
            if not read_starts(self.path) and path.read_text("utf-8") != to_yaml(earlier):  # a user's own
                raise UserError(f"{self.path} is not empty and not a run; give another directory")
            try:
                self.check_recipe(recipe)
                self.check_data(data)
                self.check_models(environment.get("models", {}))
                self._check_precision(recipe, environment)
            except UserError:
                if self._found(WORK):
                    raise
                for decided in self._found(DECIDED):  # for another recipe, before its first step
                    decided.unlink()
        else:
            self.made = made
        trainings = (
            place
            for kind in ("reference", "teacher", "rate-*", "probe-*", "round-*", "control")
            for place in self.path.glob(f"{kind}/")
        )
        for place in (self.path, *trainings):
            files.remove_leftovers(place)
        files.write_text(path, to_yaml(recipe))  # first: it makes the directory a run
        start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **environment}
        start["data"] = {one.split: one.model_dump() for one in data}
        lines = [json.dumps(line) for line in (*read_starts(self.path), start)]
        files.write_text(self.path / STARTS, "\n".join(lines) + "\n")

    def check_recipe(self, recipe: AnyRecipe) -> None:
        """What is in the directory was made by this recipe, as far as it decides the weights.

        Raises:
            UserError: by another; the differences are named.
        """
        path = self.path / "recipe.yaml"
        values = plain_yaml.read(path)
        if isinstance(recipe, Recipe) and isinstance(values, dict):
            values.setdefault("keep", "first")  # versions that did not record it
        changed = differences(parse_recipe(values, type(recipe), str(path)), recipe)
        if changed:
            raise UserError(
                f"{self.path} holds a run of another recipe ({'; '.join(changed)}); "
                "give another directory, or the recipe it was started with"
            )

    def check_place(self) -> None:
        """A run can be here: the directory has one already, is empty, or can be made.

        Raises:
            UserError: there is something else.
        """
        if self.path.is_symlink() and not self.path.exists():
            raise UserError(f"{self.path} is a broken link; give another directory")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give another directory")
        files.check_place(self.path)
        if (self.path / "recipe.yaml").exists() or not self.path.exists():
            return
        if not all(files.is_leftover(entry) for entry in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and not a run; give another directory")

    def check_data(self, data: Sequence[DataIdentity]) -> None:
        """What is in the directory was made with these data.

        Raises:
            UserError: with others.
        """
        starts = read_starts(self.path)
        recorded = (starts[-1].get("data") if starts else None) or {}
        for wanted in data:
            found = recorded.get(wanted.split)
            identity = None if found is None else DataIdentity.model_validate(found)
            check_same_data(identity, wanted, f"the results in {self.path}")

    def check_models(self, digests: Mapping[str, str]) -> None:
        """What is in the directory was made with the models that the recipe names as they are now.

        Raises:
            UserError: one of them has got other weights.
        """
        starts = read_starts(self.path)
        recorded = (starts[-1].get("models") if starts else None) or {}
        changed = [name for name, digest in digests.items() if recorded.get(name, digest) != digest]
        if changed:
            raise UserError(
                f"the recipe's {changed[0]} has other weights than when {self.path} was made with it: put those "
                "back, or give another directory"
            )

    def _check_precision(self, recipe: AnyRecipe, environment: dict[str, Any]) -> None:
        starts = read_starts(self.path)
        before, now = starts[-1].get("precision") if starts else None, environment.get("precision")
        chosen = getattr(recipe, "training").precision  # noqa: B009 - a recipe of a run or of a single training
        if before is not None and before != now and chosen == "auto":
            raise UserError(
                f"{self.path} was computed in {before} so far, and `precision: auto` is {now} on this machine, which "
                f"would change the weights: set `training.precision` to the one that is meant (fp32 or bf16)"
            )

    def close(self) -> None:
        """Release the lock; so does the end of this program, whatever ends it."""
        if self.held is not None:
            os.close(self.held)
            self.held = None

    def hold(self) -> None:
        """Lock the directory until `close`.

        Raises:
            UserError: another process has it.
        """
        if self.held is None:
            self.held = files.lock(self.path)

    def _take_back(self, made: list[Path]) -> None:
        """Remove what `open` and `record` have written, if there is nothing else."""
        if not self.path.exists():  # even that could not be made
            return
        for path in self.path.rglob("*"):
            bare = path.parent == self.path and path.name in BARE
            if not (bare or path.is_dir() or files.is_leftover(path)):
                return
        for path in self.path.iterdir():
            rmtree(path) if path.is_dir() else path.unlink()
        for place in made:
            with suppress(OSError):  # somebody else has put something there
                place.rmdir()

    def _found(self, names: Sequence[str]) -> list[Path]:
        """What is of these names, in this directory or that of a training in it."""
        return [path for place in ("", "*/") for name in names for path in self.path.glob(place + name)]

    def record(self, phase: Phase, number: int, summary: Summary) -> None:
        """Say how far the run is."""
        files.write_json(self.path / "summary.json", summary.model_dump(mode="json"))
        state = State(phase=phase, round=number, verdict=summary.verdict)
        files.write_json(self.path / "state.json", state.model_dump(mode="json"))

    def read_summary(self) -> Summary:
        """The figures that `record` wrote last."""
        return _read(Summary, self.path / "summary.json")


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """What each start of a run recorded, the last one last; of a run of version 0.1 the first start only."""
    path = directory / STARTS
    old = directory / "environment.json"
    if not path.exists() and not old.exists():
        return []
    lines = path.read_text("utf-8").splitlines() if path.exists() else [old.read_text("utf-8")]
    try:
        starts = [json.loads(line) for line in lines]
        if all(isinstance(start, dict) for start in starts):
            return starts
    except ValueError:
        pass
    raise UserError(f"{path if path.exists() else old} is damaged: each line must be one JSON object")


_R = TypeVar("_R", bound=Record)


def _read(kind: type[_R], path: Path) -> _R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged or missing, so the run cannot be resumed: {reason}") from error
