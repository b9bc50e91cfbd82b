"""`benchmarks/gpu.py` on a CPU: it measures, goes on, stops in time, and its variants compute the same loss."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_variants  # noqa: E402
import scaling  # noqa: E402
from inheritune.config import Study  # noqa: E402
from inheritune.recipe_file import load_any  # noqa: E402
from inheritune.training.loss import NextTokenLoss  # noqa: E402
from tiny_models import tiny_model, tokens  # noqa: E402


def started(output: Path, *more: str) -> subprocess.Popen[str]:
    smoke = ("--device", "cpu", "--sizes", "tiny", "--steps", "1", "--rounds", "1", "--contestants", "ours")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *smoke, "--output", str(output), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_it_measures_once_and_ends_with_a_table(tmp_path: Path) -> None:
    output = tmp_path / "gpu.jsonl"
    process = started(output)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    machine, ours = gpu.read(output)
    assert machine["matmul"] > 0 and ours["tokens_per_second"] > 0
    assert ours["attention_kernels"] and ours["kernels"]
    assert ours["flops_per_token"] == 6 * (2 * 12 * 32**2 + 32 * 128) + 2 * 12 * 32 * 32
    assert "| tiny | ours | " in said.splitlines()[-4]
    process = started(output)
    said, _ = process.communicate(timeout=120)
    assert "tiny ours: measured before" in said
    assert [row["contestant"] for row in gpu.read(output)] == ["machine", "ours", "machine"]


def test_sigterm_keeps_what_there_is_and_prints_it(tmp_path: Path) -> None:
    output = tmp_path / "gpu.jsonl"
    process = started(output)
    deadline = time.monotonic() + 60
    while not gpu.read(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped" in said and "matmul" in said
    assert [row["contestant"] for row in gpu.read(output)] == ["machine"]


def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, left: float) -> list[str]:
    """Contestants that are started when each takes so long and so much time is left, on a clock of our own."""
    clock = [0.0]
    names: list[str] = []

    def run(spec: dict[str, Any], timeout: float) -> dict[str, Any]:
        names.append(spec["contestant"])
        if spec["contestant"] == "machine":
            return {"contestant": "machine", "device": "d", "described": {}, "shape": "s", "matmul": 1e12}
        clock[0] += min(seconds, timeout)
        return {"tokens_per_second": 1e3, "flops_per_token": 1e8, "memory_bytes": 0, "seconds_per_step": 1.0}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    arguments = ["gpu.py", "--output", str(tmp_path / "out"), "--sizes", "medium-24,large-18"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", str(left / 60)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        gpu.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return names


def test_none_is_started_that_the_time_does_not_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert measured(monkeypatch, tmp_path, 10, 35) == ["machine", "ours", "trainer", "litgpt"]
    assert measured(monkeypatch, tmp_path, 10, 35) == ["machine", "plain", "ours", "trainer"]
    assert measured(monkeypatch, tmp_path, 10, 0) == ["machine"]


def test_the_table_tells_rates_aims_and_failures() -> None:
    machine = {"contestant": "machine", "device": "d", "described": {"device": "d"}, "shape": "s"}
    common = {"size": "medium-24", "device": "d", "flops_per_token": 2e9, "memory_bytes": 2**31}
    rows = [
        {**machine, "matmul": 8e14},
        {
            **common,
            "contestant": "ours",
            "tokens_per_second": 2.5e5,
            "seconds_per_step": 0.2,
            "matmul_when_warm": 7e14,
        },
        {**common, "contestant": "trainer", "tokens_per_second": 2e5, "seconds_per_step": 0.25},
        {**common, "contestant": "litgpt", "error": "not done after 7 s", "again": True},
        {**common, "contestant": "plain", "device": "another", "tokens_per_second": 1.0},
    ]
    table = gpu.table(rows)
    assert "| medium-24 | ours | 250,000 | 200.0 | 2.0 GiB | 500.0 | 62.5% | 71.4% |  |" in table
    assert "| medium-24 | trainer | 200,000 | 250.0 | 2.0 GiB | 400.0 | 50.0% |  | 1.25 |" in table
    assert "litgpt | not done after 7 s" in table and "plain" not in table
    assert "62.5% of the matmul rate; aim 60%: met" in table
    assert "1.25 times the best of the others (trainer); aim 1.15: met" in table


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "out"
    gpu.append(path, {"size": "tiny"})
    with path.open("a") as file:
        file.write(json.dumps({"size": "medium-24"})[:-4])
    assert gpu.read(path) == [{"size": "tiny"}]


def check_same(reference: NextTokenLoss, variant: NextTokenLoss) -> None:
    """Of two models with the same weights: the value and every gradient."""
    windows = tokens(4, 25)
    values, gradients = [], []
    for loss in (reference, variant):
        value = loss(windows[:, :-1], windows[:, 1:].contiguous()) / 2
        value.backward()
        values.append(value.detach())
        gradients.append([p.grad for p in loss.model.parameters()])
    torch.testing.assert_close(values[1], values[0])
    for ours, others in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["whole", "chunked", "fused", "ahead"])
def test_every_loss_has_the_same_value_and_gradients(name: str) -> None:
    if name == "fused" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    check_same(NextTokenLoss(tiny_model("gpt2")), gpu_variants.LOSSES[name](tiny_model("gpt2")))


def test_padded_heads_have_the_same_loss_and_gradients() -> None:
    of_ten = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain, padded = (tiny_model("llama", **of_ten) for _ in range(2))
    gpu_variants._attend(padded, "padded")
    assert padded.config._attn_implementation == gpu_variants.PADDED
    check_same(NextTokenLoss(plain), NextTokenLoss(padded))


def test_settings_are_read_and_unknown_ones_refused() -> None:
    settings = gpu_variants.parse("ours+loss=whole+micro=24")
    assert settings == {"loss": "whole", "micro": "24"}
    assert gpu_variants.recipe(settings) == {"micro_batch": 24}
    for variant in gpu.VARIANTS:
        gpu_variants.parse(variant)
    with pytest.raises(ValueError, match="unknown settings"):
        gpu_variants.parse("ours+size=2")


def test_a_slower_step_than_the_cards_baseline_fails(tmp_path: Path) -> None:
    def checked(tokens_per_second: float, memory: int, *more: str) -> subprocess.CompletedProcess[str]:
        described = {"device": "A card", "torch": "2", "transformers": "5"}
        row = {
            "size": "tiny",
            "contestant": "ours",
            "device": "A card",
            "tokens_per_second": tokens_per_second,
            "memory_bytes": memory,
            "flops_per_token": 3,
            "micro_batch": 4,
        }
        lines = [{"contestant": "machine", "device": "A card", "described": described}, row]
        (tmp_path / "gpu.jsonl").write_text("\n".join(map(json.dumps, lines)))
        command = [sys.executable, str(BENCHMARKS / "baselines.py"), str(tmp_path / "gpu.jsonl")]
        command += ["--folder", str(tmp_path / "baselines"), *more]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert checked(100, 10**9).stdout == "A card: tiny ours: no baseline\n"
    assert checked(100, 10**9, "--record").returncode == 0
    kept = json.loads((tmp_path / "baselines/A-card.json").read_text())["rows"]["tiny ours"]
    assert (kept["flops_per_second"], kept["micro_batch"], kept["torch"]) == (300, 4, "2")
    assert checked(91, 10**9).returncode == 0
    slower = checked(89, 10**9)
    assert (slower.returncode, slower.stdout) == (1, "A card: tiny ours: 0.89 of 100 tokens/s\n")
    larger = checked(120, 12 * 10**8)
    assert (larger.returncode, larger.stdout) == (1, "A card: tiny ours: 1.20 times 0.9 GiB\n")


def test_the_baselines_are_the_figures_of_the_readme() -> None:
    text = (BENCHMARKS / "README.md").read_text()
    for path in (BENCHMARKS / "baselines").glob("*.json"):
        record = json.loads(path.read_text())
        assert record["card"] in text
        for row in record["rows"].values():
            assert f"| {row['tokens_per_second']:,.0f} |" in text
            assert f"| {row['memory_bytes'] / 2**30:.1f} | {row['flops_per_second'] / 1e12:.1f} |" in text


def test_the_study_of_quality_is_one() -> None:
    assert isinstance(load_any(BENCHMARKS / "quality.yaml"), Study)


def test_one_process_against_others_whatever_the_size_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scaling.SIZES, "tiny-0.1b", scaling.SIZES["tiny"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = ["--sizes", "tiny-0.1b", "--ways", "alone", "--turns", "1", "--steps", "10"]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words])
    scaling.main()
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[:2] == ["| tiny-0.1b", "1 alone"] and float(row[2].replace(",", "")) > 0 and row[3] == "1.00"
