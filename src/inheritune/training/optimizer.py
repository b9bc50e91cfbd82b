"""AdamW as the paper uses it, or Muon for the matrices of the blocks."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.config import Optimizer


def make_optimizer(model: PreTrainedModel, settings: Optimizer) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; weight decay on matrices that are not embeddings (section 4).

    A head that is tied to the embedding counts as embedding.
    """
    if settings.name == "muon":
        from inheritune.training.muon import make_muon

        return make_muon(model, settings)
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() >= 2 and id(p) not in embeddings]
    plain = [p for p in trainable if p.dim() < 2 or id(p) in embeddings]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
