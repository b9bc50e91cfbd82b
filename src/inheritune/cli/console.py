"""How the verbs print."""

from __future__ import annotations

import logging
import os

from rich.console import Console

console = Console(highlight=False)


def print_line(text: str) -> None:
    """One line for the user, without markup."""
    console.print(text, markup=False, soft_wrap=True)


def quiet() -> None:
    """Leave it to us to show progress and tell of trouble."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # after the import, which sets it
