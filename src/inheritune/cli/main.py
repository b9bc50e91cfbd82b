"""The command `inheritune`: one verb for each job. No logic here: parse, call, print."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from inheritune import UserError, __version__
from inheritune.cli.analyze import analyze_command
from inheritune.cli.answers import answers_command
from inheritune.cli.compare import compare_command
from inheritune.cli.evaluate import evaluate_command
from inheritune.cli.inherit import inherit_command
from inheritune.cli.init import init_command
from inheritune.cli.plan import plan_command
from inheritune.cli.prepare import prepare_command
from inheritune.cli.push import push_command
from inheritune.cli.quickstart import quickstart_command
from inheritune.cli.report import report_command
from inheritune.cli.run import run_command
from inheritune.cli.schema import schema_command
from inheritune.cli.study import study_command
from inheritune.cli.train import train_command
from inheritune.runtime.allocator import keep_freed_memory
from inheritune.runtime.files import FULL
from inheritune.runtime.signals import first_process, terminated_as_interrupted

USER_ERROR = 2
PEER_LOST = 3
INTERRUPTED = 130

NOISY = ("torchao", "torch.utils._pytree")
"""Of float8: torchao, and what it registers with torch, warn of what is no concern of the user's."""

TOGETHER = ("run", "train", "analyze", "answers")
"""Verbs that several processes can work on, started by torchrun."""


WORDS = ("prompt", "title", "model")
"""Parameters that may be empty, being no names of something, and a model, which is refused wherever one is named."""


class Verb(TyperCommand):
    """A verb whose arguments are not empty: as a path that would be the current folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of click; UserError for what is empty."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            if parameter.name not in WORDS and "" in (value if isinstance(value, list | tuple) else [value]):
                name = parameter.opts[0]
                raise UserError(
                    f"{name if name.startswith('-') else name.upper()} names nothing: it is empty, as where a shell "
                    "variable is not set"
                )
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="inheritune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart", cls=Verb)(quickstart_command)
app.command("prepare", cls=Verb)(prepare_command)
app.command("analyze", cls=Verb)(analyze_command)
app.command("inherit", cls=Verb)(inherit_command)
app.command("init", cls=Verb)(init_command)
app.command("answers", cls=Verb)(answers_command)
app.command("plan", cls=Verb)(plan_command)
app.command("run", cls=Verb)(run_command)
app.command("train", cls=Verb)(train_command)
app.command("study", cls=Verb)(study_command)
app.command("evaluate", cls=Verb)(evaluate_command)
app.command("report", cls=Verb)(report_command)
app.command("compare", cls=Verb)(compare_command)
app.command("push", cls=Verb)(push_command)
app.command("schema", cls=Verb)(schema_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where in the program an error arose (works after any verb too)."),
    ] = False,
) -> None:
    """Turn a large trained language model into a smaller one that is as good: inherit, train, compare, grow."""


def main() -> None:
    """Run the command; what users can fix is printed as one sentence, with exit code 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    size = os.environ.get("WORLD_SIZE", "")
    processes = int(size) if size.isdigit() else 1  # anything else is an error where they join
    level = logging.WARNING if first_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for library in NOISY:
        logging.getLogger(library).setLevel(logging.ERROR)
    keep_freed_memory()
    # Of several processes torchrun ends those that wait for others, which would not come to an exception.
    alone = terminated_as_interrupted if processes == 1 else nullcontext
    try:
        _check_system()
        _check_together(arguments, processes)
        with alone():
            code = app(args=arguments, prog_name="inheritune", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of it
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; what is finished is kept, and the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of typer's own
            error.show()
            sys.exit(error.exit_code)
        kind = type(error).__name__
        sentence = _sentence(error)
        if debug or sentence is None:
            traceback.print_exc()
        if sentence is None:
            _exit(1, processes)
        if kind == "Interrupted":
            if first_process():  # all of them stop after the same step
                print(sentence, file=sys.stderr)
            sys.exit(INTERRUPTED)
        who = f" (process {os.environ.get('RANK')} of {processes})" if processes > 1 else ""
        print(f"error{who}: {sentence}", file=sys.stderr)
        _exit(PEER_LOST if kind == "PeerLostError" else USER_ERROR, processes)
    sys.exit(code if isinstance(code, int) else 0)


def _check_system() -> None:
    """Locks, links and renames are POSIX's."""
    if importlib.util.find_spec("fcntl") is None:
        raise UserError(
            "inheritune needs a POSIX system, as Linux and macOS are: on Windows, use its Subsystem for Linux"
        )


def _check_together(arguments: list[str], processes: int) -> None:
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    if processes > 1 and verb not in TOGETHER:
        raise UserError(
            f"`inheritune {verb}` is work for one process, and torchrun started {processes}: start it alone "
            f"(together work {', '.join(TOGETHER)})"
        )


def _exit(code: int, processes: int) -> None:
    """End; of several processes at once, since threads may wait for a message that will never come."""
    if processes == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _sentence(error: Exception) -> str | None:
    """The sentence for the user, or None if it is our mistake and not theirs."""
    if isinstance(error, OSError):
        if error.errno in FULL:
            what = "the disk" if error.errno == errno.ENOSPC else "a quota, or what may be in one file,"
            where = f" at {error.filename}" if error.filename else ""
            return (
                f"{what} is full{where}; nothing half-written counts as finished: free some space and repeat"
            )
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
            return (
                f"{error.filename} cannot be made: it, or a part of its path, is a file; give another place"
            )
        return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
    if isinstance(error, UserError) or type(error).__name__ in ("Interrupted", "PeerLostError"):
        return " ".join(str(error).split())
    return None
