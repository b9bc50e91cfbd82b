"""One training step on one GPU: ours, transformers' Trainer, litgpt, a plain loop, and the machine's matmul rate.

    python benchmarks/gpu.py --minutes 25 --output gpu.jsonl
    python benchmarks/gpu.py --minutes 8 --output gpu.jsonl --sizes medium-24 --contestants ours --variants
    python benchmarks/gpu.py --device cpu --sizes tiny      # tries the script itself, where there is no GPU

Every contestant of every size is a program of its own, so that memory and compiled code are its own too. What it
measured is appended to the output file at once; started again, the script goes on with what is not there yet. Sizes
and contestants are taken in their order of importance, and none is started when less time is left than the last one
took. The table comes last, also after SIGTERM or Ctrl-C. Two of these programs can share a GPU that holds both models
if the variable GPU_LOCK names a file: one starts and compiles while the other is timed.

A variant is a contestant with changed settings, such as `ours+loss=whole+micro=24`; `gpu_variants.py` lists them.
FLOPs are those of `models/size.py`. "Of matmul" is their rate over that of a bf16 product of two 8192 x 8192 matrices
of random numbers, measured by this script at each start, on a cool GPU. A GPU that has worked for a while draws all
the power it may and is slower at everything; so each contestant measures the same product again right after its
steps: "when warm".
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """A model, the tokens of its windows and of a step, and what we aim at, as a share of the matmul rate."""

    architecture: dict[str, Any]
    window: int
    tokens_per_step: int
    aim: float | None = None


def llama(layers: int, hidden: int, intermediate: int) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": 32}
    return {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": 32_000, **shape}


_TINY = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 128}

SIZES = {
    "medium-24": Size({"preset": "gpt2-medium"}, 1024, 49_152, aim=0.60),
    "xlarge-24": Size({"preset": "gpt2-xlarge", "n_layer": 24}, 1024, 49_152, aim=0.65),
    "llama-1.5b": Size(llama(13, 3200, 8640), 2048, 49_152),
    "medium-16": Size({"preset": "gpt2-medium", "n_layer": 16}, 1024, 49_152, aim=0.60),
    "large-18": Size({"preset": "gpt2-large", "n_layer": 18}, 1024, 49_152),
    "tiny": Size({"preset": "gpt2-small", **_TINY}, 32, 256),
}
CONTESTANTS = ("ours", "trainer", "litgpt", "plain")
VARIANTS = (
    "ours+attention=masked",
    "ours+loss=whole",
    "ours+loss=chunked",
    "ours+loss=fused",
    "ours+loss=ahead",
    "ours+attention=cudnn",
    "ours+micro=24",
    "ours+micro=48",
    "ours+micro=8",
    "ours+compile=blocks",
    "ours+residual=bf16",
    "ours+compile=autotune",
    "ours+optimizer=muon",
    "ours+parallel=ddp",
    "ours+parallel=fsdp",
)
FACTOR = 1.15
"""How many times the best of the others we aim at."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """SIGTERM or SIGINT."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="JSON lines, appended to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", default=",".join(name for name in SIZES if name != "tiny"))
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--variants", action="store_true", help="of ours, after the contestants of each size")
    parser.add_argument("--steps", type=int, default=6, help="in a round; the median of the rounds is taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=420.0, help="seconds for one contestant")
    options = parser.parse_args()
    unknown = [name for name in options.sizes.split(",") if name not in SIZES]
    if unknown:
        parser.error(f"unknown size {unknown[0]!r}; known are {', '.join(SIZES)}")

    signal.signal(signal.SIGTERM, _stop)
    deadline = time.monotonic() + 60 * options.minutes
    status = 0
    try:
        status = measure(options, deadline)
    except (Stopped, KeyboardInterrupt):
        print("stopped", flush=True)
        status = 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(table(read(options.output)), flush=True)
    return status


def measure(options: argparse.Namespace, deadline: float) -> int:
    """All that is not in the output file yet, as far as time allows."""
    settings = {"device": options.device, "steps": options.steps, "rounds": options.rounds}
    machine = run({**settings, "contestant": "machine"}, min(options.timeout, deadline - time.monotonic()))
    append(options.output, machine)
    if "error" in machine:
        print(f"machine: {machine['error']}", flush=True)
        return 1
    contestants = [*options.contestants.split(","), *(VARIANTS if options.variants else ())]
    jobs = [(size, contestant) for size in options.sizes.split(",") for contestant in contestants]
    done = {
        (row["size"], row["contestant"])
        for row in read(options.output)
        if "size" in row and row.get("device") == machine["device"] and not row.get("again")
    }
    took = 0.0
    for size, contestant in jobs:
        left = deadline - time.monotonic()
        if (size, contestant) in done:
            print(f"{size} {contestant}: measured before", flush=True)
            continue
        if left < max(took, 1.0):
            print(f"{size} {contestant}: not started, {left:.0f} s are left", flush=True)
            break
        started = time.monotonic()
        spec = {**settings, "size": size, "contestant": contestant}
        row = {**run(spec, min(options.timeout, left)), "size": size, "contestant": contestant}
        took = time.monotonic() - started
        append(options.output, {**row, "device": machine["device"], "took": took})
        told = row.get("error") or row.get("skipped") or f"{row['tokens_per_second']:,.0f} tokens/s"
        print(f"{size} {contestant}: {told} ({took:.0f} s)", flush=True)
    return 0


def run(spec: dict[str, Any], timeout: float) -> dict[str, Any]:
    """What one contestant measured; `error` tells why there is nothing, `again` that it may be tried once more."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / "gpu_contestants.py"), json.dumps(spec), str(result)]
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            try:
                code = process.wait(timeout=max(1.0, timeout))
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {timeout:.0f} s", "again": True}
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # data workers and compilers, too
                    process.wait()
        if code == 0 and result.exists():
            return json.loads(result.read_text(encoding="utf-8"))
        said = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        return {
            "error": f"exit code {code}: {said[-1][:300] if said else ''}",
            "log": said[-15:],
            "again": True,
        }


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output file; a line that was cut off is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of the device that was measured last, with the aims beside them."""
    machines = [row for row in rows if row.get("contestant") == "machine" and "matmul" in row]
    if not machines:
        return "nothing was measured"
    machine = machines[-1]
    latest = {
        (row["size"], row["contestant"]): row
        for row in rows
        if "size" in row and row.get("device") == machine["device"]
    }
    words = "; ".join(f"{key}: {value}" for key, value in machine["described"].items())
    lines = ["", words, f"matmul, {machine['shape']}: {machine['matmul'] / 1e12:,.1f} TFLOP/s", ""]
    lines.append(
        "| size | contestant | tokens/s | ms a step | memory | TFLOP/s | of matmul | when warm | ours / this |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for size in SIZES:
        group = {name: row for (its, name), row in latest.items() if its == size}
        ours = group.get("ours", {}).get("tokens_per_second")
        for name, row in group.items():
            why = row.get("error") or row.get("skipped")
            if why:
                lines.append(f"| {size} | {name} | {why} | | | | | | |")
                continue
            rate, memory = row["flops_per_token"] * row["tokens_per_second"], row["memory_bytes"] / 2**30
            warm = f"{rate / row['matmul_when_warm']:.1%}" if row.get("matmul_when_warm") else ""
            ratio = f"{ours / row['tokens_per_second']:.2f}" if ours and name != "ours" else ""
            lines.append(
                f"| {size} | {name} | {row['tokens_per_second']:,.0f} | {1e3 * row['seconds_per_step']:.1f} | "
                f"{memory:.1f} GiB | {rate / 1e12:,.1f} | {rate / machine['matmul']:.1%} | {warm} | {ratio} |"
            )
    return "\n".join([*lines, "", *_aims(latest, machine), *_checks(latest)])


def _aims(latest: dict[tuple[str, str], dict[str, Any]], machine: dict[str, Any]) -> list[str]:
    lines = []
    for name, size in SIZES.items():
        ours = latest.get((name, "ours"), {})
        if "tokens_per_second" not in ours:
            continue
        share = ours["flops_per_token"] * ours["tokens_per_second"] / machine["matmul"]
        if size.aim is not None:
            verdict = "met" if share >= size.aim else "missed"
            lines.append(f"{name}: {share:.1%} of the matmul rate; aim {size.aim:.0%}: {verdict}")
        others = {
            c: row["tokens_per_second"]
            for (its, c), row in latest.items()
            if its == name and not c.startswith("ours") and "tokens_per_second" in row
        }
        if others:
            best = max(others, key=lambda c: others[c])
            factor = ours["tokens_per_second"] / others[best]
            verdict = "met" if factor >= FACTOR else "missed"
            lines.append(
                f"{name}: {factor:.2f} times the best of the others ({best}); aim {FACTOR}: {verdict}"
            )
    return lines


def _checks(latest: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    lines = []
    for (size, name), row in latest.items():
        if row.get("attention_kernels"):
            lines.append(f"{size} {name}: attention by {', '.join(row['attention_kernels'])}")
        if "synchronizations" in row:
            count, steps = row["synchronizations"], row["watched_steps"]
            lines.append(f"{size} {name}: {count} host synchronizations in {steps} steps; aim 0")
            lines += [f"    {place}" for place in row.get("synchronized_at", [])]
    return lines


def _stop(number: int, frame: object) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
