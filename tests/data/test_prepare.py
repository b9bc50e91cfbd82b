import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from inheritune import UserError
from inheritune.data import tokenizer as tokenizers
from inheritune.data.prepare import few_held_out, key_and_hash, prepare, share_held_out
from inheritune.data.shards import FileRecord, SplitRecord, open_split, read_manifest, verify
from inheritune.data.unfinished import SplitWriter

SPECIAL = "<|endoftext|>"


def make_texts(count, seed=0):
    """Documents of made-up words, with some characters that are not ASCII."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghiäß漢 é", k=generator.randint(2, 9))) for _ in range(500)]
    return [" ".join(generator.choices(words, k=generator.randint(20, 200))) for _ in range(count)]


TEXTS = make_texts(400)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer of 600 tokens."""
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    tokenizers.train(TEXTS, 600, directory)
    return directory


@pytest.fixture
def source(tmp_path):
    """A .jsonl file with the texts."""
    return write_json_lines(tmp_path / "source.jsonl", TEXTS)


def write_json_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def decoded(directory, split):
    """The documents of a split, from its tokens and tokenizer alone."""
    tokens = open_split(directory, split)
    backend = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    ids = tokens.read(0, tokens.tokens)
    ends = np.flatnonzero(ids == tokens.end_of_text)
    assert ends[-1] == tokens.tokens - 1
    return backend.decode_batch([part[:-1].tolist() for part in np.split(ids, ends + 1)[:-1]])


