"""Learning from a teacher's logits (Hinton et al., 2015; the paper's baseline, section 4).

loss = alpha * KL(teacher || student) + (1 - alpha) * cross entropy, in nats per token; at temperature t both
distributions of the KL term are softmax(logits / t), and the term is multiplied by t squared.

The teacher reads each batch (`DistillationLoss`), or was asked once before (`AnswersLoss`). Then K draws from its
distribution are kept, and the share of them that a token has stands for its probability. The mean of that share over
many draws is the probability, and KL's gradient is linear in it, so the gradient is unbiased. (That of the K most
probable tokens is not: arXiv 2503.16870.)

Letters: B windows, T tokens, N tokens of all windows, D and E hidden sizes of student and teacher, V vocabulary, K
draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.config import Distillation
from inheritune.data.answers import Answers
from inheritune.data.loader import Batch
from inheritune.models.size import flops_per_token
from inheritune.runtime.world import ALONE, World
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import built_on_rank_0

CHUNK = {"cpu": 1_024, "cuda": 4_096}
"""Tokens whose logits, of both models, are held at once."""


class DistillationLoss(NextTokenLoss):
    """The loss of a student that learns its teacher's distribution of every next token.

    The teacher stays as it is: in evaluation mode, without gradients, outside optimizer and checkpoints. It reads
    each micro-batch as the student does, and nothing of it is kept. Where both heads are linear, the logits of all
    tokens never exist together.

    Args:
        model: the student.
        teacher: on the same device, with the same vocabulary.
        settings: alpha and temperature.
        world: as of `NextTokenLoss`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        settings: Distillation,
        world: World = ALONE,
    ) -> None:
        super().__init__(model, world)
        check_teacher(teacher.config, model.config)
        self.teacher = NextTokenLoss(teacher.requires_grad_(False), world)
        self.settings = settings
        self.distillation: Callable[..., Tensor] = LinearDistillation.apply

    def compile_parts(self) -> None:
        """The teacher's blocks too."""
        super().compile_parts()
        self.teacher.compile_parts()
        self.distillation = torch.compile(self.distillation)

    def train(self, mode: bool = True) -> DistillationLoss:
        """The student into training mode; the teacher never."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Scalar loss."""
        settings, targets_n = self.settings, targets_bt.flatten()
        if not (self.linear_head and self.teacher.linear_head):
            with torch.no_grad():
                taught_nv = self.teacher.logits(inputs_bt).flatten(0, 1)
            logits_nv = self.logits(inputs_bt).flatten(0, 1)
            alpha, temperature = settings.alpha, settings.temperature
            return summed_loss(logits_nv, taught_nv, targets_n, alpha, temperature) / len(targets_n)
        with torch.no_grad():
            taught_ne = self.teacher.hidden(inputs_bt).flatten(0, 1)
        hidden_nd, head, teachers = self.hidden(inputs_bt).flatten(0, 1), self.head, self.teacher.head
        return self.distillation(
            hidden_nd,
            head.weight,
            head.bias,
            targets_n,
            settings.alpha,
            settings.temperature,
            teachers,
            taught_ne,
        )

    def flops_per_token(self, window: int) -> float:
        """The student's training, and the teacher's forward pass, which is a third of its training."""
        return super().flops_per_token(window) + flops_per_token(self.teacher.model, window) / 3


class AnswersLoss(NextTokenLoss):
    """The loss of a student that learns from what a teacher answered before; no teacher is there.

    Args:
        model: the student.
        answers: at the settings' temperature, in the student's vocabulary (`Answers.check`).
        settings: alpha and temperature.
        world: as of `NextTokenLoss`.
    """

    def __init__(
        self, model: PreTrainedModel, answers: Answers, settings: Distillation, world: World = ALONE
    ) -> None:
        super().__init__(model, world)
        self.draws, self.settings = answers.record.draws, settings
        self.distillation: Callable[..., Tensor] = LinearDistillation.apply

    def compile_parts(self) -> None:
        """What comes after the last block is another function here."""
        super().compile_parts()
        self.distillation = torch.compile(self.distillation)

    def forward(self, inputs_bt: Tensor, targets_bt: Tensor, *answers: Tensor) -> Tensor:
        """Scalar loss; `answers` are what `Answers.read` gives of these windows."""
        ids_btk, counts_btk, entropy_b = answers
        settings, targets_n = self.settings, targets_bt.flatten()
        ids_nk, counts_nk = ids_btk.flatten(0, 1), counts_btk.flatten(0, 1)
        if self.linear_head:
            hidden_nd, head = self.hidden(inputs_bt).flatten(0, 1), self.head
            loss = self.distillation(
                *(hidden_nd, head.weight, head.bias, targets_n, settings.alpha, settings.temperature),
                *(None, ids_nk, counts_nk),
            )
        else:
            logits_nv = self.logits(inputs_bt).flatten(0, 1).float()
            log_softened = F.log_softmax(logits_nv / settings.temperature, -1)
            drawn = _crossed(log_softened, ids_nk, _shares(counts_nk))
            entropy = F.cross_entropy(logits_nv, targets_n)
            loss = settings.alpha * settings.temperature**2 * drawn / len(targets_n)
            loss = loss + (1 - settings.alpha) * entropy
        # From cross entropy to KL.
        return loss - settings.alpha * settings.temperature**2 * entropy_b.mean()

    def blank(self, shape: tuple[int, int], device: torch.device) -> Batch:
        """With answers: token 0, drawn every time."""
        drawn = (*shape, self.draws)
        ids_btk = torch.zeros(drawn, dtype=torch.int32, device=device)
        counts_btk = torch.ones(drawn, dtype=torch.uint8, device=device)
        return *super().blank(shape, device), ids_btk, counts_btk, torch.zeros(shape[0], device=device)


