"""The files of a study: `table.csv`, `curves.parquet`, `windows.parquet` and `provenance.json`, written and read.

README.md of this folder says what is in them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from inheritune import UserError
from inheritune.data.shards import DataIdentity
from inheritune.frugal import decisions_in
from inheritune.recipe_file import flatten
from inheritune.report.comparison import RunComparison, pair, to_csv
from inheritune.report.runs import COLUMNS, Entry, MetricColumns
from inheritune.run_directory import STARTS, Decision, read_starts
from inheritune.runtime import files
from inheritune.training import metrics
from inheritune.training.final_model import MODEL
from inheritune.training.validation import WindowLosses

TABLE, CURVES, WINDOWS, PROVENANCE = "table.csv", "curves.parquet", "windows.parquet", "provenance.json"
MEASURED = ("kind", "path", "windows", "window_tokens", "data")
"""Columns of `table.csv` that a comparison does not have."""
SIZE = ("data_tokens", "data_text_bytes")
"""Further columns before those, where the bytes of the text are known."""
RATES = ("tokens_per_second", "flops_per_second", "memory_bytes")
"""Columns of `metrics.jsonl` that tell of the machine only; `seconds` is kept."""
KEY = ("name", "seed")


@dataclass(frozen=True)
class Results:
    """What a study has measured: its models in the order of the table, and the name of the reference."""

    name: str
    entries: tuple[Entry, ...]
    reference: str
    added: tuple[Mapping[str, str], ...] = ()
    """What the study alone has to say of each model: columns of `table.csv` after the common ones."""

    @property
    def comparison(self) -> RunComparison:
        """Every model against the reference of its seed."""
        return pair(self.entries, self.reference, self.name)


def write_table(folder: Path, study: Results) -> None:
    """`table.csv`: one line a model, what was measured of it and how it compares."""
    comparison = study.comparison
    compared = csv.DictReader(io.StringIO(to_csv(comparison)))
    text = io.StringIO()
    added = study.added or ({},) * len(study.entries)
    size = () if comparison.hidden else SIZE
    names = (*size, *MEASURED)
    columns = [*(compared.fieldnames or ()), *names, *added[0]]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for line, seed, own in zip(compared, comparison.seeds, added, strict=True):
        entry = seed.entry
        assert entry.losses is not None, "only finished models are collected"
        data = entry.losses.data
        measured = (
            *((data and data.tokens, data and data.text_bytes) if size else ()),
            entry.kind,
            entry.path,
            len(entry.losses.losses),
            entry.losses.window,
            data and data.sha256,
        )
        writer.writerow(line | dict(zip(names, measured, strict=True)) | own)
    files.write_text(folder / TABLE, text.getvalue())


def write_windows(folder: Path, entries: Sequence[Entry]) -> None:
    """`windows.parquet`: the final loss of every model on every validation window, to the last bit."""
    columns: dict[str, list[Any]] = {"name": [], "seed": [], "window": [], "loss": []}
    for entry in entries:
        assert entry.losses is not None, "only finished models are collected"
        losses = entry.losses.losses.tolist()
        columns["name"] += [entry.label] * len(losses)
        columns["seed"] += [entry.seed] * len(losses)
        columns["window"] += range(len(losses))
        columns["loss"] += losses
    _write_parquet(folder / WINDOWS, columns)


def write_curves(folder: Path, entries: Sequence[Entry], root: Path) -> None:
    """`curves.parquet`: every line of every `metrics.jsonl`, without the machine's rates.

    A run that was killed writes the steps after its checkpoint once more: the later line counts.
    """
    lines = []
    for entry in entries:
        path = root / entry.path / metrics.FILE  # a reference that was trained elsewhere has none
        rows = metrics.read(path) if path.is_file() else []
        last = {(row["kind"], row["step"]): row for row in rows}
        for row in sorted(last.values(), key=lambda row: row["step"]):
            kept = {key: value for key, value in row.items() if key not in RATES}
            lines.append({"name": entry.label, "seed": entry.seed, **kept})
    names = dict.fromkeys(name for line in lines for name in line)
    _write_parquet(folder / CURVES, {name: [line.get(name) for line in lines] for name in names})


def write_decisions(folder: Path, entries: Sequence[Entry], root: Path) -> None:
    """`decisions.csv`: what each round of a frugal search decided, if there was one."""
    decided = [(entry, one) for entry in entries for one in decisions_in(root / entry.path)]
    if not decided:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEY, "layers", *Decision.model_fields])
    for entry, one in decided:
        writer.writerow([entry.label, entry.seed, entry.layers, *one.model_dump().values()])
    files.write_text(folder / "decisions.csv", text.getvalue())


def write_provenance(folder: Path, runs: Iterable[Path], root: Path) -> None:
    """`provenance.json`: versions, hardware, command and every setting of each run.

    What all runs share stands under `shared`; a run is that and what stands under its own path.
    """
    flat = {}
    for run in runs:
        starts = read_starts(root / run)
        recipe = yaml.safe_load((root / run / "recipe.yaml").read_text("utf-8"))
        known = {"recipe": recipe, "start": starts[-1] if starts else {}}
        flat[run.as_posix()] = dict(flatten(known)) | ({"earlier_starts": starts[:-1]} if starts[1:] else {})
    runs_of = list(flat.values())
    shared = {
        key: value
        for key, value in runs_of[0].items()
        if all(key in run and run[key] == value for run in runs_of)
    }
    own = {
        path: {key: value for key, value in run.items() if key not in shared} for path, run in flat.items()
    }
    files.write_json(folder / PROVENANCE, {"shared": shared, "runs": own})


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """Path of a run -> everything that `write_provenance` knew of it."""
    found = json.loads((folder / PROVENANCE).read_text("utf-8"))
    return {path: found["shared"] | own for path, own in found["runs"].items()}


def unpack(folder: Path, root: Path) -> None:
    """Write run directories of single trainings again, as far as the files of a study know them.

    That is what `write_*` read: recipe, starts, metrics without the machine's rates, losses and costs. There are no
    weights: `model` is an empty folder.
    """
    provenance = read_provenance(folder)
    for entry in read_study(folder).entries:
        assert entry.losses is not None, "only finished models are collected"
        run = root / entry.path
        known = _unflatten(provenance[entry.path.as_posix()])
        starts = [*known.get("earlier_starts", []), known["start"]]
        rows = _read_parquet(folder / CURVES)[entry.label, entry.seed].drop_columns(list(KEY)).to_pylist()
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        seconds = max(row.get("seconds", 0.0) for row in rows)
        (run / MODEL).mkdir(parents=True)
        files.write_text(run / "recipe.yaml", yaml.safe_dump(known["recipe"]))
        files.write_text(run / STARTS, "".join(f"{json.dumps(start)}\n" for start in starts))
        files.write_text(run / metrics.FILE, "".join(f"{json.dumps(row)}\n" for row in rows))
        entry.losses.save(run / "validation.json")
        cost = {key: getattr(entry, key) for key in ("steps", "tokens", "flops", "layers", "parameters")}
        files.write_json(run / "training.json", {**cost, "seconds": seconds})


def _unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        *places, last = key.split(".")
        where = found
        for place in places:
            where = where.setdefault(place, {})
        where[last] = value
    return found


def read_curves(folder: Path, entry: Entry, kind: str) -> dict[str, np.ndarray]:
    """The lines of one kind (`train`, `validation`, `gradients`) of a model, as columns in the order of steps."""
    table = _read_parquet(folder / CURVES).get((entry.label, entry.seed))
    if table is None:
        return {}
    table = table.filter(pc.equal(table["kind"], kind))
    return {
        name: table[name].to_numpy()
        for name in table.column_names
        if table[name].null_count < len(table) and name not in KEY
    }


def read_study(folder: Path) -> Results:
    """What `write_table`, `write_windows` and `write_curves` wrote.

    Raises:
        UserError: a file is missing.
    """
    for name in (TABLE, CURVES, WINDOWS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not the folder of a study: it has no {name}; make it with collect.py"
            )
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    windows, curves = _read_parquet(folder / WINDOWS), _read_parquet(folder / CURVES)
    entries = []
    for line in lines:
        key = (line["name"], int(line["seed"]) if line["seed"] else None)
        entries.append(_entry(line, *key, windows[key], curves.get(key)))
    reference = next(line["name"] for line in lines if line["verdict"] == "reference")
    common = list(lines[0]).index(MEASURED[-1]) + 1
    added = tuple(dict(list(line.items())[common:]) for line in lines)
    return Results(folder.resolve().name, tuple(entries), reference, added)


def _entry(
    line: Mapping[str, str], name: str, seed: int | None, windows: pa.Table, curves: pa.Table | None
) -> Entry:
    curve = dict.fromkeys(COLUMNS["validation"], np.empty(0))
    if curves is not None:
        validation = curves.filter(pc.equal(curves["kind"], "validation"))
        curve = {key: validation[key].to_numpy().astype(np.float64) for key in curve}
    path = Path(line["path"])
    size = {key: int(line[f"data_{key}"]) for key in ("tokens", "text_bytes") if line.get(f"data_{key}")}
    data = DataIdentity(sha256=line["data"], split="validation", path=name, **size) if line["data"] else None
    losses = windows["loss"].to_numpy().astype(np.float64)
    return Entry(
        label=name,
        path=path,
        run=path if line["kind"] == "model" else path.parent,
        kind=line["kind"],
        seed=seed,
        **{key: int(line[key]) if line[key] else None for key in ("layers", "parameters", "steps", "tokens")},
        flops=float(line["training_flops"]) if line["training_flops"] else None,
        total_flops=float(line["total_flops"]) if line["total_flops"] else None,
        losses=WindowLosses(losses, int(line["window_tokens"]), data),
        metrics=MetricColumns({}, curve, {}, {}),
    )


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """As small as it gets without losing a bit: numbers that fit into float32 are kept in it."""
    table = pa.table({name: _narrow(pa.array(values)) for name, values in columns.items()})

    def columns_of(is_kind: Callable[[pa.DataType], bool]) -> list[str]:
        return [field.name for field in table.schema if is_kind(field.type)]

    encodings = dict.fromkeys(columns_of(pa.types.is_floating), "BYTE_STREAM_SPLIT")
    encodings |= dict.fromkeys(columns_of(pa.types.is_integer), "DELTA_BINARY_PACKED")
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=columns_of(pa.types.is_string),
        column_encoding=encodings,
    )


def _narrow(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    small = column.cast(pa.float32(), safe=False)
    return small if small.cast(pa.float64()).equals(column) else column


def _read_parquet(path: Path) -> dict[tuple[str, int | None], pa.Table]:
    """The lines of each (name, seed)."""
    table = pq.read_table(path)
    pairs = list(zip(table["name"].to_pylist(), table["seed"].to_pylist(), strict=True))
    starts = [i for i, pair in enumerate(pairs) if i == 0 or pair != pairs[i - 1]]
    ends = [*starts[1:], len(pairs)]
    return {pairs[start]: table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)}
