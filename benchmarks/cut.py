"""Peak memory of cutting a large sharded checkpoint to a quarter of its layers.

    python benchmarks/cut.py [--gigabytes 3]

A LLaMA of that size in bfloat16 is written in shards (random weights), and a fresh program cuts it with `inherit`
and saves the result. Memory is what that program holds itself (RssAnon of /proc, read every few milliseconds), less
what it holds once everything is imported; and as VmHWM, in which pages of the files that the kernel maps count too,
and can be taken back at any time. Aim: at most 1.5 times the bytes of the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HIDDEN, LAYERS, VOCABULARY = 1024, 32, 8_192


def write(folder: Path, gigabytes: float) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    inner = int((gigabytes * 2**30 / 2 / LAYERS - 4 * HIDDEN**2) / (3 * HIDDEN)) // 64 * 64
    config = AutoConfig.for_model(
        "llama",
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        dtype="bfloat16",
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")


def status(field: str) -> int:
    """Bytes that a field of this process's status tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the kernel does not tell {field}")


def cut(source: str, target: str) -> None:
    """In the fresh program: cut, save, and print what it took."""
    from inheritune import inherit
    from inheritune.models.load import save_model

    before, before_all, peak, ended = status("RssAnon"), status("VmRSS"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, status("RssAnon"))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    save_model(inherit(source, layers=LAYERS // 4), Path(target))
    ended.set()
    watcher.join()
    print(json.dumps({"anonymous": peak - before, "all": status("VmHWM") - before_all}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "large", Path(folder) / "small"
        write(source, options.gigabytes)
        done = subprocess.run(
            [sys.executable, __file__, "cut", source, target], stdout=subprocess.PIPE, text=True, check=True
        )
        taken = json.loads(done.stdout.splitlines()[-1])
        large, small = (sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (source, target))
    print(f"checkpoint {large / 2**30:.2f} GiB, result {small / 2**30:.2f} GiB")
    for name, value in taken.items():
        print(f"{name}: {value / 2**30:.2f} GiB, {value / small:.2f} times the result")


if __name__ == "__main__":
    if sys.argv[1:2] == ["cut"]:
        cut(sys.argv[2], sys.argv[3])
    else:
        main()
