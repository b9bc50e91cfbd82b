"""Recipes as YAML files: read, written, compared, and refused in one sentence that names the key."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from inheritune import UserError, plain_yaml
from inheritune.config import DECIDES_WEIGHTS, Recipe, Settings, Study, Training, TrainRecipe, merge
from inheritune.plain_yaml import shown

AnyRecipe = TypeVar("AnyRecipe", bound=Settings)

MOST_MISTAKES = 10
"""In one message."""

UNKNOWN = "extra_forbidden"
"""Pydantic's word for a key that it does not know."""

POSSIBLE, SURE = 0.5, 0.75
"""Likeness to a known key, from which on an unknown one may be, and must be, that key misspelt."""


def load_recipe(path: Path, kind: type[AnyRecipe], settings: Sequence[str] = ()) -> AnyRecipe:
    """Read and check a recipe file.

    Args:
        path: of the file.
        kind: what it should be.
        settings: `KEY=VALUE` that take the place of what the file says, as `with_settings` has them.

    Raises:
        UserError: one sentence that names the file, the key, and what would be right.
    """
    return parse_recipe(with_settings(plain_yaml.read(path), settings), kind, origin=str(path))


def load_any(path: Path, settings: Sequence[str] = ()) -> Recipe | TrainRecipe | Study:
    """Read and check a file that is a recipe of any kind, recognized by `rows`, `model` or neither of them."""
    return parse_any(with_settings(plain_yaml.read(path), settings), str(path))


def parse_any(values: Any, origin: str = "recipe") -> Recipe | TrainRecipe | Study:
    """The same of plain values; `origin` as of `parse_recipe`."""
    keys = values if isinstance(values, Mapping) else ()
    kind: type[Recipe | TrainRecipe | Study] = (
        Study if "rows" in keys else TrainRecipe if "model" in keys else Recipe
    )
    return parse_recipe(values, kind, origin)


def parse_recipe(values: Mapping[str, Any], kind: type[AnyRecipe], origin: str = "recipe") -> AnyRecipe:
    """Check a recipe given as plain values; errors as in `load_recipe`, with `origin` as the file."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{origin} is not a recipe: it must be a mapping with the keys {', '.join(kind.model_fields)}"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(_all_errors(error, values, kind), kind)}") from None


def with_settings(values: Any, settings: Sequence[str]) -> Any:
    """Plain values of a recipe with some of them set.

    Args:
        values: of the recipe.
        settings: `KEY=VALUE` each: the full key, such as `training.optimizer.beta1`, and a value in YAML.

    Raises:
        UserError: one is not of this form; what it sets is checked with the recipe.
    """
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not all(key.split(".")):
            raise UserError(f"--set {shown(setting)} is no KEY=VALUE, such as training.steps=1000")
        value = plain_yaml.parse_named(text, f"--set {shown(setting)} has no value in YAML")
        if isinstance(values, Mapping):
            values = merge(values, _nested(key, value, values))
    return values


def _nested(key: str, value: Any, known: Any) -> dict[str, Any]:
    """The value at its place; a name of a row may have dots in it."""
    parts = key.split(".")
    heads = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    head = next((head for head in heads if isinstance(known, Mapping) and head in known), parts[0])
    rest = key[len(head) + 1 :]
    return {
        head: _nested(rest, value, known.get(head) if isinstance(known, Mapping) else None) if rest else value
    }


def to_yaml(recipe: BaseModel) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    return plain_yaml.dump(recipe.model_dump(mode="json"))


def short_values(recipe: Settings) -> dict[str, Any]:
    """Plain values that are read back as this recipe, without what is filled in then.

    What is filled in may be another value than the schema's default: of `reference.training` that of `training`.
    """
    whole = recipe.model_dump(mode="json")
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    try:
        again = parse_recipe(values, type(recipe))
        values = merge(values, _changed(again.model_dump(mode="json"), whole))
        return values if parse_recipe(values, type(recipe)) == recipe else whole
    except UserError:
        return whole


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Of plain values those that were others before, or not there."""
    found = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and old != value:
            found[key] = _changed(old, value)
        elif old != value:
            found[key] = value
    return found


def settings_of(recipe: BaseModel) -> dict[str, Any]:
    """Every setting of a recipe, or of a `training` alone, by its full key, such as `training.optimizer.beta1`."""
    prefix = "training." if isinstance(recipe, Training) else ""
    return dict(flatten(recipe.model_dump(mode="json"), prefix))


