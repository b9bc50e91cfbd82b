"""Beginning-of-text from the tokenizer to every place where a model reads a text."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from bos_tokenizers import BOS, EOS, VOCABULARY, make_tokenizer, save_tokenizer, texts
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.analysis.analyze import analyze, analyze_run
from inheritune.analysis.lazy import measure_heads
from inheritune.analysis.sequences import open_text
from inheritune.cli.main import app
from inheritune.config import Data, EvaluationSettings, ModelSource, Recipe, Training
from inheritune.data.loader import batches, open_data
from inheritune.data.prepare import prepare
from inheritune.data.shards import open_split, read_manifest
from inheritune.evaluation.evaluate import evaluate
from inheritune.evaluation.samples import continuations, prompts_from
from inheritune.recipe_file import parse_recipe
from inheritune.runtime import files
from inheritune.runtime.hardware import choose_hardware
from inheritune.single_model import scratch_config
from inheritune.training import loop
from inheritune.training.loss import NextTokenLoss
from inheritune.training.validation import WindowLosses, validate
from tiny_models import tiny_model
from tiny_recipes import training

TEXTS = texts(60, seed=1)
WINDOW = 24
HARDWARE = choose_hardware(Training.model_validate(training()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "made")


@pytest.fixture(scope="module")
def shards(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of a tokenizer that puts <bos> in front."""
    directory = tmp_path_factory.mktemp("data") / "shards"
    prepare([TEXTS], directory, tokenizer=tokenizer, validation=0.3)
    return directory


