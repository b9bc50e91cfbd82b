"""AdamW as the paper uses it, or Muon for the matrices of the blocks beside it.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/) orthogonalizes the momentum of a weight matrix before it is added, so
that the update is large in every direction, not only in the few that dominate the gradient. It is for matrices that
map hidden states to hidden states; embeddings, head, norms and biases stay with AdamW. Updates are scaled as in
Liu et al., "Muon is Scalable for LLM Training", 2025 (arXiv 2502.16982), to the size that AdamW's have, so that one
learning rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Optimizer
from inheritune.models.architecture import blocks


def make_optimizer(model: PreTrainedModel, settings: Optimizer) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; weight decay on matrices that are not embeddings (section 4).

    A head that is tied to the embedding counts as embedding. Muon takes the two-dimensional weights in the blocks;
    experts that are kept in one tensor of three dimensions stay with AdamW.

    Raises:
        UserError: Muon without trainable matrices in the blocks.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    in_blocks = blocks(model).parameters() if settings.name == "muon" else ()
    matrices = [p for p in in_blocks if p.requires_grad and p.dim() == 2 and id(p) not in embeddings]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    adamw = torch.optim.AdamW(
        [
            {
                "params": [p for p in others if p.dim() >= 2 and id(p) not in embeddings],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in others if p.dim() < 2 or id(p) in embeddings], "weight_decay": 0.0},
        ],
        lr=settings.peak,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    if settings.name == "adamw":
        return adamw
    if not matrices:
        raise UserError(
            "`optimizer.name: muon` needs trainable matrices in the model's blocks, and there are none: use adamw"
        )
    muon = torch.optim.Muon(
        matrices,
        lr=settings.peak,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonWithAdamW(muon, adamw)


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers as one: parameter groups and state are both's, the first group is Muon's."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Both work on the groups and the state of this object: whoever sets these sets theirs."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None, "the loop has computed the gradients"
        self.muon.step()
        self.adamw.step()
