"""A teacher is asked once: its answers to windows of the training split, for any number of students.

The files of `data.answers` are shared out over the processes, and each of them has the teacher, whole or in shares.

The K draws of a position are systematic: at (k + u) / K of the distribution's cumulative sum, k = 0 ... K - 1, with
one random u. A token of probability p is drawn floor(K p) or ceil(K p) times, K p on average. Of 50 of them the
gradient at SmolLM2-135M's last hidden state has a third of the variance that 50 independent ones give it
(`benchmarks/answers.py`). u is a function of (seed, window, position) alone.

Letters: B windows, T tokens, N tokens of all windows, V vocabulary, K draws.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Asking, Training
from inheritune.data.answers import (
    AnswersRecord,
    Teacher,
    finish,
    folder_to_fill,
    missing_files,
    write_file,
)
from inheritune.data.loader import TrainingData, batches, open_together
from inheritune.models.checkpoint_config import check_live
from inheritune.models.load import load_config, load_model, load_tokenizer
from inheritune.models.size import flops_per_token
from inheritune.recipe_file import parse_recipe
from inheritune.runtime import files
from inheritune.runtime.hardware import Hardware, choose_hardware
from inheritune.runtime.progress import ProgressBar
from inheritune.runtime.signals import Interrupted, signals
from inheritune.runtime.world import ALONE, World, check_same, joined
from inheritune.training.checks import check_fit
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import built_on_rank_0, place
from inheritune.training.validation import BATCH_TOKENS

CHUNK = {"cpu": 2**24, "cuda": 2**25}
"""Probabilities that are held at once."""

KEPT = "the files that are complete are kept, and the same command resumes"

SAMPLED = 4_096
"""Entries of each tensor that tell one teacher from another."""


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: how many, from softmax(logits / temperature), and a seed."""

    draws: int
    temperature: float
    seed: int = 0


