"""Recipes: what a run is made of, checked before anything runs.

Every setting and every default of the program is here and nowhere else. The hyper-parameters' defaults are
the paper's for GPT-2 (section 4 and the official configuration files). `recipe_file` reads and writes them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from inheritune import UserError
from inheritune.plain_yaml import shown


def _no_flag(value: Any) -> Any:
    """YAML's `yes` is no number."""
    if isinstance(value, bool):
        raise UserError(f"it is {str(value).lower()}, but should be a number")
    return value


def _writable(value: Any) -> Any:
    """A name as file systems and the hub can have it."""
    if isinstance(value, str):
        odd = any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
        if odd or not value.strip() or any(len(p.encode()) > LONGEST_NAME for p in value.split("/")):
            raise UserError("it is empty, too long, or has characters that no name can have")
    return value


def _folder(value: str) -> str:
    """By default it is the name of the directory in `runs`."""
    if "/" in value or "\\" in value or value in (".", ".."):
        raise UserError(f"it is {shown(value)}, but should be the name of one folder, without slashes")
    return value


def _short(value: str) -> str:
    """It is part of the name of a file, of a key and of a sentence."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
        raise UserError(
            f"the name {shown(value)} of a text should be up to 64 letters, digits, - or _, such as wikitext"
        )
    return value


def _storable(value: JsonValue) -> JsonValue:
    """Numbers as files can hold them."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"there is {shown(value)} in it, which is too large")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _storable(part)
    return value


def _pattern(words: str) -> Any:
    """For the JSON schema: what a text looks like that a validator takes."""
    return Field(json_schema_extra={"pattern": f"^({words})$"})


LONGEST_NAME = 255
"""Bytes of a file's name."""

Auto = Literal["auto"]
Integer = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]
Count = Annotated[Integer, Field(gt=0, le=10**15)]
"""Bounds are far beyond what makes sense, and below what overflows a type of torch's or fills a machine's memory."""
Depth = Annotated[Integer, Field(gt=0, le=10_000)]
"""Layers, or rounds."""
Block = Annotated[Integer, Field(ge=0, le=10_000)]
SEEDS = 2**63
Seed = Annotated[Integer, Field(ge=0, lt=SEEDS)]
Positive = Annotated[Number, Field(gt=0, le=1e30)]
Seconds = Annotated[Number, Field(gt=0, le=1e9)]
NotNegative = Annotated[Number, Field(ge=0, le=1e30)]
Word = Annotated[str, BeforeValidator(_writable)]
Values = Annotated[dict[str, JsonValue], AfterValidator(_storable)]
Name = Annotated[Word, AfterValidator(_folder)]
Location = Annotated[Path, BeforeValidator(_writable)]
TextName = Annotated[str, AfterValidator(_short)]
Float8 = Annotated[
    bool | Literal["tensorwise", "rowwise"], AfterValidator(lambda how: how == "tensorwise" or how)
]
"""Read, `tensorwise` is true: one setting in every checkpoint."""


def check_seed(seed: Any) -> None:
    """UserError unless recipes could have this seed."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < SEEDS:
        raise UserError(f"seed is {shown(seed)}, but should be a whole number from 0 to 2**63 - 1")


class Settings(BaseModel):
    """A part of a recipe: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Data(Settings):
    """The tokens that are trained on and validated on."""

    path: Location
    """Folder with token shards (`inheritune prepare`), or with nanoGPT's `train.bin` and `val.bin`."""
    window: Annotated[Count, Field(le=2**24)] = 1024
    """Tokens of context in each training and validation window."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """Windows in a fresh random order every epoch, or in the order of the text."""
    tokens: Count | None = None
    """Train on a fixed random sample of the windows, of at most so many tokens, epoch after epoch; by default on
    all of them."""
    bos: str = "auto"
    """Token that models read in front of every text and window: by its name, such as `<bos>`; `none`; or `auto`,
    what the shards' manifest says, which is what their tokenizer adds by itself."""
    verify: bool = True
    """Compare the shards' checksums with the manifest before the run starts."""
    ignore_tokenizer: bool = False
    """Accept tokens of another tokenizer than the model's; by default the two are compared."""


