"""The learning rate of each step: a linear warm-up, and one of three shapes.

    cosine                to the final rate at the last step (the paper's)
    warmup-stable-decay   constant, then linear to the final rate at the last step (Hu et al., "MiniCPM", 2024)
    repeated-decay        such a decay to each of several ends, and the constant rate again after it: "WSD-S" of Wen
                          et al., 2024 (arXiv 2410.05192). The model is cooled at every end, as if the training had been
                          planned to end there, and no step is spent on a branch that is thrown away.
"""

from __future__ import annotations

import bisect
import math

from inheritune.config import Training

SHORTEST = 16
"""The first end of `repeated-decay` is after this part of the steps; each end is `RATIO` times the one before."""
RATIO = math.sqrt(2)


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of step `step` (0-based) of a training."""
    schedule, peak = training.schedule, training.optimizer.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    ends = decay_ends(training)
    end = ends[min(bisect.bisect_right(ends, step), len(ends) - 1)]
    start = schedule.warmup_steps
    if schedule.kind != "cosine":
        start = max(start, end - round(schedule.decay_fraction * end))
    if step < start:
        return peak
    progress = min(1.0, (step - start) / max(1, end - 1 - start))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return schedule.final_learning_rate + share * (peak - schedule.final_learning_rate)


def decay_ends(training: Training) -> list[int]:
    """The numbers of steps after which the learning rate has decayed to the final one, rising; the last is all."""
    steps, schedule = training.steps, training.schedule
    if schedule.kind != "repeated-decay":
        return [steps]
    count = round(math.log(SHORTEST, RATIO))
    found = {max(1, round(steps / RATIO**power)) for power in range(count + 1)}
    return sorted(end for end in found if end >= 2 * schedule.warmup_steps or end == steps)
