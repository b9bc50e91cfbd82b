"""How much memory a training step takes in each process, for each way to spread it over processes.

One step is traced (`traced_step`) at the micro-batch, window and precision of the training. To that is added, moment
by moment, what weights, gradients and optimizer take, whole or in shares, and what the processes put together and
send: by what torch's engines do (`DistributedDataParallel`; FSDP2's `fully_shard`, grouped as in `parallel`). The
largest sum is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from inheritune import UserError
from inheritune.models.architecture import blocks, cut_config, layer_count
from inheritune.models.layer_fields import per_layer_fields
from inheritune.models.size import on_meta
from inheritune.training.parallel import Strategy
from inheritune.training.traced_step import Step, Traced, traced_step

TRACED_LAYERS = 3
"""Of a deeper model whose blocks are alike so many blocks, and one more, are traced; the rest follows."""


def memory_per_process(step: Step, strategy: Strategy, processes: int = 1) -> int:
    """Bytes that the tensors of a step take in each process when it takes most.

    Beside them stand the program itself, what kernels take while they run and what an allocator keeps in reserve
    (on a GPU also the CUDA context). All but the head is traced as eager code; compiled code may keep less of it.

    Raises:
        UserError: a number of processes that the strategy does not go with.
    """
    if processes < 1 or (processes == 1) != (strategy == "single"):
        raise UserError(f"the strategy {strategy!r} does not go with {processes} processes")
    depth = layer_count(step.config)
    if depth <= TRACED_LAYERS + 1 or not _alike(step):
        return round(max(value for _, value in _sums(step, strategy, processes)))
    few, more = (
        _peaks(replace(step, config=cut_config(step.config, layers)), strategy, processes)
        for layers in (TRACED_LAYERS, TRACED_LAYERS + 1)
    )
    # A block more adds as much at any point of a moment, but not the same in all moments, so the depth decides
    # which of them is the largest.
    return round(max(few[m] + (depth - TRACED_LAYERS) * (more[m] - few[m]) for m in few))


def _alike(step: Step) -> bool:
    """Whether all blocks take the same memory."""
    if step.checkpointing not in ("none", "all"):
        return False
    text = step.config.get_text_config()
    sliding = getattr(text, "sliding_window", None)
    lists = per_layer_fields(text, layer_count(step.config))
    fields = [f for f in lists if f != "layer_types" or (sliding and sliding < step.window)]
    if any(len({str(kind) for kind in getattr(text, f)}) > 1 for f in fields):
        return False
    return len({tuple(p.shape for p in block.parameters()) for block in blocks(on_meta(step.config))}) == 1


def _peaks(step: Step, strategy: Strategy, processes: int) -> dict[str, float]:
    """The largest sum of each moment, of the two blocks at either end, named so that depths can be compared."""
    depth = layer_count(step.config)
    largest: dict[str, float] = {}
    for moment, value in _sums(step, strategy, processes):
        kind, _, number = moment.partition(" ")
        places = [int(number), int(number) - depth] if number else []
        names = [f"{kind} {place}" for place in places if -2 <= place <= 1] if number else [moment]
        for name in names:
            largest[name] = max(largest.get(name, 0.0), value)
    return largest


def _sums(step: Step, strategy: Strategy, processes: int) -> Iterator[tuple[str, float]]:
    """Moments and the bytes held at each of their points."""
    if strategy == "fsdp":
        yield from _sharded(traced_step(step, halved=step.halved), step, processes)
        return
    traced = traced_step(step)
    fixed = traced.weights + 4 * traced.state
    for point in traced.points:
        if strategy == "single" and not step.accumulates:
            yield point.moment, fixed + point.rest + point.gradients
            continue
        # Gradients are there all the time; a new one is added to the old, or copied to where DDP averages it.
        held = 4 * traced.trained + point.fresh
        yield point.moment, fixed + point.rest + held


def _sharded(traced: Traced, step: Step, processes: int) -> Iterator[tuple[str, float]]:
    """Sums under FSDP2: shares of everything, and whole what is put together to compute.

    Of every group of weights an all-gather makes one flat tensor, from which the weights are copied; the tensor is
    kept until the next group's is there (in the backward pass, where the next is fetched ahead, the next one's is).
    Gradients are whole until their block is through, then copied into one float32 tensor that is reduced, and is
    kept until the next one.
    """
    gathered = [(2 if step.halved else 4) * count for count in traced.blocks]
    teacher = (2 if step.halved else 4) * traced.teacher
    root, last = 4 * traced.root, len(gathered) - 1
    fixed = (traced.weights + 4 * traced.state) / processes
    if step.accumulates:
        fixed += 4 * traced.trained / processes
    share = (2 if step.halved else 1) / processes  # of gradients that are kept as float32
    for point, after in pairwise([*traced.points, traced.points[-1]]):
        kind, _, number = point.moment.partition(" ")
        block = int(number) if number else 0
        held = fixed + point.rest + point.own + point.root + (0 if step.accumulates else share * point.done)
        if kind == "start":
            yield point.moment, held + root + max(root + gathered[0], 2 * teacher)
        elif kind == "forward":
            yield point.moment, held + root + 2 * gathered[block]
        elif kind == "head":
            yield point.moment, held + root + gathered[last]
        elif kind == "backward":
            ahead = gathered[block - 1] if block > 0 else 0
            behind = 4 * traced.blocks[block + 1] if block < last else 0
            yield point.moment, held + root + gathered[block] + ahead + behind
            if after.moment != point.moment:
                reduced = 4 * traced.blocks[block] * (1 + 1 / processes)
                yield point.moment, held + root + ahead + reduced
        elif kind == "end":
            yield point.moment, held + root + 4 * traced.blocks[0]
            if after.moment != point.moment:
                yield point.moment, held + 4 * traced.root * (1 + 1 / processes)
        else:
            yield point.moment, held - point.root * (1 - 1 / processes) - point.own