class Optimizer(Settings):
    """AdamW. Embeddings, norms and biases are not decayed."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the matrices of the blocks by Muon, at the same learning rate, and leaves the rest to AdamW: for
    random weights (a GPT-2 needed 3.6 times fewer steps), not for layers of a model that AdamW trained (worse by 0.15
    nats). It needs whole matrices, so it does not go with `fsdp`."""
    learning_rate: Positive | Auto = 3e-4
    """After the warm-up; the schedule goes down from it. `auto` (of `inheritune run`, from 50 steps on) is found by
    short trainings of the first cut, with `start_layers: auto` of half of the layers."""
    beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    gradient_clip: Positive = 1.0
    """Largest global norm of the gradient; larger ones are scaled down to it."""

    @property
    def peak(self) -> float:
        """The learning rate, once it is known."""
        assert self.learning_rate != "auto", "it is found before anything else trains"
        return self.learning_rate


class Schedule(Settings):
    """Learning rate over the steps: a linear warm-up, then one of two shapes."""

    kind: Literal["cosine", "warmup-stable-decay"] = "cosine"
    warmup_steps: Annotated[Integer, Field(ge=0)] = 2000
    """Where it is left out and there are 2,000 steps or fewer, a tenth of them."""
    final_learning_rate: NotNegative = 1e-5
    """Where it is left out and `optimizer.learning_rate` is below it, a tenth of that; with `auto`
    a tenth at most."""
    decay_fraction: Annotated[Number, Field(gt=0, le=1)] = 0.2
    """Share of the steps that `warmup-stable-decay` spends on its linear decay."""


class Validation(Settings):
    """When the loss on held-out windows is measured; the end of training always is, on all windows."""

    every: Count | Auto = "auto"
    """Steps between validations; `auto` keeps their cost near 2.5% of training."""
    windows: Count | Literal["all"] = "all"
    """How many windows a validation *during* training reads, spread evenly over the split."""


class Checkpoints(Settings):
    """What an interrupted run resumes from."""

    every: Count | Auto = "auto"
    """Steps between checkpoints; `auto` makes twenty a training."""
    keep: Annotated[Count, Field(ge=2)] = 2
    """How many are kept; at least two, so that one good one is left if the newest is damaged."""


class Parallel(Settings):
    """How the processes that `torchrun` starts share a training. One process alone needs none of it."""

    strategy: Auto | Literal["ddp", "fsdp"] = "auto"
    """`ddp` holds the whole model in every process, `fsdp` a share of every weight; `auto` takes `ddp` where the
    model, its gradients and its optimizer fit in half of a device's memory."""
    backend: Word = "auto"
    """What carries tensors between processes: `auto` is gloo on CPUs and nccl on GPUs."""
    join_seconds: Seconds = 300
    """How long a process waits at the start until all others are there."""
    timeout_seconds: Seconds = 1800
    """How long a process waits for the others later, before it takes them for lost."""


LAYERS = re.compile(
    r"(first|last|middle|ends|spread|every) [1-9]\d{0,5}|(-?\d{1,6})?:(-?\d{1,6})?(:0*[1-9]\d{0,5})?",
    re.ASCII,
)
"""How layers can be named in words; `initialization.layers` says what they mean."""

LAYERS_EXPLAINED = (
    "a list of block numbers, a slice such as '0:24:2', or "
    "'first N', 'last N', 'middle N', 'ends N', 'spread N' or 'every N'"
)


MEASURED = re.compile(r"(measured|contiguous) [1-9]\d{0,5}", re.ASCII)
"""How layers can be named in words that stand for other ones in each model: what they are is measured."""

Keep = Literal["first", "last", "ends", "spread", "contiguous", "measured"] | tuple[Block, ...]
"""Which layers a cut keeps, whatever their number: a rule, or the blocks themselves."""


Narrow = Literal["importance", "first"]
"""Which parts of the width a narrower model keeps."""


class Tracking(Settings):
    """Where the lines of `metrics.jsonl` are copied to."""

    tensorboard: bool = True
    """Event files in the directory of the training."""
    wandb: Word | None = None
    """Project of Weights & Biases (needs the extra `wandb`)."""
    trackio: Word | None = None
    """Project of trackio, by default in a database on this machine (needs the extra `trackio`)."""


