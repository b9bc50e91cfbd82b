"""One part of the report page, and the templates it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inheritune.report import quantities
from inheritune.report.quantities import MINUS


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, its `id` on the page, and what follows the heading.

    `body` is put on the page as it is; make it with `render`, which escapes every value.
    """

    title: str
    anchor: str
    body: Markup


def render(template: str, **values: Any) -> Markup:
    """A template of `report/templates` with these values; only values that are `Markup` are not escaped."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))


def figure(svg: str | None) -> Markup | None:
    """An SVG that `svg.to_svg` made, for a template."""
    return None if svg is None else Markup(svg)


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def _interval(ends: tuple[float, float], decimals: int) -> str:
    return quantities.signed_interval(ends, decimals).replace("-", MINUS)


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("inheritune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": quantities.count,
        "flops": quantities.flops,
        "memory": quantities.memory,
        "duration": quantities.duration,
        "significant": quantities.significant,
        "loss_decimals": quantities.loss_decimals,
        "signed": _signed,
        "interval": _interval,
    }
    return environment


_ENVIRONMENT = _make_environment()
