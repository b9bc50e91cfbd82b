"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inheritune import UserError
from inheritune.config import Training
from inheritune.data.loader import Batch
from inheritune.runtime.hardware import Hardware
from inheritune.runtime.out_of_memory import LESS_PER_WINDOW, SHARED_OUT, needing_memory, ran_out_of_memory
from inheritune.training.gradients import QueryKeyGradients
from inheritune.training.micro_batch import smaller
from inheritune.training.parallel import Placed, whole
from inheritune.training.schedule import learning_rate

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """The loss or the gradient of a step is NaN or infinite; the weights were not touched by it."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StepResult:
    """What one step reports. Loss and gradient norm are on their way from the device: reading them waits for it.

    Args:
        step: its number, from 0.
        values: loss and gradient norm, on the device.
        learning_rate: of the step.
        micro_batch: windows of a forward pass.
        gradient_norms: those of every layer's query and key weights, if they were taken.
    """

    def __init__(
        self,
        step: int,
        values: Tensor,
        learning_rate: float,
        micro_batch: int,
        gradient_norms: dict[str, float],
    ) -> None:
        self.step, self.learning_rate, self.micro_batch = step, learning_rate, micro_batch
        self.gradient_norms = gradient_norms
        self.values, self.arrived = values, None
        if values.device.type == "cuda":
            self.values = torch.empty(len(values), pin_memory=True).copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    @property
    def ready(self) -> bool:
        """Whether its numbers are here, so that reading them waits for nothing."""
        return self.arrived is None or self.arrived.query()

    def _read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()

    @property
    def loss(self) -> float:
        """Mean over all windows of the step, nats per token."""
        return self._read()[0]

    @property
    def gradient_norm(self) -> float:
        """Global norm before clipping."""
        return self._read()[1]

    def check(self) -> None:
        """Raise `NonFiniteError` if a number is not finite."""
        for what, value in zip(("loss", "gradient"), self._read(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(f"the {what} of step {self.step} is not finite", self.step)


@dataclass(frozen=True)
class BackwardResult:
    """What a step knows once its clipped gradients are there: the arguments of `StepResult` of these names."""

    values: Tensor
    micro_batch: int
    gradient_norms: dict[str, float]


class Stepper:
    """Trains a model by one step at a time.

    On a GPU the host does not wait for a step: it looks at its numbers while the next one computes. Until then a
    flag on the device keeps the optimizer from updating anything after a number that is not finite.

    A process alone that runs out of memory does the step again, from its beginning, with fewer windows in one forward
    pass, and stays with them. Of several processes the others would be waiting for this one's gradients, so there it
    ends the training.

    Args:
        placed: the loss, whose trainable parameters are updated in place.
        optimizer: over those parameters.
        training: learning rate schedule and gradient clip.
        hardware: precision, and the processes.
        fitted: given the windows that fitted after memory ran out with more.
    """

    def __init__(
        self,
        placed: Placed,
        optimizer: torch.optim.Optimizer,
        training: Training,
        hardware: Hardware,
        fitted: Callable[[int], None] = lambda windows: None,
    ) -> None:
        self.placed, self.loss = placed, placed.loss
        self.optimizer = optimizer
        self.training = training
        self.hardware = hardware
        self.fitted = fitted
        self.parameters = [p for p in self.loss.model.parameters() if p.requires_grad]
        self.gradients = QueryKeyGradients(self.loss.model) if training.gradient_norms else None
        self.last: StepResult | None = None
        self.most: int | None = None  # windows in one forward pass, once memory ran out with more of them
        # Only the fused AdamW knows the flag (mixed-precision training made it), and only on whole tensors.
        self.looks_later = (
            hardware.device.type == "cuda"
            and isinstance(optimizer, torch.optim.AdamW)
            and placed.strategy != "fsdp"
        )
        self.bad = torch.zeros((), device=hardware.device)

    def __call__(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        gradient_norms: bool = False,
        ends: Sequence[int] = (),
    ) -> StepResult:
        """Run step `step` (0-based) over micro-batches of equal size, this process's share of the step.

        With `gradient_norms` those of query and key weights are taken too, before clipping, if the recipe wants them.
        `ends` are those of `learning_rate`.

        Raises:
            NonFiniteError: for this step or, on a GPU, the one before; the weights are those before that step.
            UserError: there is not enough memory, with what to set.
        """
        rate = learning_rate(step, self.training, ends)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        backward = self._halving_on_out_of_memory(step, micro_batches, gradient_norms)
        result = StepResult(step, backward.values, rate, backward.micro_batch, backward.gradient_norms)
        if self.looks_later:
            self.bad = torch.maximum(self.bad, (~backward.values.isfinite()).any().float())
            self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
            self.check_last()
        else:
            self._check(result)
        self.last = result
        with needing_memory(f"the optimizer in step {step}", f"{SHARED_OUT}, or train a smaller model"):
            self.optimizer.step()
        self._clear_gradients()
        return result

    def _backward(self, step: int, micro_batches: Sequence[Batch], gradient_norms: bool) -> BackwardResult:
        """Forward and backward pass over the micro-batches, and clipping."""
        self.loss.train()
        # Dropout, where there is any, is a function of the step, so that no random state has to be kept.
        torch.manual_seed(_seed(self.training.seed, step, self.hardware.world.rank))
        total, count = torch.zeros((), device=self.hardware.device), len(micro_batches)
        for number, batch in enumerate(micro_batches, 1):
            with self.placed.accumulating(last=number == count):
                with self.hardware.autocast():
                    loss = self.placed.forward(*batch) / count
                loss.backward()
            total += loss.detach()
        norms = self.gradients.norms() if self.gradients and gradient_norms else {}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.training.optimizer.gradient_clip)
        values = torch.stack([self.hardware.world.mean(total), whole(norm)])
        return BackwardResult(values, len(micro_batches[0][0]), norms)

    def _halving_on_out_of_memory(
        self, step: int, micro_batches: Sequence[Batch], gradient_norms: bool
    ) -> BackwardResult:
        """`_backward`, with as many windows in a forward pass as there is memory for."""
        before = self.most
        while True:
            batches = _split(micro_batches, self.most)
            size, share = len(batches[0][0]), sum(len(batch[0]) for batch in batches)
            try:
                backward = self._backward(step, batches, gradient_norms)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                fewer = smaller(size, share)
                if fewer is None or self.hardware.world.size > 1:
                    raise UserError(self._advice(step, size, fewer)) from error
            else:
                if self.most != before:
                    self.fitted(size)
                return backward
            # Only here: the error held on to the tensors of what was tried.
            self._clear_gradients()
            if self.hardware.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(
                "out of memory in step %d with %d windows in one forward pass: it is done again with %d, and so are "
                "the steps after it",
                *(step, size, fewer),
            )
            self.most = fewer

    def _advice(self, step: int, size: int, fewer: int | None) -> str:
        """What to set after memory ran out with so many windows, where fewer were no remedy or cannot be tried."""
        world = self.hardware.world
        who = f"process {world.rank} of {world.size}" if world.size > 1 else "the training"
        windows = f"{size} window{'' if size == 1 else 's'}"
        first = "" if fewer is None else f"`training.micro_batch: {fewer}`, "
        return (
            f"{who} ran out of memory in step {step} with {windows} in one forward pass: set {first}"
            f"{LESS_PER_WINDOW}"
        )

    def check_last(self) -> None:
        """Look at the numbers of the last step, so that the weights are known to be good."""
        if self.last is not None:
            self._check(self.last)

    def _check(self, result: StepResult) -> None:
        try:
            result.check()
        except NonFiniteError:
            self._clear_gradients()
            raise

    def _clear_gradients(self) -> None:
        """DDP's stay where they are, in the buckets it averages: new ones would take memory beside those."""
        self.optimizer.zero_grad(set_to_none=self.placed.strategy != "ddp")


def _split(micro_batches: Sequence[Batch], most: int | None) -> Sequence[Batch]:
    """The same windows in the same order, at most so many in a micro-batch."""
    if most is None or len(micro_batches[0][0]) <= most:
        return micro_batches
    whole = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return list(zip(*(tensor.split(most) for tensor in whole), strict=True))


def _seed(seed: int, step: int, rank: int) -> int:
    """One number of 63 bits for these three."""
    return hash((seed, step, rank)) & (2**63 - 1)
