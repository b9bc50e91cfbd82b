"""Runs the code of a notebook as a kernel does, without one: `python notebook_runner.py NOTEBOOK`.

Prints a line of JSON for what each cell shows: the richest of what its last expression can be shown as.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

RICH = {"svg": "_repr_svg_", "html": "_repr_html_"}


def shown(value: object) -> dict[str, str]:
    """What a notebook shows of a value."""
    for kind, name in RICH.items():
        method = getattr(value, name, None)
        if method is not None and (text := method()) is not None:
            return {kind: text}
    return {"plain": repr(value)}


def run(source: str, namespace: dict[str, Any]) -> object:
    """Run a cell; its last expression's value, None if it has none."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


if __name__ == "__main__":
    cells = json.loads(Path(sys.argv[1]).read_text("utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            value = run("".join(cell["source"]), names)
            if value is not None:
                print("SHOWN", json.dumps(shown(value)), flush=True)
