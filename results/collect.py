"""Turn the run directories of a study into the files that are kept: python results/collect.py RUNS... -o STUDY.

RUNS is the directory of `inheritune study`, or directories of `inheritune run` and `inheritune train`. README.md of
this folder says what is written; tables and pictures are those of publish.py. With `--add`, RUNS are those of further
rows of a study of trainings that STUDY has already, with its `study.yaml`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tables
from publish import publish

from inheritune import UserError
from inheritune.config import Study
from inheritune.recipe_file import load_recipe
from inheritune.report.comparison import pair
from inheritune.report.runs import Entry, read_entries
from inheritune.study import rows_of, study_entries


def read_runs(runs: Sequence[Path]) -> tuple[list[Entry], str, Path]:
    """The models of finished runs, the name of the reference, and the directory that all runs are in.

    Raises:
        UserError: a run is missing, damaged or unfinished.
    """
    runs = [run.resolve() for run in runs]
    if len(runs) == 1 and (runs[0] / "study.yaml").is_file():
        root = runs[0]
        study = load_recipe(root / "study.yaml", Study)
        entries, reference = study_entries(study, rows_of(study), root), study.reference
    else:
        root = runs[0].parent
        if any(run.parent != root for run in runs):
            raise UserError("the runs of one study must be in one directory")
        entries = read_entries([(None, run) for run in runs])
        reference = pair(entries, None, "").reference
    unfinished = [entry.label for entry in entries if entry.losses is None]
    if unfinished:
        raise UserError(f"these are not finished, and only finished runs are kept: {', '.join(unfinished)}")
    return entries, reference, root


def add(runs: Path, folder: Path, root: Path) -> list[Entry]:
    """The models that a study has, and those of these runs, which are put beside each other in `root`.

    Rows of the study that are in neither are left out, and a run takes the place of what the study had in its row.

    Raises:
        UserError: a run is damaged, or the folder has no study.
    """
    study = load_recipe(folder / "study.yaml", Study)
    tables.unpack(folder, root)
    for recipe in runs.glob("seed-*/*/recipe.yaml"):
        place = root / recipe.parent.relative_to(runs)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(recipe.parent, place, ignore=shutil.ignore_patterns("*.safetensors", "checkpoints"))
    there = [row for row in rows_of(study) if (row.folder(root) / "validation.json").is_file()]
    return study_entries(study, there, root)


def collect(entries: Sequence[Entry], reference: str, root: Path, folder: Path) -> None:
    """Write the files of a study into `folder`; the entries' paths are below `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        replace(entry, path=entry.path.relative_to(root), run=entry.run.relative_to(root))
        for entry in entries
    ]
    tables.write_windows(folder, entries)
    tables.write_curves(folder, entries, root)
    tables.write_decisions(folder, entries, root)
    tables.write_provenance(folder, dict.fromkeys(entry.run for entry in entries), root)
    tables.write_table(folder, tables.Results(folder.resolve().name, tuple(entries), reference))
    data = {run.get("recipe.data.path") for run in tables.read_provenance(folder).values()}
    manifests = [Path(path) / "manifest.json" for path in data if path]
    if len(manifests) == 1 and manifests[0].is_file():
        shutil.copyfile(manifests[0], folder / "corpus-manifest.json")
    publish(folder)


def main() -> None:
    """Read the command line, and collect."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="STUDY")
    parser.add_argument("--add", action="store_true", help="to the rows that STUDY has already")
    arguments = parser.parse_args()
    try:
        if not arguments.add:
            collect(*read_runs(arguments.runs), arguments.output)
        elif len(arguments.runs) != 1:
            raise UserError("with --add give the directory of one study")
        else:
            with TemporaryDirectory() as root:
                entries = add(arguments.runs[0], arguments.output, Path(root))
                reference = load_recipe(arguments.output / "study.yaml", Study).reference
                collect(entries, reference, Path(root), arguments.output)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
