"""From a model's name to a smaller checkpoint in a folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from inheritune import UserError
from inheritune.card import card_name, model_card
from inheritune.initialization.inherit import inherit
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.exactness import check_exact
from inheritune.models.load import load_config, load_model, read_tokenizer, save_model

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cut:
    """What was made: layers kept, layers there were, parameters of the result."""

    layers: int
    of_layers: int
    parameters: int


def cut_to_folder(
    model: str,
    layers: int,
    output: Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Cut:
    """`inherit`, and save the result with the tokenizer that the model comes with, and a model card.

    Before it stands at `output` it is read again, and has to compute what was cut; else nothing is left behind.

    Raises:
        UserError: as `inherit`, or an unknown dtype.
        UserError: there is something at `output` already.
    """
    if output.exists():
        raise UserError(f"{output} exists already; nothing was written")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    depth = layer_count(load_config(model, revision=revision, trust_remote_code=trust_remote_code))
    tokenizer = read_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    small = inherit(model, layers, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    output.parent.mkdir(parents=True, exist_ok=True)

    def check(folder: Path) -> None:
        check_exact(load_model(folder, dtype=small.dtype), small, range(layers))

    save_model(small, output, tokenizer=tokenizer, card=_card(model, layers, depth), check=check)
    if not tokenizer:
        logger.warning("%s comes without a tokenizer: there is none in %s either", model, output)
    return Cut(layers, depth, parameter_count(small))


def _card(model: str, layers: int, depth: int) -> str:
    name = card_name(model)
    text = f"""
Blocks 0 to {layers - 1}, all embeddings, the final norm and the head of {name}, as they are: the first step of
*Inheritune: Training Smaller Yet More Attentive Language Models* (arXiv 2404.08634). It is meant to be trained
further; as it is, it predicts far worse than {name}.
"""
    return model_card(f"The first {layers} of {depth} layers of {name}", text, model)
