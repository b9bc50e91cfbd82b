"""Recipes: what a run is made of, as YAML, checked before anything runs.

Every setting and every default of the program stands here and nowhere else. A recipe with an unknown key or
a value of the wrong type is refused in one sentence that names the key. The hyper-parameters' defaults are
the paper's for GPT-2 (section 4 and the official configuration files).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Auto = Literal["auto"]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """A part of a recipe: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Settings):
    """The tokens that are trained on and validated on."""

    path: Path
    """Folder with token shards (`inheritune prepare`), or with nanoGPT's `train.bin` and `val.bin`."""
    window: Count = 1024
    """Tokens of context in each training and validation window."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """Windows in a fresh random order every epoch, or in the order of the text."""
    verify: bool = True
    """Compare the shards' checksums with the manifest before the run starts."""


class Optimizer(Settings):
    """AdamW. Embeddings, norms and biases are not decayed."""

    learning_rate: Positive = 3e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Positive = 1.0
    """Largest global norm of the gradient; larger ones are scaled down to it."""


class Schedule(Settings):
    """Learning rate over the steps: a linear warm-up, then one of two shapes."""

    kind: Literal["cosine", "warmup-stable-decay"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 2000
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps that `warmup-stable-decay` spends on its linear decay."""


class Validation(Settings):
    """When the loss on held-out windows is measured; the end of training always is, on all windows."""

    every: Count | Auto = "auto"
    """Steps between validations; `auto` keeps their cost near 2.5% of training."""
    windows: Count | Literal["all"] = "all"
    """How many windows a validation *during* training reads, spread evenly over the split."""


class Checkpoints(Settings):
    """Where an interrupted run goes on from."""

    every: Count | Auto = "auto"
    """Steps between checkpoints; `auto` makes twenty a training."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many are kept; at least two, so that one good one is left if the newest is damaged."""


class Training(Settings):
    """One training: of the reference, of one round, or of a single model."""

    steps: Count = 100_000
    tokens_per_step: Count = 49_152
    micro_batch: Count | Auto = "auto"
    """Windows in one forward pass; `auto` takes as many as memory comfortably holds."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Auto | Literal["cpu", "cuda"] = "auto"
    precision: Auto | Literal["bf16", "fp32"] = "auto"
    """Autocast type; `auto` is bf16 where the hardware computes in it. Weights and optimizer stay float32."""
    compile: bool | Auto = "auto"
    """`torch.compile` the forward and backward pass; `auto` does so on a GPU only."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    log_every: Count = 10
    """Steps between two lines of `metrics.jsonl`."""
    gradient_norms: bool = False
    """Record the gradient norm of every layer's query and key weights at each validation."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project of Weights & Biases to log to (needs the extra `wandb`)."""

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Training:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be below steps ({self.steps})"
            )
        return self


class ModelSource(Settings):
    """A model: trained already (`pretrained`), or made from random weights (`architecture`)."""

    pretrained: str | None = None
    """A Hugging Face model id, or the folder of a checkpoint in that format."""
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: dict[str, Any] | None = None
    """`preset:` (one of the paper's GPT-2 sizes) or `model_type:` (any of transformers'), and fields of that
    type's configuration that differ from its defaults."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if (self.pretrained is None) == (self.architecture is None):
            raise ValueError(
                "give either `pretrained` (a trained model) or `architecture` (made from random weights)"
            )
        if self.architecture is not None and ("preset" in self.architecture) == (
            "model_type" in self.architecture
        ):
            raise ValueError("`architecture` needs either `preset` or `model_type`")
        return self


class Reference(ModelSource):
    """The large model. With `architecture` it is trained first."""

    training: Training | None = None
    """What differs from the recipe's `training`; only for a reference that is trained here."""
    training_tokens: Count | None = None
    """Tokens a pretrained reference was trained on, if known: the cost to parity is told relative to it."""

    @model_validator(mode="after")
    def _training_has_a_use(self) -> Reference:
        if self.pretrained is not None and self.training is not None:
            raise ValueError("a `pretrained` reference is not trained, so it takes no `training`")
        if self.architecture is not None and self.training_tokens is not None:
            raise ValueError("`training_tokens` is for a `pretrained` reference; here `training` tells it")
        return self


class Grow(Settings):
    """What happens after a round that did not reach parity (Algorithm 1, step 3)."""

    mode: Literal["reinherit", "append"] = "reinherit"
    """`reinherit` cuts n + `layers` layers from the reference again (the paper's experiments); `append` keeps
    the trained layers and adds the reference's next ones on top."""
    layers: Count = 2
    max_rounds: Count = 20


class Parity(Settings):
    """When the small model counts as being as good as the reference."""

    margin: float = 0.0
    """Nats per token by which the small model's mean validation loss may exceed the reference's."""
    stop_at_parity: bool = False
    """End a round as soon as a validation during training shows parity (on the windows that it reads)."""


