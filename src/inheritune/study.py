"""A study: rows of one table, each a recipe, some of which start from what others made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune import UserError
from inheritune.config import Recipe, Study, TrainRecipe, merge
from inheritune.plain_yaml import shown
from inheritune.recipe_file import parse_recipe

NAME = re.compile(r"(?!.*\.(yaml|log)$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a row, and of its folder; ROW.yaml and ROW.log stand beside it."""
AnyRow = Recipe | TrainRecipe


@dataclass(frozen=True, eq=False)
class Row:
    """One run of a study.

    Args:
        name: of the row; several seeds of it have the same.
        seed: of its training.
        values: its recipe, in which `row: NAME` may stand for a model.
        flops_of: rows whose FLOPs it may spend, all together; none: its recipe says for how many steps it trains.
        starts_from: the row whose model it goes on training, wholly or in part, if there is one.
        needs: rows of the same seed that must be finished before it.
    """

    name: str
    seed: int
    values: Mapping[str, Any]
    flops_of: tuple[str, ...]
    starts_from: str | None
    needs: frozenset[str]

    @property
    def kind(self) -> type[AnyRow]:
        """Recipe of `inheritune run`, or of `inheritune train`."""
        return Recipe if "reference" in self.values else TrainRecipe

    def folder(self, study: Path) -> Path:
        """The directory of its run, in that of the study."""
        return study / f"seed-{self.seed}" / self.name

    def model(self, study: Path) -> Path:
        """Where its result is once it is finished."""
        return self.folder(study) / ("final" if self.kind is Recipe else "model")


def rows_of(study: Study, only: tuple[str, ...] = ()) -> list[Row]:
    """Every run of a study, each after those that it needs.

    Args:
        study: what to run.
        only: names of rows; they and what they need are returned. All, if there are none.

    Raises:
        UserError: a recipe with a mistake, an unknown row, or rows that need each other.
    """
    for name in study.rows:
        if not NAME.fullmatch(name):
            raise UserError(
                f"a row cannot be called {shown(name)}: its name is a folder, of up to 100 letters, digits and .-_, "
                "and ROW.yaml and ROW.log stand beside it"
            )
    for where, asked in (("headline", study.headline), ("reference", (study.reference,)), ("--row", only)):
        for name in asked:
            _check_known(study, name, where)
    order = _ordered(study)
    wanted = _with_needs(study, [*only, study.reference] if only else order)
    repeated = _with_needs(study, [*study.headline, study.reference])
    rows = []
    for seed in study.seeds:
        names = wanted if seed == study.seeds[0] else wanted & repeated
        rows += [row_named(study, name, seed) for name in order if name in names]
    return rows


def recipe_of(study: Study, row: Row, directory: Path, steps: int | None = None) -> AnyRow:
    """The recipe of a run, with the folders of other rows' models filled in.

    Args:
        study: it belongs to.
        row: it is.
        directory: of the study.
        steps: for which it trains, for a row with `flops_of`.

    Raises:
        UserError: a mistake in it, named with the row.
    """

    def fill(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping) and "row" in value:
            if "pretrained" in value:
                raise UserError(f"rows.{row.name}: `row` and `pretrained` are two models: give one")
            other = row_named(study, value["row"], row.seed)
            filled = {k: v for k, v in value.items() if k != "row"} | {
                "pretrained": str(other.model(directory))
            }
            if key == "reference":
                filled["training_tokens"] = _training_tokens(study, other, directory)
            return filled
        if isinstance(value, Mapping):
            return {k: fill(v, k) for k, v in value.items()}
        return value

    training: dict[str, Any] = {"seed": row.seed} | ({"steps": steps} if steps else {})
    values = {"name": row.name, "training": {}, **fill(row.values)}
    if isinstance(values["training"], Mapping):
        values = merge(values, {"training": training})
    return parse_recipe(values, row.kind, origin=f"rows.{row.name}")


def _training_tokens(study: Study, row: Row, directory: Path) -> int | None:
    """Tokens that made a row's model, if its own recipe alone tells."""
    if row.flops_of or row.starts_from or row.kind is Recipe:
        return None
    training = recipe_of(study, row, directory).training
    return training.steps * training.tokens_per_step


def row_named(study: Study, name: str, seed: int) -> Row:
    """A row of a study, without looking at others."""
    own = dict(study.rows[name])
    flops_of = own.pop("flops_of", [])
    values = merge(study.shared, own)
    if not isinstance(flops_of, list) or not all(isinstance(other, str) for other in flops_of):
        raise UserError(f"rows.{name}: `flops_of` is {shown(flops_of)}, but should be a list of rows")
    if flops_of and "reference" in values:
        raise UserError(
            f"rows.{name}: `flops_of` is for a single training, and a recipe with a `reference` makes several"
        )
    spent, named = tuple(map(str, flops_of)), list(_named_rows(values))
    for other in (*named, *spent):
        _check_known(study, other, f"rows.{name}")
    model = values.get("model")
    starts_from = model.get("row") if isinstance(model, Mapping) else None
    return Row(name, seed, values, spent, starts_from, frozenset([*named, *spent]))


def _named_rows(values: Any) -> Iterator[Any]:
    """Names of the rows whose models stand somewhere in a recipe."""
    if isinstance(values, Mapping):
        if "row" in values:
            yield values["row"]
        for value in values.values():
            yield from _named_rows(value)


def _check_known(study: Study, name: Any, where: str) -> None:
    if not isinstance(name, str) or name not in study.rows:
        raise UserError(f"{where}: there is no row {shown(name)}; the rows are {', '.join(study.rows)}")


def _with_needs(study: Study, names: list[str]) -> set[str]:
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names += row_named(study, name, 0).needs
    return found


def _ordered(study: Study) -> list[str]:
    """The rows as the study lists them, but each after those it needs."""
    needs = {}
    for name in study.rows:
        needs[name] = row_named(study, name, 0).needs
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and needs[name] <= set(order)]
        if not ready:
            circle = [name for name in needs if name not in order]
            raise UserError(f"these rows need each other, so none can be first: {', '.join(circle)}")
        order.append(ready[0])
    return order
