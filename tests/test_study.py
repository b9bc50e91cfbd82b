"""Studies: the order of rows, what they need, going on, and what fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny_data
from forks import forked, run_forked
from inheritune import UserError
from inheritune import study as study_module
from inheritune.algorithm import run
from inheritune.config import Recipe, Study, TrainRecipe
from inheritune.planning import plan
from inheritune.recipe_file import parse_recipe
from inheritune.report.comparison import FILES
from inheritune.run_directory import RunDirectory
from inheritune.study import compare_rows, recipe_of, row_named, rows_of, run_study
from inheritune.study import finished as is_finished
from tiny_recipes import ARCHITECTURE, training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("data"))


def values(data: Path, **changes: Any) -> dict[str, Any]:
    """A study with a row of every sort."""
    return {
        "seeds": [3, 4],
        "headline": ["small"],
        "reference": "reference",
        "shared": {"data": {"path": str(data), "window": 32}, "training": training()},
        "rows": {
            "controlled": {
                "model": {"architecture": {**ARCHITECTURE, "n_layer": 2}},
                "flops_of": ["reference", "small"],
            },
            "stacked": {"model": {"row": "shallow"}, "initialization": {"stack_to": 2}},
            "small": {"reference": {"row": "reference"}, "start_layers": 2, "grow": {"max_rounds": 1}},
            "reference": {"model": {"architecture": ARCHITECTURE}},
            "shallow": {"model": {"architecture": {**ARCHITECTURE, "n_layer": 1}}},
            "taught": {
                "model": {"architecture": {**ARCHITECTURE, "n_layer": 2}},
                "distillation": {"teacher": {"row": "reference"}},
            },
        },
        **changes,
    }


def study(data: Path, **changes: Any) -> Study:
    return parse_recipe(values(data, **changes), Study)


def with_row(data: Path, name: str, row: dict[str, Any]) -> Study:
    return study(data, rows={**values(data)["rows"], name: row})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory = tmp_path_factory.mktemp("study")
    return directory, forked(run_forked, values(data), directory)


def test_each_row_comes_after_those_it_needs(data: Path) -> None:
    rows = [(row.name, row.seed) for row in rows_of(study(data))]
    assert rows == [
        *[(name, 3) for name in ("reference", "small", "controlled", "shallow", "stacked", "taught")],
        *[(name, 4) for name in ("reference", "small")],
    ]


def test_some_rows_bring_what_they_need(data: Path) -> None:
    assert {row.name for row in rows_of(study(data), ("stacked",)) if row.seed == 3} == {
        "reference",  # which all are compared with
        "shallow",
        "stacked",
    }


def test_recipes_are_filled_in(data: Path, tmp_path: Path) -> None:
    rows = {(row.name, row.seed): row for row in rows_of(study(data))}
    small = recipe_of(study(data), rows["small", 4], tmp_path)
    assert isinstance(small, Recipe)
    assert small.reference.pretrained == str(tmp_path / "seed-4" / "reference" / "model")
    assert small.reference.training_tokens == 12 * 128
    assert small.training.seed == 4
    taught = recipe_of(study(data), rows["taught", 3], tmp_path)
    assert isinstance(taught, TrainRecipe)
    assert taught.distillation is not None
    assert taught.distillation.teacher is not None
    assert taught.distillation.teacher.pretrained == str(tmp_path / "seed-3" / "reference" / "model")
    assert recipe_of(study(data), rows["controlled", 3], tmp_path, steps=77).training.steps == 77


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"pretrained": "base"}},
        {"distillation": {"teacher": {"pretrained": "base"}}},
    ],
)
def test_what_made_a_reference_is_not_known_where_others_had_a_part_in_it(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = values(data)
    first["rows"]["reference"] = {**first["rows"]["reference"], **changes}
    made = parse_recipe(first, Study)
    small = recipe_of(made, next(row for row in rows_of(made) if row.name == "small"), tmp_path)
    assert isinstance(small, Recipe) and small.reference.training_tokens is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"headline": ["other"]}, "headline: there is no row 'other'; the rows are controlled, stacked"),
        ({"reference": "other"}, "reference: there is no row 'other'"),
        ({"seeds": []}, "`seeds` is"),
        ({"rows": {}}, "`rows` is"),
        ({"row": {}}, "unknown key `row`; did you mean `rows`"),
        ({"seeds": [3, 3]}, "seeds: a seed is given twice"),
        ({"rows": {"a.yaml": {}}}, r"a row cannot be called 'a\.yaml': its name is a folder"),
        ({"rows": {"a" * 200: {}}}, "a row cannot be called 'aaa"),
    ],
)
def test_mistakes_of_a_study(data: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rows_of(study(data, **changes))


@pytest.mark.parametrize("model", [{"row": "other"}, {"architecture": ARCHITECTURE}])
def test_a_row_names_another_model_than_they_share(data: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    shared = {
        **values(data)["shared"],
        "model": {"pretrained": "x", "revision": "1", "trust_remote_code": True},
    }
    rows = {"other": {}, "own": {"model": model}}
    found = study(data, shared=shared, rows=rows, reference="other", headline=[])
    recipe = recipe_of(found, row_named(found, "own", 3), tmp_path)
    assert isinstance(recipe, TrainRecipe)
    named = str(tmp_path / "seed-3" / "other" / "model") if "row" in model else None
    assert (recipe.model.pretrained, recipe.model.revision) == (named, None)
    assert recipe.model.trust_remote_code


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"model": {"row": "other"}}, "rows.new: there is no row 'other'"),
        ({"model": {"row": 3}}, "rows.new: there is no row 3"),
        ({"model": {"row": ["reference"]}}, r"rows.new: there is no row \['reference'\]"),
        (
            {"model": {"row": "reference", "pretrained": "x"}},
            "`row` and `pretrained` are two models: give one",
        ),
        (
            {"model": {"row": "reference"}, "training": 3},
            "rows.new: `training` is 3, but should be a valid dict",
        ),
        ({"model": {"row": "new"}}, "need each other, so none can be first: new"),
        ({"reference": {"row": "reference"}, "flops_of": ["small"]}, "`flops_of` is for a single training"),
        ({"model": {"row": "reference"}, "flops_of": "small"}, "`flops_of` is 'small', but should be a list"),
        ({"model": {"row": "reference"}, "trainign": {}}, "rows.new: unknown key `trainign`"),
        ({"model": {"row": "reference", "architecture": {}}}, "rows.new: model: give either `pretrained`"),
    ],
)
def test_mistakes_of_a_row(data: Path, tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_study(with_row(data, "new", row), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_mistakes_of_all_rows_are_told_at_once(data: Path, tmp_path: Path) -> None:
    rows = {name: {"model": {"row": "reference"}, name: 1} for name in ("one", "two")}
    found = study(data, rows={**values(data)["rows"], **rows}, headline=list(rows))
    for action in (lambda: run_study(found, tmp_path / "study"), lambda: plan(found)):
        with pytest.raises(
            UserError, match=r"rows\.one: unknown key `one`; .*rows\.two: unknown key `two`"
        ) as caught:
            action()
        assert str(caught.value).count("unknown key") == 2


def test_a_name_that_is_no_folder(data: Path) -> None:
    with pytest.raises(ValueError, match=r"a row cannot be called '\.\./up'"):
        rows_of(with_row(data, "../up", {"model": {"row": "reference"}}))


def test_every_row_is_run_and_told(finished: tuple[Path, list[str]]) -> None:
    directory, told = finished
    assert len(told) == 8
    assert told[-1].endswith("done")
    for row in ("reference", "shallow", "stacked", "taught", "controlled"):
        assert (directory / "seed-3" / row / "model" / "model.safetensors").exists()
    assert (directory / "seed-4" / "small" / "final" / "model.safetensors").exists()
    assert not (directory / "seed-4" / "taught").exists()


def test_flops_are_spent_as_planned(finished: tuple[Path, list[str]], data: Path) -> None:
    directory, _ = finished

    def outcome(name: str) -> dict[str, Any]:
        return json.loads((directory / "seed-3" / name / "training.json").read_text())

    small = json.loads((directory / "seed-3" / "small" / "summary.json").read_text())
    budget = outcome("reference")["flops"] + small["rounds"][-1]["total_training_flops"]
    assert outcome("controlled")["flops"] == pytest.approx(budget, rel=0.03)  # a whole number of steps
    planned = {stage.name: stage for stage in plan(study(data)).stages}
    for name in ("reference", "shallow", "stacked", "taught", "controlled"):
        assert outcome(name)["flops"] == pytest.approx(planned[name].flops), name
        assert outcome(name)["parameters"] == planned[name].parameters, name


def test_what_comes_before_the_first_round_is_a_part_of_the_budget(data: Path) -> None:
    rows = values(data)["rows"]
    rows["small"] |= {"start_layers": "auto", "distillation": {"corrected": 6}, "grow": {"layers": 1}}
    stages = plan(study(data, rows=rows)).stages
    small = [stage for stage in stages if stage.name.startswith("small, ")]
    assert [stage.before for stage in small] == ["teacher", *["probes"] * 5, None, None]
    reference, controlled = (
        next(one for one in stages if one.name == n) for n in ("reference", "controlled")
    )
    budget = reference.flops + sum(stage.flops for stage in small[:-1])
    assert controlled.flops == pytest.approx(budget, rel=0.03)  # a whole number of steps


def test_a_stack_starts_from_the_shallow_model_twice(data: Path, tmp_path: Path) -> None:
    rows = values(data)["rows"]
    rows["stacked"]["training"] = training(
        optimizer={"learning_rate": 1e-12}, schedule={"warmup_steps": 2, "final_learning_rate": 0}
    )
    forked(run_forked, values(data, rows=rows, seeds=[0]), tmp_path, ("stacked",))
    shallow = load_file(tmp_path / "seed-0" / "shallow" / "model" / "model.safetensors")
    stacked = load_file(tmp_path / "seed-0" / "stacked" / "model" / "model.safetensors")
    for name, value in stacked.items():
        source = shallow[name.replace("h.1.", "h.0.")]
        assert (value - source).abs().max() < 1e-6, name


def test_rows_are_compared_with_the_reference_of_their_seed(
    finished: tuple[Path, list[str]], data: Path
) -> None:
    directory, _ = finished
    rows = rows_of(study(data))
    comparison = compare_rows(study(data), rows, directory)
    assert [row.label for row in comparison.rows] == list(values(data)["rows"])
    totals = {row.label: row.seeds[0].entry.total_flops for row in comparison.rows}
    owns = {row.label: row.seeds[0].entry.flops for row in comparison.rows}
    assert totals["stacked"] == pytest.approx(owns["stacked"] + owns["shallow"])
    assert totals["small"] == owns["small"]  # the reference was there before
    assert all((directory / "comparison" / name).exists() for name in FILES)


def test_a_finished_study_runs_nothing(finished: tuple[Path, list[str]], data: Path) -> None:
    told: list[str] = []
    run_study(study(data), finished[0], tell=told.append)
    assert told == []


def test_two_starts_of_a_study_do_not_meet(
    finished: tuple[Path, list[str]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.study.PATIENCE_SECONDS", 0.1)
    told: list[str] = []
    with closing(RunDirectory(finished[0])) as other:
        other.hold()
        with pytest.raises(UserError, match="another process is running in"):
            run_study(study(data), finished[0], tell=told.append)
    assert told == [f"waiting for an earlier start in {finished[0]} to save and end"]


def test_another_recipe_for_a_finished_row_is_refused(finished: tuple[Path, list[str]], data: Path) -> None:
    changed = study(data, shared={**values(data)["shared"], "training": training(seed=9, tokens_per_step=64)})
    with pytest.raises(ValueError, match=r"holds a run of another recipe .*tokens_per_step: 128 -> 64"):
        run_study(changed, finished[0], tell=lambda text: None)


def test_a_row_is_done_once_its_evaluation_is(data: Path, tmp_path: Path) -> None:
    """Whatever a program was killed in: a run that has ended may still have its evaluation to do."""
    evaluated = {
        "data": {"path": str(data), "window": 32},
        "reference": {"architecture": ARCHITECTURE},
        "grow": {"max_rounds": 1},
        "training": training(steps=3),
        "evaluation": {"validation": str(data), "window": 32},
    }
    recipe, folder = parse_recipe(evaluated, Recipe), tmp_path / "run"
    run(recipe, folder)
    assert is_finished(folder, recipe)
    result = folder / "evaluation" / "evaluation.json"
    result.unlink()
    assert RunDirectory(folder).finished, "Algorithm 1 has ended"
    assert not is_finished(folder, recipe)
    before = (folder / "final" / "model.safetensors").stat().st_mtime_ns
    run(recipe, folder)
    assert result.exists()
    assert is_finished(folder, recipe)
    assert (folder / "final" / "model.safetensors").stat().st_mtime_ns == before


class _Program:
    """In place of a row's program: it is at work for a while, and remembers its environment."""

    started: ClassVar[list[_Program]] = []

    def __init__(self, command: list[str], env: dict[str, str] | None = None, **others: Any) -> None:
        self.row = Path(command[-1]).name
        self.gpu = None if env is None else env.get("CUDA_VISIBLE_DEVICES")
        self.left, self.returncode = 1 if self.row == "short" else 3, 0
        self.started.append(self)

    def poll(self) -> int | None:
        self.left -= 1
        return None if self.left > 0 else 0


