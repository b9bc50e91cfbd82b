"""A page of a report: title, verdict, and sections of text, tables and figures; one HTML file that loads nothing.

Every value that a page is given is text: the one template, `templates/page.html`, escapes it, and its policy lets no
script run but `templates/table.js`, which sorts the table of a comparison. The same page gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inheritune import UserError
from inheritune.evaluation.result import Sample
from inheritune.report.figures import Picture
from inheritune.report.table import Table, minus, printable
from inheritune.runtime import files


class Paragraph(NamedTuple):
    """A paragraph, with its first words in bold if they are given."""

    text: str
    head: str = ""


class Figures(NamedTuple):
    """Pictures with their captions, side by side where there is room; wide ones are scrolled rather than shrunk."""

    pictures: Sequence[tuple[Picture, str]]
    wide: bool = False


class Code(NamedTuple):
    """A text that is copied."""

    text: str


class Continuations(NamedTuple):
    """What several models, each with its name, wrote after the same prompt."""

    title: str
    prompt: str
    texts: Sequence[tuple[str, str]]


class Fold(NamedTuple):
    """Blocks that are folded away on the screen."""

    title: str
    blocks: Sequence[Block]


Block = Paragraph | Table | Figures | Code | Continuations | Fold


class Section(NamedTuple):
    """A part of a page: its heading, its `id` on the page, and its content."""

    title: str
    anchor: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Args:
        kind: what sort of page it is, in a few words.
        title: its heading.
        verdicts: sentences that say what was found.
        sections: in their order; one without blocks is left out.
        writer: the command that writes it.
        tone: colours the verdict: reached, missed or nothing.
        facts: figures that matter most: name, value, and what is shown small beside it.
        notes: what could not be read, or else must be known.
    """

    kind: str
    title: str
    verdicts: Sequence[str]
    sections: Sequence[Section]
    writer: str
    tone: str = ""
    facts: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()

    @property
    def sorts(self) -> bool:
        """Whether it has a table that can be sorted and filtered."""
        blocks = (block for section in self.sections for block in section.blocks)
        return any(isinstance(block, Table) and block.kind == "runs" for block in blocks)

    def html(self) -> str:
        """The page as HTML."""
        return printable(_TEMPLATE.render(page=self, script=Markup(_SCRIPT), script_hash=_SCRIPT_HASH))


def pictures(*found: tuple[Picture | None, str], wide: bool = False) -> list[Block]:
    """The pictures that there are, each with its caption, as one block; none if there are none."""
    shown = [(picture, caption) for picture, caption in found if picture is not None]
    return [Figures(shown, wide)] if shown else []


def continuations(samples: Sequence[Sample], names: Sequence[str]) -> list[Continuations]:
    """What models of these names wrote."""
    return [
        Continuations(f"Prompt {place}", one.prompt, list(zip(names, one.continuations, strict=True)))
        for place, one in enumerate(samples, 1)
    ]


def fragment(blocks: Sequence[Block]) -> str:
    """Blocks as HTML without a page around them, for a notebook."""
    return printable(str(_PARTS.blocks_of(blocks)))


def facts_table(title: str, values: Mapping[str, Any]) -> Table:
    """Names and values, such as settings or the machine; what is not text as JSON."""
    rows = (
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in values.items()
    )
    return Table(title, ("<", "<"), rows, kind="facts")


def write_files(directory: Path, texts: Mapping[str, str | Picture | None]) -> list[Path]:
    """Write files into a directory, which is made if need be, and return the paths of those that were written.

    A file that has nothing to hold is not written, and one of before is removed.

    Raises:
        UserError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot write into {directory}: it is a file; give a directory")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if text is None:
            (directory / name).unlink(missing_ok=True)
        else:
            files.write_text(directory / name, text.svg if isinstance(text, Picture) else text)
    return [directory / name for name, text in texts.items() if text is not None]


def _data_uri(picture: Picture) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.svg.encode()).decode()}"


_SCRIPT = resources.files("inheritune.report").joinpath("templates/table.js").read_text("utf-8")
_SCRIPT_HASH = f"sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}"
_ENVIRONMENT = Environment(
    loader=PackageLoader("inheritune.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"minus": minus, "data_uri": _data_uri}
_ENVIRONMENT.tests["of"] = lambda block, kind: type(block).__name__ == kind
_TEMPLATE = _ENVIRONMENT.get_template("page.html")
_PARTS: Any = _TEMPLATE.make_module({"page": Page("", "", [], [], "")})
