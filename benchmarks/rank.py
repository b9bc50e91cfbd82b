"""Approximate rank side by side with all eigenvalues of A^T A in float64, on the same matrices and device.

    python benchmarks/rank.py                              # synthetic heads, T = 256, 512, 1024
    python benchmarks/rank.py --heads heads.safetensors    # a trained model's attention, tensors [..., T, T]

Every row is one kind of head in a batch. The two are timed in turn, `--repeats` times; medians, in milliseconds a
head. `lazy` is the share of heads with k* <= T / 32, `decided by` counts heads per kind of proof.
"""

import argparse
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import load_file
from torch import Tensor

from inheritune.analysis.rank import TOLERANCE, DecidedBy, decide_rank

Maker = Callable[[int, torch.Generator], Tensor]


def causal_softmax(logits: Tensor) -> Tensor:
    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def distance(T: int) -> Tensor:
    """How far back key j lies from query i: [T, T]."""
    position = torch.arange(T, dtype=torch.float32)
    return position[:, None] - position


def content(T: int, rank: int, scale: float, generator: torch.Generator) -> Tensor:
    """Logits of random queries and keys of `rank` dimensions, with standard deviation `scale`."""
    query, key = (torch.randn(T, rank, generator=generator) for _ in range(2))
    return scale / rank**0.5 * query @ key.T


def noise(T: int, scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.randn(T, T, generator=generator)


def first_column(T: int, share: float) -> Tensor:
    """Logits that give the first token `share` of the mass when all others are zero."""
    sink = torch.zeros(T, T)
    sink[:, 0] = torch.log(torch.arange(1, T + 1) * share / (1 - share))
    return sink


def trained(T: int, generator: torch.Generator) -> Tensor:
    """A random mixture of what trained heads show: a sink, some heavy columns, locality, content."""
    share, columns, slope, scale = torch.rand(4, generator=generator).tolist()
    logits = first_column(T, 0.05 + 0.93 * share)
    logits = logits + 2.5 * columns * torch.randn(1, T, generator=generator)
    logits = logits - distance(T) / T * math.exp(5 * slope - 1)
    return causal_softmax(logits + content(T, 64, 2 * scale, generator))


KINDS: dict[str, Maker] = {
    "trained-like mixture": trained,
    "sink, 97% of the mass": lambda T, g: causal_softmax(first_column(T, 0.97) + noise(T, 0.5, g)),
    "sink 60% and content": lambda T, g: causal_softmax(first_column(T, 0.6) + content(T, 8, 1, g)),
    "sink 50% and local": lambda T, g: causal_softmax(
        first_column(T, 0.5) - distance(T) / 16 + noise(T, 0.3, g)
    ),
    "few heavy columns": lambda T, g: causal_softmax(2.5 * torch.randn(1, T, generator=g) + noise(T, 0.3, g)),
    "uniform": lambda T, g: causal_softmax(torch.zeros(T, T)),
    "content, 64 dims, t 0.5": lambda T, g: causal_softmax(content(T, 64, 0.5, g)),
    "content, 64 dims, t 1": lambda T, g: causal_softmax(content(T, 64, 1, g)),
    "content, 64 dims, t 3": lambda T, g: causal_softmax(content(T, 64, 3, g)),
    "random logits, t 0.5": lambda T, g: causal_softmax(noise(T, 0.5, g)),
    "random logits, t 1": lambda T, g: causal_softmax(noise(T, 1, g)),
    "random logits, t 4": lambda T, g: causal_softmax(noise(T, 4, g)),
    "random logits, t 16": lambda T, g: causal_softmax(noise(T, 16, g)),
    "local, 64 tokens": lambda T, g: causal_softmax(noise(T, 0.3, g) - distance(T) / 64),
    "local, 8 tokens": lambda T, g: causal_softmax(noise(T, 0.3, g) - distance(T) / 8),
    "previous token": lambda T, g: causal_softmax(noise(T, 0.3, g) - 6 * (distance(T) - 1).abs()),
    "identity": lambda T, g: torch.eye(T),
}


def batches(arguments: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    if arguments.heads:
        heads = {name: heads for path in arguments.heads for name, heads in load_file(path).items()}
        for name, tensor in heads.items():
            yield name, tensor.float().reshape(-1, *tensor.shape[-2:])
        if len({tensor.shape[-1] for tensor in heads.values()}) == 1:
            yield "all together", torch.cat([t.float().reshape(-1, *t.shape[-2:]) for t in heads.values()])
        return
    for T in arguments.sizes:
        for name, make in KINDS.items():
            generator = torch.Generator().manual_seed(T)
            count = arguments.count * (4 if make is trained else 1)
            yield name, torch.stack([make(T, generator) for _ in range(count)])


def seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def eigenvalues(heads: Tensor) -> Tensor:
    """Squares of the singular values of matrices [n, T, T], in one batch."""
    a = heads.double()
    return torch.linalg.eigvalsh(a.mT @ a)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", nargs="+", help="safetensors files of attention matrices [..., T, T]")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--count", type=int, default=4, help="heads of each synthetic kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tau", type=float, default=0.90)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {arguments.threads} threads"
    print(f"torch {torch.__version__}, {where}, tau {arguments.tau}\n")
    print(
        f"{'T':>5}  {'heads':26} {'k*':>11} {'lazy':>5} {'eigvalsh':>9} {'ours':>9} {'ratio':>7}  decided by"
    )

    warm = torch.rand(2, 256, 256, device=device)
    eigenvalues(warm), decide_rank(warm)
    wrong = 0
    for name, batch in batches(arguments):
        heads, T = batch.to(device), batch.shape[-1]
        theirs, ours = [], []
        for _ in range(arguments.repeats):
            theirs.append(seconds(lambda heads=heads: eigenvalues(heads), device))
            ours.append(seconds(lambda heads=heads: decide_rank(heads, arguments.tau), device))
        rank, by = (x.cpu() for x in decide_rank(heads, arguments.tau))
        energies = torch.linalg.svdvals(heads.double()).square().cumsum(-1).cpu()
        exact = 1 + (energies < arguments.tau * (1 - TOLERANCE) * energies[:, -1:]).sum(-1)
        wrong += int((rank != exact.where(energies[:, -1] > 0, 0)).sum())

        whole, mine = (statistics.median(x) * 1000 / len(heads) for x in (theirs, ours))
        mix = ", ".join(f"{DecidedBy(k).name.lower()} {n}" for k, n in sorted(Counter(by.tolist()).items()))
        lazy = (rank <= T / 32).double().mean().item()
        span = f"{int(rank.min())}..{int(rank.max())}"
        print(
            f"{T:>5}  {name:26} {span:>11} {lazy:>5.0%} {whole:>9.2f} {mine:>9.2f} {whole / mine:>6.1f}x  {mix}",
            flush=True,
        )
    print(f"\n{wrong} ranks differ from a float64 SVD's")


if __name__ == "__main__":
    main()
