"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/) orthogonalizes the momentum of a weight matrix before it is added, so
that the update is large in every direction, not only in the few that dominate the gradient. It is for matrices that
map hidden states to hidden states; embeddings, head, norms and biases stay with AdamW. Updates are scaled as in
Liu et al., "Muon is Scalable for LLM Training", 2025 (arXiv 2502.16982), to the size that AdamW's have, so that one
learning rate and one weight decay serve both.

On whole tensors an update is `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`'s, bit for bit. That class is not
used because on sharded tensors it multiplies shard by shard, rounds otherwise and so orthogonalizes to something
else; here matrices are gathered first, and every process computes the same update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Optimizer
from inheritune.models.architecture import blocks

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: steepest at zero, with singular values ending between 0.7 and 1.2."""
ITERATIONS = 5
UPDATE_SIZE = 0.2
"""Root mean square of an update at learning rate 1, about that of AdamW's (Liu et al., section 2.2)."""


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer for the whole model: the first parameter group is Muon's, the others AdamW's.

    Args:
        matrices: weights that Muon trains; their orientation does not matter.
        others: parameter groups of AdamW, each with its `weight_decay`.
        settings: learning rate and weight decay of both; betas and epsilon of AdamW.

    Raises:
        UserError: there are no matrices.
    """

    def __init__(
        self, matrices: list[nn.Parameter], others: list[dict[str, Any]], settings: Optimizer
    ) -> None:
        if not matrices:
            raise UserError(
                "`optimizer.name: muon` needs trainable matrices in the model's blocks, and there are none: use adamw"
            )
        self.adamw = torch.optim.AdamW(
            others,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )
        own = {"params": matrices, "lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        super().__init__([{**own, "momentum": MOMENTUM}, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """AdamW works on the groups and the state of this object: whoever sets them sets both."""
        self.adamw.param_groups = self.param_groups[1:]
        self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None, "the loop has computed the gradients"
        group = self.param_groups[0]
        rate, momentum = float(group["lr"]), group["momentum"]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            update = _orthogonalized(matrix.grad.lerp(average, momentum))  # Nesterov's momentum
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(update, alpha=-rate * UPDATE_SIZE * math.sqrt(max(matrix.shape)))
        self.adamw.step()


def make_muon(model: PreTrainedModel, settings: Optimizer) -> MuonWithAdamW:
    """Muon and AdamW over the model's trainable parameters.

    Muon gets the two-dimensional weights in the blocks. Everything else is AdamW's, decayed as in
    `optimizer.make_optimizer`: also experts that are kept in one tensor of three dimensions.

    Raises:
        UserError: no trainable matrices in the blocks.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    in_blocks = [p for p in blocks(model).parameters() if p.requires_grad]
    matrices = [p for p in in_blocks if p.dim() == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    decayed = [p for p in others if p.dim() >= 2 and id(p) not in embeddings]
    plain = [p for p in others if p.dim() < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return MuonWithAdamW(matrices, groups, settings)


def _orthogonalized(matrix: Tensor) -> Tensor:
    """About U @ V.T of the matrix's singular value decomposition, in bfloat16; sharded as the matrix is."""
    if not isinstance(matrix, DTensor):
        return newton_schulz(matrix)
    whole = newton_schulz(matrix.full_tensor())
    replicated = DTensor.from_local(
        whole, matrix.device_mesh, [Replicate()] * matrix.device_mesh.ndim, run_check=False
    )
    return replicated.redistribute(placements=matrix.placements)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Brings all singular values of a matrix near 1 by a few matrix products, in bfloat16.

    Values that are tiny beside the largest end below 1. The iteration runs on the wide one of the matrix and its
    transpose, whose Gram matrix is the smaller.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
