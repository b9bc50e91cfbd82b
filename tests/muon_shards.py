"""A training with Muon on two processes that share every block (FSDP2): the function that each process runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from inheritune.config import Optimizer
from inheritune.training.loss import NextTokenLoss
from inheritune.training.muon import make_muon
from tiny_models import tiny_model, tokens

SETTINGS = Optimizer(learning_rate=1e-2, weight_decay=0.1)


def backward(model: Any, seed: int = 0) -> float:
    """The gradients of the mean loss over four windows, and that loss; of a model, or of its loss."""
    windows = tokens(4, 25, seed)
    loss_of = model if isinstance(model, NextTokenLoss) else NextTokenLoss(model)
    loss = loss_of(windows[:, :-1], windows[:, 1:].contiguous())
    loss.backward()
    return float(loss.detach())


def train(rank: int, port: int, folder: str) -> None:
    """Three steps; the first process writes the weights, whole, to `weights.pt`."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model, mesh = tiny_model("llama"), init_device_mesh("cpu", (2,))
    loss = NextTokenLoss(model)
    for part in (*model.model.layers, loss):
        fully_shard(part, mesh=mesh)
    optimizer = make_muon(model, SETTINGS)
    for seed in range(3):
        backward(loss, seed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    whole: dict[str, Any] = {name: p.full_tensor() for name, p in model.named_parameters()}
    if rank == 0:
        torch.save(whole, Path(folder) / "weights.pt")
    distributed.destroy_process_group()
