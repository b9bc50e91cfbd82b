"""Every command and every piece of Python in README and documentation works.

Each page is followed from top to bottom in a folder of its own, with tiny models and texts in the place of those that
it names.
"""

from __future__ import annotations

import functools
import glob
import itertools
import json
import operator
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM

from docs.markdown import ROOT, Block, blocks, pages
from evaluation import tiny_items
from inheritune import quickstart
from inheritune.cli import main as cli
from inheritune.config import Recipe, TrainRecipe
from inheritune.recipe_file import load_any, parse_recipe
from tiny_gguf import write_gguf

FOLLOWED = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/how-to").glob("*.md")),
    ROOT / "docs/reference/python.md",
]
MODELS = {
    "HuggingFaceTB/SmolLM2-135M": ("llama", 30),
    "Qwen/Qwen3-0.6B-Base": ("qwen3", 28),
    "gpt2": ("gpt2", 12),
}
"""Models that pages name -> the type and the depth of what stands there instead."""

DATA_SETS = {"openwebtext": "my-texts"}
"""Data sets that need a network -> the folder that is read instead."""

SIZES = {"512": "32", "1024": "48", "1280": "56", "80M": "200K", "24000": "500"}
"""Sizes of a small model that pages name -> those of a model that is tiny already."""

BEFORE = {
    "docs/how-to/resume.md": ["inheritune prepare my-texts --tokenizer gpt2 -o data/mine"],
    "docs/how-to/several-gpus.md": ["inheritune prepare my-texts --tokenizer gpt2 -o data/mine"],
    "docs/how-to/publish.md": [
        "inheritune prepare my-texts --tokenizer HuggingFaceTB/SmolLM2-135M -o data/mine",
        "inheritune run recipe.yaml -o runs/mine",
    ],
    "docs/how-to/evaluate.md": [
        "inheritune prepare my-texts --tokenizer HuggingFaceTB/SmolLM2-135M -o data/mine",
        "inheritune run recipe.yaml -o runs/mine",
    ],
}
"""What a page takes for granted."""

RECIPE = {
    "data": {"path": "data/mine"},
    "reference": {"pretrained": "HuggingFaceTB/SmolLM2-135M"},
    "keep": "ends",
    "start_layers": 2,
    "grow": {"max_rounds": 1},
}
"""The `recipe.yaml` of pages that speak of any recipe; `README.md` has one that measures which layers to keep."""

OWN_TASK = """
task: colours
dataset_path: colours
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: [red, green]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


# What cannot be run here is looked at ------------------------------------------------------------------------------


def check_options(words: list[str]) -> None:
    """`inheritune ...` has a verb that exists, its arguments, and options that it knows."""
    commands: Any = typer.main.get_command(cli.app)
    assert words[1] in commands.commands, f"there is no verb {words[1]!r}"
    commands.commands[words[1]].make_context(words[1], list(words[2:]))


def check_make(words: list[str]) -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    assert words[1] in targets, f"make has no target {words[1]!r}"


def check_pip(words: list[str]) -> None:
    assert words[1] == "install", words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[2:]:
        for extra in re.findall(r"\[([a-z0-9,]+)\]", word):
            assert set(extra.split(",")) <= extras.keys(), word
    for option, value in itertools.pairwise(words):
        assert option != "-c" or (ROOT / value).is_file(), value


def check_torchrun(words: list[str]) -> None:
    start = words.index("-m")
    assert words[start + 1] == "inheritune"
    assert words[start + 2] in cli.TOGETHER
    check_options(words[start + 1 :])
    from torch.distributed.run import get_args_parser

    get_args_parser().parse_args(words[1:])


def check_script(words: list[str]) -> None:
    path = ROOT / words[0]
    assert os.access(path, os.X_OK), f"{words[0]} is no program"
    subprocess.run(["bash", "-n", path], check=True)
    check_options(["inheritune", "run", *words[1:]])


def check_sbatch(words: list[str]) -> None:
    assert "#SBATCH" in (ROOT / words[1]).read_text()
    subprocess.run(["bash", "-n", ROOT / words[1]], check=True)
    check_options(["inheritune", "run", *words[2:]])


def check_python(words: list[str]) -> None:
    assert words[1:3] in (["-m", "venv"], ["-m", "build"]) or (ROOT / words[1]).is_file(), words


def check_inside(words: list[str]) -> None:
    """What starts a program of ours in an environment or a container of its own."""
    if words[:2] == ["docker", "build"]:
        assert (ROOT / words[-1] / "Dockerfile").is_file()
        return
    start = len(words) - words[::-1].index("inheritune") - 1
    if "--entrypoint" in words:
        check([words[words.index("--entrypoint") + 1], *words[words.index("inheritune") + 1 :]])
    else:
        check_options(words[start:])


NOT_RUN: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    ".venv/bin/pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "torchrun": check_torchrun,
    "sbatch": check_sbatch,
    "uvx": check_inside,
    "pipx": check_inside,
    "docker": check_inside,
    "examples/one-machine.sh": check_script,
    "examples/several-machines.sh": check_script,
    **dict.fromkeys(
        (".", "hf", "convert_hf_to_gguf.py", "llama-quantize", "llama-cli", "vllm"), lambda words: None
    ),
}
"""Programs of commands that install something, or that need several processes or machines (`test_examples.py` runs
those), and programs of others -> how it is made sure that such a command is one."""


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a piece of shell: words, without comments and without settings of the environment."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def check(words: list[str]) -> None:
    """A command is one that exists, with options that it has."""
    if words[0] == "inheritune":
        check_options(words)
    else:
        assert words[0] in NOT_RUN, f"nobody knows the command {words[0]!r}"
        NOT_RUN[words[0]](words)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    """In every Markdown file: verbs and options."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        assert block.language in ("sh", "python", "yaml", "text", "toml"), f"line {block.line}"
        if block.language == "sh":
            for words in commands(block.text):
                check(words)
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    for words in commands(re.sub(r"(?m)^(?!inheritune |.*\\$| {4}).*$", "", indented)):
        if words[0] == "inheritune":
            check(words)