class Training(Settings):
    """One training: of the reference, of one round, or of a single model."""

    steps: Count = 100_000
    tokens_per_step: Annotated[Count, Field(le=2**27)] = 49_152
    micro_batch: Count | Auto = "auto"
    """Windows in one forward pass; `auto` takes up to 8,192 tokens on a CPU, and on a GPU 24,576 if they fit."""
    seed: Seed = 0
    device: Auto | Literal["cpu", "cuda"] = "auto"
    precision: Auto | Literal["bf16", "fp32"] = "auto"
    """Autocast type; `auto` is bf16 where the hardware computes in it. Weights and optimizer stay float32."""
    dtype: Auto | Literal["float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in the model that is left behind, which its losses on all windows are measured with; `auto`
    is the type of the pretrained model that they come from, and float32 of a model made here."""
    compile: bool | Auto = "auto"
    """`torch.compile` the forward and backward pass; `auto` does so on a GPU only."""
    deterministic: bool = False
    """On a GPU, use kernels that add in a fixed order: a recipe gives the same weights again, stopped or not, at 0.7
    to 0.95 of the speed. On a CPU it always does."""
    float8: Float8 = False
    """Multiply in float8 in the blocks' linear layers (needs the extra `fp8` and a GPU that can): scaled by the
    largest value of each tensor (`tensorwise`, or true) or of each row and column (`rowwise`: outliers cost less).
    Faster from a hidden size of about 1,600 on: on an H200 1.1 times there, 1.3 times at 3,200; slower at 1,024. By
    rows it pays later: 0.9 times at 1,600, 1.1 times at 3,200."""
    parallel: Parallel = Parallel()
    """Also as one word: `parallel: fsdp`."""
    activation_checkpointing: Annotated[str, _pattern(f"none|all|{LAYERS.pattern}")] | tuple[Block, ...] = (
        "none"
    )
    """Blocks whose activations are made again in the backward pass instead of kept: less memory, a third more
    work. All of them, or some, named as in `initialization.layers`."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    log_every: Count = 10
    """Steps between two lines of `metrics.jsonl`."""
    gradient_norms: bool = False
    """Record the gradient norm of every layer's query and key weights at each validation."""
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _tracking_in_one_place(cls, values: Any) -> Any:
        """Recipes of version 0.1 have `tensorboard` and `wandb` here."""
        if not isinstance(values, Mapping) or not (old := values.keys() & {"tensorboard", "wandb"}):
            return values
        tracking = values.get("tracking", {})
        if not isinstance(tracking, Mapping):
            return values
        if twice := sorted(old & tracking.keys()):
            raise UserError(f"`{twice[0]}` is given twice: keep that in `tracking`")
        rest = {key: value for key, value in values.items() if key not in old}
        return {**rest, "tracking": {**tracking, **{key: values[key] for key in old}}}

    @field_validator(
        "parallel", mode="before", json_schema_input_type=Parallel | Auto | Literal["ddp", "fsdp"]
    )
    @classmethod
    def _strategy_alone(cls, value: Any) -> Any:
        return {"strategy": value} if isinstance(value, str) else value

    @field_validator("activation_checkpointing")
    @classmethod
    def _blocks_are_named(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("none", "all") and not LAYERS.fullmatch(value):
            raise UserError(f"it is {shown(value)}, but should be none, all, {LAYERS_EXPLAINED}")
        return value

    @model_validator(mode="after")
    def _schedule_fits(self) -> Training:
        schedule, peak = self.schedule, self.optimizer.learning_rate
        fitting: dict[str, float] = {}
        mistakes = []
        if schedule.warmup_steps >= self.steps:
            fitting["warmup_steps"] = self.steps // 10
            if "warmup_steps" in schedule.model_fields_set:
                mistakes.append(
                    f"schedule.warmup_steps ({schedule.warmup_steps}) must be below steps ({self.steps})"
                )
        if peak != "auto" and schedule.final_learning_rate > peak:
            fitting["final_learning_rate"] = peak / 10
            if "final_learning_rate" in schedule.model_fields_set:
                mistakes.append(
                    f"schedule.final_learning_rate ({schedule.final_learning_rate}) must not be above "
                    f"optimizer.learning_rate ({peak})"
                )
        if mistakes:
            raise UserError("; ".join(mistakes))
        # Written down, so that a resolved recipe says what was done.
        object.__setattr__(self, "schedule", schedule.model_copy(update=fitting))
        return self

    def with_rate(self, rate: float) -> Training:
        """The same training at this learning rate; in the end a tenth of it, or what is set if that is less."""
        final = min(self.schedule.final_learning_rate, rate / 10)
        return self.model_copy(
            update={
                "optimizer": self.optimizer.model_copy(update={"learning_rate": rate}),
                "schedule": self.schedule.model_copy(update={"final_learning_rate": final}),
            }
        )


@dataclass(frozen=True)
class Pretrained:
    """A trained model as it is named: a Hugging Face id or a checkpoint's folder, and how that is to be read."""

    name: str | Path
    revision: str | None = None
    """Branch, tag or commit of an id."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        if not str(self.name).strip():
            raise UserError("no model is named: the name is empty")

    def __str__(self) -> str:
        return str(self.name)

    @classmethod
    def of(
        cls, model: Pretrained | str | Path, revision: str | None = None, trust_remote_code: bool = False
    ) -> Pretrained:
        """A model that may be given by its name alone.

        Raises:
            UserError: it is something else than a name.
        """
        if not isinstance(model, Pretrained | str | Path):
            raise UserError(
                f"a {type(model).__name__} is not a model that is understood: give a causal language model of "
                "transformers, its Hugging Face id, or the folder of its checkpoint"
            )
        return model if isinstance(model, Pretrained) else cls(model, revision, trust_remote_code)


class ModelSource(Settings):
    """A model: trained already (`pretrained`), or made from random weights (`architecture`)."""

    pretrained: Word | None = None
    """A Hugging Face model id, the folder of a checkpoint in that format, or a GGUF file (needs the extra `gguf`)."""
    revision: Word | None = None
    trust_remote_code: bool = False
    architecture: Values | None = None
    """`preset:` (one of the paper's GPT-2 sizes) or `model_type:` (any of transformers'), and fields of that
    type's configuration that differ from its defaults."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if (self.pretrained is None) == (self.architecture is None):
            raise UserError(
                "give either `pretrained` (a trained model) or `architecture` (made from random weights)"
            )
        if self.architecture is not None and ("preset" in self.architecture) == (
            "model_type" in self.architecture
        ):
            raise UserError("`architecture` needs either `preset` or `model_type`")
        return self

    @property
    def trained(self) -> Pretrained | None:
        """The model that `pretrained` names."""
        return Pretrained(self.pretrained, self.revision, self.trust_remote_code) if self.pretrained else None

    def at(self, folder: Path) -> Pretrained:
        """A checkpoint that was made from this model: what code this one needs, it needs too."""
        return Pretrained(folder, trust_remote_code=self.trust_remote_code)


class Reference(ModelSource):
    """The large model. With `architecture` it is trained first."""

    training: Training | None = None
    """What differs from the recipe's `training`; only for a reference that is trained here."""
    training_tokens: Count | None = None
    """Tokens a pretrained reference was trained on, if known: the cost to parity is relative to it."""

    @model_validator(mode="after")
    def _training_has_a_use(self) -> Reference:
        if self.pretrained is not None and self.training is not None:
            raise UserError("a `pretrained` reference is not trained, so it takes no `training`")
        if self.architecture is not None and self.training_tokens is not None:
            raise UserError("`training_tokens` is for a `pretrained` reference; here `training` sets it")
        if self.training is not None and self.training.optimizer.learning_rate == "auto":
            raise UserError(
                "`training.optimizer.learning_rate: auto` is for the rounds, which start from trained weights: "
                "give the reference one of its own in `reference.training.optimizer`"
            )
        return self


class Grow(Settings):
    """What happens after a round that did not reach parity (Algorithm 1, step 3)."""

    mode: Literal["reinherit", "append"] = "reinherit"
    """`reinherit` cuts n + `layers` layers from the reference again (the paper's experiments); `append` keeps
    the trained layers and adds the reference's next ones on top."""
    layers: Depth = 2
    max_rounds: Depth = 20


class Parity(Settings):
    """When the small model counts as being as good as the reference."""

    margin: Annotated[Number, Field(ge=-1e30, le=1e30)] = 0.0
    """Nats per token by which the small model's mean validation loss may exceed the reference's."""
    stop_at_parity: bool = False
    """End a round as soon as a validation during training shows parity (on the windows that it reads)."""
    also: dict[TextName, Location] = {}
    """Other text on which parity must hold too: name -> folder with token shards, of whose validation split the
    reference and every round are measured on all windows."""
    control: bool = False
    """When growth has ended, train the reference on for the same steps as the round that the verdict is about, and
    compare that round with it too. It does not decide growth, and does not count in the cost to parity."""


class Samples(Settings):
    """Continuations of both models, for the report."""

    prompts: tuple[str, ...] = ()
    """Texts to continue; if there are none, the beginnings of three validation documents."""
    tokens: Annotated[Count, Field(le=100_000)] = 48


Part = Literal["attention", "mlp", "layernorm", "embeddings", "final_norm", "head"]
"""The parts a model's weights belong to: three kinds in every block, and three around the blocks."""
_PART = "|".join(get_args(Part))
JoinedParts = Annotated[str, _pattern(rf"({_PART})(\+({_PART}))*")]


class Initialization(Settings):
    """Which part of a pretrained model a single model starts from. What is not inherited is random."""

    layers: tuple[Block, ...] | Annotated[str, _pattern(f"{LAYERS.pattern}|{MEASURED.pattern}")] | None = None
    """Blocks to take, in this order: their numbers from 0; a Python slice, `"0:24:2"`; or one of `first N`, `last N`,
    `middle N`, `ends N` (all but the middle ones), `spread N` (evenly), `every N` (of `every 2` every other one, as
    DistilBERT does); or one that is measured on the training text: `measured N` (a search for the blocks with the
    lowest loss as they are) or `contiguous N` (all but the consecutive ones that turn the hidden state least). By
    default all."""
    stack_to: Depth | None = None
    """Depth to reach by copying these blocks onto themselves (stacking); a multiple of their number."""
    parts: tuple[Part, ...] | None = None
    """What to inherit of the blocks and of what is around them, as a list, or joined in one word as in
    `attention+layernorm`. By default everything."""
    width: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Share of the hidden size to keep, at full depth, by slicing every weight; 0.5 is the paper's half width."""
    divide: Literal["heads", "head_size"] | None = None
    """What a smaller `width` has fewer of: heads (the default), or dimensions in every head."""
    hidden: Count | None = None
    """Hidden size to come to; by default the model's. This and the next two may be combined with `layers`."""
    heads: Count | None = None
    """Attention heads of each layer; those that share keys and values go together."""
    mlp: Count | None = None
    """Channels of each layer's MLP."""
    narrow: Narrow | None = None
    """Which dimensions, heads and channels are kept: those with the largest activations on the training text
    (`importance`, the default), or the `first` ones."""

    @field_validator("parts", mode="before", json_schema_input_type=tuple[Part, ...] | JoinedParts | None)
    @classmethod
    def _split_parts(cls, value: Any) -> Any:
        return value.split("+") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> Initialization:
        if isinstance(self.layers, str) and not (
            LAYERS.fullmatch(self.layers) or MEASURED.fullmatch(self.layers)
        ):
            raise UserError(
                f"`layers` is {shown(self.layers)}, but should be {LAYERS_EXPLAINED}, 'measured N' or 'contiguous N'"
            )
        for name in ("layers", "parts"):
            if getattr(self, name) == ():
                raise UserError(f"`{name}` is an empty list: nothing would be inherited")
        chosen = [
            name for name in ("layers", "stack_to", "parts", *self.sizes) if getattr(self, name) is not None
        ]
        if self.width is not None and chosen:
            raise UserError(
                f"`width` keeps all layers and parts, so it cannot be combined with `{chosen[0]}`"
            )
        if self.width is None and self.divide is not None:
            raise UserError("`divide` belongs to `width`, which is not given")
        if self.narrow is not None and not self.sizes:
            raise UserError("`narrow` belongs to `hidden`, `heads` or `mlp`, and none of them is given")
        for name in ("stack_to", "parts"):
            if self.sizes and getattr(self, name) is not None:
                raise UserError(f"`{name}` cannot be combined with `{next(iter(self.sizes))}`")
        if self.width is None and not chosen:
            raise UserError(
                "it is empty: give `layers`, `stack_to`, `parts`, `width`, `hidden`, `heads` or `mlp`, or leave "
                "it out"
            )
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """Those of `hidden`, `heads` and `mlp` that are given."""
        given = {"hidden": self.hidden, "heads": self.heads, "mlp": self.mlp}
        return {name: size for name, size in given.items() if size is not None}


class Distillation(Settings):
    """Learn from a teacher's logits too: alpha * KL(teacher || student) + (1 - alpha) * cross entropy."""

    alpha: Annotated[Number, Field(gt=0, le=1)] = 0.6
    temperature: Positive = 1.0
    """Both distributions are softened by it, and the KL term is scaled by its square (Hinton et al., 2015)."""


Draws = Annotated[Integer, Field(ge=1, le=255)]
"""From a teacher's distribution of one next token."""


class TaughtByReference(Distillation):
    """Distillation of every round, from the reference."""

    corrected: bool | Count = False
    """Train the reference on for so many steps of the same text before it teaches, at a quarter of the rounds'
    learning rate; `true`: as many as a round has. Where it does not know the text, it teaches little as it is."""
    draws: Draws | None = None
    """Ask the reference once, at the beginning: of its distribution of every next token so many random draws are kept
    (such as 50), and all rounds and probes learn from those. By default it reads every batch again."""


class Taught(Distillation):
    """Distillation of a single model, which has no reference that could be its teacher."""

    teacher: ModelSource | None = None
    """A pretrained model; by default the one that `initialization` takes its weights from."""
    answers: Location | None = None
    """Folder with a teacher's answers (`inheritune answers`), in the place of the teacher."""

    @model_validator(mode="after")
    def _teacher_knows(self) -> Taught:
        if self.teacher is not None and self.answers is not None:
            raise UserError("give either a `teacher` or its `answers`")
        if self.teacher is not None and self.teacher.pretrained is None:
            raise UserError("a `teacher` must be `pretrained`: one with random weights teaches nothing")
        return self


class TrainRecipe(Settings):
    """One model, trained: what `inheritune train` takes."""

    name: Name = "training"
    data: Data
    model: ModelSource
    initialization: Initialization | None = None
    """Part of the pretrained `model` to start from; by default all of it."""
    distillation: Taught | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _rate_is_known(self) -> TrainRecipe:
        if self.training.optimizer.learning_rate == "auto":
            raise UserError(
                "`training.optimizer.learning_rate: auto` is for `inheritune run`: here give a number"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_something(self) -> TrainRecipe:
        if self.initialization is not None and self.model.pretrained is None:
            raise UserError("`initialization` takes weights of a `pretrained` model, and `model` names none")
        if (
            self.distillation is not None
            and self.distillation.teacher is None
            and self.distillation.answers is None
            and self.model.pretrained is None
        ):
            raise UserError("`distillation` needs a `teacher`, as `model` is not a pretrained one")
        return self


class Asking(Settings):
    """A teacher, asked once about a training text: what `inheritune answers` takes."""

    teacher: ModelSource
    data: Data
    draws: Draws = 50
    """Random draws from its distribution of every next token that are kept."""
    temperature: Positive = 1.0
    """Which distribution: softmax(logits / temperature)."""
    seed: Seed = 0
    device: Auto | Literal["cpu", "cuda"] = "auto"
    precision: Auto | Literal["bf16", "fp32"] = "auto"


class EvaluationSettings(Settings):
    """What to find out about a reference and a small model once they are trained."""

    tasks: tuple[Word, ...] = ()
    """Names of lm-evaluation-harness (needs the extra `eval`), its task YAMLs, or `zero-shot`, `zero-shot-7`,
    `perplexity` and `low-data`, the paper's tables, or `generation`."""
    data: Location | None = None
    """Folder with the tasks' items; by default the harness gets them from the hub."""
    skip_missing: bool = False
    """Leave out tasks that have no items, instead of refusing."""
    shots: Annotated[Integer, Field(ge=0, le=10_000)] | None = None
    """Worked examples before every item; by default as each task has it."""
    limit: Count | None = None
    """Ask only the first so many items of each task; for trying things out."""
    batch_size: Count | None = None
    """Requests in one forward pass; by default as many as have 16,384 tokens on a GPU, 8,192 on a CPU."""
    validation: Location | None = None
    """Folder with token shards, for the loss on all windows of their validation split."""
    window: Count | None = None
    """Tokens of each window; by default 1024, or as many as every model allows."""
    ignore_tokenizer: bool = False
    """Accept validation tokens of another tokenizer than a model's; by default the two are compared."""
    speed: bool = False
    """Time reading and writing, and measure what is kept in memory and on the disk."""
    batches: Annotated[tuple[Annotated[Count, Field(le=2**16)], ...], Field(min_length=1)] = (1, 8)
    """Sequences at once, when timing."""
    samples: bool = False
    """Let the models continue the same texts."""
    prompts: tuple[str, ...] = ()
    """Those texts; by default five of our own."""

    @model_validator(mode="after")
    def _something_to_do(self) -> EvaluationSettings:
        if not (self.tasks or self.validation or self.speed or self.samples):
            raise UserError("it asks for nothing: give `tasks`, `validation`, `speed` or `samples`")
        return self

    def is_in(self, recorded: Mapping[str, Any]) -> bool:
        """Whether an evaluation with these recorded settings has all that these ask for, and asked it so."""
        own = self.model_dump(mode="json")
        keys = ["data", "shots", "limit"] * bool(self.tasks)
        keys += ["validation", "window"] * (self.validation is not None)
        keys += ["speed"] * self.speed + ["samples", "prompts"] * self.samples
        more = ["tasks", "batches"] if self.speed else ["tasks"]
        return all(recorded.get(key) == own[key] for key in keys) and all(
            set(own[key]) <= set(recorded.get(key) or ()) for key in more
        )


class Recipe(Settings):
    """The whole of Algorithm 1: what `inheritune run` takes."""

    name: Name = "inheritune"
    data: Data
    reference: Reference
    keep: Keep | Auto = "auto"
    """Which of the reference's layers a round keeps: a rule, or a list of block numbers for the first round, to which
    growth adds measured ones. `measured` searches for those with the lowest loss before training, on text of the
    training split. `auto` is `measured` for a `pretrained` reference, and for others `first`, as in the paper."""
    start_layers: Depth | Literal["half", "auto"] = "half"
    """Layers of the first round; `half` is the paper's k/2, `auto` the smallest depth from half on whose loss after
    training, as short trainings predict it, is the reference's or lower."""
    training: Training = Training()
    """Every round's training; the reference's too, except for what `reference.training` sets."""
    search: Literal["paper", "frugal"] = "paper"
    """How the depth is searched for. `paper` trains every round in full (Algorithm 1). `frugal` ends a round as soon
    as it is decided: the learning rate decays several times, and where it has, the model is the result if it is as
    good; where it is not expected to be as good after all steps, it grows (by default by `append`)."""
    grow: Grow = Grow()
    distillation: TaughtByReference | None = None
    """Train every round with the reference as teacher."""
    parity: Parity = Parity()
    samples: Samples = Samples()
    evaluation: EvaluationSettings | None = None
    """Evaluate the reference and the final model at the end."""

    @model_validator(mode="before")
    @classmethod
    def _keep_is_a_rule(cls, values: Any) -> Any:
        """Write down what `auto` stands for."""
        if not isinstance(values, Mapping) or values.get("keep", "auto") != "auto":
            return values
        reference = values.get("reference")
        pretrained = isinstance(reference, Mapping) and reference.get("pretrained") is not None
        return {**values, "keep": "measured" if pretrained else "first"}

    @model_validator(mode="after")
    def _frugal_decides(self) -> Recipe:
        if self.search == "frugal" and self.parity.stop_at_parity:
            raise UserError(
                "`search: frugal` ends rounds at parity by itself: leave `parity.stop_at_parity` out"
            )
        if self.search == "frugal" and self.training.schedule.kind == "cosine":
            raise UserError(
                "`search: frugal` cools a model several times, so `training.schedule.kind` cannot be cosine: leave it"
                " out, or set it in `reference.training`"
            )
        return self

    @model_validator(mode="after")
    def _rates_can_be_tried(self) -> Recipe:
        if self.training.optimizer.learning_rate == "auto" and self.training.steps < LEAST_FOR_RATES:
            raise UserError(
                f"`training.optimizer.learning_rate: auto` tries rates for a tenth of the steps, and "
                f"{self.training.steps} are too few for that: give a number, or {LEAST_FOR_RATES} steps"
            )
        return self

    @model_validator(mode="after")
    def _depths_can_be_tried(self) -> Recipe:
        if self.start_layers == "auto" and self.training.steps < LEAST_FOR_DEPTHS:
            raise UserError(
                "`start_layers: auto` tries depths for up to a fifth of the steps, in three lengths, and "
                f"`training.steps` of {self.training.steps} are too few for that: give a number, or "
                f"{LEAST_FOR_DEPTHS} steps"
            )
        return self

    @model_validator(mode="after")
    def _growth_keeps_what_there_is(self) -> Recipe:
        if self.grow.mode == "append" and self.keep == "spread":
            raise UserError(
                "`keep: spread` has other layers at each depth, so `grow.mode: append` cannot keep them"
            )
        if not isinstance(self.keep, str) and self.start_layers not in (len(self.keep), "half"):
            raise UserError(
                f"`keep` lists {len(self.keep)} layers, but `start_layers` is {self.start_layers}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _reference_is_trained_alike(cls, values: Any) -> Any:
        """Fill `reference.training` with `training`: the paper trains both with the same hyper-parameters.

        Then write down what a frugal search does in its rounds, unless the recipe says otherwise.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("reference"), Mapping):
            return values
        reference = values["reference"]
        shared, own = values.get("training") or {}, reference.get("training")
        own = {} if own is None else own
        if (
            reference.get("architecture") is not None
            and isinstance(shared, Mapping)
            and isinstance(own, Mapping)
        ):
            values = {**values, "reference": {**reference, "training": merge(shared, own)}}
        return merge(FRUGAL, values) if values.get("search") == "frugal" else values


LEAST_FOR_RATES = 50
"""Steps of a round whose learning rate is found."""
LEAST_FOR_DEPTHS = 4
"""Steps of a round where the first depth is found."""

FRUGAL = {
    "grow": {"mode": "append"},
    "training": {"schedule": {"kind": "warmup-stable-decay", "decay_fraction": 0.4}},
}
"""What `search: frugal` stands for beside the search itself, unless a recipe says otherwise."""

DECIDES_WEIGHTS = (
    *(f"data.{name}" for name in ("window", "order", "tokens")),
    *(
        f"{model}.{name}"
        for model in ("model", "reference")
        for name in ("pretrained", "revision", "architecture")
    ),
    *("initialization", "keep", "start_layers", "search", "grow", "distillation"),
    *("parity.margin", "parity.stop_at_parity", "parity.also"),
    *(f"training.{name}" for name in ("steps", "tokens_per_step", "seed", "float8", "optimizer", "schedule")),
)
"""The settings that decide a run's weights, beside the identity of its data and the precision that was chosen: a run
resumes with any other setting changed. How a training is spread over processes and micro-batches shows in the last
bits only."""


class Study(Settings):
    """Runs that belong together, such as a table of the paper: what `inheritune study` takes."""

    name: Name = "study"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds of the trainings: the first one of all rows, the others of the `headline` rows and what they need."""
    headline: tuple[str, ...] = ()
    reference: str
    """The row that all others are compared with."""
    shared: Values = {}
    """What the recipes of all rows have in common."""
    rows: Annotated[dict[str, Values], Field(min_length=1)]
    """Name -> a recipe, for `inheritune run` if it has a `reference` and for `inheritune train` if it has a `model`.
    Where a recipe names a pretrained model, `row: NAME` is the result of another row. With `flops_of: [NAME, ...]`
    a row trains for as many steps as all those rows' FLOPs pay for."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise UserError("a seed is given twice, and its runs would be in the same directories")
        return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a recipe with some of them changed, at any depth."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
