"""Checkpoints that cannot be read as they are: exit code 2, one sentence that helps, and nothing is left."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import tiny_data
from inheritune.cli import main as cli
from tiny_checkpoints import (
    INDEX,
    WEIGHTS,
    change_json,
    change_weights,
    tensor_names,
    write_checkpoint,
    write_sentencepiece,
)
from tiny_models import tiny_model
from tiny_recipes import training

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"

Damage = Callable[[Path], object]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["inheritune", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capfd.readouterr().err

    return call


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("originals")
    return {
        "llama": write_checkpoint(place / "llama"),
        "sharded": write_checkpoint(place / "sharded", shards=3),
        "qwen2": write_checkpoint(place / "qwen2", "qwen2"),
        "mixtral": write_checkpoint(place / "mixtral", "mixtral"),
        "tied": write_checkpoint(place / "tied", tie_word_embeddings=True),
    }


def config(**changes: Any) -> Damage:
    return lambda folder: change_json(folder / "config.json", **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    return lambda folder: change_weights(folder / WEIGHTS, change)


def write(name: str, content: bytes | str) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def cut_short(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return damage


def as_8_bits(tensors: dict[str, torch.Tensor]) -> None:
    """Weights as FP8 checkpoints have them: an 8-bit tensor and the inverse of its scale."""
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)


def only_8_bits(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def whole_numbers(folder: Path) -> None:
    """One letter of the file's head changed: the same bytes, read as numbers of another kind."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content.replace(b'"F32"', b'"I32"', 1))


def as_gptq(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name.replace("weight", "qweight")] = torch.zeros(4, 32, dtype=torch.int32)
        tensors[name.replace("weight", "scales")] = tensors.pop(name)[:1].half()


def as_pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    for part in (1, 2):
        torch.save({}, folder / f"pytorch_model-0000{part}-of-00002.bin")


def as_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "some-lab/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def as_raw(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"")


