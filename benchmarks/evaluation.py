"""Evaluation: is it right on full task sets, and is it as fast as the harness's own command?

    python benchmarks/evaluation.py chance --data EVAL              guessing is at chance on every task
    python benchmarks/evaluation.py wikitext MODEL --data EVAL      perplexity against a direct computation
    python benchmarks/evaluation.py speed MODEL --data EVAL         whole processes, side by side

EVAL is a folder of items as `inheritune evaluate --data` takes it.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lm_eval
import torch
import yaml
from lm_eval.models.dummy import DummyLM

from inheritune.evaluation.harness import Scorer, ask
from inheritune.evaluation.tasks import Unit, local_tasks, make_plan
from inheritune.models.load import load_model, load_tokenizer

TIMED = ("piqa", "sciq")


class Guesser(DummyLM):
    """Every answer is as likely as a number drawn evenly."""

    device = None


def chance(data: Path, tasks: list[str] | None, seed: int) -> bool:
    """Tasks that have no chance level (LAMBADA, WikiText) are left out."""
    random.seed(seed)
    plan = make_plan(tasks or list(local_tasks()), data, skip_missing=True)
    print(f"{'task':16} {'items':>6} {'chance':>8} {'guessed':>8} {'error':>7}  in standard errors")
    fine = True
    for unit in plan.units:
        items = ask(Guesser(), unit, {})
        level = items.chance if unit.name != "truthfulqa_mc2" else share_of_true(unit)
        if level is None or "acc" not in items.metrics:
            continue
        score = items.metrics["acc"].score()
        assert score.standard_error is not None
        away = (score.value - level) / score.standard_error
        fine &= abs(away) <= 3
        print(
            f"{unit.name:16} {len(items.hashes):6} {level:8.4f} {score.value:8.4f} "
            f"{score.standard_error:7.4f}  {away:+.2f}",
            flush=True,
        )
    return fine


def share_of_true(unit: Unit) -> float:
    """What guessing gives where the score is the probability of all true answers together."""
    labels = [page["mc2_targets"]["labels"] for task in unit.tasks for page in task.eval_docs]
    return statistics.fmean(sum(of_one) / len(of_one) for of_one in labels)


@torch.no_grad()
def wikitext(model: str, data: Path) -> bool:
    """Every token once, each window of the context's length after one token that it does not count."""
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    assert tokenizer is not None
    (unit,) = make_plan(["wikitext"], data).units
    found = ask(Scorer(loaded, tokenizer, 8, "model"), unit, {}).metrics["word_perplexity"].value
    task, context = unit.tasks[0], loaded.config.max_position_embeddings
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    total, words = 0.0, 0
    for page in task.eval_docs:
        tokens = [start, *tokenizer.encode(task.doc_to_target(page))]
        words += len(re.split(r"\s+", page["page"]))
        done = 1
        while done < len(tokens):
            # The first window reads the start token and fills up; later ones are full, and count what is new.
            end = min(len(tokens), done + context)
            first = max(0, end - context - 1)
            logits = loaded(torch.tensor([tokens[first : end - 1]])).logits[0].double()
            log_probabilities = logits.log_softmax(-1)[done - 1 - first :]
            total += log_probabilities.gather(1, torch.tensor(tokens[done:end])[:, None]).sum().item()
            done = end
    direct = math.exp(-total / words)
    print(f"wikitext word perplexity: {found:.6f}, directly {direct:.6f}, relative {found / direct - 1:+.1e}")
    return abs(found / direct - 1) < 1e-4


def speed(model: str, data: Path, batch: int, turns: int, limit: int | None) -> bool:
    """The same tasks, items, model and batch size; the harness reads the same files through its own YAMLs."""
    root = Path(lm_eval.__file__).parent / "tasks"
    with tempfile.TemporaryDirectory() as folder:
        for name in TIMED:
            entry = local_tasks()[name]
            (path,) = (data / entry.data).glob("validation.jsonl*")
            config = {
                "include": str(root / entry.harness / f"{name}.yaml"),
                "task": f"local_{name}",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"validation": str(path.resolve())}},
                "training_split": None,
                "test_split": None,
            }
            Path(folder, f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        few = [] if limit is None else ["--limit", str(limit)]
        theirs = [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", folder),
            *("--model_args", f"pretrained={model}", "--tasks", ",".join(f"local_{name}" for name in TIMED)),
            *("--batch_size", str(batch), "--device", "cuda" if torch.cuda.is_available() else "cpu", *few),
        ]
        ours = [
            *(sys.executable, "-m", "inheritune", "evaluate", model, "--tasks", ",".join(TIMED)),
            *("--data", str(data), "--batch-size", str(batch), *few),
        ]
        seconds: dict[str, list[float]] = {"lm_eval": [], "inheritune": []}
        for turn in range(turns):
            commands = [("lm_eval", theirs), ("inheritune", [*ours, "-o", f"{folder}/out-{turn}"])]
            for name, command in commands if turn % 2 else reversed(commands):
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        print(f"{name:10} {statistics.median(values):7.1f} s  (from {min(values):.1f} to {max(values):.1f})")
    ratio = statistics.median(seconds["lm_eval"]) / statistics.median(seconds["inheritune"])
    print(f"ours is {ratio:.2f} times as fast")
    return ratio >= 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("chance", "wikitext", "speed"))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tasks", help="of `chance`, separated by commas; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of `chance`")
    given = parser.parse_args()
    if given.what == "chance":
        fine = chance(given.data, given.tasks.split(",") if given.tasks else None, given.seed)
    elif given.what == "wikitext":
        fine = wikitext(given.model, given.data)
    else:
        fine = speed(given.model, given.data, given.batch, given.turns, given.limit)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
