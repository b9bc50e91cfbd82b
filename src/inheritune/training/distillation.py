"""Learning from a teacher's logits (Hinton et al., 2015; the paper's baseline, section 4).

loss = alpha * KL(teacher || student) + (1 - alpha) * cross entropy, in nats per token; at temperature t both
distributions of the KL term are softmax(logits / t), and the term is multiplied by t squared.

Letters: B windows, T tokens, N tokens of all windows, D and E hidden sizes of student and teacher, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.config import Distillation
from inheritune.models.size import flops_per_token
from inheritune.training.loss import CHUNK, NextTokenLoss


class DistillationLoss(NextTokenLoss):
    """The loss of a student that is shown its teacher's distribution of every next token.

    The teacher stays as it is: in evaluation mode, without gradients, outside optimizer and checkpoints. It reads
    each micro-batch as the student does, and nothing of it is kept. Where both heads are linear, no more than
    `CHUNK` tokens' logits exist at a time; they are made again in the backward pass.

    Args:
        model: the student.
        teacher: on the same device, with the same vocabulary.
        settings: alpha and temperature.
    """

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, settings: Distillation) -> None:
        super().__init__(model)
        check_teacher(teacher.config, model.config)
        self.teacher = NextTokenLoss(teacher.requires_grad_(False))
        self.settings = settings

    def train(self, mode: bool = True) -> DistillationLoss:
        """The student into training mode; the teacher never."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Scalar loss."""
        alpha, temperature, targets_n = self.settings.alpha, self.settings.temperature, targets_bt.flatten()
        if not (self.linear_head and self.teacher.linear_head):
            with torch.no_grad():
                taught_nv = self.teacher.logits(inputs_bt).flatten(0, 1)
            logits_nv = self.logits(inputs_bt).flatten(0, 1)
            return summed_loss(logits_nv, taught_nv, targets_n, alpha, temperature) / len(targets_n)
        with torch.no_grad():
            taught_ne = self.teacher.hidden(inputs_bt).flatten(0, 1)
        hidden_nd = self.hidden(inputs_bt).flatten(0, 1)
        student, teacher = self.head, self.teacher.head

        def summed(hidden_cd: Tensor, taught_ce: Tensor, targets_c: Tensor) -> Tensor:
            return summed_loss(student(hidden_cd), teacher(taught_ce), targets_c, alpha, temperature)

        total = hidden_nd.new_zeros((), dtype=torch.float32)
        parts = zip(hidden_nd.split(CHUNK), taught_ne.split(CHUNK), targets_n.split(CHUNK), strict=True)
        for part in parts:
            total = total + checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False)
        return total / len(targets_n)

    def flops_per_token(self, window: int) -> float:
        """The student's training, and the teacher's forward pass, which is a third of its training."""
        return super().flops_per_token(window) + flops_per_token(self.teacher.model, window) / 3


def summed_loss(
    logits_nv: Tensor, taught_nv: Tensor, targets_n: Tensor, alpha: float, temperature: float
) -> Tensor:
    """The loss above from both models' logits, summed over tokens."""
    logits_nv, taught_nv = logits_nv.float(), taught_nv.float()
    divergence = F.kl_div(
        F.log_softmax(logits_nv / temperature, -1),
        F.log_softmax(taught_nv / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    entropy = F.cross_entropy(logits_nv, targets_n, reduction="sum")
    return alpha * temperature**2 * divergence + (1 - alpha) * entropy


def taught_by(
    teacher: Callable[[], PreTrainedModel], settings: Distillation, device: torch.device
) -> Callable[[PreTrainedModel], DistillationLoss]:
    """What the training loop minimises; `teacher` is only called, and moved to the device, when training starts."""
    return lambda student: DistillationLoss(student, teacher().to(device), settings)


def check_teacher(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Teacher and student predict the same tokens.

    Raises:
        ValueError: their vocabularies differ in size.
    """
    theirs, ours = teacher.get_text_config().vocab_size, student.get_text_config().vocab_size
    if theirs != ours:
        raise ValueError(
            f"the teacher predicts {theirs} tokens and the student {ours}: distillation compares them token by "
            "token, so both need the same vocabulary"
        )
