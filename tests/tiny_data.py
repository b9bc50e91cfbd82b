"""Token shards for tests: a seeded Markov chain, so that there is something to learn and nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inheritune.data.shards import FileRecord, Manifest, SplitRecord, TokenizerRecord
from inheritune.runtime import files


def markov_tokens(count: int, vocabulary: int, seed: int) -> np.ndarray:
    """Each token is followed by one of four, which depend on it alone: uint16 [count]."""
    successors = np.random.Generator(np.random.PCG64(99)).integers(0, vocabulary, (vocabulary, 4))
    choices = np.random.Generator(np.random.PCG64(seed)).integers(0, 4, count)
    tokens = np.empty(count, np.uint16)
    current = 0
    for i, choice in enumerate(choices):
        current = int(successors[current, choice])
        tokens[i] = current
    return tokens


def write_shards(
    directory: Path, *, vocabulary: int = 97, train: int = 20_000, validation: int = 2_000
) -> Path:
    """A finished directory of shards with a train split in two files and a validation split in one."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = {"train": np.array_split(markov_tokens(train, vocabulary, 1), 2)}
    parts["validation"] = [markov_tokens(validation, vocabulary, 2)]
    splits = {}
    for name, arrays in parts.items():
        records = []
        for i, array in enumerate(arrays):
            path = directory / f"{name}-{i:05d}.bin"
            path.write_bytes(array.astype("<u2").tobytes())
            records.append(
                FileRecord(name=path.name, tokens=len(array), documents=1, sha256=files.sha256(path))
            )
        splits[name] = SplitRecord(
            documents=len(records), tokens=sum(f.tokens for f in records), files=records
        )
    manifest = Manifest(
        tokenizer=TokenizerRecord(name="none", sha256=None, vocabulary=vocabulary, end_of_text=0),
        dtype="uint16",
        source=["tests"],
        splits=splits,  # type: ignore[arg-type]
    )
    files.write_text(directory / "manifest.json", manifest.model_dump_json())
    return directory
