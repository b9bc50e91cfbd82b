"""Recipes as YAML files: read, written, compared, and refused in one sentence that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from inheritune import UserError
from inheritune.config import DECIDES_WEIGHTS, Recipe, Settings, Study, Training, TrainRecipe

AnyRecipe = TypeVar("AnyRecipe", bound=Settings)


def load_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """Read and check a recipe file.

    Raises:
        UserError: one sentence that names the file, the key, and what would be right.
    """
    return parse_recipe(_mapping(path, kind), kind, origin=str(path))


def _mapping(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a recipe: it must be a mapping with the keys {_known(kind)}")
    return values


def load_any(path: Path) -> Recipe | TrainRecipe | Study:
    """Read and check a file that is a recipe of any kind, told apart by `rows`, `model` or neither of them."""
    values = _mapping(path, Recipe)
    if "rows" in values:
        return parse_recipe(values, Study, origin=str(path))
    if "model" in values:
        return parse_recipe(values, TrainRecipe, origin=str(path))
    return parse_recipe(values, Recipe, origin=str(path))


def parse_recipe(values: Mapping[str, Any], kind: type[AnyRecipe], origin: str = "recipe") -> AnyRecipe:
    """Check a recipe given as plain values; errors as in `load_recipe`, with `origin` as the file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error, kind)}") from None


def to_yaml(recipe: BaseModel) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def settings_of(recipe: BaseModel) -> dict[str, Any]:
    """Every setting of a recipe, or of a `training` alone, by its full key, such as `training.optimizer.beta1`."""
    prefix = "training." if isinstance(recipe, Training) else ""
    return dict(_flatten(recipe.model_dump(mode="json"), prefix))


def deciding_settings(recipe: BaseModel) -> dict[str, Any]:
    """Those of `settings_of` that decide the weights."""
    return {key: value for key, value in settings_of(recipe).items() if _decides(key)}


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
    # The reference is trained like the rounds: what changed for both is told once.
    return [
        f"{key}: {change}"
        for key, change in changed.items()
        if not key.startswith("reference.") or changed.get(key.removeprefix("reference.")) != change
    ]


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
