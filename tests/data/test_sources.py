import gzip
import json
import lzma
import re

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from inheritune import UserError
from inheritune.data import documents, sources
from inheritune.data.documents import local_files
from inheritune.data.sources import resolve

TEXTS = ["first document", "zweites Dokument – mit Strich", "third\nwith lines", "x" * 5000]


def read(source, **options):
    return [text for one in resolve(source, **options) for text in one.documents()]


def json_lines(texts, field="text"):
    return "".join(
        json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts)
    ).encode()


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson"])
def test_json_lines(tmp_path, suffix, compression):
    path = tmp_path / f"documents{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](json_lines(TEXTS)))
    assert read(path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_text_file_is_one_document(tmp_path, compression):
    path = tmp_path / f"book.txt{compression}"
    path.write_bytes(COMPRESS[compression]("one\n\ntwo ü\n".encode()))
    assert read(path) == ["one\n\ntwo ü\n"]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_several_compressed_streams_in_one_file(tmp_path, compression):
    path = tmp_path / f"a.jsonl{compression}"
    compress = COMPRESS[compression]
    path.write_bytes(compress(json_lines(TEXTS)) + compress(json_lines(["more"])))
    assert read(path) == [*TEXTS, "more"]


def test_parquet(tmp_path):
    texts = [f"document {number}" for number in range(1000)]
    table = pyarrow.table({"id": range(1000), "content": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert read(tmp_path / "a.parquet", text_field="content") == texts


def test_folders_and_patterns_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one"]))
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "README.md").write_text("not text to train on")
    assert read(tmp_path) == ["one", "two", "three"]
    assert read(str(tmp_path / "**" / "*.txt")) == ["two", "three"]


def test_documents_in_memory(tmp_path):
    assert read(TEXTS) == TEXTS
    assert read(iter(TEXTS)) == TEXTS


def test_byte_order_mark_and_empty_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json_lines(["one"]) + b"\n  \n" + json_lines(["two"])
    )
    assert read(tmp_path / "a.jsonl") == ["one", "two"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert read(tmp_path / "a.txt") == ["one"]


def test_how_much_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    (tmp_path / "b.txt").write_text("two")
    (source,) = resolve(tmp_path)
    list(source.documents())
    assert source.read == source.size == (tmp_path / "a.jsonl").stat().st_size + 3


# What stands beside the data.


def test_hidden_files_and_copies_are_no_documents(tmp_path):
    folder = tmp_path / ".hidden" / "__MACOSX"  # the folder itself may be called anything
    good = ("a.txt", "b/c.txt", "b/d.e.txt", "f..txt")
    hidden = (
        ".ipynb_checkpoints/a-checkpoint.txt",
        "b/.ipynb_checkpoints/c-checkpoint.txt",
        "._a.txt",
        "b/._c.txt",
        ".git/b/description.txt",
        "b/.cache/x/y.jsonl",
        "__MACOSX/._a.txt",
        "__MACOSX/b/c.txt",
        ".a.parquet",
    )
    for name in (*good, *hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    expected = [f"text of {name}" for name in good]
    assert read(folder) == read(str(folder)) == expected
    assert local_files(folder) == [folder / name for name in good]
    assert read(f"{folder}/*.txt") == ["text of a.txt", "text of f..txt"]
    assert read(f"{folder}/b/**/*.txt") == ["text of b/c.txt", "text of b/d.e.txt"]
    # What is named is read.
    assert read(folder / "._a.txt") == ["text of ._a.txt"]
    assert read(folder / ".git") == ["text of .git/b/description.txt"]
    assert read(f"{folder}/.ipynb_checkpoints/*") == ["text of .ipynb_checkpoints/a-checkpoint.txt"]
    assert read(f"{folder}/._*.txt") == ["text of ._a.txt"]
    for name in good:
        (folder / name).unlink()
    assert "has no files to read: expected .txt" in refused(folder)


def test_a_data_set_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    def rows(name, count):
        return Dataset.from_dict(
            {"id": range(count), "text": [f"{name} {number}" for number in range(count)]}
        )

    rows("one", 600).save_to_disk(tmp_path / "one", num_shards=2)
    assert sorted(path.suffix for path in (tmp_path / "one").iterdir()) == [
        ".arrow",
        ".arrow",
        ".json",
        ".json",
    ]
    assert read(tmp_path / "one") == [f"one {number}" for number in range(600)]
    mapped = Dataset.load_from_disk(tmp_path / "one").map(lambda row: {"text": row["text"] + "!"})
    assert list((tmp_path / "one").glob("cache-*.arrow")), mapped.cache_files
    assert read(tmp_path / "one") == [f"one {number}" for number in range(600)], (
        "without what was computed of it"
    )
    assert read(f"{tmp_path}/one/*") == read(tmp_path / "one")
    DatasetDict(train=rows("train", 3), test=rows("test", 2)).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two" / "train") == ["train 0", "train 1", "train 2"]
    assert read(tmp_path / "two") == ["test 0", "test 1", "train 0", "train 1", "train 2"]


@pytest.mark.parametrize(
    "name",
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "b/dataset_info.json"],
)
def test_metadata_of_data_sets(tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one"]))
    (tmp_path / name).write_text('{\n  "splits": {}\n}')
    assert read(tmp_path) == read(f"{tmp_path}/**/*.json*") == ["one"]
    assert "is not JSON (one object a line is expected)" in refused(tmp_path / name)


def test_other_files_that_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one"]))
    (tmp_path / "settings.json").write_text('{\n  "a": 1\n}')
    sentence = refused(tmp_path)
    assert sentence.startswith(
        f"line 1 of {tmp_path}/settings.json is not JSON (one object a line is expected): "
    )
    assert sentence.endswith(
        "if this file is no part of the text, name those that are instead of their folder"
    )


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow(tmp_path, kind):
    texts = [f"document {number}" for number in range(1000)]
    table = pyarrow.table({"id": range(1000), "data": [{"text": text, "n": 1} for text in texts]})
    path = tmp_path / "a.arrow"
    with getattr(pyarrow.ipc, f"new_{kind}")(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=400)
    assert read(path, text_field="data.text") == texts
    assert refused(path) == f"there is no field 'text' in {path}: it has 'id', 'data'"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} is damaged" in refused(path, text_field="data.text")
    path.write_bytes(b"")
    assert f"{path} is damaged, or not an Arrow file" in refused(path)
    (source,) = resolve(path)
    assert source.size == 0


# Nested fields.

NESTED = [
    ({"data": {"text": "nested"}}, "data.text", "nested"),
    ({"data": {"text": "nested"}, "data.text": "literal"}, "data.text", "literal"),
    ({"data.text": "literal"}, "data.text", "literal"),
    ({"a": {"b": {"c": "deep"}}}, "a.b.c", "deep"),
    ({"a": {"b.c": "partly"}}, "a.b.c", "partly"),
    ({"a.b": {"c": "other part"}}, "a.b.c", "other part"),
    ({"a": {"x": "no"}, "a.b": {"c": "second try"}}, "a.b.c", "second try"),
]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize(("row", "field", "text"), NESTED)
def test_nested_fields(tmp_path, format, row, field, text):
    path = write_rows(tmp_path / f"a.{format}", [row, row])
    assert read(path, text_field=field) == [text, text]
    assert f"there is no field '{field}.more' in " in refused(path, text_field=f"{field}.more")
    assert "there is no field 'nothing' in " in refused(path, text_field="nothing")


def write_rows(path, rows):
    """Rows in the format that the name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    table = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


# Rows without text.

INVALID = [
    {"data": {"text": "one"}},
    {"data": {"text": None}},
    {"data": None},
    {"data": {"text": ""}},
    {"data": {"text": "two"}},
]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow"])
def test_rows_without_text_stop_unless_they_are_to_be_left_out(tmp_path, format):
    path = write_rows(tmp_path / f"a.{format}", INVALID)
    row = "line" if format == "jsonl" else "row"
    options = {"text_field": "data.text"}
    assert refused(path, **options) == f"the field data.text in {row} 2 of {path} is not text but null{SKIP}"
    assert read(path, skip_invalid=True, **options) == ["one", "", "", "", "two"]
    path = write_rows(path, [row for row in INVALID if row["data"] != {"text": None}])
    assert (
        refused(path, **options) == f"there is no field 'data.text' in {row} 2 of {path}: it has 'data'{SKIP}"
    )


def test_what_else_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    values = [5, ["a"], {"b": "c"}, True, "half \ud800", "whole"]
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values) + '{"other": "x"}\n')
    assert read(path, skip_invalid=True) == ["", "", "", "", "", "whole", ""]
    assert read(["one", None, 7, "two"], skip_invalid=True) == ["one", "", "", "two"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", skip_invalid=True) == ["", ""]


@pytest.mark.parametrize("line", [b'{"text": "a', b'["text"]', b'{"text": "\xe9"}', b"null"])
def test_what_is_damaged_is_not_left_out(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one"]) + line + b"\n")
    assert refused(path, skip_invalid=True).startswith(f"line 2 of {path} is not ")
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    assert "is not UTF-8 text" in refused(tmp_path / "a.txt", skip_invalid=True)
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "a.parquet")
    assert "there is no field 'text' in " in refused(tmp_path / "a.parquet", skip_invalid=True)


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_bytes_of_a_column_that_are_not_utf8(tmp_path, format, nested):
    texts = [f"document {number}" for number in range(400)]
    column = pyarrow.array([*(text.encode() for text in texts), b"caf\xe9 in latin-1", b"end"]).view(
        pyarrow.string()
    )
    table = pyarrow.table({"text": column})
    if nested:
        table = pyarrow.table({"data": pyarrow.StructArray.from_arrays([column], ["text"])})
    path = tmp_path / f"a.{format}"
    if format == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    options = {"text_field": "data.text" if nested else "text"}
    sentence = refused(path, UserError, **options)
    assert sentence.startswith(f"row 401 of {path} cannot be read: 'utf-8' codec can't decode byte 0xe9")
    assert sentence.endswith(SKIP)
    assert read(path, skip_invalid=True, **options) == [*texts, "", "end"]


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_a_data_set_that_are_not_utf8(stream):
    from datasets import Dataset

    rows = Dataset(
        pyarrow.table({"text": pyarrow.array([b"one", b"caf\xe9 au lait"]).view(pyarrow.string())})
    )
    sentence = refused(rows.to_iterable_dataset() if stream else rows, UserError)
    assert sentence.startswith("row 2 of the data set cannot be read: 'utf-8' codec can't decode byte 0xe9")


def test_integers_that_are_longer_than_python_reads(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        json_lines(["one"]) + b'{"text": "pi", "digits": ' + b"3" * 5000 + b"}\n" + json_lines(["two"])
    )
    assert refused(path, UserError) == f"line 2 of {path} has an integer of more than 4,300 digits{SKIP}"
    assert read(path, skip_invalid=True) == ["one", "", "two"]


# What users get wrong: one sentence that says what and where.


SKIP = ": fix it, or leave such rows out with --skip-invalid"


def refused(source, error=ValueError, **options):
    with pytest.raises(error) as caught:
        read(source, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["nothing.txt", "folder/nothing.jsonl.xz", "/no/such/folder", "a/b/c"])
def test_missing_file(name):
    assert refused(name, UserError) == f"there is no file or folder {name}"


def test_pattern_without_match(tmp_path):
    assert refused(f"{tmp_path}/*.txt", UserError) == f"no file matches {tmp_path}/*.txt"


def test_folder_without_files(tmp_path):
    assert "has no files to read: expected .txt" in refused(tmp_path)


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.parquet.gz", "a.txt.bz2"])
def test_unknown_format(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert f"{name} has no known format: expected .txt" in refused(tmp_path / name)
    assert f"{name} has no known format: expected .txt" in refused(f"{tmp_path}/*")


def test_no_text_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one"]) + json_lines(["two"], field="content"))
    assert refused(path) == f"there is no field 'text' in line 2 of {path}: it has 'id', 'content'{SKIP}"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "content": ["x"]}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").endswith("a.parquet: it has 'id', 'content'")


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (5, "int"), (["a"], "list")])
def test_text_that_is_none(tmp_path, value, kind):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one", value]))
    assert refused(path) == f"the field text in line 2 of {path} is not text but {kind}{SKIP}"
    assert refused(["one", value]) == f"document 2 is not text but {kind}{SKIP}"


@pytest.mark.parametrize("line", [b'{"text": "a', b"[", b"{'text': 1}", b"[" * 100_000])
def test_malformed_json(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one", "two"]) + line + b"\n")
    assert refused(path).startswith(f"line 3 of {path} is not JSON (one object a line is expected): ")


def test_json_that_is_no_object(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'["text"]\n')
    assert refused(path) == f"line 1 of {path} is not a JSON object but a list"


def test_undecodable_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    assert refused(path) == f"{path} is not UTF-8 text: byte 3 cannot be decoded"
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one"]) + b'{"text": "\xe9"}\n')
    assert refused(path) == f"line 2 of {path} is not UTF-8: byte 10 cannot be decoded"


def test_half_a_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "a\ud800"}')
    assert refused(path) == f"line 1 of {path} has half a character (a lone surrogate) at position 1{SKIP}"


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_compression(tmp_path, compression, damage):
    path = tmp_path / f"a.jsonl{compression}"
    data = COMPRESS[compression](json_lines([f"document {number * 7919 % 1000}" for number in range(5000)]))
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"garbage" + data[7:])
    assert f"{path} is damaged: " in refused(path)


@pytest.mark.parametrize("content", [b"", b"PAR1 is not enough", b"x" * 1000])
def test_damaged_parquet(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    assert " is damaged" in refused(tmp_path / "a.parquet")


def test_a_whole_data_set_in_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 10)
    monkeypatch.setattr(documents, "_LONGEST_LINE", 80)
    (tmp_path / "a.txt").write_text("x" * 41)
    assert "a.txt is a document of more than 10 characters: cut it" in refused(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x" * 200]))
    assert "line 1 of " in refused(tmp_path / "a.jsonl")
    assert refused([["x" * 11]][0]).startswith("document 1 is a document of more than")


# Hugging Face data sets: `datasets` itself reads a local folder here, for there is no network in tests.


class Asked(list):
    """What `load_dataset` was asked for; the rows are in `folder`."""


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """Lets `load_dataset(name)` find a folder of Parquet files; gives the names it was asked for."""
    import datasets

    folder = tmp_path / "hub"
    folder.mkdir()
    rows = pyarrow.table({"id": range(4), "text": TEXTS})
    pyarrow.parquet.write_table(rows, folder / "train-00000.parquet")
    real = datasets.load_dataset
    asked = Asked()
    asked.folder = folder

    def load_dataset(name, config=None, *, split, streaming, revision=None):
        asked.append((name, config, split, revision))
        assert streaming
        if name == "someone/script" and revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py")
        return real(str(folder), split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub(on_the_hub):
    (source,) = resolve("someone/texts", config="small")
    assert list(source.documents()) == list(source.documents()) == TEXTS
    assert on_the_hub == [("someone/texts", "small", "train", None)]


def test_hub_data_set_that_is_a_script(on_the_hub):
    assert read("someone/script") == TEXTS
    assert on_the_hub[-1] == ("someone/script", None, "train", "refs/convert/parquet")


@pytest.mark.parametrize(
    ("preset", "asked"),
    [
        ("openwebtext", ("Skylion007/openwebtext", None, "train", None)),
        ("fineweb-edu", ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", None)),
    ],
)
def test_presets(on_the_hub, preset, asked):
    assert read(preset) == TEXTS
    assert on_the_hub == [asked]


def test_hub_nested_fields_and_rows_without_text(on_the_hub):
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(INVALID[1:]), on_the_hub.folder / "train-00000.parquet"
    )
    assert read("someone/texts", text_field="data.text", skip_invalid=True) == ["", "", "", "two"]
    assert refused("someone/texts", text_field="data.text") == (
        f"the field data.text in row 1 of someone/texts is not text but null{SKIP}"
    )
    assert refused("someone/texts", skip_invalid=True) == (
        "there is no field 'text' in someone/texts: it has 'data'"
    )


def test_hub_no_text_field(on_the_hub):
    assert refused("someone/texts", text_field="content") == (
        "there is no field 'content' in someone/texts: it has 'id', 'text'"
    )


def test_hub_no_such_split(on_the_hub):
    assert refused("someone/texts", split="nothing") == (
        "there is no file or folder someone/texts, and no such data set can be read from the Hugging Face hub: "
        "Bad split: nothing. Available splits: ['train']"
    )


@pytest.mark.parametrize("name", ["my-texts", "someone/texts"])
def test_neither_here_nor_on_the_hub(monkeypatch, name):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sentence = (
        f"there is no file or folder {name}, and no such data set can be read from the Hugging Face hub: "
    )
    assert refused(name, UserError).startswith(sentence)


def test_network_that_fails_in_the_middle(on_the_hub):
    (source,) = resolve("someone/texts")

    def rows():
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    source.rows = rows
    texts = source.documents()
    assert next(texts) == "one"
    with pytest.raises(OSError, match=re.escape("reading someone/texts failed (reset by peer)")):
        next(texts)


@pytest.fixture
def redpajama(tmp_path, monkeypatch):
    """RedPajama v1 on the local disk, with a list of its files, and without its books."""
    urls = []
    for part in ("common_crawl", "c4", "github", "arxiv", "wikipedia", "stackexchange"):
        (tmp_path / part).mkdir()
        for number in range(2):
            path = tmp_path / part / f"{number}.jsonl"
            # The objects of one file need not have the same fields.
            lines = [{"text": f"{part} {number} {line}", "meta": {f"m{line}": 1}} for line in range(50)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            urls.append(path.as_uri())
    (tmp_path / "urls.txt").write_text("\n".join(urls) + "\n")
    monkeypatch.setattr(sources, "_REDPAJAMA_FILES", (tmp_path / "urls.txt").as_uri())


def test_redpajama_has_the_proportions_of_the_paper(redpajama, caplog):
    parts = resolve("redpajama-1b")
    tokens = {source.name.partition("/")[2]: source.tokens for source in parts}
    total = sum(tokens.values())
    assert total == pytest.approx(1e9, abs=10)
    # Section 5: 67, 15, 4.5, (books 4.5,) 4.5, 2.5, 2 per cent; these add up to 100 with the books.
    shares = {"common_crawl": 67, "c4": 15, "github": 4.5, "wikipedia": 4.5, "arxiv": 2.5, "stackexchange": 2}
    assert {part: count / total for part, count in tokens.items()} == pytest.approx(
        {part: share / 95.5 for part, share in shares.items()}
    )
    assert "without book" in caplog.text


def test_redpajama_sample_depends_on_the_seed_alone(redpajama):
    samples = [list(resolve("redpajama-1b", seed=seed)[0].documents()) for seed in (1, 1, 2, 3, 4, 5)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) == 2  # two files, in one order or the other
    for sample in samples:
        assert sorted(sample) == sorted(
            f"common_crawl {number} {line}" for number in range(2) for line in range(50)
        )


def test_redpajama_sample_is_spread_over_the_files(redpajama, monkeypatch):
    monkeypatch.setattr(sources, "_REDPAJAMA_TOKENS", 100)
    texts = list(resolve("redpajama-1b")[0].documents())
    # 70 tokens, so at most 350 characters of two files: documents of 16 characters until half of that is reached.
    assert [sum(f"l {number} " in text for text in texts) for number in range(2)] == [11, 11]


def test_redpajama_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(sources, "_REDPAJAMA_FILES", "file:///nowhere/urls.txt")
    assert refused("redpajama-1b").startswith("RedPajama v1 cannot be read from file:///nowhere/urls.txt: ")
