import json

import pytest
import typer
from typer.testing import CliRunner

from inheritune import UserError
from inheritune.cli.prepare import prepare_command
from inheritune.data.shards import read_manifest

app = typer.Typer()
app.command()(prepare_command)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"content": f"document number {n}"}) + "\n" for n in range(200)))
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prepare_and_prepare_again(tmp_path, source):
    command = (
        source,
        "-o",
        tmp_path / "out",
        "--train-tokenizer",
        300,
        "--text-field",
        "content",
        "--validation",
        0.1,
    )
    first = run(*command)
    assert first.exit_code == 0, first.exception
    manifest = read_manifest(tmp_path / "out")
    assert manifest.tokenizer.vocabulary == 300
    train = manifest.splits["train"]
    assert "out is finished" in first.output
    assert f"train: {train.documents} documents, {train.tokens:,} tokens" in first.output
    again = run(*command)
    assert again.exit_code == 0
    assert "was finished already; nothing is changed" in again.output


def test_every_option_arrives(tmp_path, source):
    options = {
        "--train-tokenizer": 300,
        "--text-field": "content",
        "--validation": 0.25,
        "--seed": 5,
        "--max-documents": 100,
        "--workers": 1,
        "--split": "test",
        "--config": "small",
        "--end-of-text": "<|endoftext|>",
        "--bos": "<|endoftext|>",
    }
    result = run(source, "-o", tmp_path / "out", *(part for option in options.items() for part in option))
    assert result.exit_code == 0, result.exception
    arguments = read_manifest(tmp_path / "out").arguments
    for option, value in options.items():
        if option != "--workers":
            assert arguments[option[2:].replace("-", "_")] == value
    documents = [split.documents for split in read_manifest(tmp_path / "out").splits.values()]
    assert sum(documents) == 100


def test_rows_without_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"data": {"text": text}}) + "\n" for text in ["one", None, "two", "", None])
    )
    command = (
        path,
        "-o",
        tmp_path / "out",
        "--train-tokenizer",
        300,
        "--validation",
        0,
        "--text-field",
        "data.text",
    )
    assert "leave such rows out with --skip-invalid" in str(run(*command).exception)
    result = run(*command, "--skip-invalid")
    assert result.exit_code == 0, result.exception
    assert "train: 2 documents" in result.output
    assert "  3 rows without text were left out\n" in result.output
    assert read_manifest(tmp_path / "out").arguments["skip_invalid"] is True


def test_errors_are_left_to_the_caller(tmp_path):
    result = run(tmp_path / "nothing.txt", "-o", tmp_path / "out", "--train-tokenizer", 300)
    assert isinstance(result.exception, UserError)
