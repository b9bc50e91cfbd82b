"""The contestants of `gpu.py` that are other people's programs, with the settings that make them fastest."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gpu import SIZES, Size
from gpu_measure import (
    WARM_PRODUCTS,
    WARM_UP,
    alone_on_gpu,
    data_of,
    matmul_rate,
    micro_batch_of,
    model_of,
    profile_of,
    random_batches,
    rates_of,
    synchronize,
    time_steps,
    training_of,
)
from inheritune.models.size import flops_per_token
from inheritune.runtime.hardware import choose_hardware


class Windows(torch.utils.data.Dataset):
    """The same windows as a map-style data set, which is what Trainer wants."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.windows

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        start = number * self.data.window
        tokens = torch.from_numpy(self.data.train.read(start, start + self.data.window)).long()
        return {"input_ids": tokens, "labels": tokens}  # the model shifts the labels itself


def trainer(spec: dict[str, Any]) -> dict[str, Any]:
    """transformers.Trainer: compiled, bf16, fused AdamW, workers; without its check of every loss, which waits."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    size = SIZES[spec["size"]]
    training = training_of(size, spec)
    hardware = choose_hardware(training)
    model = model_of(size)
    batch = micro_batch_of(model, training, hardware, size)
    model.set_attn_implementation("sdpa")
    measured: dict[str, Any] = {"rounds": []}
    last = WARM_UP + spec["rounds"] * spec["steps"]

    class Clock(TrainerCallback):
        started = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **values: Any) -> None:
            done = state.global_step - WARM_UP
            if done < 0 or done % spec["steps"]:
                return
            synchronize(hardware.device)
            now = time.perf_counter()
            if done == 0:
                measured["warm_up_seconds"] = now - self.started
                alone.enter_context(alone_on_gpu())
                now = time.perf_counter()
            else:
                measured["rounds"].append((now - self.started) / spec["steps"])
            self.started = now

    with tempfile.TemporaryDirectory() as folder, ExitStack() as alone:
        data = data_of(Path(folder), size)
        arguments = TrainingArguments(
            output_dir=f"{folder}/trainer",
            max_steps=last,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=training.tokens_per_step // size.window // batch,
            learning_rate=3e-4,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            optim="adamw_torch_fused",
            bf16=hardware.bf16,
            use_cpu=hardware.device.type == "cpu",
            torch_compile=hardware.compile,
            logging_steps=training.log_every,
            logging_nan_inf_filter=False,
            dataloader_num_workers=4 if hardware.device.type == "cuda" else 0,
            dataloader_persistent_workers=hardware.device.type == "cuda",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        program = Trainer(model=model, args=arguments, train_dataset=Windows(data), callbacks=[Clock()])
        program.train()
        memory = torch.cuda.max_memory_allocated() if hardware.device.type == "cuda" else 0
        if hardware.device.type == "cuda":
            measured["matmul_when_warm"] = matmul_rate(hardware.device, WARM_PRODUCTS)[1]
        measured.update(_profile_micro_batch(program, hardware.device))
    flops = flops_per_token(model, size.window)
    row = {**measured, "memory_bytes": memory, "flops_per_token": flops, "micro_batch": batch}
    return {**row, **rates_of(measured, size)}


def _profile_micro_batch(program: Any, device: torch.device) -> dict[str, Any]:
    """Kernels of one more micro-batch of the same compiled program."""
    model = program.model_wrapped
    inputs = next(iter(program.get_train_dataloader()))

    def step() -> None:
        program.training_step(model, dict(inputs))

    step()
    return profile_of(step, device)


def litgpt(spec: dict[str, Any]) -> dict[str, Any]:
    """litgpt's model, loss and optimizer step, as `litgpt pretrain` drives them: compiled, bf16-mixed, fused AdamW.

    It has no learned positions and no tied head: its GPT-2 is one with rotary positions on a quarter of each head.
    """
    try:
        from lightning import Fabric
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        return {"skipped": f"litgpt cannot be imported ({error})"}
    size = SIZES[spec["size"]]
    training = training_of(size, spec)
    hardware = choose_hardware(training)
    batch = micro_batch_of(model_of(size), training, hardware, size)
    count = training.tokens_per_step // size.window // batch
    fabric = Fabric(accelerator=hardware.device.type, devices=1, precision="bf16-mixed")
    with fabric.init_module(empty_init=False):
        model = GPT(Config(**_litgpt_config(size)))
    model.max_seq_length = size.window
    model = fabric.setup(torch.compile(model) if hardware.compile else model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    optimizer = fabric.setup_optimizers(optimizer)
    with tempfile.TemporaryDirectory() as folder:
        micro_batches = random_batches(data_of(Path(folder), size), size.window, batch, hardware.device)

        def step() -> None:
            for number in range(1, count + 1):
                inputs, targets = next(micro_batches)
                with fabric.no_backward_sync(model, enabled=number < count):
                    loss = chunked_cross_entropy(model(inputs), targets)
                    fabric.backward(loss / count)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()

        row = time_steps(step, spec, hardware.device)
    flops = flops_per_token(model_of(size), size.window)
    return {**row, "flops_per_token": flops, "micro_batch": batch, **rates_of(row, size)}


def _litgpt_config(size: Size) -> dict[str, Any]:
    from inheritune.models.presets import architecture_config

    config = architecture_config(size.architecture)
    shape = {
        "n_layer": config.num_hidden_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "block_size": size.window,
        "bias": False,
        "parallel_residual": False,
    }
    if config.model_type == "gpt2":
        return {**shape, "rotary_percentage": 0.25}
    llama = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "norm_eps": 1e-6}
    return {**shape, **llama, "rotary_percentage": 1.0, "intermediate_size": config.intermediate_size}
