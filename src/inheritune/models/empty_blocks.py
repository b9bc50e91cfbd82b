"""A model's class without most of its blocks, so that what is not wanted is never read.

The blocks that are kept are built with the whole model's configuration, each at its own place: whatever depends on
the depth or on a block's number is what it is in the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.models.architecture import blocks


def with_only(
    kind: type[PreTrainedModel], config: PretrainedConfig, layers: Collection[int]
) -> type[PreTrainedModel]:
    """A class of causal language model; of its instances, with this configuration, all blocks but these are empty.

    The class that it was made of is its `whole_class`.

    An empty block keeps its modules and plain attributes, which some models ask their blocks for. Where that is not
    enough, because parameters are shared between blocks (Zamba) or set in all of them (Falcon-H1), it is the whole
    class.
    """

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        empty_all_but(self, layers)

    # Under its own name: transformers looks some things up by it.
    own = {"__init__": build, "__module__": kind.__module__, "whole_class": kind}
    sparse: type[PreTrainedModel] = type(kind.__name__, (kind,), own)
    try:
        with torch.device("meta"):
            trial = sparse._from_config(copy.deepcopy(config), dtype=torch.float32)
            trial.initialize_weights()
            trial.tie_weights()
    except (AttributeError, TypeError, ValueError):
        return kind
    return sparse


def empty_all_but(model: PreTrainedModel, layers: Collection[int]) -> None:
    """Take the tensors out of all blocks but these.

    Raises:
        UserError: the blocks cannot be found.
    """
    for number, block in enumerate(blocks(model)):
        if number not in layers:
            block.apply(_empty)


def _empty(module: Any) -> None:
    """Take the tensors out of a module; nothing is left that could be read or initialised."""
    for own in (module._parameters, module._buffers):
        own.update(dict.fromkeys(own))
    module._is_hf_initialized = True
