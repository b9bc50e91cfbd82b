"""How long `prepare` takes beside the bare encoder of `tokenizers`, on the same documents and cores.

    INHERITUNE_DATA=... python benchmarks/prepare.py [--rounds 3] [--files 4]

Each measurement is a process of its own, in turns: `encode` (encode_batch of the documents, which are in memory
already; nothing is kept), `read+encode` (the same with reading them), `prepare` (everything, up to finished shards).
CPU seconds are given too: on a machine that does other work at the same time they say more than the clock.
Peak memory is that of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

BATCH = 1024


def corpus(folder: Path, files: int) -> list[Path]:
    return sorted((folder / "corpus").glob("train-*.jsonl.xz"))[:files]


def read(paths: list[Path]) -> list[str]:
    documents = []
    for path in paths:
        with lzma.open(path, "rb") as file:
            documents += [json.loads(line)["text"] for line in file]
    return documents


def encode(documents: list[str], folder: Path, method: str) -> int:
    from tokenizers import Tokenizer

    encode_batch = getattr(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")), method)
    return sum(
        len(encoding)
        for start in range(0, len(documents), BATCH)
        for encoding in encode_batch(documents[start : start + BATCH], add_special_tokens=False)
    )


def measure(what: str, folder: Path, files: int) -> dict[str, float]:
    """Run one of the measurements in this process."""
    if what == "prepare":
        from inheritune.data.prepare import prepare

        with tempfile.TemporaryDirectory() as output:
            start, cpu = time.perf_counter(), time.process_time()
            manifest = prepare(
                corpus(folder, files),
                Path(output) / "shards",
                tokenizer=folder / "tokenizer",
            )
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        tokens = sum(split.tokens - (split.documents or 0) for split in manifest.splits.values())
        return {"seconds": seconds, "cpu": cpu, "tokens": tokens}
    start, cpu = time.perf_counter(), time.process_time()
    documents = read(corpus(folder, files))
    if not what.startswith("read+"):
        start, cpu = time.perf_counter(), time.process_time()
    tokens = encode(documents, folder, what.removeprefix("read+"))
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "tokens": tokens}


def run(what: str, files: int) -> dict[str, float]:
    """Run one of the measurements in a process of its own, and watch its memory."""
    command = [sys.executable, __file__, "--files", str(files), "--measure", what]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output: list[str] = []
        reading = threading.Thread(target=lambda: output.append(process.stdout.read()))  # type: ignore[union-attr]
        reading.start()
        while process.poll() is None:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.02)
        reading.join()
    if process.returncode:
        sys.exit(f"{what} failed")
    return {**json.loads(output[0]), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=4, help="how many files of the corpus to take")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = os.environ.get("INHERITUNE_DATA")
    if folder is None:
        sys.exit("INHERITUNE_DATA is not set: the folder that holds corpus/ and tokenizer/")
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, Path(folder), arguments.files)))
        return
    kinds = ["encode_batch", "encode_batch_fast", "read+encode_batch", "prepare"]
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(arguments.rounds):
        for kind in kinds:
            results[kind].append(run(kind, arguments.files))
            last = results[kind][-1]
            print(
                f"round {number + 1}: {kind:18} {last['seconds']:6.1f} s, CPU {last['cpu']:6.1f} s",
                flush=True,
            )
    print(f"\n{os.cpu_count()} cores; medians of {arguments.rounds} rounds")
    for kind in kinds:
        times = [result["seconds"] for result in results[kind]]
        seconds = statistics.median(times)
        # Rounds are compared with themselves: other work on the machine then weighs on both sides.
        ratio, cpu = (
            statistics.median(
                ours[clock] / theirs[clock]
                for ours, theirs in zip(results["prepare"], results[kind], strict=True)
            )
            for clock in ("seconds", "cpu")
        )
        peak = max(result["peak"] for result in results[kind]) / 2**30
        speed = results[kind][0]["tokens"] / seconds / 1e6
        print(
            f"{kind:18} {seconds:6.1f} s (best {min(times):.1f})   {speed:5.2f} M tokens/s   peak {peak:.2f} GiB   "
            f"prepare: {ratio:.2f} times this, CPU {cpu:.2f} times"
        )


if __name__ == "__main__":
    main()
