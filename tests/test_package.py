"""What is distributed: files and metadata of sdist and wheel, and the package as pip installs it from an index.

The libraries that it depends on are those of the environment of the tests: torch alone would take minutes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml

import inheritune
from inheritune.recipe_schema import schema_text
from report.synthetic_run import write_run

ROOT = Path(__file__).parents[1]
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "MANIFEST.in",
    "constraints.txt",
)
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the license's text as the Apache Software Foundation publishes it."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, built from a copy of the sources."""
    tree = tmp_path_factory.mktemp("package") / "tree"
    passed_over = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "recipes", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=passed_over)
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment, into which pip has installed the package from an index of its own (PEP 503)."""
    place = tmp_path_factory.mktemp("installed")
    page = place / "index/inheritune/index.html"
    page.parent.mkdir(parents=True)
    shutil.copy(wheel, page.parent)
    page.write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>')
    environment = place / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(environment), "install", "--quiet"]
    index = ["--index-url", (place / "index").as_uri(), "--no-deps", "--disable-pip-version-check"]
    nothing = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    subprocess.run([*pip, *index, "inheritune[eval]"], check=True, env=nothing)
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def run_installed(installed: Path, *command: str, cwd: Path) -> str:
    """What a command of the environment prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [str(installed / "bin" / command[0]), *command[1:]]
    done = subprocess.run(
        program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def package_files() -> set[str]:
    source = ROOT / "src"
    files = (path for path in (source / "inheritune").rglob("*") if path.is_file())
    return {str(path.relative_to(source)) for path in files if "__pycache__" not in path.parts}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"inheritune-{inheritune.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.startswith(f"inheritune-{inheritune.__version__}.dist-info/")}
    assert names - about == package_files()
    assert any(name.endswith("licenses/LICENSE") for name in about)
    for name in ("py.typed", "report/templates/page.html", "report/paper.yaml", "evaluation/tasks.yaml"):
        assert f"inheritune/{name}" in names


def test_the_sdist_holds_what_is_needed_to_build_it_again(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*SOURCES, *(f"src/{name}" for name in package_files())} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")} <= names
    assert not [name for name in names if name.startswith(("tests", "results"))]


def test_metadata(wheel: Path) -> None:
    found = metadata(wheel)
    assert (found["Version"], found["License-Expression"]) == (inheritune.__version__, "Apache-2.0")
    assert (found["Author"], found["Requires-Python"]) == ("The inheritune authors", ">=3.11")
    assert found.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2404.08634"]
    assert {"eval", "wandb", "fp8"} <= set(found.get_all("Provides-Extra", []))
    assert str(found.get_payload()).startswith("# inheritune")


def test_the_license_is_the_apache_license_word_for_word() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_citation_and_changelog_speak_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    for name in ("version", "license"):
        assert citation[name] == project[name]
    assert citation["authors"] == project["authors"]
    (paper,) = citation["references"]
    assert paper["url"] == project["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Sanyal",
        "Shwartz-Ziv",
        "Dimakis",
        "Sanghavi",
    ]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{inheritune.__version__}]")


def test_constraints_are_plain_pins_of_what_development_needs() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert all(len(line.split("==")) == 2 and " " not in line for line in lines)
    assert {"build", "pyproject_hooks", "setuptools"} <= {line.partition("==")[0] for line in lines}


def test_the_installed_package_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    script = """
import importlib.metadata
import inheritune
from inheritune.evaluation.tasks import local_tasks
from inheritune.report.evaluation_report import paper_tables

print(inheritune.__file__, importlib.metadata.version("inheritune"), len(local_tasks()), len(paper_tables()))
"""
    file, version, tasks, papers = run_installed(installed, "python", "-c", script, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed)
    assert version == inheritune.__version__
    assert int(tasks) > 10 and int(papers) >= 3
    assert run_installed(installed, "inheritune", "--version", cwd=tmp_path) == f"{inheritune.__version__}\n"
    assert "quickstart" in run_installed(installed, "inheritune", "--help", cwd=tmp_path)
    assert run_installed(installed, "inheritune", "schema", "study", cwd=tmp_path) == schema_text("study")
    run_installed(installed, "inheritune", "report", "run", cwd=tmp_path)
    assert "Parity after round 2" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    source = {"_INHERITUNE_COMPLETE": f"source_{shell}"}
    code = "import sys; from inheritune.cli.main import app; app(prog_name='inheritune')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "inheritune" in done.stdout and "_INHERITUNE_COMPLETE=complete_" in done.stdout


def test_the_dockerfile_is_sound() -> None:
    path = ROOT / "Dockerfile"
    linted = subprocess.run(
        [Path(sys.executable).parent / "hadolint", path], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = path.read_text("utf-8")
    copied = [word for line in re.findall(r"(?m)^COPY (.*) \S+$", text) for word in line.split()]
    assert {"src", "constraints.txt"} <= set(copied) and all((ROOT / name).exists() for name in copied)
    (python,) = re.findall(r"(?m)^FROM python:(3\.\d+)-slim$", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