def hashes(directory):
    """SHA-256 of every file of a directory, except the manifest, which names the source."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_decoding_gives_the_documents_back(tmp_path, source, tokenizer):
    manifest = prepare(source, tmp_path / "out", tokenizer=tokenizer, validation=0.1, shard_tokens=5000)
    verify(tmp_path / "out")
    train, validation = decoded(tmp_path / "out", "train"), decoded(tmp_path / "out", "validation")
    # In their order, and each on the side that its own hash says.
    assert train == [text for text in TEXTS if key_and_hash(text, 0)[0] >= 0.1]
    assert validation == [text for text in TEXTS if key_and_hash(text, 0)[0] < 0.1]
    assert manifest.splits["train"].documents == len(train)
    assert manifest.splits["validation"].documents == len(validation)
    assert 20 <= len(validation) <= 60
    files = manifest.splits["train"].files
    assert len(files) > 3
    assert all(file.tokens <= 5000 for file in files)
    assert sum(file.documents for file in files) == len(train)


def test_manifest_and_tokenizer(tmp_path, source, tokenizer):
    manifest = prepare(source, tmp_path / "out", tokenizer=tokenizer)
    assert read_manifest(tmp_path / "out") == manifest
    assert (manifest.dtype, manifest.tokenizer.vocabulary, manifest.source) == ("uint16", 600, [str(source)])
    again = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert again.eos_token_id == manifest.tokenizer.end_of_text
    assert again.get_vocab() == AutoTokenizer.from_pretrained(tokenizer).get_vocab()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "tokenizer",
        "train-00000.bin",
        "validation-00000.bin",
    ]


def test_shards_do_not_depend_on_workers_or_on_how_the_source_is_given(tmp_path, source, tokenizer):
    options = {"tokenizer": tokenizer, "validation": 0.1, "shard_tokens": 7000}
    prepare(source, tmp_path / "one", workers=1, **options)
    prepare(source, tmp_path / "seven", workers=7, **options)
    prepare([TEXTS], tmp_path / "list", **options)
    prepare([iter(TEXTS[:100]), TEXTS[100:]], tmp_path / "parts", **options)
    expected = hashes(tmp_path / "one")
    for name in ("seven", "list", "parts"):
        assert hashes(tmp_path / name) == expected


def test_the_split_depends_on_text_and_seed_alone(tmp_path, tokenizer):
    options = {"tokenizer": tokenizer, "validation": 0.2}
    prepare([TEXTS], tmp_path / "a", **options)
    prepare([[*TEXTS[::-1], *TEXTS[:50]]], tmp_path / "b", **options)
    held_out = set(decoded(tmp_path / "a", "validation"))
    assert set(decoded(tmp_path / "b", "validation")) == held_out
    assert not held_out & set(decoded(tmp_path / "b", "train"))
    prepare([TEXTS], tmp_path / "c", seed=1, **options)
    assert set(decoded(tmp_path / "c", "validation")) != held_out


def test_special_tokens_written_in_a_document_are_plain_text(tmp_path, tokenizer):
    text = f"before{SPECIAL}after {SPECIAL}"
    manifest = prepare([[text, "another"]], tmp_path / "out", tokenizer=tokenizer, validation=0)
    split = open_split(tmp_path / "out", "train")
    ids = split.read(0, split.tokens)
    assert (ids == split.end_of_text).sum() == manifest.splits["train"].documents == 2
    assert decoded(tmp_path / "out", "train") == [text, "another"]


def test_truncation_and_templates_of_the_tokenizer_are_not_used(tmp_path, tokenizer):
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    backend.save(str(path))
    prepare([TEXTS[:20]], tmp_path / "out", tokenizer=tmp_path / "tokenizer", validation=0)
    assert decoded(tmp_path / "out", "train") == TEXTS[:20]


def test_long_documents_are_encoded_in_pieces_to_the_same_tokens(tmp_path, tokenizer, monkeypatch):
    text = "\n\n".join(TEXTS) + "x" * 3000
    prepare([[text, "a"]], tmp_path / "whole", tokenizer=tokenizer, validation=0)
    monkeypatch.setattr(tokenizers, "PIECE", 1000)
    cut = []
    encode = tokenizers.Encoder._encode
    monkeypatch.setattr(
        tokenizers.Encoder, "_encode", lambda self, texts: cut.append(texts) or encode(self, texts)
    )
    assert max(map(len, tokenizers.pieces(text, 1000))) == 1000
    assert "".join(tokenizers.pieces(text, 1000)) == text
    prepare([[text, "a"]], tmp_path / "pieces", tokenizer=tokenizer, validation=0)
    assert decoded(tmp_path / "pieces", "train") == [text, "a"]
    words = "\n\n".join(TEXTS)
    encoder = tokenizers.Encoder(tokenizer)
    pieces = [encode(encoder, [piece])[0] for piece in tokenizers.pieces(words, 1000)]
    assert len(pieces) > 50
    assert np.array_equal(np.concatenate(pieces), encode(encoder, [words])[0])


def test_documents_without_text_are_left_out(tmp_path, tokenizer):
    manifest = prepare([["one", "", "two"]], tmp_path / "out", tokenizer=tokenizer, validation=0)
    assert manifest.splits["train"].documents == 2
    assert decoded(tmp_path / "out", "train") == ["one", "two"]
    assert "validation" not in manifest.splits


def with_gaps(texts):
    """JSON lines of these texts: in front of each, and at the end, one of several rows without text."""
    gaps = itertools.cycle(['{"text": null}', '{"text": ""}', '{"id": 1}', '{"text": 5}'])
    rows = [line for text in texts for line in (next(gaps), json.dumps({"text": text}))]
    return "\n".join([*rows, next(gaps)]) + "\n"


def test_rows_without_text_are_left_out_and_counted(tmp_path, tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text(with_gaps(TEXTS[:50]))
    options = {"tokenizer": tokenizer, "validation": 0}
    with pytest.raises(
        UserError, match=r"the field text in line 1 .* is not text but null: .* with --skip-invalid"
    ):
        prepare(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    manifest = prepare(source, tmp_path / "out", skip_invalid=True, **options)
    assert decoded(tmp_path / "out", "train") == TEXTS[:50]
    assert manifest.splits["train"].documents == 50
    assert manifest.rows_without_text == read_manifest(tmp_path / "out").rows_without_text == 51
    assert manifest.arguments["skip_invalid"] is True
    prepare([TEXTS[:50]], tmp_path / "plain", **options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "plain")
    with pytest.raises(
        UserError, match="was started with skip_invalid = True, not False: give another directory"
    ):
        prepare(source, tmp_path / "out", **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_without_text_are_counted_up_to_the_last_document(tmp_path, tokenizer, workers):
    source = tmp_path / "a.jsonl"
    source.write_text(with_gaps(TEXTS[:50]))
    options = {"tokenizer": tokenizer, "validation": 0, "skip_invalid": True, "workers": workers}
    manifest = prepare(source, tmp_path / "out", max_documents=20, **options)
    assert manifest.splits["train"].documents == 20
    assert manifest.rows_without_text == 20, "however far was read ahead"
    # The same documents make the tokenizer.
    arguments = {"validation": 0, "train_tokenizer": 400, "max_documents": 20}
    prepare(source, tmp_path / "gaps", skip_invalid=True, **arguments)
    prepare([TEXTS[:20]], tmp_path / "plain", **arguments)
    assert hashes(tmp_path / "gaps") == hashes(tmp_path / "plain")


@pytest.mark.parametrize("stop", [0, 1, 60, 130, 299])
def test_rows_without_text_are_counted_once_after_an_interruption(tmp_path, tokenizer, monkeypatch, stop):
    sources = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    sources[0].write_text(with_gaps(TEXTS[:100]))
    sources[1].write_text(with_gaps(TEXTS[100:]))
    options = {"tokenizer": tokenizer, "validation": 0.1, "shard_tokens": 5000, "skip_invalid": True}
    monkeypatch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 3000)
    undisturbed = prepare(sources, tmp_path / "undisturbed", **options)
    assert undisturbed.rows_without_text == len(TEXTS) + 2
    append = SplitWriter.append

    def failing(self, tokens, text_bytes):
        if self.name == "train" and self.documents == stop:
            raise KeyboardInterrupt
        append(self, tokens, text_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "append", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(sources, tmp_path / "out", save_every=0, **options)
    assert (stop > 10) == (tmp_path / "out" / "unfinished").exists()
    manifest = prepare(sources, tmp_path / "out", **options)
    assert manifest == undisturbed
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


def test_only_files_that_no_record_names_are_dropped(tmp_path):
    """Also where the numbers of the files have outgrown their five digits."""
    last = b"\1\0\2\0"
    contents = {"train-99999.bin": b"\0\0", "train-100000.bin": last, "train-100001.bin": b"lost"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    before = [
        FileRecord(name=f"train-{number:05d}.bin", tokens=1, documents=1, sha256=None)
        for number in range(100_000)
    ]
    known = FileRecord(
        name="train-100000.bin", tokens=2, documents=1, sha256=hashlib.sha256(last).hexdigest()
    )
    record = SplitRecord(documents=100_001, tokens=100_002, files=[*before, known])
    writer = SplitWriter(tmp_path, "train", np.dtype(np.uint16), 2, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-100000.bin", "train-99999.bin"]
    writer.append(np.array([3], np.uint16), 1)
    assert writer.sync().files[-1].name == "train-100001.bin"
    writer.close()


def test_many_rows_without_text_do_not_pile_up(tmp_path, tokenizer, monkeypatch):
    from inheritune.data.prepare import Position, read_batches
    from inheritune.data.sources import resolve

    monkeypatch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 100)
    (source,) = resolve(["one", *[None] * 1000, "two"], skip_invalid=True)
    sizes = [len(batch.texts) for batch in read_batches([source], Position(), 0, set())]
    assert max(sizes) <= 100
    assert sum(sizes) == 1002


def test_nothing_but_rows_without_text(tmp_path, tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": null}\n{"other": "text"}\n')
    with pytest.raises(
        UserError, match=r"no document with text in .*a\.jsonl: 2 rows without text were left out"
    ):
        prepare(source, tmp_path / "out", tokenizer=tokenizer, skip_invalid=True)
    assert not (tmp_path / "out").exists()


def test_work_begun_before_an_argument_was_there(tmp_path, tokenizer, monkeypatch, undisturbed):
    output = interrupted(tmp_path, tokenizer, monkeypatch, KeyboardInterrupt())
    path = output / "unfinished" / "progress.json"
    saved = json.loads(path.read_text())
    for name in ("bos", "skip_invalid"):
        del saved["arguments"][name]
    del saved["rows_without_text"]
    path.write_text(json.dumps(saved))
    options = {"tokenizer": tokenizer, "validation": 0.1, "shard_tokens": 5000}
    with pytest.raises(UserError, match="was started with skip_invalid = False, not True: delete"):
        prepare([TEXTS], output, skip_invalid=True, **options)
    with pytest.raises(UserError, match="was started with bos = 'auto', not 'none': delete"):
        prepare([TEXTS], output, bos="none", **options)
    prepare([TEXTS], output, **options)
    assert hashes(output) == undisturbed


def test_large_vocabularies_take_32_bits(tmp_path):
    words = {f"w{number}": number for number in range(70_000)} | {"[end]": 70_000}
    backend = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
            }
        )
    )
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="no end-of-text token: name one with --end-of-text TOKEN"):
        prepare([["w69999 w5"]], tmp_path / "out", tokenizer=folder, validation=0)
    with pytest.raises(ValueError, match=r"end-of-text token '<eos>' is not in the vocabulary"):
        prepare([["w69999 w5"]], tmp_path / "out", tokenizer=folder, validation=0, end_of_text="<eos>")
    assert not (tmp_path / "out").exists()
    manifest = prepare([["w69999 w5"]], tmp_path / "out", tokenizer=folder, validation=0, end_of_text="[end]")
    assert manifest.dtype == "uint32"
    assert open_split(tmp_path / "out", "train").read(0, 3).tolist() == [69_999, 5, 70_000]


def test_max_documents(tmp_path, source, tokenizer):
    manifest = prepare(source, tmp_path / "out", tokenizer=tokenizer, validation=0, max_documents=7)
    assert manifest.splits["train"].documents == 7
    assert decoded(tmp_path / "out", "train") == TEXTS[:7]


def test_a_source_gives_no_more_than_its_tokens(tmp_path, tokenizer, monkeypatch):
    """A budget ends a source at the document that reaches it, however far was read ahead."""
    from inheritune.data.sources import resolve

    def with_budget(source, **options):
        (one,) = resolve(source, **options)
        one.tokens = 1000
        return [one]

    monkeypatch.setattr("inheritune.data.prepare.resolve", with_budget)
    monkeypatch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 300)
    prepare([TEXTS[:200], TEXTS[200:]], tmp_path / "out", tokenizer=tokenizer, validation=0, workers=3)
    encoder = tokenizers.Encoder(tokenizer)
    expected = []
    for part in (TEXTS[:200], TEXTS[200:]):
        tokens = 0
        for text in part:
            expected.append(text)
            tokens += len(encoder([text])[0])
            if tokens >= 1000:
                break
    assert len(expected) < 100
    assert decoded(tmp_path / "out", "train") == expected


# Training a tokenizer


def test_trained_tokenizer(tmp_path, source):
    manifest = prepare(source, tmp_path / "out", train_tokenizer=400, validation=0.1)
    assert manifest.tokenizer.vocabulary == 400
    again = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert len(again) == 400
    assert again.eos_token == SPECIAL
    split = open_split(tmp_path / "out", "train")
    first = next(text for text in TEXTS if key_and_hash(text, 0)[0] >= 0.1)
    ids = again.encode(first)
    assert split.read(0, len(ids) + 1).tolist() == [*ids, again.eos_token_id]
    assert again.decode(ids) == first


def test_a_tokenizer_comes_out_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        prepare([TEXTS], tmp_path / name, train_tokenizer=500, validation=0.1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_a_tokenizer_is_not_trained_on_validation(tmp_path):
    (held_out,) = [text for text in ["qqqqqqqq " * 500] if key_and_hash(text, 3)[0] < 0.9]
    texts = [text for text in TEXTS if key_and_hash(text, 3)[0] > 0.95]
    assert texts
    prepare([[held_out, *texts]], tmp_path / "out", train_tokenizer=700, validation=0.9, seed=3)
    assert not any(
        "qq" in token for token in AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").get_vocab()
    )


def test_a_tokenizer_is_trained_on_no_more_documents_than_are_taken(tmp_path):
    prepare(
        [TEXTS[:5], ["qqqqqqqq " * 500]], tmp_path / "out", train_tokenizer=700, validation=0, max_documents=5
    )
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").get_vocab()
    assert not any("qq" in token for token in vocabulary)


def test_sample_is_bounded_and_does_not_depend_on_the_order(monkeypatch):
    documents = [(key_and_hash(text, 0)[0], text) for text in TEXTS]
    smallest, held = tokenizers._smallest, []

    def watched(documents, characters):
        held.append(sum(len(text) for _, text in documents))
        return smallest(documents, characters)

    monkeypatch.setattr(tokenizers, "_smallest", watched)
    samples = [
        tokenizers.sample(iter(order), 20_000)
        for order in (documents, documents[::-1], sorted(documents), sorted(documents)[::-1])
    ]
    assert samples[0] == samples[1] == samples[2] == samples[3]
    assert 18_000 < sum(map(len, samples[0])) <= 20_000
    longest = max(map(len, TEXTS))
    assert max(held) <= 2 * 20_000 + longest


def test_bytes_of_the_text_are_counted(tmp_path, tokenizer):
    texts = [*TEXTS, "", "über 漢字 \N{GRINNING FACE}"]
    splits = prepare([texts], tmp_path / "out", tokenizer=tokenizer, validation=0.1).splits
    assert sum(split.text_bytes for split in splits.values()) == sum(len(text.encode()) for text in texts)
    assert 1 < splits["train"].text_bytes / splits["train"].tokens < 10


def test_a_tokenizer_is_trained_on_about_as_much_of_a_source_as_is_taken(tmp_path, monkeypatch):
    from inheritune.data.sources import resolve

    def with_budget(source, **options):
        (one,) = resolve(source, **options)
        one.tokens = 1000
        return [one]

    monkeypatch.setattr("inheritune.data.prepare.resolve", with_budget)
    prepare(
        [[*TEXTS[:100], "qqqqqqqq " * 500], ["zz" * 500]], tmp_path / "out", train_tokenizer=700, validation=0
    )
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").get_vocab()
    assert not any("qq" in token for token in vocabulary)
    assert any("zz" in token for token in vocabulary), "each source has a limit of its own"


def test_a_generator_cannot_be_read_twice(tmp_path):
    with pytest.raises(ValueError, match="that can be read twice: give a list"):
        prepare([iter(TEXTS)], tmp_path / "out", train_tokenizer=400)


# Going on, refusing, failing


def interrupted(tmp_path, tokenizer, monkeypatch, error, after=250, name="out"):
    """A directory in which `prepare` failed with this error at one of its documents."""
    append = SplitWriter.append

    def failing(self, tokens, text_bytes):
        if self.name == "train" and self.documents == after:
            raise error
        append(self, tokens, text_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "append", failing)
        patch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 3000)
        with pytest.raises(type(error)):
            prepare(
                [TEXTS], tmp_path / name, tokenizer=tokenizer, validation=0.1, shard_tokens=5000, save_every=0
            )
    return tmp_path / name


@pytest.fixture
def undisturbed(tmp_path, tokenizer):
    prepare([TEXTS], tmp_path / "undisturbed", tokenizer=tokenizer, validation=0.1, shard_tokens=5000)
    return hashes(tmp_path / "undisturbed")


def test_goes_on_after_an_error(tmp_path, tokenizer, monkeypatch, undisturbed):
    full = OSError(errno.ENOSPC, "No space left on device")
    output = interrupted(tmp_path, tokenizer, monkeypatch, full)
    with pytest.raises(UserError, match="holds no finished shards"):
        open_split(output, "train")
    encoded = []
    encode = tokenizers.Encoder.__call__
    monkeypatch.setattr(
        tokenizers.Encoder, "__call__", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    prepare([TEXTS], output, tokenizer=tokenizer, validation=0.1, shard_tokens=5000)
    assert hashes(output) == undisturbed
    assert 0 < len(encoded) < 200  # and not all from the beginning


def test_other_arguments_are_refused(tmp_path, source, tokenizer, monkeypatch):
    output = interrupted(tmp_path, tokenizer, monkeypatch, KeyboardInterrupt())
    with pytest.raises(ValueError, match=r"unfinished was started with validation = 0.1, not 0.2: delete"):
        prepare([TEXTS], output, tokenizer=tokenizer, validation=0.2, shard_tokens=5000)
    with pytest.raises(ValueError, match=r"was started with sources = \['documents in memory'\], not \['"):
        prepare(source, output, tokenizer=tokenizer, validation=0.1, shard_tokens=5000)


def test_other_documents_are_refused(tmp_path, tokenizer, monkeypatch):
    output = interrupted(tmp_path, tokenizer, monkeypatch, KeyboardInterrupt())
    changed = list(TEXTS)
    changed[100] += "!"
    for texts in (changed, TEXTS[:50]):
        with pytest.raises(ValueError, match="have changed since this preparation was started"):
            prepare([texts], output, tokenizer=tokenizer, validation=0.1, shard_tokens=5000)


@pytest.mark.parametrize("kind", [list, np.array, lambda texts: dict(enumerate(texts)).values()])
def test_a_finished_directory_of_other_documents_is_refused(tmp_path, tokenizer, kind):
    manifest = prepare([kind(TEXTS[:50])], tmp_path / "out", tokenizer=tokenizer, validation=0)
    assert prepare([kind(TEXTS[:50])], tmp_path / "out", tokenizer=tokenizer, validation=0) == manifest
    with pytest.raises(UserError, match="out was made of other documents in memory: give another directory"):
        prepare([kind(TEXTS[50:])], tmp_path / "out", tokenizer=tokenizer, validation=0)


def test_text_mended_after_where_it_stopped(tmp_path, tokenizer, monkeypatch):
    """A bad line is met late; once it is mended, the work before it counts."""
    monkeypatch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 3000)
    path = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    good = path.read_text()
    path.write_text(good[:-20])
    with pytest.raises(ValueError, match=r"line 400 of .* is not JSON"):
        prepare(path, tmp_path / "out", tokenizer=tokenizer, save_every=0)
    assert (
        json.loads((tmp_path / "out" / "unfinished" / "progress.json").read_text())["position"]["documents"]
        > 300
    )
    path.write_text(good)
    prepare(path, tmp_path / "out", tokenizer=tokenizer)
    prepare(path, tmp_path / "other", tokenizer=tokenizer)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")


def test_a_damaged_unfinished_file_is_noticed(tmp_path, tokenizer, monkeypatch):
    output = interrupted(tmp_path, tokenizer, monkeypatch, KeyboardInterrupt())
    last = sorted((output / "unfinished").glob("train-*.bin"))[-1]
    last.write_bytes(b"\1" + last.read_bytes()[1:])
    with pytest.raises(ValueError, match="was changed or damaged: delete"):
        prepare([TEXTS], output, tokenizer=tokenizer, validation=0.1, shard_tokens=5000)


def test_a_finished_directory_is_left_as_it_is(tmp_path, source, tokenizer):
    output = tmp_path / "out"
    manifest = prepare(source, output, tokenizer=tokenizer)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    source.unlink()  # not even looked at
    assert prepare(source, output, tokenizer=tokenizer) == manifest
    with pytest.raises(ValueError, match=r"out was started with seed = 0, not 1: give another directory"):
        prepare(source, output, tokenizer=tokenizer, seed=1)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_directory_with_other_things_is_refused(tmp_path, source, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="out is not empty, and holds no shards: give a new directory"):
        prepare(source, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"source.jsonl is a file, not a directory"):
        prepare(source, source, tokenizer=tokenizer)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("pattern", ["", "**/*.json*"])
def test_shards_within_the_folder_of_the_text(tmp_path, monkeypatch, pattern):
    """What `prepare` writes there itself is no text: not when it goes on, and not once it is finished."""
    folder = tmp_path / "texts"
    folder.mkdir()
    write_json_lines(folder / "a.jsonl", TEXTS)
    source, output = folder / pattern, folder / "shards"
    append = SplitWriter.append

    def failing(self, tokens, text_bytes):
        if self.documents == 250:
            raise KeyboardInterrupt
        append(self, tokens, text_bytes)

    monkeypatch.setattr("inheritune.data.prepare._BATCH_CHARACTERS", 3000)
    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "append", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, output, train_tokenizer=400, save_every=0)
    assert saved_documents(output) > 100
    manifest = prepare(source, output, train_tokenizer=400)
    assert list(manifest.arguments["files"]) == [str(folder / "a.jsonl")]
    (tmp_path / "link").symlink_to(output)
    assert prepare(source, tmp_path / "link", train_tokenizer=400) == manifest
    prepare(folder / "a.jsonl", tmp_path / "elsewhere", train_tokenizer=400)
    assert hashes(output) == hashes(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="texts is not empty, and holds no shards: give a new directory"):
        prepare(source, folder, train_tokenizer=400)


def test_two_at_once_are_refused(tmp_path, tokenizer):
    def texts():
        yield TEXTS[0]
        with pytest.raises(ValueError, match="another `prepare` is running in"):
            prepare([TEXTS], tmp_path / "out", tokenizer=tokenizer)
        yield TEXTS[1]

    prepare([texts()], tmp_path / "out", tokenizer=tokenizer, validation=0)
    assert decoded(tmp_path / "out", "train") == TEXTS[:2]


def test_another_process_finishes_while_sources_are_looked_up(tmp_path, source, tokenizer, monkeypatch):
    from inheritune.data.sources import resolve

    made = []

    def slow(name, **options):
        if not made:
            made.append(None)
            made.append(prepare(source, tmp_path / "out", tokenizer=tokenizer))
        return resolve(name, **options)

    monkeypatch.setattr("inheritune.data.prepare.resolve", slow)
    assert prepare(source, tmp_path / "out", tokenizer=tokenizer) == made[1]
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_directory_that_cannot_be_written(tmp_path, tokenizer):
    if os.geteuid() == 0:
        output = Path("/proc/shards")  # where root cannot write either
    else:
        tmp_path.chmod(0o500)
        output = tmp_path / "out"
    with pytest.raises(OSError):
        prepare([TEXTS], output, tokenizer=tokenizer)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_documents_for_a_split(tmp_path, tokenizer, count):
    texts = [text for text in TEXTS if key_and_hash(text, 0)[0] > 0.01][:count]
    sentences = {
        0: "there is no document with text in documents in memory",
        1: "there is only one document and training and validation need at least one each: give more",
        3: "none of the 3 documents falls into validation with a fraction of 0.005: a fraction of 0.",
    }
    with pytest.raises(ValueError, match=sentences[count]) as caught:
        prepare([texts], tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    if count == 3:
        fraction = float(str(caught.value).split("a fraction of ")[2].split()[0])
        manifest = prepare([texts], tmp_path / "out", tokenizer=tokenizer, validation=fraction)
        assert manifest.splits["validation"].documents >= 1


def test_one_text_file_is_one_document(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("some words\nand others\n")
    with pytest.raises(UserError, match=r"one document, as every .txt file is one, and .* or give .jsonl"):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer)


def test_what_was_made_with_a_negative_seed_is_kept(tmp_path, tokenizer, monkeypatch):
    arguments = {"tokenizer": tokenizer, "validation": 0.1, "seed": -1}
    with pytest.raises(UserError, match="seed is -1, but should be a whole number from 0"):
        prepare([TEXTS], tmp_path / "out", **arguments)
    with monkeypatch.context() as before:
        before.setattr("inheritune.data.prepare.check_seed", lambda seed: None)
        made = prepare([TEXTS], tmp_path / "out", **arguments)
    assert prepare([TEXTS], tmp_path / "out", **arguments) == made
    assert open_split(tmp_path / "out", "train").tokens == made.splits["train"].tokens
    with pytest.raises(UserError, match="was started with seed = -1, not 9223372036854775808"):
        prepare([TEXTS], tmp_path / "out", **{**arguments, "seed": 2**63})


def test_all_documents_in_validation(tmp_path, tokenizer):
    texts = [text for text in TEXTS if key_and_hash(text, 0)[0] < 0.5][:3]
    with pytest.raises(ValueError, match="all 3 documents fall into validation: make the fraction smaller"):
        prepare([texts], tmp_path / "out", tokenizer=tokenizer, validation=0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "give either a tokenizer or the size of one to train"),
        ({"tokenizer": "a", "train_tokenizer": 500}, "give either a tokenizer or"),
        ({"train_tokenizer": 100}, "a byte-level tokenizer has at least 257 tokens, not 100"),
        ({"train_tokenizer": 300, "validation": 1.0}, "the fraction for validation is 1.0"),
        ({"train_tokenizer": 300, "validation": -0.1}, "the fraction for validation is -0.1"),
        ({"train_tokenizer": 300, "workers": 0}, "workers is 0, not at least 1"),
        ({"train_tokenizer": 300, "max_documents": 0}, "max_documents is 0, not at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare([TEXTS], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{}"}, {"config.json": '{"model_type": "gpt2"}'}])
def test_a_folder_that_is_no_tokenizer(tmp_path, files):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{folder}") as caught:
        prepare([TEXTS], tmp_path / "out", tokenizer=folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["./nothing", "runs/nothing/model", "/nothing", "no thing"])
def test_a_folder_of_a_tokenizer_that_is_not_there(tmp_path, folder):
    with pytest.raises(UserError, match=f"^there is no tokenizer at {folder}: the folder does not exist$"):
        prepare([TEXTS], tmp_path / "out", tokenizer=folder)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_reached(tmp_path):
    with pytest.raises(
        ValueError, match="the tokenizer 'someone/nothing' is no local folder, and it cannot be loaded"
    ):
        prepare([TEXTS], tmp_path / "out", tokenizer="someone/nothing")


# Killed


SCRIPT = """
import sys
from inheritune.data import prepare as preparation
from inheritune.data.prepare import few_held_out, share_held_out, prepare
preparation._BATCH_CHARACTERS = 20_000
print("started", flush=True)
arguments = {"train_tokenizer": 500} if sys.argv[3] == "train" else {"tokenizer": sys.argv[3]}
prepare(sys.argv[1], sys.argv[2], validation=0.05, shard_tokens=30_000, save_every=0.0, **arguments)
"""


def start(source, output, tokenizer, **options):
    command = [sys.executable, "-c", SCRIPT, str(source), str(output), str(tokenizer)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def finish(source, output, tokenizer):
    with start(source, output, tokenizer) as process:
        assert process.wait() == 0


def saved_documents(output):
    """How many documents the unfinished work in a directory is good for."""
    path = output / "unfinished" / "progress.json"
    return json.loads(path.read_text())["position"]["documents"] if path.exists() else 0


@pytest.mark.parametrize("training", [False, True])
def test_killed_at_random_moments(tmp_path, tokenizer, training):
    count = 8000
    source = write_json_lines(tmp_path / "source.jsonl", make_texts(count, seed=1))
    tokenizer = "train" if training else tokenizer
    finish(source, tmp_path / "undisturbed", tokenizer)
    expected = hashes(tmp_path / "undisturbed")
    assert len(expected) > 10
    generator = random.Random(training)
    output = tmp_path / "killed"
    seen = set()
    for goal in (0, *sorted(generator.sample(range(count * 3 // 4), 5))):
        with start(source, output, tokenizer) as process:
            process.stdout.readline()
            while goal and saved_documents(output) < goal and process.poll() is None:
                time.sleep(0.005)
            time.sleep(generator.random() * 0.2)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(UserError):
            read_manifest(output)
        seen.add(saved_documents(output))
    assert len(seen) > 3
    finish(source, output, tokenizer)
    assert hashes(output) == expected
    verify(output)


@pytest.mark.parametrize("moves", range(5))
def test_killed_while_the_files_move_up(tmp_path, tokenizer, undisturbed, monkeypatch, moves):
    rename, done = Path.rename, []

    def dying(self, target):
        if Path(target).parent.name == "out":
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        return rename(self, target)

    options = {"tokenizer": tokenizer, "validation": 0.1, "shard_tokens": 5000}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            prepare([TEXTS], tmp_path / "out", **options)
    with pytest.raises(UserError, match="holds no finished shards"):
        read_manifest(tmp_path / "out")
    prepare([TEXTS], tmp_path / "out", **options)
    assert hashes(tmp_path / "out") == undisturbed


def test_a_file_size_limit_leaves_nothing_that_looks_finished(tmp_path, tokenizer):
    """As a full disk: the system refuses to write on."""
    import resource

    source = write_json_lines(tmp_path / "source.jsonl", TEXTS)
    limit = 40_000  # less than the shards, more than all else

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"\[Errno 27\] File too large"):
            prepare(source, tmp_path / "out", tokenizer=tokenizer, validation=0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(source, tmp_path / "out", tokenizer=tokenizer, validation=0.1)
    prepare(source, tmp_path / "other", tokenizer=tokenizer, validation=0.1)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")


# The real corpus


@pytest.mark.skipif("INHERITUNE_DATA" not in os.environ, reason="INHERITUNE_DATA names no folder of data")
def test_real_text_comes_back(tmp_path):
    folder = Path(os.environ["INHERITUNE_DATA"])
    corpus = folder / "corpus" / "val.jsonl.xz"
    prepare(corpus, tmp_path / "out", tokenizer=folder / "tokenizer", validation=0)
    split = open_split(tmp_path / "out", "train")
    assert (
        split.tokens == 570_954 + 478
    )  # as the data's own description counts, and one end for each document
    import lzma

    with lzma.open(corpus, "rt", encoding="utf8") as lines:
        assert decoded(tmp_path / "out", "train") == [json.loads(line)["text"] for line in lines]


def test_a_text_that_changed_is_noticed(tmp_path, tokenizer):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("some words " * 50 + name)
    arguments = {"tokenizer": tokenizer, "validation": 0.0}
    manifest = prepare(folder, tmp_path / "out", **arguments)
    assert prepare(folder, tmp_path / "out", **arguments) == manifest
    (folder / "c.txt").write_text("more")
    with pytest.raises(ValueError, match=r"c\.txt is new or has changed since .*out was made: give another"):
        prepare(folder, tmp_path / "out", **arguments)
    (folder / "c.txt").unlink()
    (folder / "b.txt").write_text("other words")
    with pytest.raises(ValueError, match=r"b\.txt is new or has changed"):
        prepare(folder, tmp_path / "out", **arguments)
    for name in ("a", "b"):
        (folder / f"{name}.txt").unlink()
    assert prepare(folder, tmp_path / "out", **arguments) == manifest  # the text is not needed any more


def test_enough_is_held_out_of_a_small_text():
    """To about 100 windows of 1,024 tokens, and a tenth at most."""
    assert share_held_out({}) == 0.005
    assert share_held_out({"a.txt": 10**9}) == 0.005
    assert share_held_out({"a.txt": 10**7, "b.jsonl": 10**7}) == 0.024
    assert share_held_out({"a.jsonl.xz": 4 * 10**6}) == 0.039
    assert share_held_out({"a.txt": 1000}) == 0.1


def test_the_share_is_recorded_and_a_finished_folder_keeps_its_own(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"document {n} " * 20}) + "\n" for n in range(200)))
    made = prepare(texts, tmp_path / "out", train_tokenizer=300)
    assert made.arguments["validation"] == 0.1
    assert 5 < made.splits["validation"].documents < 40
    old = prepare(texts, tmp_path / "old", train_tokenizer=300, validation=0.05)
    assert prepare(texts, tmp_path / "old", train_tokenizer=300) == old


def test_few_windows_are_said_with_what_they_are_worth(tmp_path):
    made = prepare(
        [[f"document {n} " * 20 for n in range(200)]], tmp_path / "out", train_tokenizer=300, validation=0.1
    )
    warning = few_held_out(made)
    held = made.splits["validation"].tokens
    assert warning is not None
    assert f"only {held:,} tokens are held out" in warning
    assert "--validation 0.5 into another folder" in warning
    enough = made.splits["validation"].model_copy(update={"tokens": 102_400})
    assert few_held_out(made.model_copy(update={"splits": {**made.splits, "validation": enough}})) is None
