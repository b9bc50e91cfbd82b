"""About how much memory a training step takes in each process, by a formula.

A process holds weights, gradients and the optimizer's moments, whole or in shares; of every token what the blocks
keep for the backward pass; and, at its turn, the largest of the logits, a block's backward pass and the embedding's
gradient. How near this comes to what was measured is in `benchmarks/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks
from inheritune.models.size import active_weights, experts_of
from inheritune.training.distillation import CHUNK as TAUGHT_CHUNK
from inheritune.training.loss import CHUNK, WHOLE
from inheritune.training.parallel import Strategy, groups_of

BACKWARD = 0.25
"""What the backward pass of a block takes for itself, in parts of what the block keeps."""

IN_STEPS = ("gelu_new", "gelu_fast", "gelu_accurate")
"""Activations that eager code computes in several operations, three of which keep what they make."""


@dataclass(frozen=True)
class How:
    """How a training computes: on windows of so many tokens; with matrix products in bfloat16, those of the blocks in
    float8, on a GPU, compiled."""

    window: int
    bf16: bool = False
    float8: bool = False
    gpu: bool = False
    compiled: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.bf16 else 4

    @property
    def kept_width(self) -> int:
        """Bytes of a number that a block's matrix products keep. Eager code keeps what they round to float8, too."""
        return 1 if self.float8 and self.compiled else self.width

    @property
    def cast_width(self) -> int:
        """Bytes of a number of the blocks' weights that are cast, on top of the weights themselves."""
        return 2 * self.bf16 if not self.float8 else int(self.compiled)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide what its training takes."""

    hidden: int  # width of the residual stream
    vocabulary: int
    layers: int
    trained: int  # parameters that get a gradient
    parameters: int
    in_blocks: int  # parameters of all blocks
    group: int  # parameters of the largest group of blocks that FSDP gathers
    kept: float  # bytes that a block keeps of a token for the backward pass
    linear_head: bool  # whether logits are a linear map of the last hidden state and nothing more
    tied: bool  # whether the head is the embedding


def shape_of(model: PreTrainedModel, how: How) -> Shape:
    """The sizes of a model, with or without its weights, whole or in shares."""
    text, own = model.config.get_text_config(), blocks(model)
    scales = (_first(text, "logit_scale", "logits_scaling"), _first(text, "final_logit_softcapping"))
    in_groups = [sum(p.numel() for block in group for p in block.parameters()) for group in groups_of(own)]
    return Shape(
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=len(own),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()),
        in_blocks=sum(in_groups),
        group=max(in_groups),
        kept=sum(kept_of_a_token(block, text, how) for block in own) / len(own),
        linear_head=all(scale in (None, 1) for scale in scales),
        tied=bool(text.tie_word_embeddings),
    )


def kept_of_a_token(block: nn.Module, text: PretrainedConfig, how: How) -> float:
    """Bytes that a block keeps of a token for its backward pass.

    The residual stream in front of its two halves, in float32; what both halves read of it; and for every matrix
    between the stream and something else the numbers at the other end: queries, keys, values, what attention gives,
    what goes into and comes out of the activation. A matrix of E entries has E / hidden of those, so together they
    are the entries of the block's matrices over the hidden size (of experts, those of the ones that a token is sent
    to; autocast leaves them in float32, and float8 alone). Compiled code keeps no more.

    Eager code also keeps what lies between the operations that compiled code makes one of: what the gate of a gated
    activation was made to; the steps of an activation in several; RMS norms before their scale; where dropout struck;
    in bfloat16 the stream once for each matrix that reads it.
    """
    hidden, width = text.hidden_size, how.width
    matrices = [p for p in block.parameters() if p.dim() == 2]
    active = active_weights(block, text)
    plain = min(active, sum(p.numel() for p in matrices))
    experts = active - plain
    kept = 8 * hidden + 2 * width * hidden + (how.kept_width * plain + 4 * experts) / hidden
    heads = _first(text, "num_attention_heads", "num_heads") or 1
    drops_attention = bool(_first(text, "attn_pdrop", "attention_dropout"))
    if text._attn_implementation == "eager" or (drops_attention and not how.gpu):
        # No flash attention: probabilities of every token, and with dropout where it struck and what it left.
        kept += 4 * heads * how.window * (3 if drops_attention else 1)
    if how.compiled:
        return kept
    widest = max(max(matrix.shape) for matrix in matrices)
    gated = sum(widest in matrix.shape for matrix in matrices) > 2
    in_steps = _first(text, "hidden_act", "activation_function", "hidden_activation") in IN_STEPS
    kept += width * widest * (gated + 3 * in_steps)
    kept += 4 * _rms_norm_widths(block, hidden, heads)
    if experts:
        kept += 12 * hidden * experts_of(text)[1]  # sorted by expert, and back
    if _first(text, "resid_pdrop", "resid_dropout", "hidden_dropout", "dropout"):
        kept += 2 * width * hidden
    return kept + (2 * hidden * (len(matrices) - 2) if how.bf16 else 0)


def _rms_norm_widths(block: nn.Module, hidden: int, heads: int) -> int:
    """Numbers of a token that go through norms which torch has no operation for; one of a head goes over all."""
    weights = [getattr(m, "weight", None) for m in block.modules() if not isinstance(m, nn.LayerNorm)]
    widths = [w.numel() for w in weights if isinstance(w, nn.Parameter) and w.dim() == 1]
    return sum(width if width >= hidden else heads * width for width in widths)


def _first(config: PretrainedConfig, *fields: str) -> Any:
    """The first of these fields that the configuration has, and that says something."""
    return next((value for field in fields if (value := getattr(config, field, None))), None)


@dataclass(frozen=True)
class Step:
    """A training step of one process."""

    how: How
    model: Shape
    micro_batch: int  # windows in one forward pass
    accumulates: bool = False  # whether a step has more than one forward pass
    keeps: bool = False  # whether FSDP leaves weights gathered until the last backward pass
    checkpointed: int = 0  # blocks that make their activations again in the backward pass
    optimizer: Literal["adamw", "muon"] = "adamw"
    teacher: Shape | None = None  # whose logits are learnt
    answers: bool = False  # whether a teacher's answers are learnt

    @property
    def tokens(self) -> int:
        """In one forward pass."""
        return self.micro_batch * self.how.window


def memory_per_process(step: Step, strategy: Strategy, processes: int = 1) -> int:
    """About how many bytes the tensors of a step take in each process when they take most.

    On top of them come the program itself, what kernels take while they run and what an allocator keeps in reserve
    (on a GPU also the CUDA context).

    Raises:
        UserError: a number of processes that the strategy does not go with.
    """
    if processes < 1 or (processes == 1) != (strategy == "single"):
        raise UserError(f"the strategy {strategy!r} does not go with {processes} processes")
    model, teacher, how = step.model, step.teacher, step.how
    sharded = strategy == "fsdp"
    gradients = 4 * model.trained
    head_weight = 4 * model.vocabulary * model.hidden  # also what its gradient and the embedding's take
    fixed = 4 * model.parameters + (4 if step.optimizer == "muon" else 8) * model.trained
    fixed += 4 * teacher.parameters if teacher else 0

    block = model.kept * step.tokens
    plain = model.layers - step.checkpointed
    activations = plain * block + step.checkpointed * 4 * model.hidden * step.tokens
    # Weights as autocast or float8 rounds them: all until the forward pass ends, then those the backward pass needs.
    casts = 0 if sharded and how.gpu else how.cast_width * model.in_blocks
    needed = casts * (plain + (step.checkpointed > 0)) / model.layers
    taught = casts * teacher.in_blocks / model.in_blocks if teacher else 0
    logits = _logits(step)
    again = (1 if step.checkpointed else 0) * block
    forward = (needed if how.compiled else casts) + taught + 5 / 6 * logits
    backward = needed + max(logits, logits / 3 + head_weight, again + BACKWARD * block)
    # In the end all gradients are there and the embedding's comes: beside the head's, if they are one tensor, whose
    # sum is a third; and if there was one before, beside that.
    held = step.accumulates or strategy == "ddp"
    last = max((2 * model.tied + held) * head_weight, (1 + BACKWARD) * block)
    if not sharded:
        most = max(activations + max(forward, backward) + held * gradients, gradients + last)
        return round(fixed + most)
    # The root is put together all the time, and so is its gradient in the backward pass. Of groups of blocks two are,
    # or all; in the forward pass the last one that was sent is also there as it was sent.
    root = 4 * (model.parameters - model.in_blocks)
    root += 4 * (teacher.parameters - teacher.in_blocks) if teacher else 0
    width = 2 if how.bf16 and how.gpu else 4
    kept = width * model.in_blocks if step.keeps else 0
    gathered = kept or width * min(2 * model.group, model.in_blocks)
    # Gradients of earlier micro-batches, whole or in shares.
    whole = step.accumulates and step.keeps
    before = 4 * model.in_blocks + root if whole else 0
    shares = (fixed + (gradients if step.accumulates and not whole else 0)) / processes
    # A group's gradients are sent in float32 when what it kept of the tokens is gone; meanwhile the next come.
    own = activations * model.group / model.in_blocks
    sent = max(0, 4 * model.group - own)
    if not step.keeps and model.in_blocks > 2 * model.group:
        sent = max(sent, (width + 4) * model.group - 2 * own)
    at_head = activations + root + before + kept + max(forward + width * model.group, backward)
    in_blocks = activations + needed + again + BACKWARD * block + root + max(root, before) + gathered + sent
    at_end = last + 2 * root + (0 if step.accumulates and not whole else gradients / processes)
    teaching = root + before + (kept if whole else 0) + 2 * width * teacher.group if teacher else 0
    return round(shares + max(at_head, in_blocks, at_end, teaching))


def _logits(step: Step) -> float:
    """Bytes that are held between the last hidden state and the loss, and back."""
    how, model = step.how, step.model
    if step.teacher is not None or (step.answers and model.linear_head):
        chunk = min(step.tokens, TAUGHT_CHUNK["cuda" if how.gpu else "cpu"])
        # Both models' distributions; and the gradients of hidden states and head, made in the forward pass.
        kept = 8 * model.hidden * step.tokens + 4 * model.vocabulary * model.hidden
        eager, compiled = (36, 16) if step.teacher else (28, 16)
        return (compiled if how.compiled else eager) * model.vocabulary * chunk + kept
    if not model.linear_head:
        return (2 * how.width if how.compiled else 3 * how.width + 12) * model.vocabulary * step.tokens
    if how.compiled and step.tokens * model.vocabulary <= WHOLE:
        return how.width * model.vocabulary * step.tokens + 8 * model.hidden * step.tokens
    # Their logarithms of probabilities in float32, and twice their gradient.
    chunk = min(step.tokens, CHUNK) if how.gpu else step.tokens
    return 12 * model.vocabulary * chunk + 8 * model.hidden * step.tokens
