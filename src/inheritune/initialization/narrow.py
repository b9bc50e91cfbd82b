"""The paper's other baseline: not fewer layers but narrower ones, cut out of the reference's weights."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel

from inheritune.config import Pretrained
from inheritune.initialization.width import Divide, narrow_config, origins
from inheritune.models.load import load_config, load_model
from inheritune.models.presets import from_config


def half_width(
    reference: Pretrained | str | Path | PreTrainedModel, width: float = 0.5, *, divide: Divide = "heads"
) -> PreTrainedModel:
    """The reference at its full depth with `width` times its hidden size, each weight a slice of its own.

    Kept are the first dimensions of the residual stream, the first ones within each MLP, and the first heads
    whole (with their keys and values) or the first dimensions of every head. The vocabulary and the positions
    stay. Nothing is rescaled, so the model predicts far worse than the reference until it is trained.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        width: hidden size of the result over the reference's, between 0 and 1.
        divide: `heads` keeps whole heads; `head_size` keeps all heads, each cut to its first dimensions, for
            models without rotary positions (half of GPT-2 xlarge's 25 heads would cut one).

    Returns:
        A float32 model in evaluation mode, its biases frozen if the reference's are.

    Raises:
        UserError: not a model, or as `narrow_config`, before any weights are read.

    Source: Inheritune (arXiv 2404.08634), section 4, the half-width baseline.
    """
    if isinstance(reference, PreTrainedModel):
        model = from_config(narrow_config(reference.config, width, divide), seed=0)
    else:
        config = load_config(reference)
        model = from_config(narrow_config(config, width, divide), seed=0)
        reference = load_model(reference, config=config, dtype="auto")
    weights, sources = reference.state_dict(), origins(model, reference)
    # One tensor at a time is copied into place, so that no part of the reference is held twice.
    for name, target in model.state_dict().items():
        source = weights[name]
        for dimension, taken in enumerate(sources[name]):
            source = source[(slice(None),) * dimension + (taken,)]
        assert source.shape == target.shape, name
        target.copy_(source)
    model.generation_config = copy.deepcopy(reference.generation_config)
    return model.eval()
