"""What of the documentation is made from the program, and how the site reaches files outside of `docs/`.

mkdocs calls this as a hook. A line such as `<!-- made from the program: recipe keys -->` in a page stands for one of
the sections made here, so that keys, defaults and options are never written down twice. Pages link to files
of the repository, such as `../results/low-data/README.md`; the site carries these along and keeps the links.
"""

from __future__ import annotations

import ast
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"

CARRIED = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks", "examples", "recipes", "results")
"""Files and folders beside `docs/` that the site has too."""
CARRIED_KINDS = (".md", ".svg", ".png", ".csv", ".yaml", ".sh", ".sbatch", ".ipynb")

MARKER = re.compile(r"^<!-- made from the program: ([a-z -]+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")


# Sections made from the program -----------------------------------------------------------------------------------


def with_sections(markdown: str) -> str:
    """A page with its markers replaced by what they stand for."""
    return MARKER.sub(lambda marker: SECTIONS[marker[1]](), markdown)


def recipe_keys() -> str:
    """Every key of every kind of recipe: type, default, meaning; one table for each part."""
    from inheritune.config import Recipe, Study, TrainRecipe

    verbs = {Recipe: "inheritune run", TrainRecipe: "inheritune train", Study: "inheritune study"}
    tops = "\n\n".join(
        f"## Recipes of `{verb}` {{#{verb.split()[1]}}}\n\n{_table(kind, kind.model_json_schema())}"
        for kind, verb in verbs.items()
    )
    parts: dict[type[BaseModel], list[str]] = {}
    for kind in (Recipe, TrainRecipe):
        for path, part in _parts(kind):
            if path not in parts.setdefault(part, []):
                parts[part].append(path)
    sections = []
    for part, paths in parts.items():
        title = ", ".join(f"`{path}`" for path in sorted(paths, key=lambda path: (path.count("."), path))[:3])
        sections.append(f"### {title} {{#{_anchor(part)}}}\n\n{_table(part, part.model_json_schema())}")
    return "\n\n".join([tops, "## Parts of recipes", *sections])


