"""Matplotlib figures as SVG that follows the reader's colour scheme.

A figure is drawn in the light colours of `PALETTE`; in the SVG each of them becomes a CSS variable, which the
page (or the SVG itself, if it stands alone) defines for light, dark and print. Text stays text: it is small,
can be searched, and takes the page's font. The same figure always gives the same bytes.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"

# name: (light, dark). Text and series have a contrast of at least 4.5 to 1 on the ground, in both schemes.
PALETTE = {
    "ground": ("#ffffff", "#15181c"),
    "ink": ("#1f2328", "#e4e7eb"),
    "muted": ("#59636e", "#9aa4b0"),
    "grid": ("#e3e6ea", "#2b3138"),
    "series-1": ("#0b62b0", "#6cb6ff"),
    "series-2": ("#b54708", "#f39a56"),
    "series-3": ("#16794a", "#57c98a"),
    "series-4": ("#7a43d0", "#bd9bff"),
    "series-5": ("#b3307f", "#f685c4"),
    "series-6": ("#7d6100", "#d9b746"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
# Text keeps a rim of the ground's colour, so that it can be read where a line passes behind it.
HALO = "paint-order: stroke; stroke: var(--ground); stroke-width: 3px; stroke-linejoin: round;"


def theme_css() -> str:
    """CSS that defines the palette's variables: light, dark where the reader prefers it, light in print."""

    def variables(index: int) -> str:
        return " ".join(f"--{name}: {pair[index]};" for name, pair in PALETTE.items())

    return (
        f":root {{ {variables(0)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}\n"
        f"@media print {{ :root {{ {variables(0)} }} }}\n"
    )


def to_svg(figure: Figure, name: str, label: str, *, standalone: bool = False) -> str:
    """The figure as an `<svg>` element, to be called inside `drawing.style()`.

    `name` begins every id in it, so it must be unique on a page; `label` is what a screen reader says.
    `standalone` makes a file of its own: with a background, and the colours of both schemes.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _rename_ids(root, name)
    for element in root.iter():
        _restyle(element)
    width, height = root.attrib["viewBox"].split()[2:]
    # Attributes are rewritten in a fixed order, and without the size: the page decides on that.
    root.attrib = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label}
    if standalone:
        _stand_alone(root, width, height, label)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Remove the metadata, matplotlib's style sheet (it would hold for the whole page) and the namespaces."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}defs" and not len(child):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        element.tail = None
        if element.tag != "text":
            element.text = None
        if XLINK in element.attrib:
            element.attrib["href"] = element.attrib.pop(XLINK)


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Keep only the ids that are referred to, as name-1, name-2, ..."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    renamed: dict[str, str] = {}
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier is not None and identifier in used:
            element.attrib["id"] = renamed.setdefault(identifier, f"{name}-{len(renamed) + 1}")
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if "#" in value:
                element.attrib[attribute] = re.sub(
                    r"#([\w-]+)", lambda match: f"#{renamed.get(match[1], match[1])}", value
                )


def _restyle(element: ElementTree.Element) -> None:
    """Turn palette colours into variables, and drop what the page's CSS or the SVG default says anyway."""
    style = element.attrib.get("style")
    if style is not None:
        for name, colour in LIGHT.items():
            style = style.replace(colour, f"var(--{name})")
        kept = [part.strip() for part in style.split(";") if part.strip()]
        kept = [part for part in kept if part.split(":")[0] not in ("font-family", "stroke-linejoin")]
        element.attrib["style"] = "; ".join(kept)
    if element.tag == "text" and element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _stand_alone(root: ElementTree.Element, width: str, height: str, label: str) -> None:
    root.attrib |= {"xmlns": SVG, "width": width, "height": height}
    title = ElementTree.Element("title")
    title.text = label
    style = ElementTree.Element("style")
    style.text = theme_css() + f"text {{ font-family: {FONT}; {HALO} }}\n* {{ stroke-linejoin: round; }}\n"
    ground = ElementTree.Element(
        "rect",
        {"width": width, "height": height, "rx": "6", "style": "fill: var(--ground)"},
    )
    for position, element in enumerate((title, style, ground)):
        root.insert(position, element)
