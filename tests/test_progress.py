"""Long work shows how far it is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from inheritune.data.prepare import prepare
from inheritune.quantities import duration
from inheritune.runtime.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass between two looks at it."""
    seconds = itertools.count(0, 10)
    monkeypatch.setattr("inheritune.runtime.progress.time.monotonic", lambda: float(next(seconds)))


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("training", 5, "steps") as bar:
        for step in range(5):
            bar.update(step + 1, "loss 3.2")
    assert capsys.readouterr().err == "training: done\n", "not a line for every step"


def test_a_rate_is_since_the_first_update(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("training", 90_000, "steps", done=40_000) as bar:
        bar.update(50_000, "loss 3.2")
        bar.update(60_000, "loss 3.1")
    assert capsys.readouterr().err.splitlines() == [
        "training: 60,000/90,000 steps, 1,000/s, 30 s left, loss 3.1",
        "training: done",
    ]


def test_slow_first_steps_soon_say_nothing_about_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 20 minutes whose first step compiles, and whose next ones are several times as slow as the rest."""
    now = 0.0
    monkeypatch.setattr("inheritune.runtime.progress.time.monotonic", lambda: now)
    steps = [60.0, 9.0, 8.0, 7.0, 6.0, *([2.0] * 595)]
    with ProgressBar("training", 600, "steps") as bar:
        for step, seconds in enumerate(steps):
            if step == 0:
                now += 20
                bar.update(0, "validating, 8 of 8 windows")
            now += seconds
            bar.update(step + 1)
    shown = [line for line in capsys.readouterr().err.splitlines() if " left" in line]
    left = {int(line.split()[1].split("/")[0]): line.split(", ")[-1] for line in shown}
    later = {step: text for step, text in left.items() if step > 20}
    assert len(later) > 50 and later == {step: f"{duration(2.0 * (600 - step))} left" for step in later}


def test_a_total_that_is_not_known_or_becomes_known(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("encoding", None, "tokens") as bar:
        for done in (10, 20, 30, 40):
            bar.update(done, total=60 if done > 20 else None)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 20 tokens, 1/s",
        "encoding: 40/60 tokens, 1/s, 20 s left",
        "encoding: done",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for total in (40, None):
        with ProgressBar("encoding", total, "tokens") as bar:
            bar.update(10, "3 documents")
    assert "10/40 tokens" in terminal.getvalue()
    assert "10 tokens" in terminal.getvalue()
    assert "3 documents" in terminal.getvalue()


def test_preparing_shows_how_much_is_left(
    clock: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(
        "".join(f'{{"text": "document number {n} {"of many words " * 20}"}}\n' for n in range(3000))
    )
    prepare([source], tmp_path / "out", train_tokenizer=300, validation=0.1)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("reading for the tokenizer: 2,000/") for line in lines)
    encoding = [line for line in lines if line.startswith("encoding: ") and " left, " in line]
    assert encoding and all("tokens, " in line and "documents" in line for line in encoding)
    assert lines[-1] == "encoding: done"