class Samples(Settings):
    """Continuations of both models, for the report."""

    prompts: tuple[str, ...] = ()
    """Texts to continue; if there are none, the beginnings of three validation documents."""
    tokens: Count = 48


class Initialization(Settings):
    """Which part of a pretrained model a single model starts from."""

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Blocks to take, from 0, in this order: the last ones, every other one, ..."""
    random_blocks: bool = False
    """As many blocks, but with random weights; embeddings, final norm and head are still the model's."""


class TrainRecipe(Settings):
    """One model, trained: what `inheritune train` takes."""

    name: str = "training"
    data: Data
    model: ModelSource
    initialization: Initialization | None = None
    """Part of the pretrained `model` to start from; by default all of it."""
    training: Training = Training()

    @model_validator(mode="after")
    def _parts_of_something(self) -> TrainRecipe:
        if self.initialization is not None and self.model.pretrained is None:
            raise ValueError("`initialization` takes layers of a `pretrained` model, and `model` names none")
        return self


class Recipe(Settings):
    """The whole of Algorithm 1: what `inheritune run` takes."""

    name: str = "inheritune"
    data: Data
    reference: Reference
    start_layers: Count | Literal["half", "auto"] = "half"
    """Layers of the first round; `half` is the paper's k/2, `auto` as many as keep every layer of the reference
    whose attention is not lazy."""
    training: Training = Training()
    """Every round's training; the reference's too, except for what `reference.training` sets."""
    grow: Grow = Grow()
    parity: Parity = Parity()
    samples: Samples = Samples()

    @model_validator(mode="before")
    @classmethod
    def _reference_is_trained_alike(cls, values: Any) -> Any:
        """Fill `reference.training` with `training`: the paper trains both with the same hyper-parameters."""
        if not isinstance(values, Mapping) or not isinstance(values.get("reference"), Mapping):
            return values
        reference = values["reference"]
        shared, own = values.get("training") or {}, reference.get("training") or {}
        if "architecture" in reference and isinstance(shared, Mapping) and isinstance(own, Mapping):
            return {**values, "reference": {**reference, "training": _merge(shared, own)}}
        return values


AnyRecipe = TypeVar("AnyRecipe", Recipe, TrainRecipe)


def load_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """Read and check a recipe file.

    Raises:
        ValueError: one sentence that names the file, the key, and what would be right.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it must be a mapping with the keys {_known(kind)}")
    return parse_recipe(values, kind, origin=str(path))


def parse_recipe(values: Mapping[str, Any], kind: type[AnyRecipe], origin: str = "recipe") -> AnyRecipe:
    """Check a recipe given as plain values; errors as in `load_recipe`, with `origin` as the file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_explain(error, kind)}") from None


def to_yaml(recipe: BaseModel) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """One line `key: old -> new` for each setting in which two recipes differ."""
    before, after = dict(_flatten(old.model_dump(mode="json"))), dict(_flatten(new.model_dump(mode="json")))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)
    ]


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first mistake, as one sentence."""
    by_key: dict[str, list[Any]] = {}
    for entry in error.errors():
        path = [str(part) for part in entry["loc"] if str(part) in _all_keys(kind)]  # no union branches
        if entry["type"] == "extra_forbidden":
            path.append(str(entry["loc"][-1]))
        by_key.setdefault(".".join(path), []).append(entry)
    # What is wrong in `training` is wrong in the reference's copy of it too: told once.
    copies = {f"reference.{key}" for key in by_key}
    by_key = {key: entries for key, entries in by_key.items() if key not in copies}
    # An unknown key is told first: a misspelt key is also a missing one.
    key, entries = min(by_key.items(), key=lambda item: item[1][0]["type"] != "extra_forbidden")
    more = f" (and {len(by_key) - 1} more)" if len(by_key) > 1 else ""
    first = entries[0]
    if first["type"] == "extra_forbidden":
        *parents, name = key.split(".")
        known = _keys_at(kind, parents)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"known keys are {', '.join(known)}"
        return f"unknown key `{key}`; {hint}{more}"
    if first["type"] == "missing":
        return f"the key `{key}` is missing{more}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    wishes = " or ".join(entry["msg"].removeprefix("Input should be ") for entry in entries)
    return f"`{key}` is {first['input']!r}, but should be {wishes}{more}"


def _all_keys(kind: type[BaseModel]) -> set[str]:
    """Every key that a recipe knows, at any depth."""
    keys = set(kind.model_fields)
    for name in kind.model_fields:
        for candidate in _models_in(kind, name):
            keys |= _all_keys(candidate)
    return keys


def _models_in(kind: type[BaseModel], field: str) -> list[type[BaseModel]]:
    annotation = kind.model_fields[field].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The keys a recipe knows at this place."""
    for part in path:
        kind = _models_in(kind, part)[0]
    return list(kind.model_fields)


def _known(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)