class Asked(NextTokenLoss):
    """What a teacher answers, in the place of a loss."""

    def __init__(self, model: PreTrainedModel, drawing: Drawing, world: World = ALONE) -> None:
        super().__init__(model, world)
        self.drawing = drawing

    def forward(self, inputs_bt: Tensor, random_bt: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Tokens that were drawn, ascending, int32 [B, T, K]; the mean entropy of each window, float32 [B].

        `random_bt`: float64 in [0, 1).
        """
        linear = self.linear_head
        states = (self.hidden(inputs_bt) if linear else self.logits(inputs_bt)).flatten(0, 1)
        random_n, drawing = random_bt.flatten(), self.drawing
        size = max(1, CHUNK[states.device.type] // self.model.config.get_text_config().vocab_size)
        drawn, entropies = [], []
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits_cv = self.head(states[part]) if linear else states[part]
            ids_ck, entropy_c = draw(logits_cv, random_n[part], drawing.draws, drawing.temperature)
            drawn.append(ids_ck)
            entropies.append(entropy_c)
        return torch.cat(drawn).unflatten(0, inputs_bt.shape), torch.cat(entropies).view_as(random_bt).mean(1)


def draw(logits_nv: Tensor, random_n: Tensor, draws: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Systematic draws from softmax(logits / temperature): int32 [N, K], ascending; its entropy, float32 [N]."""
    softened = torch.softmax(logits_nv.float() / temperature, -1)
    # In float64: what is improbable would be lost beside a sum near one.
    cumulated = softened.double().cumsum(-1)
    places_nk = (torch.arange(draws, device=random_n.device) + random_n[:, None]) / draws
    whole = cumulated[:, -1:]
    places_nk = torch.minimum(places_nk * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    ids_nk = torch.searchsorted(cumulated, places_nk, right=True).int()
    return ids_nk, torch.special.entr(softened).sum(-1)


def ask(
    teacher: Callable[[], PreTrainedModel],
    name: str,
    data: TrainingData,
    windows: np.ndarray,
    drawing: Drawing,
    directory: Path,
    training: Training,
    hardware: Hardware,
) -> AnswersRecord:
    """Ask a teacher, or resume where an earlier start was stopped, or do nothing if it was asked already.

    Under torchrun every process calls this.

    Args:
        teacher: makes the model; only called on the first process.
        name: of the teacher, for messages.
        data: whose training split it reads.
        windows: numbers of the windows in the split, ascending.
        drawing: how many draws, and from what.
        directory: gets the answers.
        training: how a model is spread over processes.
        hardware: where, and with which other processes.

    Raises:
        UserError: the directory holds something else, or what the teacher answers is not finite.
        Interrupted: a signal asked to stop; the same call resumes.
    """
    world, window = hardware.world, data.window
    model = built_on_rank_0(teacher, world)

    def described() -> AnswersRecord:
        return AnswersRecord(
            data=data.train.identity,
            window=window,
            windows=len(windows),
            draws=drawing.draws,
            temperature=drawing.temperature,
            seed=drawing.seed,
            vocabulary=model.config.get_text_config().vocab_size,
            precision="bf16" if hardware.bf16 else "fp32",
            teacher=Teacher(name=name, sha256=weights_sha256(model)),
            flops=asking_flops(model, window, len(windows)),
        )

    record = world.on_first(described)
    parts = record.parts(windows)
    size = max(1, BATCH_TOKENS[hardware.device.type] // window)
    with ExitStack() as stack:
        world.on_first(lambda: stack.enter_context(folder_to_fill(directory, record)))
        missing = world.on_first(missing_files, directory, record, windows)
        if missing:
            placed = place(Asked(model, drawing, world), training, replace(hardware, compile=False), window)
            asked = placed.loss.eval()
        done = sum(len(part) for number, part in enumerate(parts) if number not in missing)
        title = f"answers of {name}"
        bar = ProgressBar(title, len(windows) * window, "tokens", done * window, keeps=None)
        stack.enter_context(bar)
        interrupted = stack.enter_context(signals(lambda: f"{title}: stopping after this batch; {KEPT}"))
        for start in range(0, len(missing), world.size):
            here = missing[start : start + world.size]
            number = here[min(world.rank, len(here) - 1)]
            turns = -(-max(len(parts[each]) for each in here) // size)
            found = []
            for turn in range(turns):  # a model in shares answers all processes together, as often
                begin = turn * size if turn * size < len(parts[number]) else 0
                chosen = parts[number][begin : begin + size]
                inputs_bt, _ = next(batches(data.train, chosen, window, size, hardware.device))
                random_bt = torch.from_numpy(random_numbers(drawing.seed, chosen, window))
                with torch.no_grad(), hardware.autocast():
                    drawn, entropy = asked(inputs_bt, random_bt.to(hardware.device))
                if turn * size == begin:
                    found.append((drawn.cpu().numpy(), entropy.cpu().numpy()))
                bar.update(min(bar.total or 0, (done + world.size * size * (turn + 1)) * window))
                if world.any(interrupted()):
                    raise Interrupted(f"{title}: stopped; {KEPT}")
            drawn_wtk, entropy_w = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            if not np.isfinite(entropy_w).all():
                wrong = parts[number][~np.isfinite(entropy_w)][0]
                raise UserError(
                    f"what {name} predicts in window {wrong} is not finite: it is damaged, or its weights are too "
                    "large for this precision"
                )
            if world.rank < len(here):
                path = directory / record.file_of(number)
                write_file(path, parts[number], drawn_wtk, entropy_w, record.dtype)
            done += sum(len(parts[each]) for each in here)
        world.gather(None)  # all have written
        return world.on_first(finish, directory, record, windows)


def random_numbers(seed: int, windows: np.ndarray, window: int) -> np.ndarray:
    """One number for each position of these windows: float64 in [0, 1), [B, T]."""
    streams = (np.random.SeedSequence([seed, int(number)]) for number in windows)
    return np.stack([np.random.Generator(np.random.PCG64(stream)).random(window) for stream in streams])


def asking_flops(teacher: PreTrainedModel, window: int, windows: int) -> float:
    """FLOPs of a forward pass over so many windows, a third of a training on them."""
    return flops_per_token(teacher, window) / 3 * window * windows


def weights_sha256(model: PreTrainedModel) -> str:
    """Tells one model from another: over names and shapes of all weights and some entries of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        entries = tensor.detach().flatten()
        chosen = torch.arange(min(SAMPLED, len(entries))) * len(entries) // min(SAMPLED, max(1, len(entries)))
        digest.update(f"{name}\0{list(tensor.shape)}\n".encode())
        digest.update(entries[chosen].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def answers(
    teacher: str | Path | PreTrainedModel,
    data: str | Path,
    output: str | Path,
    *,
    window: int = 1024,
    tokens: int | None = None,
    draws: int = 50,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    bos: str = "auto",
    ignore_tokenizer: bool = False,
) -> AnswersRecord:
    """Ask a teacher once about a training text, for any number of students: what `inheritune answers` does.

    Called again it resumes where it stopped; finished it computes nothing. Under torchrun every process calls it.

    Args:
        teacher: a causal language model, which is copied, its Hugging Face id or the folder of its checkpoint.
        data: folder of token shards, whose training split is read.
        output: folder for the answers, which recipes name as `distillation.answers`.
        window: tokens of each window, as in the recipes.
        tokens: answer only about the windows that recipes with the same `data.tokens` train on.
        draws: from the teacher's distribution of every next token, 1 to 255.
        temperature: which distribution: softmax(logits / temperature).
        seed: of the draws.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "bf16" or "fp32", as in recipes.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.
        bos: as `data.bos` of recipes.
        ignore_tokenizer: accept shards of another tokenizer than the teacher's.

    Returns:
        What is in the folder.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    place = files.named(output, "folder for the answers")
    live = teacher if isinstance(teacher, PreTrainedModel) else None
    if live is not None:
        check_live(live)
        teacher = live.name_or_path or f"a {live.config.model_type} model in memory"
    source = {"pretrained": str(teacher), "revision": revision, "trust_remote_code": trust_remote_code}
    text = {"path": str(data), "window": window, "tokens": tokens, "bos": bos}
    asking = parse_recipe(
        {
            "teacher": source,
            "data": {**text, "ignore_tokenizer": ignore_tokenizer},
            **{"draws": draws, "temperature": temperature, "seed": seed},
            **{"device": device, "precision": precision},
        },
        Asking,
        "answers",
    )
    training = Training(device=asking.device, precision=asking.precision)
    with joined(training) as world:
        check_same(world, asking)
        world.on_first(files.check_place, place)
        hardware = choose_hardware(training, world)
        opened = open_together(asking.data, world)
        trained = asking.teacher.trained
        assert trained is not None
        config = load_config(trained) if live is None else live.config
        tokenizer = load_tokenizer(trained) if live is None or live.name_or_path else None
        check_fit(config, opened, tokenizer, str(trained))
        return ask(
            partial(load_model, trained, config=config) if live is None else partial(copy.deepcopy, live),
            str(trained),
            opened,
            opened.training_windows(np.arange(opened.windows)),
            Drawing(asking.draws, asking.temperature, asking.seed),
            place,
            training,
            hardware,
        )
