"""Growth that keeps what was trained (Algorithm 1, step 3, read literally)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.initialization.inherit import inherit
from inheritune.models.architecture import layer_count
from inheritune.models.exactness import check_exact
from inheritune.models.layer_fields import lines_of


def append(
    trained: PreTrainedModel, reference: Pretrained | str | Path | PreTrainedModel, layers: int
) -> PreTrainedModel:
    """The trained small model, deepened to `layers` blocks with the reference's next ones on top.

    Everything the small model has (its blocks, embeddings, final norm and head) stays as it was trained;
    blocks n .. `layers` - 1 are the reference's.

    Args:
        trained: a model of n < `layers` blocks that was inherited from `reference`.
        reference: as in `inherit`.
        layers: depth of the result, at most the reference's.

    Raises:
        UserError: `layers` is not more than the small model has, or more than the reference has; the small model is
            not a part of the reference.
    """
    depth = layer_count(trained.config)
    if layers <= depth:
        raise UserError(f"cannot grow a model of {depth} layers to {layers}: it must become deeper")
    grown = inherit(reference, layers, dtype=torch.float32)
    try:
        outcome = grown.load_state_dict(trained.state_dict(), strict=False)
    except RuntimeError as error:  # shapes
        raise UserError(_no_part_of(trained, reference, lines_of(error)[-1])) from error
    if outcome.unexpected_keys:
        raise UserError(_no_part_of(trained, reference, f"it has no {outcome.unexpected_keys[0]}"))
    grown = grown.to(trained.dtype).to(trained.device)
    # The reference's blocks were checked; below them stand those that were trained, and they compute as before.
    check_exact(trained, grown, range(depth))
    return grown


def _no_part_of(
    trained: PreTrainedModel, reference: Pretrained | str | Path | PreTrainedModel, reason: str
) -> str:
    name = reference.config.model_type if isinstance(reference, PreTrainedModel) else reference
    kind = trained.config.model_type
    return f"cannot grow this {kind!r} model with layers of {name}: it was not cut from it ({reason})"