def _parts(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every part of a recipe with its full key, from the outside to the inside."""
    inner = [(f"{prefix}{name}", part) for name in kind.model_fields for part in _models_of(kind, name)]
    yield from inner
    for path, part in inner:
        yield from _parts(part, f"{path}.")


def _models_of(kind: type[BaseModel], field: str) -> list[type[BaseModel]]:
    annotation = kind.model_fields[field].annotation
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]


def _anchor(part: type[BaseModel]) -> str:
    return f"part-{part.__name__.lower()}"


def _table(kind: type[BaseModel], schema: dict[str, Any]) -> str:
    rows = []
    for name, entry in schema["properties"].items():
        required, meaning = name in schema.get("required", ()), entry.get("description", "")
        inner = _models_of(kind, name)
        if inner:
            value, default = (
                f"[a part](#{_anchor(inner[0])})",
                "its defaults" if entry.get("default") else "none",
            )
            meaning = meaning or _about(inner[0])
        else:
            value, default = _values(entry), _code(entry.get("default"))
        rows.append(f"| `{name}` | {value} | {'**required**' if required else default} | {_cell(meaning)} |")
    return "\n".join([_about(kind), "", "| key | value | default | meaning |", "|---|---|---|---|", *rows])


def _about(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _values(entry: dict[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_values(one) for one in entry["anyOf"] if one.get("type") != "null"))
    if "const" in entry:
        return _code(entry["const"])
    if "enum" in entry:
        return " or ".join(_code(one) for one in entry["enum"])
    kind = entry.get("type")
    if kind == "array":
        items = entry.get("items") or {"anyOf": entry.get("prefixItems", [{}])}
        return f"list of {_values(items)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "string": "text",
        "object": "mapping",
    }
    word = "path" if entry.get("format") == "path" else words.get(str(kind), "any")
    limits = [
        f"{sign} {entry[name]:g}"
        for sign, names in (
            ("≥", ("minimum", "ge")),
            (">", ("exclusiveMinimum", "gt")),
            ("≤", ("maximum", "le")),
            ("<", ("exclusiveMaximum", "lt")),
        )
        for name in names  # pydantic's, behind a validator
        if name in entry
        and abs(entry[name]) < 10**4  # what is larger guards against overflow, and tells nothing
    ]
    return " ".join([word, ", ".join(limits)]).strip()


def _code(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`" if value != "" else '`""`'


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def command_line() -> str:
    """Every verb of the command line, with its arguments and options."""
    import typer

    from inheritune.cli.main import app

    command: Any = typer.main.get_command(app)
    return "\n\n".join(_verb(name, verb) for name, verb in command.commands.items())


def _verb(name: str, verb: Any) -> str:
    arguments = [one for one in verb.params if one.param_type_name == "argument"]
    options = [one for one in verb.params if one.param_type_name == "option" and "--help" not in one.opts]
    usage = " ".join(["inheritune", name, *(_metavar(one) for one in arguments), "[OPTIONS]"])
    rows = [f"| `{_metavar(one)}` | {_default(one)} | {_cell(one.help or '')} |" for one in arguments]
    rows += [f"| {_option(one)} | {_default(one)} | {_cell(one.help or '')} |" for one in options]
    table = "\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows])
    return f"## `inheritune {name}` {{#{name}}}\n\n{inspect.cleandoc(verb.help)}\n\n```text\n{usage}\n```\n\n{table}"


def _metavar(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" {_cell(option.metavar)}" if option.metavar else ""
    return f"{names}{value}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "**required**"
    value = parameter.default
    return "" if value is None or value is False or value == () else _code(str(value))


def initializations() -> str:
    """The functions of `inheritune.initialization`, named by their modules: some have the name of their module."""
    package = ast.parse((ROOT / "src/inheritune/initialization/__init__.py").read_text(encoding="utf-8"))
    imports = [statement for statement in package.body if isinstance(statement, ast.ImportFrom)]
    return "\n\n".join(f"::: {one.module}.{alias.name}" for one in imports for alias in one.names)


SECTIONS = {"recipe keys": recipe_keys, "command line": command_line, "initializations": initializations}


# Files beside docs/ -------------------------------------------------------------------------------------------------


def carried() -> list[str]:
    """The files outside of `docs/` that the site has, by their paths in the repository."""
    found = []
    for name in CARRIED:
        top = ROOT / name
        below = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        found += [path.relative_to(ROOT).as_posix() for path in below if path.suffix in CARRIED_KINDS]
    return found


def repository_path(source: str, known: frozenset[str]) -> str:
    """Where a file of the site is in the repository."""
    return source if source in known else f"{DOCS}/{source}"


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix(f"{DOCS}/")


def relinked(markdown: str, page: str, known: frozenset[str]) -> str:
    """A page whose links, meant for the repository, lead to the same files on the site.

    Args:
        markdown: of the page.
        page: its path in the repository.
        known: the files that the site carries along. What it does not have is named, without a link.
    """
    here = posixpath.dirname(page)

    def replaced(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return link[0]
        wanted = posixpath.normpath(posixpath.join(here, path))
        if f"{wanted}/README.md" in known:
            wanted = f"{wanted}/README.md"
        if wanted not in known and not wanted.startswith(f"{DOCS}/"):
            return text
        to = posixpath.relpath(site_path(wanted), posixpath.dirname(site_path(page)) or ".")
        return f"{picture}[{text}]({to}{mark}{anchor})"

    return LINK.sub(replaced, markdown)


# What mkdocs calls --------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Carry files of the repository along."""
    from mkdocs.structure.files import File

    for path in carried():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made from the program, and lead links to where files are on the site."""
    known = frozenset(carried())
    return relinked(with_sections(markdown), repository_path(page.file.src_uri, known), known)
