"""How the verbs print."""

from __future__ import annotations

import os

from rich.console import Console

console = Console(highlight=False)


def print_line(text: str) -> None:
    """One line for the user, without markup."""
    console.print(text, markup=False, soft_wrap=True)


def quiet() -> None:
    """Leave it to us to show progress and tell of trouble."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
