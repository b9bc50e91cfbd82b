"""Where the time of a run goes: optimizer steps, and validation, data loading, logging, checkpoints beside them.

    python benchmarks/overhead.py [--steps 200]

Trains the quickstart's reference on made-up tokens through `training.loop.train` and adds up the wall time spent
in each part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.config import Data, Recipe
from inheritune.data import loader
from inheritune.data.loader import open_data
from inheritune.models.presets import architecture_config, from_config
from inheritune.quickstart import quickstart_recipe
from inheritune.recipe_file import parse_recipe
from inheritune.runtime.hardware import choose_hardware, describe
from inheritune.training import checkpoint, loop
from inheritune.training.gradients import QueryKeyGradients
from inheritune.training.metrics import Metrics

VOCABULARY = 4096
TOKENS = {"train.bin": 2_000_000, "val.bin": 44_000}  # the quickstart's own sizes, about


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    seconds: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **values: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **values)
            finally:
                seconds[name] += time.perf_counter() - started

        return call

    loader.read_windows = timed("data loading", loader.read_windows)
    loop.Order.step = timed("data loading", loop.Order.step)
    Metrics.stepped = timed("logging", Metrics.stepped)
    Metrics.__init__ = timed("logging", Metrics.__init__)
    checkpoint.Saver.save = timed("checkpoints", checkpoint.Saver.save)
    QueryKeyGradients.norms = timed("gradient norms", QueryKeyGradients.norms)
    loop.validate = timed("validation", loop.validate)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        generator = np.random.default_rng(0)
        for name, count in TOKENS.items():
            (path / name).write_bytes(generator.integers(0, VOCABULARY, count, dtype=np.uint16).tobytes())
        values = quickstart_recipe(path).model_dump(mode="json", exclude={"reference": {"training"}})
        values["training"] |= {"steps": options.steps, "gradient_norms": True}
        recipe = parse_recipe(values, Recipe)
        data = open_data(Data(path=path, window=128))
        hardware = choose_hardware(recipe.training)
        config = architecture_config(
            recipe.reference.architecture or {}, vocab_size=VOCABULARY, max_position_embeddings=128
        )
        started = time.perf_counter()
        loop.train(
            lambda: from_config(config, 0),
            data,
            recipe.training,
            path / "run",
            hardware=hardware,
        )
        total = time.perf_counter() - started

    print("; ".join(f"{key}: {value}" for key, value in describe(hardware).items()))
    beside = sum(seconds.values())
    print(f"{'whole training':16}{total:9.2f} s")
    for name, value in seconds.most_common():
        print(f"{name:16}{value:9.2f} s{100 * value / total:8.2f}%")
    print(f"{'all of these':16}{beside:9.2f} s{100 * beside / total:8.2f}%")


if __name__ == "__main__":
    main()