def shown_gpus(
    data: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    jobs: int,
    gpus: int,
    visible: str | None = None,
    device: str = "auto",
) -> dict[str, str | None]:
    """The CUDA_VISIBLE_DEVICES of every row of a study on a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(study_module.subprocess, "Popen", _Program)
    monkeypatch.setattr(study_module, "POLL_SECONDS", 0)
    _Program.started.clear()
    row = {"model": {"architecture": ARCHITECTURE}}
    rows = dict.fromkeys(("reference", "short", "third", "fourth"), row)
    shared = {"data": {"path": str(data), "window": 32}, "training": training(device=device)}
    run_study(
        study(data, seeds=[0], headline=[], rows=rows, shared=shared),
        directory,
        jobs=jobs,
        tell=lambda text: None,
    )
    assert not torch.cuda.is_initialized()
    return {program.row: program.gpu for program in _Program.started}


@pytest.mark.parametrize(
    ("jobs", "gpus", "visible", "expected"),
    [
        (4, 4, None, ["0", "1", "2", "3"]),
        (4, 8, None, ["0", "1", "2", "3"]),
        (4, 2, None, ["0", "1", "0", "1"]),
        (4, 2, "5, 3", ["5", "3", "5", "3"]),
        (4, 2, "GPU-8f1d,MIG-77aa", ["GPU-8f1d", "MIG-77aa", "GPU-8f1d", "MIG-77aa"]),
        (4, 1, "2,-1,3", ["2", "2", "2", "2"]),  # CUDA stops reading at what is no GPU
        (2, 2, None, ["0", "1", "1", "0"]),  # the short row ends first
        (4, 0, None, [None] * 4),
        (4, 0, "", [""] * 4),
    ],
)
def test_each_row_at_work_has_a_gpu_of_its_own(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    gpus: int,
    visible: str | None,
    expected: list[str | None],
) -> None:
    shown = shown_gpus(data, tmp_path, monkeypatch, jobs=jobs, gpus=gpus, visible=visible)
    assert shown == dict(zip(("reference", "short", "third", "fourth"), expected, strict=True))


def test_rows_on_cpus_have_no_gpu(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(shown_gpus(data, tmp_path, monkeypatch, jobs=4, gpus=4, device="cpu").values()) == {None}


def test_what_needs_a_failed_row_is_not_run_and_the_rest_is(data: Path, tmp_path: Path) -> None:
    rows = values(data)["rows"]
    rows["shallow"]["training"] = training(tokens_per_step=100)  # no whole number of windows
    told: list[str] = []
    with pytest.raises(ValueError, match="shallow, seed 3: failed with exit code 2") as caught:
        run_study(study(data, rows=rows), tmp_path, only=("stacked", "taught"), jobs=2, tell=told.append)
    assert "stacked, seed 3: was not run: it needs shallow" in str(caught.value)
    assert (tmp_path / "seed-3" / "taught" / "model").exists()


def test_a_stopped_study_goes_on_to_the_same_weights(
    finished: tuple[Path, list[str]], data: Path, tmp_path: Path
) -> None:
    file, directory = tmp_path / "study.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(values(data)))
    command = [sys.executable, "-m", "inheritune", "study", str(file), "-o", str(directory), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list(directory.glob("seed-3/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "to save and end; a second signal ends it at once" in errors
    assert "the study stopped; the same command resumes it" in errors
    forked(run_forked, values(data), directory)
    for name in ("reference", "stacked", "taught", "controlled"):
        path = Path("seed-3") / name / "model" / "model.safetensors"
        assert (directory / path).read_bytes() == (finished[0] / path).read_bytes(), name


def test_rows_end_with_a_study_that_is_killed(data: Path, tmp_path: Path) -> None:
    endless = {"data": {"path": str(data), "window": 32}, "training": training(steps=10**9)}
    file, directory = tmp_path / "study.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(values(data, shared=endless)))
    command = [sys.executable, "-m", "inheritune", "study", str(file), "-o", str(directory), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while len(list(directory.glob("seed-3/*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        rows = psutil.Process(process.pid).children()
        process.kill()
    assert len(rows) == 2
    with (
        closing(RunDirectory(directory)) as other,
        pytest.raises(UserError, match="another process is running in"),
    ):
        other.hold()  # the rows do, until they have saved
    assert not psutil.wait_procs(rows, timeout=60)[1]
    assert len(list(directory.glob("seed-3/*/checkpoints/step-*"))) >= 2
    with closing(RunDirectory(directory)) as other:
        other.hold()