def deciding_settings(recipe: BaseModel) -> dict[str, Any]:
    """Those of `settings_of` that decide the weights.

    Other text counts by its name, and a teacher's answers are known by their contents: their folders may move.
    """
    deciding = {key: value for key, value in settings_of(recipe).items() if _decides(key)}
    deciding.pop("parity.also", None)  # there is none
    moves = ("parity.also.", "distillation.answers")
    return {k: "given" if k.startswith(moves) and v is not None else v for k, v in deciding.items()}


def _decides(key: str) -> bool:
    key = key.removeprefix("reference.") if key.startswith("reference.training.") else key
    return any(key == name or key.startswith(f"{name}.") for name in DECIDES_WEIGHTS)


def differences(
    old: BaseModel, new: BaseModel, settings: Callable[[BaseModel], dict[str, Any]] = deciding_settings
) -> list[str]:
    """One line `key: old -> new` for each of the `settings` in which two recipes differ."""
    return changes(settings(old), settings(new))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line `key: old -> new` for each key whose values differ."""
    keys = sorted(before.keys() | after.keys())
    changed = {
        key: f"{before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)
    }
    # The reference is trained like the rounds: what changed for both is said once.
    return [
        f"{key}: {change}"
        for key, change in changed.items()
        if not key.startswith("reference.") or changed.get(key.removeprefix("reference.")) != change
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its full key, such as `training.optimizer.beta1`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _all_errors(error: ValidationError, values: Mapping[str, Any], kind: type[BaseModel]) -> list[Any]:
    """What is wrong with the values, and what else would be once unknown keys are written as they must be meant.

    A part with an unknown key is not checked any further, and a misspelt key is also a missing one.
    """
    unknown = [entry for entry in error.errors() if entry["type"] == UNKNOWN]
    if not unknown:
        return list(error.errors())
    meant = copy.deepcopy(dict(values))
    for entry in unknown:
        *places, last = entry["loc"]
        part: Any = meant
        for place in places:
            part = part.get(place) if isinstance(part, dict) else None
        if not isinstance(part, dict) or last not in part:
            continue  # in the reference's copy of `training`, which is made of what is meant there
        value, nearest = part.pop(last), _nearest(last, _keys_at(kind, list(map(str, places))), SURE)
        if nearest is not None:
            part.setdefault(nearest, value)
    try:
        kind.model_validate(meant)
    except ValidationError as others:
        return [*unknown, *others.errors()]
    return unknown


def _explain(errors: Sequence[Any], kind: type[BaseModel]) -> str:
    """The mistakes, in one line."""
    known = _all_keys(kind)
    found: dict[tuple[str, ...], list[Any]] = {}
    for entry in errors:
        *places, last = map(str, entry["loc"] or ("",))
        ends = [last] * (entry["type"] == UNKNOWN or last in known)
        path = [part for part in places if part in known] + ends  # no union branches
        found.setdefault(tuple(path), []).append(entry)
    # What is wrong in `training` is wrong in the reference's copy of it too: said once.
    copies = {("reference", *path) for path in found}
    mistakes: list[str] = []
    for place in (place for place in found if place not in copies):
        told = _mistake(place, found[place], kind)
        keys = told.partition("; known keys are ")
        mistakes.append(keys[0] if any(one.endswith(keys[2]) for one in mistakes) else told)  # listed once
    more = f" (and {len(mistakes) - MOST_MISTAKES} more)" if len(mistakes) > MOST_MISTAKES else ""
    return "; ".join(mistakes[:MOST_MISTAKES]) + more


def _mistake(path: tuple[str, ...], entries: list[Any], kind: type[BaseModel]) -> str:
    """What is wrong with the value of a key, and what would be right."""
    first = entries[0]
    key = ".".join(part if part.isprintable() and len(part) < 80 else shown(part) for part in path)
    if first["type"] == UNKNOWN:
        known = _keys_at(kind, path[:-1])
        nearest = _nearest(path[-1], known, POSSIBLE)
        hint = f"did you mean `{nearest}`?" if nearest else f"known keys are {', '.join(known)}"
        return f"unknown key `{key}`; {hint}"
    if first["type"] == "missing":
        return f"the key `{key}` is missing"
    if first["type"] == "invalid_key":
        return f"the key {shown(first['input'])} is not a text"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    wishes = (entry["msg"].removeprefix("Input should be ").split(" or instance of ")[0] for entry in entries)
    return f"`{key}` is {shown(first['input'])}, but should be {' or '.join(wishes)}"


def _nearest(key: Any, known: Sequence[str], likeness: float) -> str | None:
    return next(iter(difflib.get_close_matches(str(key), known, n=1, cutoff=likeness)), None)


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


def _keys_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys a recipe knows at this place."""
    for part in path:
        kind = _models_in(kind, part)[0]
    return list(kind.model_fields)
