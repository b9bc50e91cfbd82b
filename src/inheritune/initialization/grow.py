"""Growth that keeps what was trained (Algorithm 1, step 3, read literally)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.initialization.inherit import inherit
from inheritune.models.architecture import layer_count


def append(
    trained: PreTrainedModel,
    reference: str | Path | PreTrainedModel,
    layers: int,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The trained small model, deepened to `layers` blocks with the reference's next ones on top.

    Everything the small model has (its blocks, embeddings, final norm and head) stays as it was trained;
    blocks n .. `layers` - 1 are the reference's.

    Args:
        trained: a model of n < `layers` blocks that was inherited from `reference`.
        reference: as in `inherit`.
        layers: depth of the result, at most the reference's.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: `layers` is not more than the small model has, or more than the reference has.
    """
    depth = layer_count(trained.config)
    if layers <= depth:
        raise UserError(f"cannot grow a model of {depth} layers to {layers}: it must become deeper")
    grown = inherit(
        reference, layers, dtype=torch.float32, revision=revision, trust_remote_code=trust_remote_code
    )
    weights = trained.state_dict()
    outcome = grown.load_state_dict(weights, strict=False)
    assert not outcome.unexpected_keys, outcome.unexpected_keys
    return grown.to(trained.dtype).to(trained.device)
