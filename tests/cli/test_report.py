"""`inheritune report` at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from inheritune.cli.report import report_command
from report.synthetic_run import write_run


@pytest.fixture
def app() -> typer.Typer:
    application = typer.Typer()
    application.command("report")(report_command)
    return application


def test_it_writes_into_the_run_and_says_where(app: typer.Typer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = CliRunner().invoke(app, [str(run)])
    assert result.exit_code == 0
    assert result.output.split() == [str(run / "report.html")]
    assert "Parity after round 2" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize("flag", ["-o", "--output"])
def test_the_output_can_be_named(app: typer.Typer, tmp_path: Path, flag: str) -> None:
    run = write_run(tmp_path / "run")
    assert CliRunner().invoke(app, [str(run), flag, str(tmp_path / "page.html")]).exit_code == 0
    assert (tmp_path / "page.html").is_file()
    assert not (run / "report.html").exists()


def test_what_is_not_a_run_is_a_value_error(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "is not a run directory: it has no recipe.yaml" in str(result.exception)
