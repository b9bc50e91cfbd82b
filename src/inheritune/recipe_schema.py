"""JSON Schema of recipes, by which editors complete keys, show what they mean, and mark mistakes as they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from inheritune import UserError
from inheritune.config import Recipe, Study, TrainRecipe

Kind = Literal["run", "train", "study"]
"""The verb that takes a recipe."""

KINDS: dict[Kind, type[BaseModel]] = {"run": Recipe, "train": TrainRecipe, "study": Study}
FOLDER = Path(__file__).parent / "schemas"
"""What `schema_text` gives for each kind, for editors: KIND.json."""

_FLAGS = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "0", "1")
_ANY_CASE = ("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in _FLAGS)
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Pydantic's names, which it leaves behind a validator -> JSON Schema's."""
IN_QUOTES = {
    "integer": r"^\s*[-+]?[\d_]+(\.0*)?\s*$",
    "number": r"^\s*[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?\s*$",
    "boolean": f"^({'|'.join(_ANY_CASE)})$",
}
"""What a value of a type looks like as a text."""


def schema_of(kind: Kind) -> dict[str, Any]:
    """JSON Schema (2020-12) of a kind of recipe: what it refuses, loading refuses; not the other way round.

    How keys have to agree with each other, and whether files and models are there, it does not say.
    """
    found = KINDS[kind].model_json_schema()
    if kind == "study":
        found["$defs"] = _parts_of_rows()
        row = {"anyOf": [{"$ref": "#/$defs/Recipe"}, {"$ref": "#/$defs/TrainRecipe"}]}
        found["properties"]["rows"]["additionalProperties"] = row
        found["properties"]["shared"] |= {"additionalProperties": True, **row}
    return {"$schema": GenerateJsonSchema.schema_dialect, **_as_loaded(found)}


def schema_text(kind: Kind) -> str:
    """As `schema_of`, in JSON."""
    return json.dumps(schema_of(kind), indent=1, ensure_ascii=False) + "\n"


def editor_line(kind: Kind) -> str:
    """The line of a recipe that tells editors with the YAML language server that its schema is beside it."""
    return f"# yaml-language-server: $schema={_beside(kind)}"


def schema_beside(recipe: Path, kind: Kind) -> Path:
    """Where the schema of a new recipe goes: beside it, so that both can be moved, sent and committed together.

    Raises:
        UserError: there is another file.
    """
    path = recipe.with_name(_beside(kind))
    if path.exists():
        try:
            title = json.loads(path.read_bytes())["title"]
        except (ValueError, LookupError, TypeError):
            title = None
        if title != KINDS[kind].__name__:
            raise UserError(f"{path} is not a schema of recipes, which would be there: give another folder")
    return path


def _beside(kind: Kind) -> str:
    return f"{kind}.schema.json"


def _parts_of_rows() -> dict[str, Any]:
    """Definitions for recipes of rows: what one leaves out may be shared, and a row may stand for a model."""
    kinds: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (Recipe, "validation"),
        (TrainRecipe, "validation"),
    ]
    _, parts = models_json_schema(kinds)
    found: dict[str, Any] = parts["$defs"]
    for part in found.values():
        part.pop("required", None)
    name = {"type": "string"}
    for model in ("ModelSource", "Reference"):
        found[model]["properties"]["row"] = {"description": "The result of another row.", **name}
    found["TrainRecipe"]["properties"]["flops_of"] = {
        "type": "array",
        "items": name,
        "description": "Train for as many steps as all these rows' FLOPs pay for.",
    }
    return found


def _as_loaded(schema: Any) -> Any:
    """A schema that takes numbers and flags in quotes too, as loading does. Keys are their own titles."""
    if isinstance(schema, list):
        return [_as_loaded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {BOUNDS.get(key, key): _as_loaded(value) for key, value in schema.items() if key != "default"}
    if isinstance(found.get("title"), str) and "properties" not in found:
        del found["title"]
    kind = found.get("type")
    if (
        isinstance(kind, str) and kind in IN_QUOTES
    ):  # a keyword such as `minimum` is about values of its own type only
        found |= {"type": [kind, "string"], "pattern": IN_QUOTES[kind]}
    if kind == "boolean":
        found |= {"type": ["boolean", "string", "integer"], "minimum": 0, "maximum": 1}
    return found | ({"default": schema["default"]} if "default" in schema else {})
