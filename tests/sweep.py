"""What can be done with each causal language model type of transformers, tried on a tiny model of it.

`python tests/sweep.py > docs/architectures.md` writes the table; `test_sweep.py` holds the code to it.

What is right is found without the code that is tried: blocks that are not wanted run, and forward hooks put what went
into them in the place of what came out.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from inheritune import UserError
from inheritune.analysis.choice import without_each
from inheritune.analysis.importance import ChoiceLosses, Windows
from inheritune.analysis.lazy import measure_heads
from inheritune.analysis.probe import check_attention
from inheritune.cut import inherit
from inheritune.initialization import select
from inheritune.models.architecture import blocks
from inheritune.models.load import load_model, save_model
from inheritune.training.loss import NextTokenLoss
from tiny_types import DEPTH, VOCABULARY, tiny_of_type

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SPREAD = tuple(range(0, DEPTH, 2))
MOST_PARAMETERS = 8_000_000
EXACT = "exact"


@dataclass(frozen=True)
class Outcome:
    """Of one type: `exact`, or the sentence in which it was refused, for each thing that can be done with it."""

    not_tried: str = ""
    first: str = ""
    spread: str = ""
    without: str = ""
    training: str = ""
    attention: str = ""


def outcome(model_type: str, folder: Path) -> Outcome:
    """Cut, choose, train and analyze a tiny model of a type.

    Raises:
        AssertionError: something was done, but not exactly.
    """
    try:
        tiny_of_type(model_type).save_pretrained(folder)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        run(reference)
    except Exception as error:
        return Outcome(not_tried=_sentence(error)[:100])
    if sum(parameter.numel() for parameter in reference.parameters()) > MOST_PARAMETERS:
        return Outcome(not_tried="its tiny model is not small")
    firsts = [_choice(reference, folder, range(count)) for count in range(1, DEPTH)]
    return Outcome(
        first=_together(firsts),
        spread=_choice(reference, folder, SPREAD),
        without=_without_each(folder),
        training=_training(folder, firsts),
        attention=_attention(reference),
    )


def _choice(reference: PreTrainedModel, folder: Path, layers: Sequence[int]) -> str:
    """`exact` if a model of these layers computes what the reference's same layers do, before and after a disk."""
    first = isinstance(layers, range)
    try:
        small = inherit(folder, len(layers)) if first else select(folder, layers)
        with tempfile.TemporaryDirectory() as parent:
            save_model(small, Path(parent) / "small")
            again = load_model(Path(parent) / "small")
    except UserError as error:
        return _sentence(error).replace(str(folder), "FOLDER")
    expected = composed(reference, layers)
    for model in (small, again):
        found = composed(model, range(len(layers)))
        for name, difference in (("hidden state", 0), ("logits", 1)):
            scale = expected[difference].abs().max()
            off = (found[difference] - expected[difference]).abs().max() / scale
            assert off < 1e-4, f"layers {list(layers)}: the {name} is off by {off:.2g} of its largest value"
    return EXACT


def _without_each(folder: Path) -> str:
    """`exact` if the loss without each block is that of a model that was made without it."""
    windows = Windows(_tokens()[:, :-1], _tokens()[:, 1:])
    try:
        reference = load_model(folder)
        losses = ChoiceLosses(reference, windows, bf16=False)
        whole = losses.whole
        found = losses(without_each(whole)).mean(1)
    except UserError as error:
        return _sentence(error).replace(str(folder), "FOLDER")
    made = []
    for block, choice in enumerate(without_each(whole)):
        try:
            small = select(reference, choice)
        except UserError as error:
            made.append(_sentence(error))
            continue
        expected = NextTokenLoss(small).per_window(windows.inputs_nt, windows.targets_nt).mean().item()
        off = abs(found[block] - expected)
        assert off < 1e-5, (
            f"without block {block} the loss is {found[block]:.6f}, but should be {expected:.6f}"
        )
        made.append(EXACT)
    exact = [str(block) for block, one in enumerate(made) if one == EXACT]
    if len(exact) == len(made):
        return EXACT
    reason = next(one for one in made if one != EXACT)
    return (
        f"exact without {', '.join(exact)}; else no model is made: {reason}"
        if exact
        else f"no model is made: {reason}"
    )