@pytest.fixture(scope="module")
def unsaid(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a manifest that says nothing of it."""
    return without_bos(shards, tmp_path_factory.mktemp("data") / "unsaid")


def without_bos(shards: Path, directory: Path) -> Path:
    shutil.copytree(shards, directory)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    del manifest["tokenizer"]["bos"], manifest["arguments"]["bos"]
    files.write_json(directory / "manifest.json", manifest)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in whose mind the first token matters, with the tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    folder = tmp_path_factory.mktemp("model") / "llama"
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return loaded


def by_hand(model: PreTrainedModel, shards: Path, bos: int | None) -> list[float]:
    """Loss of each validation window: [BOS] and the tokens after the first; BOS also where a document begins."""
    split = open_split(shards, "validation", bos="none")
    tokens = split.read(0, split.tokens).tolist()
    losses = []
    for at in range(0, len(tokens) - WINDOW, WINDOW):
        read = tokens[at : at + WINDOW]
        if bos is not None:
            read = [bos] + [bos if token == EOS else token for token in read[1:]]
        with torch.no_grad():
            logits_tv = model(torch.tensor([read])).logits[0]
        losses.append(F.cross_entropy(logits_tv, torch.tensor(tokens[at + 1 : at + WINDOW + 1])).item())
    return losses


def test_files_are_the_same_and_the_manifest_says_so(shards: Path, tokenizer: Path, tmp_path: Path) -> None:
    plain = prepare([TEXTS], tmp_path / "none", tokenizer=tokenizer, validation=0.3, bos="none")
    other = prepare([TEXTS], tmp_path / "other", tokenizer=tokenizer, validation=0.3, bos="<sop>")
    manifest = read_manifest(shards)
    assert [one.tokenizer.bos for one in (manifest, plain, other)] == [BOS, None, 3]
    assert [one.arguments["bos"] for one in (manifest, plain, other)] == ["auto", "none", "<sop>"]
    assert manifest.splits == plain.splits == other.splits, "SHA-256 of the token files and all counts"
    assert json.loads((shards / "manifest.json").read_bytes())["tokenizer"]["bos"] == BOS
    assert [open_split(place, "train").bos for place in (shards, tmp_path / "none")] == [BOS, None]
    split = open_split(shards, "train")
    assert BOS not in split.read(0, split.tokens).tolist()


def test_our_own_tokenizer_and_nanogpt_have_none(tmp_path: Path) -> None:
    manifest = prepare([TEXTS], tmp_path / "made", train_tokenizer=300, validation=0.3)
    assert manifest.tokenizer.bos is None
    (tmp_path / "train.bin").write_bytes(b"\1\0" * 10)
    assert open_split(tmp_path, "train").bos is None
    with pytest.raises(
        UserError, match="has no tokenizer in which the beginning-of-text token '<bos>' could be"
    ):
        open_split(tmp_path, "train", "<bos>")


def test_another_beginning_is_refused_in_the_same_directory(
    tokenizer: Path, shards: Path, unsaid: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"tokenizer": tokenizer, "validation": 0.3}
    with pytest.raises(UserError, match=r"was started with bos = 'auto', not 'none': give another directory"):
        prepare([TEXTS], shards, bos="none", **arguments)
    with pytest.raises(
        UserError, match=r"was started with bos = 'auto', not '<bos>': give another directory"
    ):
        prepare([TEXTS], unsaid, bos="<bos>", **arguments)
    assert prepare([TEXTS], unsaid, **arguments) == read_manifest(unsaid)
    with pytest.raises(UserError, match="the beginning-of-text token '<s>' is not in the vocabulary"):
        prepare([TEXTS], tmp_path / "new", bos="<s>", **arguments)
    assert not (tmp_path / "new").exists()


def test_several_tokens_in_front_are_refused_and_settled(tmp_path: Path) -> None:
    several = save_tokenizer(tmp_path / "several", "<bos> <sop> $A")
    with pytest.raises(UserError, match=r"puts more than one token in front of a text \(<bos>, <sop>\)"):
        prepare([TEXTS], tmp_path / "out", tokenizer=several, validation=0.3)
    assert not (tmp_path / "out").exists()
    manifest = prepare([TEXTS], tmp_path / "out", tokenizer=several, validation=0.3, bos="<sop>")
    assert manifest.tokenizer.bos == 3


@pytest.mark.parametrize(("said", "bos"), [("auto", BOS), ("none", None), ("<sop>", 3)])
def test_validation_is_what_transformers_gives_by_hand(
    model: PreTrainedModel, shards: Path, said: str, bos: int | None
) -> None:
    split = open_data(Data(path=shards, window=WINDOW, bos=said)).validation
    found = validate(NextTokenLoss(model), split, WINDOW, HARDWARE)
    expected = by_hand(model, shards, bos)
    assert len(expected) > 10
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-5)
    if bos is not None:
        assert found.mean != pytest.approx(sum(by_hand(model, shards, None)) / len(expected), rel=1e-3)


def test_one_document_is_read_as_the_tokenizer_gives_it(tokenizer: Path, tmp_path: Path) -> None:
    """From its second token on: the first gives its place to BOS."""
    document = " ".join(TEXTS)
    prepare([[document]], tmp_path / "data", tokenizer=tokenizer, validation=0)
    ids = make_tokenizer()(document).input_ids
    assert ids[0] == BOS
    split = open_split(tmp_path / "data", "train")
    ((inputs_bt, targets_bt),) = batches(split, np.arange(1), 50, 1, torch.device("cpu"))
    assert inputs_bt[0].tolist() == [BOS, *ids[2:51]]
    assert targets_bt[0].tolist() == ids[2:52]


def test_evaluate_goes_by_the_manifest(checkpoint: Path, model: PreTrainedModel, shards: Path) -> None:
    settings = EvaluationSettings(validation=shards, window=WINDOW)
    found = evaluate([str(checkpoint)], settings, device="cpu").validation
    assert found is not None
    expected = by_hand(model, shards, BOS)
    assert found.scores[0].value == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_analyze_reads_shards_and_a_text_file_with_it(
    checkpoint: Path, model: PreTrainedModel, shards: Path, tmp_path: Path
) -> None:
    split = open_split(shards, "validation")
    tokens = split.read(0, split.tokens).tolist()

    def ranks(first: int | None, ids: list[int], windows: list[int]) -> list[list[list[int]]]:
        rows = [ids[n * WINDOW : (n + 1) * WINDOW] for n in windows]
        if first is not None:
            rows = [[first] + [first if token == EOS else token for token in row[1:]] for row in rows]
        heads = measure_heads(model, torch.tensor(rows), tau=0.9, mass=0.9)
        return [layer.tolist() for layer in heads.ranks]

    found = analyze(model, shards, sequences=6, window=WINDOW)
    assert found.ranks == ranks(BOS, tokens, found.windows) != ranks(None, tokens, found.windows)
    assert analyze(model, shards, sequences=6, window=WINDOW, bos="none").ranks == ranks(
        None, tokens, found.windows
    )
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    ids = make_tokenizer(None)(" ".join(TEXTS)).input_ids
    found = analyze(checkpoint, tmp_path / "text.txt", sequences=6, window=WINDOW)
    assert found.ranks == ranks(BOS, ids, found.windows) != ranks(None, ids, found.windows)
    found = analyze(checkpoint, tmp_path / "text.txt", sequences=6, window=WINDOW, bos="<sop>")
    assert found.ranks == ranks(3, ids, found.windows)


def test_the_largest_id_of_a_text_file_may_be_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text")
    last = max(make_tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    make_tokenizer().save_pretrained(tmp_path)
    small = tiny_model("llama", vocab_size=last[1])
    small.config.name_or_path = small.name_or_path = str(tmp_path)
    analyze(small, tmp_path / "text.txt", window=2, sequences=1, bos="none")
    with pytest.raises(UserError, match=rf"token {last[1]} occurs in .*text.txt, but the embedding of"):
        analyze(small, tmp_path / "text.txt", window=2, sequences=1, bos=last[0])


def reads(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What the model is given to continue."""
    given: list[list[int]] = []
    generate = type(model).generate

    def recording(self: Any, ids: torch.Tensor, **options: Any) -> Any:
        given.append(ids[0].tolist())
        return generate(self, ids, **options)

    monkeypatch.setattr(type(model), "generate", recording)
    return given


@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <eos>"])
def test_prompts_begin_with_it_once_and_do_not_end(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    given, tokenizer = reads(model, monkeypatch), make_tokenizer(template)
    plain = make_tokenizer(None)
    long = " ".join(TEXTS)
    continuations(model, tokenizer, ["the window", "<bos>the window", "", long], 10)
    words, whole = plain("the window").input_ids, plain(long).input_ids
    assert given == [[BOS, *words], [BOS, *words], [BOS], [BOS, *whole[-(64 - 10 - 1) :]]]
    given.clear()
    continuations(model, tokenizer, ["the window"], 10, front=[])
    continuations(model, tokenizer, ["the window"], 10, front=[3])
    continuations(model, make_tokenizer("<bos> <sop> $A"), ["the window"], 10)
    continuations(model, make_tokenizer("$A <eos>"), ["the window"], 10)
    assert given == [words, [3, *words], [BOS, 3, *words], words]


def test_prompts_of_documents_have_neither_beginning_nor_end(shards: Path) -> None:
    tokenizer, split = make_tokenizer(), open_split(shards, "validation")
    prompts = prompts_from(split, tokenizer, count=10**6)
    assert not any("<" in prompt for prompt in prompts)
    tokens = split.read(0, split.tokens).tolist()
    lengths = [len(tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts]
    assert max(lengths) == 24
    assert min(lengths) < 24, "a shorter document is a prompt as a whole"
    documents = tokenizer.decode(tokens).split("<eos>")
    assert all(any(document.startswith(prompt) for document in documents) for prompt in prompts)


def test_a_run_reads_it_everywhere(
    checkpoint: Path, model: PreTrainedModel, shards: Path, unsaid: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    given = reads(model, monkeypatch)
    for path, said, bos in ((shards, "auto", BOS), (shards, "none", None), (unsaid, "<bos>", BOS)):
        given.clear()
        values = {
            "data": {"path": str(path), "window": WINDOW, "bos": said},
            "reference": {"pretrained": str(checkpoint)},
            "start_layers": "auto",
            "training": training(tokens_per_step=4 * WINDOW, steps=4, schedule={"warmup_steps": 1}),
            "samples": {"tokens": 4},
            "grow": {"max_rounds": 1},
        }
        directory = tmp_path / f"{path.name}-{said.strip('<>')}"
        run(parse_recipe(values, Recipe), directory)
        losses = WindowLosses.load(directory / "reference" / "validation.json").losses
        assert losses.tolist() == pytest.approx(by_hand(model, shards, bos), rel=1e-5)
        assert len(given) == 6, "three prompts, two models"
        assert all((ids[0] == BOS) == (bos is not None) and BOS not in ids[1:] for ids in given)
        found = analyze_run(directory)
        for name, place in (("reference", checkpoint), ("final", directory / "final")):
            again = analyze(
                place, shards, sequences=found[name].sequences, window=WINDOW, bos=said, device="cpu"
            )
            assert again.ranks == found[name].ranks
        settings = EvaluationSettings(validation=path, window=WINDOW)
        for models in ([directory], [f"reference={checkpoint}", directory / "final"]):
            measured = evaluate(models, settings, device="cpu").validation
            assert measured is not None
            assert measured.scores[0].value == pytest.approx(losses.mean(), rel=1e-5), "as the run reads it"
    settings = EvaluationSettings(validation=shards, window=WINDOW)
    runs = [
        f"{said}={tmp_path / folder / 'final'}"
        for said, folder in (("a", "shards-none"), ("b", directory.name))
    ]
    with pytest.raises(
        UserError, match=r"different tokens in front of a text \(a with 'none', b with '<bos>'\)"
    ):
        evaluate(runs, settings, device="cpu")
    with pytest.raises(UserError, match="belong to other data"):
        run(parse_recipe({**values, "data": {**values["data"], "bos": "auto"}}, Recipe), directory)


def test_training_reads_it(checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[torch.Tensor] = []
    steps = loop.training_steps

    def recording(*given: Any, **more: Any) -> Any:
        for step in steps(*given, **more):
            seen.extend(inputs_bt for inputs_bt, _ in step)
            yield step

    monkeypatch.setattr(loop, "training_steps", recording)
    values = {
        "data": {"path": str(shards), "window": WINDOW},
        "reference": {"pretrained": str(checkpoint)},
        "training": training(tokens_per_step=4 * WINDOW, steps=3, schedule={"warmup_steps": 1}),
        "grow": {"max_rounds": 1},
    }
    run(parse_recipe(values, Recipe), tmp_path / "run")
    read_nt = torch.cat(seen)
    assert len(read_nt) >= 3 * 4
    assert (read_nt[:, 0] == BOS).all()
    assert EOS not in read_nt
    assert (read_nt[:, 1:] == BOS).any(), "documents begin within windows too"


def test_a_model_from_random_weights_knows_its_beginning(shards: Path) -> None:
    source = ModelSource(architecture={"model_type": "llama", "num_hidden_layers": 1})
    for said, expected in (("auto", BOS), ("none", EOS)):
        data = open_data(Data(path=shards, window=WINDOW, bos=said))
        config = scratch_config(source, data, WINDOW)
        assert (config.bos_token_id, config.eos_token_id) == (expected, EOS)


def test_a_manifest_that_says_nothing_is_read_as_before_with_one_warning(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unsaid = without_bos(shards, tmp_path / "unsaid")
    with caplog.at_level(logging.WARNING, logger="inheritune"):
        for _ in range(2):
            assert open_data(Data(path=unsaid, window=WINDOW)).train.bos is None
        open_text(unsaid, None)
    (record,) = caplog.records
    sentence = record.getMessage()
    assert (
        f"the tokenizer of {unsaid} puts <bos> in front of a text, but the manifest does not say so"
        in sentence
    )
    assert "prepare the text again" in sentence
    assert "data.bos" in sentence


def test_no_warning_where_there_is_nothing_to_say(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = tmp_path / "plain"
    prepare([TEXTS], plain, tokenizer=save_tokenizer(tmp_path / "adds-none", "$A <eos>"), validation=0.3)
    with caplog.at_level(logging.WARNING, logger="inheritune"):
        for said in ("none", "<bos>"):
            open_data(Data(path=without_bos(shards, tmp_path / said.strip("<>")), window=WINDOW, bos=said))
        open_data(Data(path=without_bos(plain, tmp_path / "old"), window=WINDOW))
        open_data(Data(path=shards, window=WINDOW))
    assert not caplog.records


def test_on_the_command_line(tokenizer: Path, checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for said, expected in ((None, BOS), ("none", None), ("<sop>", 3)):
        output = tmp_path / f"out-{expected}"
        command = [
            "prepare",
            str(source),
            "-o",
            str(output),
            "--tokenizer",
            str(tokenizer),
            "--validation",
            "0.3",
        ]
        result = CliRunner().invoke(app, command + ([] if said is None else ["--bos", said]))
        assert result.exit_code == 0, result.output
        assert read_manifest(output).tokenizer.bos == expected
    found = {}
    for said in ("auto", "none"):
        command = ["analyze", str(checkpoint), "--data", str(shards), "--window", str(WINDOW), "--bos", said]
        result = CliRunner().invoke(app, [*command, "--attention", "-o", str(tmp_path / said)])
        assert result.exit_code == 0, result.output
        found[said] = [(tmp_path / said / name).read_bytes() for name in ("analysis.json", "layers.json")]
    assert all(auto != none for auto, none in zip(found["auto"], found["none"], strict=True))