def only_gguf(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def second_block_of_experts(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "experts.3." in name]:
        del tensors[name]


def rename_in_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"]["model.layers.0.ghost.weight"] = index["weight_map"][first]
    (folder / INDEX).write_text(json.dumps(index))


def first_shard_thrice(folder: Path) -> None:
    """The second file is a copy of the first, as of a download that went wrong."""
    shutil.copyfile(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0


QUANTIZED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
    "of a kind to come": {"quant_method": "int1"},
}

DAMAGES: dict[str, tuple[str, Damage, str]] = {
    # Weights that are not this model's.
    "qwen2 weights under a llama configuration": (
        "qwen2",
        config(model_type="llama", architectures=["LlamaForCausalLM"], layer_types=None),
        "weights that a 'llama' model does not use: model.layers.0.self_attn.k_proj.bias",
    ),
    "8-bit weights without their configuration": ("llama", weights(as_8_bits), "its weights are quantized"),
    "8-bit weights without their scales": ("llama", weights(only_8_bits), "is of the type F8_E4M3"),
    "one letter of a type changed": ("llama", whole_numbers, "is of the type I32"),
    "gptq weights without their configuration": ("llama", weights(as_gptq), "its weights are quantized"),
    "a weight within a block that is nobody's": (
        "llama",
        weights(lambda tensors: tensors.update({"model.layers.1.mlp.gate.weight": torch.ones(2)})),
        "does not use: model.layers.1.mlp.gate.weight",
    ),
    "a weight outside that is nobody's": (
        "llama",
        weights(lambda tensors: tensors.update({"v_head.weight": torch.ones(2)})),
        "does not use: v_head.weight",
    ),
    "more blocks than the configuration says": (
        "llama",
        config(num_hidden_layers=3),
        "has weights of layer 3, but its config.json says that it has 3 layers",
    ),
    "fewer blocks than the configuration says": (
        "llama",
        both(config(num_hidden_layers=2), weights(lambda t: [t.pop(n) for n in list(t) if ".1." in n])),
        "lacks weights: model.layers.1.",
    ),
    "a tied model with a head of its own": (
        "tied",
        weights(other_head),
        "has a head of its own, but its config.json says that it is the embedding",
    ),
    "a weight of another shape": (
        "llama",
        config(intermediate_size=48),
        "has the shape 32 x 64, but its configuration asks for 32 x 48; and",
    ),
    "an expert too few": ("mixtral", weights(second_block_of_experts), "experts"),
    # Files that cannot be read.
    "a pointer of git-LFS": ("llama", write(WEIGHTS, POINTER), "git lfs pull"),
    "a pointer among the shards": (
        "sharded",
        write("model-00002-of-00003.safetensors", POINTER),
        "model-00002-of-00003.safetensors is not the file itself but git-LFS's pointer to it",
    ),
    "a pointer for a tokenizer": (
        "llama",
        write("tokenizer.json", POINTER),
        "tokenizer.json is not the file",
    ),
    "a pointer for the configuration": (
        "llama",
        write("config.json", POINTER),
        "config.json is not the file",
    ),
    "a file cut off": ("llama", cut_short(WEIGHTS, 0.9), "model.safetensors is damaged or cut off"),
    "a head cut off": ("llama", cut_short(WEIGHTS, 0.01), "model.safetensors is damaged or cut off"),
    "an empty file": ("llama", write(WEIGHTS, b""), "model.safetensors is damaged or cut off"),
    "garbage": ("llama", write(WEIGHTS, b"\xff" * 999), "model.safetensors is damaged or cut off"),
    "a shard cut off": (
        "sharded",
        cut_short("model-00003-of-00003.safetensors", 0.5),
        "model-00003-of-00003.safetensors is damaged or cut off",
    ),
    "a shard missing": (
        "sharded",
        remove("model-00002-of-00003.safetensors"),
        "lacks model-00002-of-00003.safetensors, which model.safetensors.index.json names",
    ),
    "a shard twice": ("sharded", first_shard_thrice, "twice, in model-00001-of-00003.safetensors and in"),
    "an index of more than there is": (
        "sharded",
        rename_in_index,
        "says that model.layers.0.ghost.weight is in model-0000",
    ),
    "an index that is none": ("sharded", write(INDEX, "{}"), "its `weight_map` should name the file"),
    "an index missing": ("sharded", remove(INDEX), "has neither model.safetensors nor"),
    "a damaged tokenizer": (
        "llama",
        cut_short("tokenizer.json", 0.5),
        "the tokenizer of MODEL cannot be read",
    ),
    "a tokenizer of other versions": (
        "llama",
        lambda folder: change_json(folder / "tokenizer.json", model={"type": "NextModel", "vocab": {}}),
        "made for other versions of tokenizers",
    ),
    "a tokenizer's configuration that is a list": (
        "llama",
        write("tokenizer_config.json", "[]"),
        "MODEL/tokenizer_config.json is damaged: it should hold a JSON object",
    ),
    "a tokenizer without its vocabulary": (
        "llama",
        remove("tokenizer.json"),
        "MODEL has no tokens: there is",
    ),
    "damaged settings of generation": ("llama", write("generation_config.json", '{"tem'), "is not JSON"),
    # Configurations.
    "no JSON": ("llama", write("config.json", "model: llama"), "config.json is damaged: it is not JSON"),
    "not an object": ("llama", write("config.json", "[1]"), "config.json is damaged: it should hold a JSON"),
    "bytes that are no text": ("llama", write("config.json", b"\xff\xfe\x00{"), "is not JSON"),
    "no type": ("llama", config(model_type=None), "config.json names no `model_type`"),
    "a type to come": ("llama", config(model_type="llama9"), "the type 'llama9', which transformers"),
    "layers in words": ("llama", config(num_hidden_layers="four"), "says num_hidden_layers: 'four', but"),
    "layers below zero": ("llama", config(num_hidden_layers=-4), "says num_hidden_layers: -4, but"),
    "half a layer": ("llama", config(num_hidden_layers=3.5), "says num_hidden_layers: 3.5, but"),
    "far too many layers": ("llama", config(num_hidden_layers=10**12), "1 to 10,000 layers"),
    "heads that do not divide": (
        "llama",
        config(num_attention_heads=5, head_dim=None),
        "config.json of MODEL does not fit together",
    ),
    "an unknown rope": (
        "llama",
        config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        "says rope_parameters.rope_type: 'spiral', which transformers",
    ),
    "an unknown activation": ("llama", config(hidden_act="sigh"), "says hidden_act: 'sigh', which"),
    "a width below zero": ("llama", config(hidden_size=-32), "does not fit together"),
    "code of its own": (
        "llama",
        config(
            model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
        ),
        "give --trust-remote-code to run it",
    ),
    "an encoder-decoder": (
        "llama",
        config(model_type="t5", num_layers=4),
        "is an encoder-decoder model (t5)",
    ),
    "an encoder": ("llama", config(model_type="bert", hidden_act="gelu"), "is an encoder (bert)"),
    "a model of pictures": (
        "llama",
        config(model_type="vit", hidden_act="gelu"),
        "not a causal language model",
    ),
    "an encoder made of a decoder": (
        "llama",
        config(
            model_type="gemma3_text", use_bidirectional_attention=True, layer_types=None, rope_parameters=None
        ),
        "is an encoder (gemma3_text)",
    ),
    # Things that are not checkpoints.
    "pickles in parts": ("llama", as_pickles, "has its weights in pytorch_model-00001-of-00002.bin only"),
    "an adapter": ("llama", as_adapter, "is an adapter (PEFT) of some-lab/base, not a model: merge it"),
    "an adapter beside a model": (
        "llama",
        write("adapter_config.json", '{"base_model_name_or_path": null}'),
        "is an adapter (PEFT), not a model: merge it",
    ),
    "a folder of GGUF": ("llama", only_gguf, "model-Q4_K_M.gguf cannot be read: it is damaged"),
    "weights as their makers keep them": ("llama", as_raw, "(original/consolidated.00.pth)"),
    "no weights": ("llama", remove(WEIGHTS), "has a configuration but no weights"),
    "a link to nothing": (
        "llama",
        both(remove(WEIGHTS), lambda folder: (folder / WEIGHTS).symlink_to(folder / "blob")),
        "is a link to a file that is not there",
    ),
    "a folder for a file": (
        "llama",
        both(remove(WEIGHTS), lambda folder: (folder / WEIGHTS).mkdir()),
        "Is a directory",
    ),
    **{
        f"quantized: {name}": (
            "llama",
            config(quantization_config=how),
            f"the weights of MODEL are quantized ({how['quant_method']})",
        )
        for name, how in QUANTIZED.items()
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: Any, *arguments: object) -> str:
    """The one sentence of a command that has to be refused."""
    code, said = command(*arguments)
    assert code == 2, said
    lines = [line for line in said.splitlines() if not line.startswith("WARNING: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), said
    assert "Traceback" not in said and "ignore_mismatched_sizes" not in said
    return lines[0]


@pytest.mark.parametrize("case", DAMAGES)
def test_a_checkpoint_that_cannot_be_read(
    command, place: Path, originals: dict[str, Path], case: str
) -> None:
    original, damage, sentence = DAMAGES[case]
    shutil.copytree(originals[original], place / "MODEL")
    damage(place / "MODEL")
    assert sentence in refused(command, "inherit", "MODEL", "--layers", 2, "-o", "OUT")
    assert [path.name for path in place.iterdir()] == ["MODEL"]


def run_of(data: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"path": str(data), "window": 32},
        "reference": {"pretrained": "MODEL"},
        "training": training(),
    }


def single_of(data: Path) -> dict[str, Any]:
    recipe = run_of(data)
    return {"data": recipe["data"], "model": recipe["reference"], "training": recipe["training"]}


@pytest.mark.parametrize(
    "case", ["quantized: gptq", "quantized: mxfp4", "an encoder-decoder", "layers in words"]
)
@pytest.mark.parametrize("verb", ["plan", "run", "train", "evaluate", "analyze"])
def test_every_verb_refuses_by_the_configuration(
    command, place: Path, originals: dict[str, Path], verb: str, case: str
) -> None:
    _, damage, sentence = DAMAGES[case]
    shutil.copytree(originals["llama"], place / "MODEL")
    damage(place / "MODEL")
    (place / "MODEL" / WEIGHTS).unlink()  # they are not looked at
    data = tiny_data.write_shards(place / "data")
    recipe = single_of(data) if verb == "train" else run_of(data)
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = {
        "plan": ["recipe.yaml"],
        "run": ["recipe.yaml", "-o", "OUT"],
        "train": ["recipe.yaml", "-o", "OUT"],
        "evaluate": ["MODEL", "--val", "data", "-o", "OUT"],
        "analyze": ["MODEL", "--data", "data", "-o", "OUT"],
    }
    assert sentence in refused(command, verb, *given[verb])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "MODEL/model.safetensors",
            "MODEL/model.safetensors is a file: give the folder that it is in, MODEL",
        ),
        ("MODEL/config.json", "is a file: give the folder that it is in, MODEL"),
        ("some.gguf", "some.gguf cannot be read: it is damaged"),
        ("RUN", "RUN is the directory of a run, not a model: give RUN/final"),
        ("TRAINED", "TRAINED is the directory of a run, not a model: give TRAINED/model"),
        ("EMPTY", "EMPTY is not a model: the folder has no config.json"),
        ("./nowhere", "there is no model at ./nowhere: the folder does not exist"),
        ("runs/x/final", "there is no model at runs/x/final: the folder does not exist"),
        ("no where", "there is no model at no where: the folder does not exist"),
        (
            "nowhere",
            "there is no folder nowhere, and it cannot be loaded from the Hugging Face hub: it cannot be reached",
        ),
        (
            "some-lab/modle",
            "there is no folder some-lab/modle, and it cannot be loaded from the Hugging Face hub",
        ),
        ("", "no model is named"),
    ],
)
def test_what_is_given_for_a_model(
    command, place: Path, originals: dict[str, Path], given: str, sentence: str
) -> None:
    shutil.copytree(originals["llama"], place / "MODEL")
    shutil.copytree(originals["llama"], place / "RUN" / "final")
    shutil.copytree(originals["llama"], place / "TRAINED" / "model")
    (place / "EMPTY").mkdir()
    (place / "some.gguf").write_bytes(b"GGUF")
    said = refused(command, "inherit", given, "--layers", 2, "-o", "OUT")
    assert sentence in said
    assert "Repo id" not in said
    assert not (place / "OUT").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_that_may_not_be_read(
    command, place: Path, originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(originals["llama"], place / "MODEL")
    (place / "MODEL" / name).chmod(0)
    if os.geteuid() == 0:  # who may read everything
        original = Path.open

        def open_if_allowed(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", open_if_allowed)
    said = refused(command, "inherit", "MODEL", "--layers", 2, "-o", "OUT")
    assert f"cannot read MODEL/{name}: Permission denied" in said
    assert not (place / "OUT").exists()


def test_a_multimodal_model_whose_language_model_is_no_model_of_its_own(command, place: Path) -> None:
    text = {"num_hidden_layers": 4, "hidden_size": 32, "vocab_size": 97}
    kind = AutoConfig.for_model("paligemma", text_config={"model_type": "gemma", **text}, projection_dim=32)
    kind.save_pretrained(place / "MODEL")
    said = refused(command, "inherit", "MODEL", "--layers", 2, "-o", "OUT")
    assert "is a multimodal model (paligemma): its language model (gemma) has to be saved as a causal" in said


@pytest.mark.parametrize("has_tokenizer", ["loaded", "as it is", "none"])
def test_the_tokenizer_comes_along(
    command, place: Path, originals: dict[str, Path], caplog: pytest.LogCaptureFixture, has_tokenizer: str
) -> None:
    shutil.copytree(originals["llama"], place / "MODEL")
    if has_tokenizer != "loaded":
        for path in (place / "MODEL").glob("tokenizer*"):
            path.unlink()
        (place / "MODEL" / "chat_template.jinja").unlink()
    before = {}
    if has_tokenizer == "as it is":
        if importlib.util.find_spec("sentencepiece") is not None:
            pytest.skip("sentencepiece is installed, so that the tokenizer can be used")
        write_sentencepiece(place / "MODEL")
        (place / "MODEL" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        (place / "MODEL" / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
        before = {
            path.name: path.read_bytes() for path in (place / "MODEL").iterdir() if "token" in path.name
        }
    code, said = command("inherit", "MODEL", "--layers", 2, "--keep", "first", "-o", "OUT")
    assert code == 0, said
    if has_tokenizer == "loaded":
        assert caplog.text == ""
        assert (place / "OUT" / "tokenizer.json").is_file()
        assert (place / "OUT" / "chat_template.jinja").read_bytes() == (
            place / "MODEL" / "chat_template.jinja"
        ).read_bytes()
    elif has_tokenizer == "as it is":
        assert "the tokenizer of MODEL cannot be used here: it needs the library sentencepiece" in caplog.text
        assert {name: (place / "OUT" / name).read_bytes() for name in before} == before
    else:
        assert "MODEL comes without a tokenizer" in caplog.text


def test_tensor_names_are_what_they_seem(originals: dict[str, Path]) -> None:
    """The damages above name tensors: they are there before the damage."""
    names = tensor_names(originals["llama"] / WEIGHTS)
    assert "model.layers.0.self_attn.q_proj.weight" in names and "lm_head.weight" in names
    assert "lm_head.weight" not in tensor_names(originals["tied"] / WEIGHTS)


def test_a_language_model_is_taken_out_of_a_multimodal_one(
    command, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = {**tiny_model("gemma3_text").config.to_dict(), "model_type": "gemma3_text"}
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("gemma3", text_config=text, vision_config={**sight, "image_size": 28})
    )
    whole.save_pretrained(place / "MODEL")
    code, said = command("inherit", "MODEL", "--layers", 2, "-o", "OUT")
    assert code == 0, said
    assert "MODEL is a multimodal model (gemma3): only its language model is taken" in caplog.text
    small = AutoModelForCausalLM.from_pretrained(place / "OUT")
    assert (small.config.model_type, small.config.num_hidden_layers) == ("gemma3_text", 2)
