"""The reference is made from the program, and lacks nothing of it."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field

from docs.markdown import ROOT, generate
from inheritune.cli.main import app
from inheritune.config import Recipe, Settings, Study, TrainRecipe
from inheritune.recipe_file import parse_recipe, settings_of


class Outer(BaseModel):
    """Docstring."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A share | of
    something."""
    kind: Literal["a", "b"] | None = None
    many: tuple[int, ...] = (1, 2)
    needed: str


def test_a_table_has_values_defaults_and_meanings() -> None:
    table = generate._table(Outer, Outer.model_json_schema())
    assert table.splitlines() == [
        "Docstring.",
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
        "| `share` | number > 0, < 1 | `0.5` | A share \\| of something. |",
        "| `kind` | `a` or `b` | none |  |",
        "| `many` | list of whole number | `[1, 2]` |  |",
        "| `needed` | text | **required** |  |",
    ]


def test_every_key_of_every_recipe_has_a_row() -> None:
    page = generate.with_sections((ROOT / "docs/reference/recipes.md").read_text())
    kinds: set[type[BaseModel]] = {Recipe, TrainRecipe, Study}
    kinds |= {part for kind in (Recipe, TrainRecipe) for _, part in generate._parts(kind)}
    assert len(kinds) > 15
    for kind in kinds:
        assert issubclass(kind, Settings)
        for name in kind.model_fields:
            assert f"| `{name}` |" in page, (kind, name)
    values = {"data": {"path": "x"}, "reference": {"pretrained": "y"}}
    for key, value in settings_of(parse_recipe(values, Recipe)).items():
        if key.startswith("training.optimizer."):
            assert f"| `{key.rpartition('.')[2]}` |" in page
            assert generate._code(value) in page, key


@pytest.mark.parametrize("kind", [Recipe, TrainRecipe])
def test_links_between_parts_lead_to_their_tables(kind: type[Settings]) -> None:
    page = generate.recipe_keys()
    for _, part in generate._parts(kind):
        assert page.count(f"{{#{generate._anchor(part)}}}") == 1


def test_every_verb_and_option_is_there() -> None:
    page = generate.with_sections((ROOT / "docs/reference/command-line.md").read_text())
    command = typer.main.get_command(app)
    for name, verb in command.commands.items():
        start = page.index(f"{{#{name}}}")
        section = page[start : page.find("\n## ", start)]
        for parameter in verb.params:
            for option in parameter.opts:
                if parameter.param_type_name == "option" and option != "--help":
                    assert f"`{option}`" in section, (name, option)