@pytest.mark.parametrize(
    "command",
    [
        "inheritune inherti MODEL --layers 3 -o DIR",
        "inheritune inherit MODEL --layerz 3 -o DIR",
        "inheritune inherit MODEL --layers 3",
        "make quikstart",
        "pip install 'inheritune[evil]'",
        "pip install -c constraint.txt -e .",
        "torchrun --standalone --nproc-per-node gpu -m inheritune evaluate runs/x",
        "torchrun --standalone --nproc-pre-node gpu -m inheritune run recipe.yaml",
        "MACHINES=2 examples/severl-machines.sh recipe.yaml",
        "sbatch examples/slurm.sbatch recipe.yaml --outputt x",
        "inheritun run recipe.yaml",
    ],
)
def test_a_misspelt_command_is_found(command: str) -> None:
    (words,) = commands(command)
    with pytest.raises((Exception, SystemExit)):
        check(words)


def test_a_misspelt_word_in_the_readme_is_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shell = "".join(block.text for block in blocks(text) if block.language == "sh")
    for word in ("prepare", "--tokenizer", "--measure", "quickstart", "constraints.txt"):
        assert word in shell
        with pytest.raises((Exception, SystemExit)):
            for words in commands(shell.replace(word, f"{word}x")):
                check(words)


# Pages, followed ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that pages name."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = tiny_items.make_tokenizer(folder / "tokenizer")
    for name, (kind, layers) in MODELS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "gguf").mkdir()
    llama = AutoModelForCausalLM.from_pretrained(folder / "HuggingFaceTB/SmolLM2-135M")
    write_gguf(folder / "gguf/SmolLM2-135M-Q8_0.gguf", llama, tokenizer)
    generator = random.Random(0)
    texts = [tiny_items.phrase(generator, 20, 40) for _ in range(800)]
    (folder / "my-texts").mkdir()
    (folder / "exports").mkdir()
    (folder / "my-texts/one.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    nested = [json.dumps({"data": {"body": text}}) for text in texts] + ['{"data": {"body": null}}']
    (folder / "exports/one.jsonl").write_text("\n".join(nested))
    (folder / "my-notes.txt").write_text("\n".join(texts * 2))
    (folder / "my-task.yaml").write_text(OWN_TASK)
    tiny_items.write_items(folder / "items", ["arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai"])
    for path in (ROOT / "recipes").rglob("*.yaml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(shortened(yaml.safe_load(path.read_text())), sort_keys=False))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(shortened(RECIPE)))
    return folder


def shortened(values: Any) -> Any:
    """A recipe of a few tiny steps, with short windows and small models; all else as it was."""
    if "rows" in values:
        shared = shortened(values.get("shared", {}))
        rows = {name: _with_small_models(row) for name, row in values["rows"].items()}
        rows = {
            name: {**row, **({"training": _short(row["training"])} if "training" in row else {})}
            for name, row in rows.items()
        }
        return {**values, "shared": shared, "rows": rows, "seeds": [0], "headline": []}
    data = {"path": "data/mine", **values.get("data", {}), "window": 32}
    training = {
        **_short(values.get("training", {})),
        "tokens_per_step": 256,
        "tracking": {"tensorboard": False},
    }
    return _with_small_models({**values, "data": data, "training": training})


def _short(training: dict[str, Any]) -> dict[str, Any]:
    schedule = {**training.get("schedule", {}), "warmup_steps": 1}
    kept = {name: value for name, value in training.items() if name not in ("tokens_per_step", "validation")}
    return {**kept, "steps": 3, "schedule": schedule}


def _with_small_models(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    changed = {name: _with_small_models(value) for name, value in values.items()}
    if "preset" in changed:
        changed |= {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": 640}
    return changed


class Follower:
    """Does what a page says, in the current folder."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page, self.monkeypatch = page, monkeypatch
        self.names: dict[str, Any] = {}

    def follow(self, block: Block) -> None:
        if block.language == "sh":
            for words in commands(block.text):
                self.run(words)
        elif block.language == "python":
            exec(compile(block.text, f"{self.page}:{block.line}", "exec"), self.names)
        elif block.language == "yaml" and block.title is not None:
            Path(block.title).write_text(
                yaml.safe_dump(shortened(yaml.safe_load(block.text)), sort_keys=False)
            )
            load_any(Path(block.title))
            parse_whole(block.text)
        elif block.language == "yaml":
            for part in re.split(r"(?m)^(?=[a-z_]+:)", block.text):
                check_part(yaml.safe_load(part))

    def run(self, words: list[str]) -> None:
        """Run a command of ours; only look at others."""
        check(words)
        if words[0] != "inheritune":
            return
        arguments = [file for word in words[1:] for file in expanded(DATA_SETS.get(word, word))]
        for place, word in enumerate(arguments):
            if word in ("--mlp", "--parameters", "--vocabulary", "--window"):
                arguments[place + 1] = SIZES.get(arguments[place + 1], arguments[place + 1])
        if arguments[0] == "study" and arguments[1].startswith("recipes/paper"):
            study = yaml.safe_load(Path(arguments[1]).read_text())
            arguments += ["--row", study["reference"]]  # each row is a program of its own
        if arguments[0] == "push" and "--dry-run" not in arguments:
            arguments += ["--dry-run"]  # test_hub.py pushes
        self.monkeypatch.setattr(sys, "argv", ["inheritune", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{self.page.name}: {shlex.join(words)}"


def expanded(word: str) -> list[str]:
    """As the shell expands patterns."""
    return sorted(map(str, Path().glob(word))) or [word] if glob.has_magic(word) else [word]


def parse_whole(text: str) -> None:
    """A recipe as it is printed is one, too."""
    values = yaml.safe_load(text)
    if "rows" not in values:
        parse_recipe(values, TrainRecipe if "model" in values else Recipe)


def check_part(values: dict[str, Any] | None) -> None:
    """A key of a recipe with its value, as a page shows it without the rest."""
    for name, value in (values or {}).items():
        kinds = [kind for kind in (TrainRecipe, Recipe) if name in kind.model_fields]
        assert kinds, f"no recipe has the key {name!r}"
        annotations = [kind.model_fields[name].annotation for kind in kinds]
        TypeAdapter(functools.reduce(operator.or_, annotations)).validate_python(value)


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_can_be_followed(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    if all(block.language == "text" for block in blocks(text)):
        return
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.load_dataset", _load_dataset)
    monkeypatch.setattr(quickstart, "quickstart_recipe", _short_quickstart(quickstart.quickstart_recipe))
    monkeypatch.setattr("inheritune.analysis.layers.WINDOWS", 8)  # 30 layers are many, however small
    monkeypatch.setattr("inheritune.analysis.layers.LENGTH", 32)
    monkeypatch.setattr("inheritune.analysis.shape.STEPS", 2)
    monkeypatch.setattr("inheritune.evaluation.speed.NEW_TOKENS", 4)
    monkeypatch.setattr("inheritune.evaluation.speed.TURNS", 1)
    follower = Follower(page, monkeypatch)
    for line in BEFORE.get(page.relative_to(ROOT).as_posix(), []):
        follower.run(shlex.split(line))
    for block in blocks(text):
        follower.follow(block)


def _load_dataset(path: str, name: str | None = None, **more: Any) -> Any:
    """Where lm-evaluation-harness would ask the hub."""
    if path == "colours":
        return {"test": tiny_items.datasets.Dataset.from_list([{"text": "Grass is", "label": 1}] * 3)}
    return tiny_items.load_dataset(path, name, **more)


def _short_quickstart(original: Callable[[Path], Recipe]) -> Callable[[Path], Recipe]:
    def short(data: Path) -> Recipe:
        values = original(data).model_dump(mode="json", exclude={"reference": {"training"}})
        values["training"] |= {"steps": 2, "tracking": {"tensorboard": False}}
        values["training"]["schedule"]["warmup_steps"] = 1
        return parse_recipe(values, Recipe)

    return short
