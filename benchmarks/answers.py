"""A teacher that reads every batch against its stored answers: bytes, time, and what a student loses by them.

    python benchmarks/answers.py MODEL DATA [--layers 6 --window 64 --windows 16 --steps 60 --draws 10 50]

Students that are cut from the teacher learn the same windows in the same order: from its logits (`live`), from K
stored draws (`draws`), from K independent ones (`independent`), and from its K most probable tokens, whose
probabilities are made to sum to one (`top`). They take turns, a step each, so that what else the machine does meets
all of them. Printed are

- of the answers bytes per token, and what stands for the teacher's gradient at the last hidden state, through its own
  head: the mean square of the error at a position, and the square of the mean error over all positions (the bias);
- of the students the median of a step's time relative to `live`, and of held-out text KL(teacher || student) and the
  loss of the next token. `--asked-only` leaves them out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.config import Data, Distillation, Training
from inheritune.data.answers import Answers, AnswersRecord, Teacher, finish, write_file
from inheritune.data.loader import TrainingData, batches, open_data
from inheritune.data.order import Order
from inheritune.initialization import choose, select
from inheritune.models.architecture import layer_count
from inheritune.models.load import load_model
from inheritune.runtime.hardware import choose_hardware
from inheritune.training.distillation import AnswersLoss, DistillationLoss
from inheritune.training.loss import NextTokenLoss
from inheritune.training.teacher import draw, random_numbers

HELD_OUT = 48
"""Windows."""

HARDWARE = choose_hardware(Training(compile=False))


class Stored:
    """What a teacher said of some windows, drawn in one way, in a folder as `inheritune answers` makes it."""

    def __init__(self, data: TrainingData, windows: np.ndarray, draws: int, vocabulary: int) -> None:
        self.windows, self.drawn = windows, list[Tensor]()
        self.probabilities = list[Tensor]()
        """Of the most probable tokens, which stand in the place of counts."""
        self.errors = list[Tensor]()
        """Of the gradient at the last hidden state: float32 [N, D]."""
        self.record = AnswersRecord(
            data=data.train.identity,
            window=data.window,
            windows=len(windows),
            draws=draws,
            temperature=1.0,
            seed=0,
            vocabulary=vocabulary,
            precision="bf16" if HARDWARE.bf16 else "fp32",
            teacher=Teacher(name="teacher", sha256=""),
            flops=0.0,
        )

    def write(self, folder: Path, entropy: np.ndarray) -> Answers:
        """All of it."""
        folder.mkdir()
        tokens = torch.cat(self.drawn).numpy()
        for number, part in enumerate(self.record.parts(self.windows)):
            rows, path = np.isin(self.windows, part), folder / self.record.file_of(number)
            write_file(path, part, tokens[rows], entropy[rows], self.record.dtype)
        finish(folder, self.record, self.windows)
        return Answers(folder)

    def taught(self, numbers: np.ndarray, entropy_b: Tensor) -> list[Tensor]:
        """Of the most probable tokens what `Answers.read` would give."""
        rows = torch.from_numpy(np.searchsorted(self.windows, numbers))
        found = [torch.cat(parts)[rows] for parts in (self.drawn, self.probabilities)]
        return [*(tensor.to(HARDWARE.device) for tensor in found), entropy_b]


@torch.no_grad()
def ask(asked: NextTokenLoss, data: TrainingData, stored: dict[str, Stored], size: int) -> np.ndarray:
    """One pass of the teacher over the windows, drawn in all ways; the mean entropy of each window."""
    windows, device, weight_vd = next(iter(stored.values())).windows, HARDWARE.device, asked.head.weight
    generator = torch.Generator(device).manual_seed(0)
    entropies = []
    for start in range(0, len(windows), size):
        part = windows[start : start + size]
        shape = (len(part), data.window, -1)
        inputs, _ = next(batches(data.train, part, data.window, len(part), device))
        with HARDWARE.autocast():
            logits = asked.logits(inputs).flatten(0, 1)
        random = torch.from_numpy(random_numbers(0, part, data.window)).to(device).flatten()
        p = logits.float().softmax(-1)
        exact_nd = p @ weight_vd
        for name, one in stored.items():
            draws, shares_nk = one.record.draws, None
            if name.startswith("draws"):
                ids, entropy = draw(logits, random, draws, 1.0)
            elif name.startswith("independent"):
                ids = p.multinomial(draws, replacement=True, generator=generator).sort(-1).values
            else:
                values, ids = p.topk(draws)
                one.probabilities.append(values.view(shape).cpu())
                shares_nk = values / values.sum(-1, keepdim=True)
            error_nd = F.embedding_bag(ids.int(), weight_vd, mode="sum", per_sample_weights=shares_nk)
            one.errors.append(((error_nd if shares_nk is not None else error_nd / draws) - exact_nd).cpu())
            one.drawn.append(ids.int().view(shape).cpu())
        entropies.append(entropy.view(shape).mean((1, 2)).cpu())
    return torch.cat(entropies).numpy()


@torch.no_grad()
def held_out(asked: NextTokenLoss, losses: dict[str, NextTokenLoss], data: TrainingData) -> dict[str, Tensor]:
    """KL to the teacher and loss of the next token, nats per token."""
    numbers = np.arange(HELD_OUT) * data.validation_windows // HELD_OUT
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
    for inputs, targets in batches(data.validation, numbers, data.window, 8, HARDWARE.device):
        theirs = asked.logits(inputs).flatten(0, 1).float().log_softmax(-1)
        for name, loss in losses.items():
            loss.model.eval()
            own = loss.logits(inputs).flatten(0, 1).float().log_softmax(-1)
            kl = (theirs.exp() * (theirs - own)).sum(-1).mean()
            entropy = -own.gather(1, targets.flatten()[:, None]).mean()
            totals[name] += torch.stack([kl, entropy]).cpu() * len(inputs) / HELD_OUT
    return totals


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--layers", type=int, default=6, help="of the students, spread over the teacher's")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--windows", type=int, default=16, help="of a step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--draws", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--asked-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    data = open_data(Data(path=options.data, window=options.window, verify=False))
    order = Order(data.windows, options.windows)
    steps = [order.step(step) for step in range(options.steps)]
    windows = np.unique(np.concatenate(steps))
    teacher = load_model(options.model)
    student = select(teacher, choose(f"spread {options.layers}", layer_count(teacher.config)))
    asked = NextTokenLoss(teacher.to(HARDWARE.device))
    stored = {
        f"{kind} {draws}": Stored(data, windows, draws, teacher.config.vocab_size)
        for draws in options.draws
        for kind in ("draws", "independent", "top")
    }
    entropy = ask(asked, data, stored, options.windows)
    print(f"{len(windows) * data.window:,} tokens, entropy {entropy.mean():.3f} nats")
    print(f"{'':16} bytes/token  error      bias")
    with tempfile.TemporaryDirectory() as folder:
        answers = {name: one.write(Path(folder) / name, entropy) for name, one in stored.items()}
        for name, one in stored.items():
            size = answers[name].record.bytes / len(windows) / data.window
            errors_nd = torch.cat(one.errors)
            error, bias = errors_nd.square().sum(1).mean(), errors_nd.mean(0).square().sum()
            print(f"{name:16} {size:11.1f}  {error:.2e}  {bias:.2e}", flush=True)
        if not options.asked_only:
            train(asked, student, data, steps, stored, answers, options.learning_rate)


def train(
    asked: NextTokenLoss,
    student: PreTrainedModel,
    data: TrainingData,
    steps: list[np.ndarray],
    stored: dict[str, Stored],
    answers: dict[str, Answers],
    learning_rate: float,
) -> None:
    """Train a copy of the student on each kind of answers, in turns, and compare them."""
    device, settings = HARDWARE.device, Distillation(alpha=1.0)
    losses: dict[str, NextTokenLoss] = {
        "live": DistillationLoss(copy.deepcopy(student).to(device), asked.model, settings)
    }
    for name, each in answers.items():
        losses[name] = AnswersLoss(copy.deepcopy(student).to(device), each, settings)
    optimizers = {
        name: torch.optim.AdamW(loss.model.parameters(), betas=(0.9, 0.95)) for name, loss in losses.items()
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for step, numbers in enumerate(steps):
        for name, loss in losses.items():
            began = time.perf_counter()
            inputs, targets, *taught = next(
                batches(data.train, numbers, data.window, len(numbers), device, answers.get(name))
            )
            if name.startswith("top"):
                taught = stored[name].taught(numbers, taught[2])
            loss.train()
            with HARDWARE.autocast():
                value = loss(inputs, targets, *taught)
            value.backward()
            torch.nn.utils.clip_grad_norm_(loss.model.parameters(), 1.0)
            rate = learning_rate * min(1, (step + 1) / 10, 1.1 - step / len(steps))
            optimizers[name].param_groups[0]["lr"] = rate
            optimizers[name].step()
            optimizers[name].zero_grad()
            value.item()
            seconds[name].append(time.perf_counter() - began)
        if step % 10 == 9:
            print(f"step {step + 1} of {len(steps)}", flush=True)

    found = held_out(asked, losses, data)
    print(f"{'':16} step/live       KL  (- live)     loss  (- live)")
    for name in losses:
        turns = zip(seconds[name][1:], seconds["live"][1:], strict=True)
        ratio = statistics.median(own / live for own, live in turns)
        (kl, loss), (kl_more, loss_more) = found[name].tolist(), (found[name] - found["live"]).tolist()
        print(f"{name:16} {ratio:9.2f} {kl:8.4f} {kl_more:+9.4f} {loss:8.4f} {loss_more:+9.4f}")
    print(f"live: {statistics.median(seconds['live'][1:]):.2f} s a step")


if __name__ == "__main__":
    main()
