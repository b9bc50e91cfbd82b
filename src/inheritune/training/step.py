"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inheritune.analysis.gradients import QueryKeyGradients
from inheritune.config import Training
from inheritune.training.device import Hardware
from inheritune.training.loss import NextTokenLoss
from inheritune.training.schedule import learning_rate


class NonFiniteError(ValueError):
    """The loss or the gradient of a step is NaN or infinite; the weights were not touched by it."""


@dataclass(frozen=True)
class StepResult:
    """What one step reports: mean loss (nats per token), gradient norm before clipping, learning rate.

    `gradient_norms` are those of every layer's query and key weights, if they were taken.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    gradient_norms: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Trains a model by one step at a time.

    Args:
        loss: of a model, whose trainable parameters are updated in place.
        optimizer: over those parameters.
        training: learning rate schedule and gradient clip.
        hardware: precision and compilation.
    """

    def __init__(
        self, loss: NextTokenLoss, optimizer: torch.optim.Optimizer, training: Training, hardware: Hardware
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.training = training
        self.hardware = hardware
        self.parameters = [p for p in loss.model.parameters() if p.requires_grad]
        self.gradients = QueryKeyGradients(loss.model) if training.gradient_norms else None
        self.forward = torch.compile(self.loss) if hardware.compile else self.loss

    def __call__(
        self,
        step: int,
        micro_batches: Iterable[tuple[Tensor, Tensor]],
        count: int,
        gradient_norms: bool = False,
    ) -> StepResult:
        """Run step `step` (0-based) over `count` micro-batches of equal size.

        With `gradient_norms` those of query and key weights are taken too, before clipping, if the recipe wants them.

        Raises:
            NonFiniteError: before the weights are touched.
        """
        self.loss.train()
        rate = learning_rate(step, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.hardware.device)
        for inputs_bt, targets_bt in micro_batches:
            with self.hardware.autocast():
                loss = self.forward(inputs_bt, targets_bt) / count
            loss.backward()
            total += loss.detach()
        norms = self.gradients.norms() if self.gradients and gradient_norms else {}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.training.optimizer.gradient_clip)
        loss_value, norm_value = torch.stack([total, norm]).tolist()  # one synchronisation for both
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self.optimizer.zero_grad(set_to_none=True)
            what = "gradient" if math.isfinite(loss_value) else "loss"
            raise NonFiniteError(f"the {what} of step {step} is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss_value, norm_value, rate, norms)
