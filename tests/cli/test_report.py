"""`inheritune report` at the command line."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import typer
from typer.testing import CliRunner

from inheritune import UserError
from inheritune.cli.report import report_command
from inheritune.run_directory import RunDirectory
from report.synthetic_run import (
    FINAL_LOSS,
    change_summary,
    metrics_rows,
    round_summary,
    write_metrics,
    write_run,
)


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


def test_a_run_is_followed_while_it_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change_summary(run, verdict=None, rounds=[round_summary(1)])
    (run / "state.json").write_text(json.dumps({"phase": "round", "round": 2, "verdict": None}))
    write_metrics(run / "round-2-6-layers", metrics_rows(2, 4.6, FINAL_LOSS[2], steps=100))
    files = sorted(run.rglob("*"))
    command = [sys.executable, "-m", "inheritune", "report", str(run), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = server.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", told)
            assert address is not None and str(run) in told
            with urlopen(address[0]) as answer:
                assert "the last record is step 100 of round 2" in answer.read().decode()
                assert answer.headers["Refresh"] == "10" and answer.headers["Cache-Control"] == "no-store"
            with RunDirectory(run) as trainer:
                trainer.hold()  # as `inheritune run` does: the page needs no lock
                write_metrics(run / "round-2-6-layers", metrics_rows(2, 4.6, FINAL_LOSS[2], steps=200))
                with urlopen(address[0]) as answer:
                    assert "the last record is step 200 of round 2" in answer.read().decode()
            (run / "summary.json").write_text("{")
            with urlopen(address[0]) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain") and answer.headers["Refresh"]
                assert "summary.json is not as `inheritune run` writes it" in answer.read().decode()
            change_summary(run)
            (run / "state.json").write_text(
                json.dumps({"phase": "finished", "round": 2, "verdict": "parity"})
            )
            with urlopen(address[0]) as answer:
                assert "Parity after round 2" in answer.read().decode()
                assert answer.headers["Refresh"] is None, "there is nothing to wait for"
            for request, code in (
                (Request(f"{address[0]}recipe.yaml"), 404),
                (Request(address[0], headers={"Host": "example.com"}), 403),
                (Request(address[0], method="DELETE"), 501),
            ):
                with pytest.raises(HTTPError) as caught:
                    urlopen(request)
                assert caught.value.code == code
                caught.value.close()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    assert sorted(run.rglob("*")) == files, "nothing was written"


def test_a_port_that_cannot_be_had_and_two_wishes_at_once(app: typer.Typer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, [str(run), "--serve", "--port", str(port)])
    assert (
        str(result.exception)
        == f"port {port} cannot be used (address already in use): give another with --port"
    )
    result = CliRunner().invoke(app, [str(run), "--serve", "-o", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "either --serve or --output" in str(result.exception)