def composed(model: PreTrainedModel, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden state after the last of these layers, and logits, of a model whose other blocks pass everything on."""
    last: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        last.append(output)

    def pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        # What a block returns beside the hidden state is the last one's that counts.
        return [hidden, *last[-1][1:]] if isinstance(output, (tuple, list)) else hidden

    with hooks() as handles:
        for number, block in enumerate(blocks(model)):
            if number in layers:
                handles.append(block.register_forward_hook(note))
            else:
                handles.append(block.register_forward_hook(pass_on, with_kwargs=True))
        logits = run(model)
    hidden = last[-1][0] if isinstance(last[-1], (tuple, list)) else last[-1]
    return hidden.float(), logits


@contextmanager
def hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def run(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=_tokens(), use_cache=False).logits.float()
    assert logits.isfinite().all(), "logits are not finite"
    return logits


def _tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))


def _training(folder: Path, firsts: Sequence[str]) -> str:
    """`exact` if a cut learns in three steps: a finite loss that falls, and a gradient for what is trained."""
    depth = next((count for count in (2, 1, 3) if firsts[count - 1] == EXACT), None)
    if depth is None:
        return "not cut"
    model = inherit(folder, depth, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        try:
            loss = model(input_ids=_tokens(), labels=_tokens(), use_cache=False).loss
        except ValueError as error:  # of transformers' own: nothing of ours computes here
            return f"transformers has no loss for text alone: {_sentence(error)}"
        loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in blocks(model).parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0], losses
    return EXACT


def _attention(reference: PreTrainedModel) -> str:
    """`exact` if every layer's matrices were read, and each has a rank and a mass."""
    try:
        check_attention(reference.config)
        heads = measure_heads(reference, _tokens(), tau=0.9, mass=0.9)
    except UserError as error:
        return _sentence(error)
    assert len(heads.ranks) == len(heads.masses) == DEPTH
    assert all(figures.min() >= 1 and figures.max() <= 16 for figures in [*heads.ranks, *heads.masses])
    return EXACT


def _together(firsts: Sequence[str]) -> str:
    """One cell for all depths: `exact`, or the depths that are and the first reason why another is not."""
    exact = [str(count) for count, found in enumerate(firsts, start=1) if found == EXACT]
    if len(exact) == len(firsts):
        return EXACT
    reason = next(found for found in firsts if found != EXACT)
    return f"exact at {', '.join(exact)} of {DEPTH}; else: {reason}" if exact else reason


def _sentence(error: Exception) -> str:
    """The last line of what an exception says; of several the first ones are where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).replace("|", "or")


def row(model_type: str, found: Outcome) -> str:
    """A type's line of the table."""
    cells = (found.first, found.spread, found.without, found.training, found.attention)
    rest = f"{found.not_tried} | | | | " if found.not_tried else " | ".join(cells)
    return f"| {model_type} | {'not tried: ' if found.not_tried else ''}{rest} |"


def summary(found: Sequence[Outcome]) -> str:
    """How many types there are of each kind."""
    tried = [o for o in found if not o.not_tried]
    whole = sum(o.first == o.spread == EXACT for o in tried)
    none = sum(o.spread != EXACT and not o.first.startswith(EXACT) for o in tried)
    read = sum(o.attention == EXACT for o in tried)
    apart = sum(o.without == EXACT for o in tried)
    return (
        f"Of {len(found)} types {whole} are cut exactly at every depth and in every choice tried, "
        f"{len(tried) - whole - none} at some, {none} are refused, and {len(found) - len(tried)} could not be tried. "
        f"The loss without each block is exact of {apart}. The attention of {read} can be analyzed."
    )


HEADER = f"""# Architectures

What `inheritune` does with each causal language model type of transformers {{version}}, tried on a tiny model of
{DEPTH} layers with random weights. A cut is checked whatever the architecture: before it is used or saved, what it
computes is compared with what the same blocks compute in the reference. "exact" means that it is the same, also after
the checkpoint was written and read; everything else was refused in the sentence given, and nothing was left behind.

- **first layers**: the first 1, 2 and 3 layers (`inheritune inherit`).
- **every other**: layers 0 and 2 (`initialization.layers` in a recipe).
- **without each**: the loss without each block, as it is measured to choose layers (`--keep measured`, `analyze`: one
  block after the other, with hidden states that choices have in common computed once), is within 1e-5 of that of a
  model made without it (`inheritune inherit --keep LIST`).
- **training**: a cut learns in three steps.
- **attention**: rank and mass of every head (`inheritune analyze --attention`).

This table is written by `python tests/sweep.py > docs/architectures.md`, and the tests hold the code to it.

{{summary}}

| type | first layers | every other | without each | training | attention |
|---|---|---|---|---|---|
"""


def quiet() -> None:
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def main() -> None:
    """Write the table to standard output."""
    quiet()
    torch.set_num_threads(1)
    found: list[Outcome] = []
    for number, model_type in enumerate(TYPES, start=1):
        print(f"{number}/{len(TYPES)} {model_type}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            found.append(outcome(model_type, Path(folder)))
    print(HEADER.format(version=transformers.__version__, summary=summary(found)), end="")
    for model_type, one in zip(TYPES, found, strict=True):
        print(row(model_type, one))


if __name__ == "__main__":
    main()
