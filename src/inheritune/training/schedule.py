"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from inheritune.config import Training


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of step `step` (0-based) of a training.

    Linear warm-up to the peak, then either a cosine to the final rate at the last step (the paper's), or a
    constant rate and a linear decay over the last `decay_fraction` of the steps ("warmup-stable-decay", Hu et
    al., "MiniCPM", 2024).
    """
    schedule, peak = training.schedule, training.optimizer.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "cosine":
        start = schedule.warmup_steps
    else:
        start = max(schedule.warmup_steps, training.steps - round(schedule.decay_fraction * training.steps))
    if step < start:
        return peak
    progress = min(1.0, (step - start) / max(1, training.steps - 1 - start))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return schedule.final_learning_rate + share * (peak - schedule.final_learning_rate)
