"""From steps to lines of `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from inheritune.config import Training
from inheritune.training.checkpoint import TrainState
from inheritune.training.device import Hardware
from inheritune.training.metrics import Metrics
from inheritune.training.step import StepResult
from inheritune.training.validation import WindowLosses

T = TypeVar("T")


class Meter:
    """Counts steps and their time, and writes lines of `metrics.jsonl`: of the steps since the last line.

    Args:
        metrics: where lines go.
        training: how often.
        hardware: whose memory is told.
        flops: of one step.
        state: of the training; its time is counted on.
    """

    def __init__(
        self, metrics: Metrics, training: Training, hardware: Hardware, flops: float, state: TrainState
    ) -> None:
        self.metrics, self.training, self.hardware, self.flops = metrics, training, hardware, flops
        self.results: list[StepResult] = []
        self.seconds = state.seconds
        self.started = time.perf_counter()
        self.note = ""

    def timed(self, steps: Iterable[T], state: TrainState) -> Iterator[T]:
        """The same items; what is done between a step's end and the next item's request is not training time."""
        self.started = time.perf_counter()
        for item in steps:
            yield item
            self.started = time.perf_counter()

    def stepped(self, state: TrainState, result: StepResult) -> None:
        """Count a step that was done; write a line if one is due."""
        state.step += 1
        now = time.perf_counter()
        state.seconds += now - self.started
        self.started = now
        self.results.append(result)
        if result.gradient_norms:
            self.metrics.log("gradients", state.step, **result.gradient_norms)
        if state.step % self.training.log_every and state.step != self.training.steps:
            return
        losses = [r.loss for r in self.results]
        self.note = f"loss {losses[-1]:.3f}"
        steps, elapsed = len(losses), state.seconds - self.seconds
        self.metrics.log(
            "train",
            state.step,
            tokens=state.step * self.training.tokens_per_step,
            flops=state.step * self.flops,
            loss=sum(losses) / steps,
            learning_rate=result.learning_rate,
            micro_batch=result.micro_batch,
            gradient_norm=max(r.gradient_norm for r in self.results),
            tokens_per_second=steps * self.training.tokens_per_step / elapsed,
            flops_per_second=steps * self.flops / elapsed,
            memory_bytes=self.hardware.memory_bytes(),
            seconds=state.seconds,
        )
        self.results, self.seconds = [], state.seconds

    def validated(self, state: TrainState, losses: WindowLosses) -> None:
        """Write a line about a validation."""
        self.metrics.log(
            "validation",
            state.step,
            tokens=state.step * self.training.tokens_per_step,
            flops=state.step * self.flops,
            loss=losses.mean,
            standard_error=losses.standard_error,
        )

    def close(self) -> None:
        """Flush everything."""
        self.metrics.close()
