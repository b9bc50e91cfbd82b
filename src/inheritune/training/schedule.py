"""The learning rate of each step: a linear warm-up, and one of two shapes.

    cosine                to the final rate at the last step (the paper's)
    warmup-stable-decay   constant, then linear to the final rate at the last step (Hu et al., "MiniCPM", 2024)

The second may decay several times: to each of several ends, after which the rate is the constant one again ("WSD-S"
of Wen et al., 2024, arXiv 2410.05192). At every end the model is cooled, as if the training had been planned to end
there.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from inheritune.config import Training


def learning_rate(step: int, training: Training, ends: Sequence[int] = ()) -> float:
    """Learning rate of step `step` (0-based) of a training.

    Args:
        step: its number.
        training: its settings.
        ends: the numbers of steps after which decays have ended, rising; the last step of the training is one too.
    """
    schedule, peak = training.schedule, training.optimizer.peak
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    start, end = next_decay(step, training, ends)
    if step < start:
        return peak
    progress = min(1.0, (step - start) / max(1, end - 1 - start))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return schedule.final_learning_rate + share * (peak - schedule.final_learning_rate)


def next_decay(step: int, training: Training, ends: Sequence[int] = ()) -> tuple[int, int]:
    """After how many steps the decay begins that step `step` is in or before, and ends; arguments as above."""
    schedule, place = training.schedule, bisect.bisect_right(ends, step)
    end = ends[place] if place < len(ends) else training.steps
    start = schedule.warmup_steps
    if schedule.kind == "warmup-stable-decay":
        start = max(start, *ends[:place], end - round(schedule.decay_fraction * end))
    return start, end