class LinearDistillation(torch.autograd.Function):
    """The mean loss from last hidden states and heads, a chunk of tokens at a time.

    The loss is all that comes after the logits, so their gradient is known as soon as they are:

        alpha * t * (softmax(logits / t) - softmax(taught / t)) + (1 - alpha) * (softmax(logits) - onehot(target))

    It is carried through the head at once, and neither logits nor their gradient are kept or made again.
    """

    @staticmethod
    def forward(  # noqa: D102 - torch's own words
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        targets_n: Tensor,
        alpha: float,
        temperature: float,
        teachers: nn.Linear | None,
        *taught: Tensor,
    ) -> Tensor:
        # `taught`: the teacher's last hidden states [N, E]; where it was asked before, tokens and counts [N, K].
        tokens, size = len(targets_n), CHUNK[hidden_nd.device.type]
        total = hidden_nd.new_zeros((), dtype=torch.float32)
        gradient_nd, gradient_vd = torch.empty_like(hidden_nd), torch.zeros_like(weight_vd)
        gradient_v = None if bias_v is None else torch.zeros_like(bias_v)
        for start in range(0, tokens, size):
            part = slice(start, start + size)
            hidden_cd, targets_c = hidden_nd[part], targets_n[part]
            logits_cv = F.linear(hidden_cd, weight_vd, bias_v)
            log_softened = F.log_softmax(logits_cv.float() / temperature, -1)
            if teachers is None:
                divergence, gap_cv = _to_draws(log_softened, *(each[part] for each in taught))
            else:
                divergence, gap_cv = _to_teacher(log_softened, teachers(taught[0][part]), temperature)
            loss, slope_cv = _loss_and_slope(
                logits_cv, log_softened, divergence, gap_cv, targets_c, alpha, temperature
            )
            total += loss
            slope_cv = (slope_cv / tokens).to(logits_cv.dtype)
            gradient_nd[part] = slope_cv @ weight_vd.to(slope_cv.dtype)
            gradient_vd += slope_cv.T @ hidden_cd.to(slope_cv.dtype)
            if gradient_v is not None:
                gradient_v += slope_cv.sum(0)
        ctx.save_for_backward(gradient_nd, gradient_vd, gradient_v)
        ctx.others = 4 + len(taught)
        return total / tokens

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        hidden, weight, bias = (None if g is None else g * slopes[0] for g in ctx.saved_tensors)
        return hidden, weight, bias, *(None,) * ctx.others


def _to_teacher(log_softened: Tensor, taught_cv: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL to the student from the teacher's logits, summed, and the student's probabilities less the teacher's."""
    log_taught = F.log_softmax(taught_cv.float() / temperature, -1)
    taught = log_taught.exp()
    return (taught * (log_taught - log_softened)).sum(), log_softened.exp() - taught


def _to_draws(log_softened: Tensor, ids_ck: Tensor, counts_ck: Tensor) -> tuple[Tensor, Tensor]:
    """The same from draws, but for the teacher's entropy: cross entropy in the place of KL."""
    shares_ck = _shares(counts_ck)
    gap_cv = log_softened.exp().scatter_add_(1, ids_ck.long(), -shares_ck)
    return _crossed(log_softened, ids_ck, shares_ck), gap_cv


def _shares(counts_nk: Tensor) -> Tensor:
    """How often each token was drawn, as a share of the draws: float32 [N, K]."""
    counts_nk = counts_nk.float()
    return counts_nk / counts_nk.sum(-1, keepdim=True)


def _crossed(log_softened: Tensor, ids_nk: Tensor, shares_nk: Tensor) -> Tensor:
    """Cross entropy of a distribution of few tokens with the student's, summed."""
    return -(shares_nk * log_softened.gather(1, ids_nk.long())).sum()


def _loss_and_slope(
    logits_cv: Tensor,
    log_softened: Tensor,
    divergence: Tensor,
    gap_cv: Tensor,
    targets_c: Tensor,
    alpha: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The loss, summed over tokens, and its gradient at the student's logits: float32 [C, V]."""
    log_student = log_softened if temperature == 1 else F.log_softmax(logits_cv.float(), -1)
    target = targets_c[:, None]
    loss = alpha * temperature**2 * divergence - (1 - alpha) * log_student.gather(1, target).sum()
    slope = alpha * temperature * gap_cv + (1 - alpha) * log_student.exp()
    return loss, slope.scatter_add_(1, target, torch.full_like(target, alpha - 1, dtype=slope.dtype))


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


def distilled_from(
    teacher: Callable[[], PreTrainedModel], settings: Distillation
) -> Callable[[PreTrainedModel, World], DistillationLoss]:
    """What the training loop minimises; `teacher` is only called when training starts, on the first process."""
    return lambda student, world: DistillationLoss(student, built_on_rank_0(teacher, world), settings, world)


def learning_from(
    answers: Answers, settings: Distillation
) -> Callable[[PreTrainedModel, World], AnswersLoss]:
    """The same of a teacher that was asked before."""
    return lambda student, world: AnswersLoss(student, answers, settings, world)


def check_teacher(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Teacher and student predict the same tokens.

    Raises:
        UserError: their vocabularies differ in size.
    """
    theirs, ours = teacher.get_text_config().vocab_size, student.get_text_config().vocab_size
    if theirs != ours:
        raise UserError(
            f"the teacher predicts {theirs} tokens and the student {ours}: distillation compares them token by "
            "token, so both need the same vocabulary"
        )
