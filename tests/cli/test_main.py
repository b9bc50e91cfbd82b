"""The command as users meet it: help, exit codes, one sentence for each mistake."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoModelForCausalLM

import tiny_data
from inheritune import UserError
from inheritune.cli import main as cli
from inheritune.config import Recipe
from inheritune.planning import plan
from inheritune.quantities import count, memory
from inheritune.recipe_file import load_any, load_recipe
from inheritune.run_directory import RunDirectory, read_starts
from inheritune.runtime import files
from tiny_models import tiny_model
from tiny_recipes import training, values

VERBS = (
    "quickstart",
    "prepare",
    "analyze",
    "inherit",
    "plan",
    "run",
    "train",
    "study",
    "evaluate",
    "report",
    "compare",
)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["inheritune", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_shards(tmp_path_factory.mktemp("shards"))


def write_recipe(path: Path, recipe: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_help_names_every_verb(command) -> None:
    result = command("--help")
    assert result.code == 0
    assert all(verb in result.out for verb in VERBS)
    for verb in VERBS:
        assert command(verb, "--help").code == 0


def imported(*arguments: object) -> tuple[set[str], str]:
    """Top-level packages that a command has imported when it ends, and its stderr."""
    program = (
        "import sys; from inheritune.cli.main import main\n"
        "try: main()\n"
        "finally: print(*{name for name in sys.modules if '.' not in name})"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()), done.stderr


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_waits_for_no_library(verb: tuple[str, ...]) -> None:
    packages, _ = imported(*verb, "--help")
    assert "typer" in packages
    assert not packages & {"torch", "transformers", "datasets", "pyarrow", "matplotlib", "numpy"}


def test_a_plan_waits_for_what_it_needs_alone(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", values(data))
    packages, errors = imported("plan", recipe)
    assert "transformers" in packages and errors == ""
    assert not packages & {"torchao", "datasets", "pyarrow", "matplotlib", "lm_eval"}


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra `fp8`")
def test_what_transformers_takes_from_torchao_is_there_when_called() -> None:
    program = (
        "import inheritune.cut, sys\n"
        "from transformers.quantizers.quantizer_torchao import flatten_tensor_state_dict\n"
        "assert 'torchao' not in sys.modules\n"
        "print(flatten_tensor_state_dict({}), 'torchao' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.stdout == "({}, {'tensor_names': '[]'}) True\n", done.stderr


def test_a_system_without_posix_locks(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for verb in ("run", "prepare"):
        result = command(verb, tmp_path / "x")
        assert result.code == 2
        assert result.err.startswith("error: inheritune needs a POSIX system")
        assert "Traceback" not in result.err


def test_help_loads_no_library_that_only_the_work_needs_and_no_posix_locks() -> None:
    heavy = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "matplotlib", "jinja2"}
    code = (
        "import sys; sys.modules['fcntl'] = None; import inheritune, inheritune.cli.main\n"
        f"assert len([name for name in sys.modules if name.startswith('inheritune.cli.')]) > {len(VERBS)}\n"
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_version(command) -> None:
    assert command("--version").out.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("inherit", "MODEL", "--layers", 0, "-o", "OUT"),
            "cannot keep 0 layers of a model with 4: choose 1 to 4",
        ),
        (
            ("inherit", "MODEL", "--layers", 5, "-o", "OUT"),
            "cannot keep 5 layers of a model with 4: choose 1 to 4",
        ),
        (("inherit", "./nowhere", "--layers", 2, "-o", "OUT"), "there is no model at ./nowhere"),
        (("inherit", "MODEL", "--layers", 2, "-o", "MODEL"), "exists already; nothing was written"),
        (("inherit", "MODEL", "--layers", 2, "-o", "OUT", "--dtype", "int3"), "unknown dtype 'int3'"),
        (("run", "missing.yaml"), "No such file or directory: missing.yaml"),
        (("report", "./nowhere"), "nowhere does not exist"),
        (("plan", "missing.yaml"), "No such file or directory: missing.yaml"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(
    command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2").save_pretrained(tmp_path / "MODEL")
    result = command(*arguments)
    assert result.code == 2, result.err
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert not (tmp_path / "OUT").exists()


def test_a_missing_option_exits_with_2(command) -> None:
    result = command("inherit", "model")
    assert result.code == 2
    assert "--output" in result.err


def test_debug_shows_where(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("run", "missing.yaml", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.rstrip().endswith("error: No such file or directory: missing.yaml")


def test_our_own_mistakes_are_not_disguised(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise AssertionError("this is our fault")

    monkeypatch.setattr("inheritune.recipe_file.load_recipe", broken)
    result = command("run", "any.yaml")
    assert result.code == 1
    assert "Traceback" in result.err


def test_a_full_disk_is_told_plainly(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr("inheritune.recipe_file.load_recipe", full)
    result = command("run", "any.yaml")
    assert result.code == 2
    assert "the disk is full at runs/x" in result.err


def test_inherit_writes_a_standard_checkpoint(command, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    result = command("inherit", tmp_path / "large", "--layers", 2, "-o", tmp_path / "made/small")
    assert result.code == 0, result.err
    assert "2 of 4 layers" in result.out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made/small")
    assert model.config.num_hidden_layers == 2
    card = (tmp_path / "made/small/README.md").read_text()
    assert "first 2 of 4 layers of large" in card
    assert str(tmp_path) not in card


def test_run_report_and_run_again(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data, parity={"margin": 100.0}))
    first = command("run", path, "-o", tmp_path / "run")
    assert first.code == 0, first.err
    assert "Parity" in first.out
    html = (tmp_path / "run/report.html").read_text()
    assert '<img src="data:image/svg+xml;' in html
    again = command("run", path, "-o", tmp_path / "run")
    assert again.code == 0
    assert "is finished; nothing was changed." in again.out
    assert command("report", tmp_path / "run").code == 0
    (start,) = read_starts(tmp_path / "run")
    assert start["command"].startswith("inheritune run ")


def test_train_one_model(command, data: Path, tmp_path: Path) -> None:
    recipe = {
        "data": {"path": str(data), "window": 32},
        "model": {"architecture": values(data)["reference"]["architecture"]},
        "training": training(),
    }
    result = command("train", write_recipe(tmp_path / "one.yaml", recipe), "-o", tmp_path / "one")
    assert result.code == 0, result.err
    assert "validation loss" in result.out


def test_plan_tells_every_stage(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data, start_layers=1, grow={"layers": 1}))
    result = command("plan", path, "--flops-per-second", "1e9")
    assert result.code == 0, result.err
    assert [f"round {n}" in result.out for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert "Times at 1e+09 FLOP/s (given)." in result.out
    measured = command("plan", path, "--measure")
    assert measured.code == 0, measured.err
    assert "(measured here)" in measured.out
    assert command("plan", path, "--flops-per-second", "-1").code == 2


def test_plan_tells_what_the_machine_must_have(
    command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data, start_layers=1, grow={"layers": 1}))
    result = command("plan", path, "--flops-per-second", "1e9")
    planned = plan(load_any(path))
    sizes = [stage.parameters for stage in planned.stages]
    assert (planned.models_on_disk, planned.checkpoints_on_disk) == (4 * sum(sizes), 36 * max(sizes))
    half = plan(load_any(path, ["training.dtype=bfloat16"]))
    assert (half.models_on_disk, half.checkpoints_on_disk) == (2 * sum(sizes), 36 * max(sizes))
    assert "It fits this machine: about" in result.out
    assert f"Validation: 62 windows of 32 tokens in {data}." in result.out
    assert (
        f"Disk: up to {memory(planned.models_on_disk)} of models, and {memory(36 * max(sizes))} of"
        in result.out
    )
    tokens, flops = (sum(getattr(stage, name) for stage in planned.stages) for name in ("tokens", "flops"))
    total = next(line for line in result.out.splitlines() if line.startswith("at most"))
    assert total.split()[2:4] == [count(tokens), f"{flops:.1e}".replace("e+", "e")]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**10))
    assert "It does not fit this machine: about" in command("plan", path).out


def test_plan_without_data(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(tmp_path / "void"))
    refused = command("plan", path)
    assert (refused.code, refused.err) == (2, f"error: there is no directory {tmp_path / 'void'}\n")
    planned = command("plan", path, "--without-data")
    assert planned.code == 0
    assert "round 1" in planned.out
    assert "Validation:" not in planned.out


def test_plan_tells_the_memory_of_each_process(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data, training=training(parallel="fsdp")))
    result = command("plan", path, "--processes", 2)
    assert result.code == 0, result.err
    assert "Largest: reference, with 2 windows in one forward pass." in result.out
    assert "In each of 2 processes about: ddp" in result.out
    assert "(2 windows); the recipe takes fsdp. One process alone: 1.79 MiB (4 windows)." in result.out
    none, odd = command("plan", path, "--processes", 0), command("plan", path, "--processes", 3)
    assert none.err == "error: processes is 0, but must be at least 1\n"
    assert "cannot be shared evenly by 3 processes" in odd.err
    assert command("plan", path, "--device", "tpu").code == none.code == odd.code == 2


def test_a_recipe_with_a_misspelt_key(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data, training={"stpes": 3}))
    result = command("run", path, "-o", tmp_path / "run")
    assert result.code == 2
    assert "unknown key `training.stpes`; did you mean `steps`?" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["recipe.yaml/run", "/proc/run"])
def test_an_unwritable_place(
    command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", values(data))
    result = command("run", path, "-o", place)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert place.rsplit("/", maxsplit=1)[-1] in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["prepare", "train", "study"])
def test_an_output_inside_a_file_is_told_plainly(command, data: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "text.jsonl").write_text('{"text": "a few words"}\n' * 4)
    shared = {"data": {"path": str(data), "window": 32}, "training": training()}
    single = {"model": {"architecture": {"preset": "gpt2-small", "n_layer": 1, "n_embd": 16, "n_head": 2}}}
    study = {"reference": "one", "shared": shared, "rows": {"one": single}}
    given = {
        "prepare": [tmp_path / "text.jsonl", "--train-tokenizer", 300],
        "train": [write_recipe(tmp_path / "train.yaml", {**shared, **single})],
        "study": [write_recipe(tmp_path / "study.yaml", study)],
    }
    result = command(verb, *given[verb], "-o", tmp_path / "file" / "out")
    assert result.code == 2, result.err
    assert "a part of its path, is a file; give another place" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "said", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "abc"}, {"WORLD_SIZE": "2", "RANK": "5"}]
)
def test_an_environment_that_torchrun_would_not_set(
    command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data))
    monkeypatch.setattr(os, "_exit", sys.exit)  # how one of several processes ends
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    result = command("run", path, "-o", tmp_path / "run")
    assert result.code == 2
    assert "not a valid rank and size: start them with torchrun, or unset these" in result.err
    assert not (tmp_path / "run").exists()


def test_two_starts_at_once_in_a_new_directory(data: Path, tmp_path: Path) -> None:
    """The second has seen no directory; the first makes it, and works in it or has ended."""
    recipes = [
        Recipe.model_validate(values(data, training=training(optimizer={"learning_rate": rate})))
        for rate in (1e-3, 2e-3)
    ]
    first, second = (RunDirectory(tmp_path / "run") for _ in range(2))
    second.check_place = lambda: first.open(recipes[0], {}, ())  # type: ignore[method-assign]
    with first:
        with pytest.raises(UserError, match="another process is running in"), second:
            second.open(recipes[0], {}, ())
        assert sorted(path.name for path in first.path.iterdir()) == ["recipe.yaml", "starts.jsonl"]

    def finished() -> None:
        with RunDirectory(tmp_path / "other") as folder:
            folder.open(recipes[0], {}, ())
            files.write_json(folder.path / "validation.json", {})

    late = RunDirectory(tmp_path / "other")
    late.check_place = finished  # type: ignore[method-assign]
    with pytest.raises(UserError, match="holds a run of another recipe"), late:
        late.open(recipes[1], {}, ())
    assert (tmp_path / "other/validation.json").exists()


def test_two_starts_in_one_directory(command, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", values(data))
    assert command("run", path, "-o", tmp_path / "run").code == 0
    with closing(RunDirectory(tmp_path / "run")) as folder:
        folder.open(load_recipe(path, Recipe), {}, ())
        result = command("run", path, "-o", tmp_path / "run")
    assert result.code == 2
    assert f"another process is running in {tmp_path / 'run'}: wait until it ends, or end it" in result.err
    assert command("run", path, "-o", tmp_path / "run").code == 0
