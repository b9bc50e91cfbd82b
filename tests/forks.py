"""Processes forked from one that has imported what they need, which takes ten seconds, and that has no threads."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from inheritune import study
from inheritune.cli.main import main
from inheritune.config import Study
from inheritune.recipe_file import parse_recipe

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "inheritune.cli.main",
        "inheritune.study",
        "inheritune.report.runs",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
    ]
)


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, as JSON, in a process of its own; it may fork more."""
    with tempfile.TemporaryDirectory() as folder:
        said, result = Path(folder) / "said", Path(folder) / "result"
        process = SERVER.Process(target=_call, args=(said, result, function, arguments))
        process.start()
        process.join(280)
        process.kill()
        assert process.exitcode == 0, said.read_text()[-3000:]
        return json.loads(result.read_text())


def _call(said: Path, result: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with said.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    result.write_text(json.dumps(function(*arguments)))


class Forked:
    """What `subprocess.Popen` does for the rows of a study."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: Any = None, **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.environ.update(env)
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
            sys.argv = command[2:]
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, once there is one."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def run_forked(values: dict[str, Any], directory: Path, only: tuple[str, ...] = ()) -> list[str]:
    """Run a study in a process that may fork, two rows at a time; what it told."""
    study.subprocess = SimpleNamespace(Popen=Forked, STDOUT=None, DEVNULL=None)  # type: ignore[assignment]
    study.POLL_SECONDS = 0.02
    told: list[str] = []
    study.run_study(parse_recipe(values, Study), directory, only=only, jobs=2, tell=told.append)
    return told
