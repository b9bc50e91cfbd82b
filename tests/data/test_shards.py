import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from inheritune import UserError
from inheritune.config import Data, ModelSource
from inheritune.data.loader import open_data
from inheritune.data.shards import (
    FileRecord,
    Manifest,
    SplitRecord,
    TokenizerRecord,
    open_split,
    read_manifest,
    verify,
)
from inheritune.runtime import files
from inheritune.single_model import scratch_config
from inheritune.training.checks import check_rows


def write_shards(directory, contents, dtype="uint16", vocabulary=1000):
    """A directory of shards whose training split has these lists of tokens as files."""
    directory.mkdir(parents=True, exist_ok=True)
    records = []
    for number, tokens in enumerate(contents):
        data = np.array(tokens, np.dtype(dtype).newbyteorder("<")).tobytes()
        name = f"train-{number:05d}.bin"
        (directory / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        records.append(FileRecord(name=name, tokens=len(tokens), documents=1, sha256=digest))
    manifest = Manifest(
        tokenizer=TokenizerRecord(name="test", sha256=None, vocabulary=vocabulary, end_of_text=0),
        dtype=dtype,
        source=["test"],
        splits={
            "train": SplitRecord(documents=len(contents), tokens=sum(map(len, contents)), files=records),
        },
    )
    files.write_json(directory / "manifest.json", manifest.model_dump())
    return directory


@given(
    data=st.data(),
    files=st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=20), min_size=1, max_size=6),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_read_over_any_boundaries_is_the_concatenation(tmp_path_factory, data, files, dtype):
    split = open_split(write_shards(tmp_path_factory.mktemp("shards"), files, dtype), "train")
    whole = [token for tokens in files for token in tokens]
    assert split.tokens == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    read = split.read(start, stop)
    assert read.dtype == np.int64
    assert read.tolist() == whole[start:stop]


def test_tokens_above_65535(tmp_path):
    split = open_split(write_shards(tmp_path, [[1, 70_000], [2**32 - 1]], "uint32", 2**32), "train")
    assert split.read(0, 3).tolist() == [1, 70_000, 2**32 - 1]


def test_bytes_of_the_text_are_no_part_of_the_identity(tmp_path):
    path = write_shards(tmp_path, [[1, 2, 3], [4]]) / "manifest.json"
    old = open_split(tmp_path, "train").identity
    assert (old.tokens, old.text_bytes, old.bytes_per_token) == (None, None, None)
    values = json.loads(path.read_text())
    values["splits"]["train"]["text_bytes"] = 10
    path.write_text(json.dumps(values))
    new = open_split(tmp_path, "train").identity
    assert (new.sha256, new.tokens, new.text_bytes, new.bytes_per_token) == (old.sha256, 4, 10, 2.5)
    del values["splits"]["train"]["text_bytes"]  # as older versions wrote it
    path.write_text(json.dumps(values))
    assert open_split(tmp_path, "train").identity == old


def test_read_outside_is_our_own_mistake(tmp_path):
    split = open_split(write_shards(tmp_path, [[1, 2, 3]]), "train")
    with pytest.raises(AssertionError):
        split.read(2, 4)


def test_verify_accepts_whole_shards(tmp_path):
    verify(write_shards(tmp_path, [[1, 2], [3], [4, 5, 6]]))


def test_verify_names_the_damaged_file(tmp_path):
    write_shards(tmp_path, [[1, 2], [3, 4]])
    path = tmp_path / "train-00001.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"train-00001.bin is damaged: its SHA-256"):
        verify(tmp_path)


def test_a_truncated_file_is_noticed_at_opening(tmp_path):
    write_shards(tmp_path, [[1, 2], [3, 4]])
    (tmp_path / "train-00000.bin").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match=r"train-00000.bin is damaged: it has 2 bytes instead of 4"):
        open_split(tmp_path, "train")


def test_a_missing_file_is_noticed(tmp_path):
    write_shards(tmp_path, [[1, 2], [3, 4]])
    (tmp_path / "train-00001.bin").unlink()
    for check in (verify, lambda directory: open_split(directory, "train")):
        with pytest.raises(ValueError, match=r"train-00001.bin is missing"):
            check(tmp_path)


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="has no validation split"):
        open_split(write_shards(tmp_path, [[1, 2]]), "validation")


def test_a_directory_without_manifest(tmp_path):
    with pytest.raises(UserError, match=r"no finished shards \(manifest.json is missing\)"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="there is no directory"):
        read_manifest(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"format": 2}, "format"), ({"dtype": "int8"}, "dtype"), ({"splits": None}, "splits")],
)
def test_a_manifest_that_is_none(tmp_path, change, sentence):
    write_shards(tmp_path, [[1, 2]])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"is not a manifest of format 1: {sentence}"):
        read_manifest(tmp_path)


def test_nanogpt_folder(tmp_path):
    np.array([5, 6, 50256], "<u2").tofile(tmp_path / "train.bin")
    np.array([7, 50256], "<u2").tofile(tmp_path / "val.bin")
    train, validation = open_split(tmp_path, "train"), open_split(tmp_path, "validation")
    assert train.read(0, 3).tolist() == [5, 6, 50256]
    assert validation.read(0, 2).tolist() == [7, 50256]
    assert (train.vocabulary, train.end_of_text) == (50257, 50256)
    verify(tmp_path)


def test_nanogpt_characters(tmp_path):
    np.array([5, 6, 64], "<u2").tofile(tmp_path / "train.bin")
    np.array([7, 2], "<u2").tofile(tmp_path / "val.bin")
    (tmp_path / "meta.pkl").write_bytes(b"not loaded")
    split = open_split(tmp_path, "validation")
    assert (split.vocabulary, split.end_of_text) == (65, None)


def test_nanogpt_folder_of_another_tokenizer(tmp_path):
    """Its vocabulary is only assumed: what occurs counts."""
    np.array([5, 50257, 6], "<u2").tofile(tmp_path / "train.bin")
    np.array([7, 50300], "<u2").tofile(tmp_path / "val.bin")
    assert open_split(tmp_path, "train").vocabulary == 50258
    split = open_split(tmp_path, "validation")
    assert split.vocabulary == 50301
    check_rows(split, GPT2Config(vocab_size=50304), "the model")
    data = open_data(Data(path=tmp_path, window=1))
    assert scratch_config(ModelSource(architecture={"model_type": "gpt2"}), data, 1).vocab_size == 50301
    with pytest.raises(
        UserError, match=r"token 50300 occurs in .* the embedding of the model has 50257 rows"
    ):
        check_rows(split, GPT2Config(vocab_size=50257), "the model")


def test_nanogpt_file_of_odd_size(tmp_path):
    (tmp_path / "train.bin").write_bytes(b"\0\0\0")
    with pytest.raises(ValueError, match=r"train.bin is not a file of uint16 tokens: it has 3 bytes"):
        read_manifest(tmp_path)
