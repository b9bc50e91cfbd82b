"""One optimizer step: our loop, a plain hand-written loop over the same model, and transformers' Trainer.

    python benchmarks/step.py [--compile] [--steps 20] [--rounds 3]

All three train the same GPT-2 on the same windows with the same precision, one after the other within each
round, so that a slower moment of the machine meets all of them. Printed: median milliseconds per step, and
ratios to the plain loop (more than 1 is slower). The plain loop is what one would write by hand: read, forward,
backward, clip, AdamW, learning rate; nothing is logged or checked in it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from inheritune.config import Data, Training
from inheritune.data.loader import TrainingData, ahead, open_data, training_steps
from inheritune.data.order import Order
from inheritune.models.presets import architecture_config, from_config
from inheritune.models.size import flops_per_token
from inheritune.runtime.hardware import Hardware, choose_hardware, describe
from inheritune.training.checkpoint import TrainState
from inheritune.training.loss import NextTokenLoss
from inheritune.training.metrics import Metrics
from inheritune.training.micro_batch import TOKENS, sizes
from inheritune.training.optimizer import make_optimizer
from inheritune.training.parallel import place
from inheritune.training.schedule import learning_rate
from inheritune.training.step import Stepper

SIZES = [  # layers, hidden size, heads, window, windows per step, vocabulary
    (8, 128, 4, 128, 16, 4096),
    (8, 256, 4, 256, 16, 8192),
    (12, 256, 4, 256, 16, 8192),
]
WARM_UP = 3


def make_data(folder: Path, window: int, vocabulary: int) -> TrainingData:
    generator = np.random.default_rng(0)
    for name, count in (("train.bin", 2_000_000), ("val.bin", 10_000)):
        (folder / name).write_bytes(generator.integers(0, vocabulary, count, dtype=np.uint16).tobytes())
    return open_data(Data(path=folder, window=window))


def make_model(size: tuple[int, ...], hardware: Hardware) -> PreTrainedModel:
    layers, hidden, heads, window, _, vocabulary = size
    fields = {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": window,
        "vocab_size": vocabulary,
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "frozen_biases": True,
        "use_cache": False,
    }
    return from_config(architecture_config(fields), seed=0).to(hardware.device)


def our_step(
    size: tuple[int, ...], data: TrainingData, training: Training, hardware: Hardware
) -> Callable[[], None]:
    """One turn of `training.loop.train`, with all that it does in a turn without validation or checkpoint."""
    model = make_model(size, hardware)
    placed = place(NextTokenLoss(model), training, hardware, data.window)
    stepper = Stepper(placed, make_optimizer(model, training.optimizer), training, hardware)
    batch = sizes(training, data.window, TOKENS[hardware.device.type])[0]
    order = Order(data.windows, size[4], training.seed)
    state = TrainState()
    flops = flops_per_token(model, data.window) * training.tokens_per_step
    metrics = Metrics(Path(tempfile.mkdtemp()), training, hardware, flops, state)
    steps = training_steps(data, order, range(training.steps), batch, hardware.device)
    turns = ahead(steps)

    def step() -> None:
        began = time.perf_counter()
        result = stepper(state.step, next(turns))
        state.step += 1
        state.seconds += time.perf_counter() - began
        metrics.stepped(state, result)

    return step


def plain_step(
    size: tuple[int, ...], data: TrainingData, training: Training, hardware: Hardware
) -> Callable[[], None]:
    model = make_model(size, hardware)
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() >= 2 and ".h." in n]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    parameters = [*decayed, *others]
    tokens = np.memmap(data.path / "train.bin", np.uint16, mode="r")
    generator = np.random.default_rng(0)
    window, per_step = data.window, size[4]
    batch = sizes(training, window, TOKENS[hardware.device.type])[0]
    count = 0
    model.train()

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = model.transformer(input_ids=inputs, use_cache=False).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    compiled = torch.compile(forward) if hardware.compile else forward

    def step() -> None:
        nonlocal count
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(count, training)
        count += 1
        starts = generator.integers(0, len(tokens) - window - 1, per_step)
        for i in range(0, per_step, batch):
            rows = np.stack([tokens[s : s + window + 1].astype(np.int64) for s in starts[i : i + batch]])
            both = torch.from_numpy(rows).to(hardware.device)
            with hardware.autocast():
                loss = compiled(both[:, :-1].contiguous(), both[:, 1:].contiguous()) * (batch / per_step)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # a loop that prints its loss reads it

    return step


class Windows(torch.utils.data.Dataset):
    """The same windows as a map-style data set, which is what Trainer wants."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.windows

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        start = number * self.data.window
        tokens = torch.from_numpy(self.data.train.read(start, start + self.data.window))
        return {"input_ids": tokens, "labels": tokens}  # the model shifts the labels itself


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *arguments: Any, **values: Any) -> None:
        self.times.append(time.perf_counter())


def trainer_seconds(
    size: tuple[int, ...], data: TrainingData, training: Training, hardware: Hardware, steps: int
) -> list[float]:
    batch = sizes(training, data.window, TOKENS[hardware.device.type])[0]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps + WARM_UP,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=size[4] // batch,
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=hardware.bf16,
        use_cpu=hardware.device.type == "cpu",
        torch_compile=hardware.compile,
        logging_steps=training.log_every,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = Clock()
    model = make_model(size, hardware)
    Trainer(model=model, args=arguments, train_dataset=Windows(data), callbacks=[clock]).train()
    times = clock.times[WARM_UP - 1 :]
    return [b - a for a, b in itertools.pairwise(times)]


def seconds_of(step: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=12, help="steps of each contestant in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()

    rows = []
    for size in SIZES:
        layers, hidden, _, window, per_step, vocabulary = size
        training = Training.model_validate(
            {
                "steps": 10_000,
                "tokens_per_step": window * per_step,
                "compile": options.compile,
                "optimizer": {"learning_rate": 1e-3},
            }
        )
        hardware = choose_hardware(training)
        with tempfile.TemporaryDirectory() as folder:
            data = make_data(Path(folder), window, vocabulary)
            contestants = {
                "ours": our_step(size, data, training, hardware),
                "plain": plain_step(size, data, training, hardware),
            }
            seconds: dict[str, list[float]] = {"ours": [], "plain": [], "Trainer": []}
            for step in contestants.values():
                seconds_of(step, WARM_UP)
            for _ in range(options.rounds):
                for _ in range(options.steps):
                    for name, step in contestants.items():
                        seconds[name] += seconds_of(step, 1)
                seconds["Trainer"] += trainer_seconds(size, data, training, hardware, options.steps)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append((f"{layers} x {hidden} x {window}", medians))
        print(f"measured {rows[-1][0]}", flush=True)

    print("; ".join(f"{key}: {value}" for key, value in describe(hardware).items()))
    print(
        f"{'layers x hidden x tokens':26}{'plain ms':>10}{'ours ms':>10}{'Trainer ms':>12}{'ours':>8}{'Trainer':>9}"
    )
    for name, m in rows:
        print(
            f"{name:26}{1e3 * m['plain']:10.1f}{1e3 * m['ours']:10.1f}{1e3 * m['Trainer']:12.1f}"
            f"{m['ours'] / m['plain']:8.3f}{m['Trainer'] / m['plain']:9.3f}"
        )


if __name__ == "__main__":
    main()
