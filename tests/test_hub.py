"""What is done with the Hugging Face hub: pushing, and reading models and data sets, through its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import hub as stand_in
import tiny_data
from hub import TOKEN, USER, Client, Hub, Repo
from inheritune import UserError
from inheritune.algorithm import run
from inheritune.config import Recipe
from inheritune.data.shards import read_manifest
from inheritune.models.load import load_model
from inheritune.publish import push
from inheritune.recipe_file import parse_recipe
from small_tokenizers import byte_level
from tiny_gguf import write_gguf
from tiny_models import tiny_model
from tiny_recipes import values


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    """An empty one."""
    served.repos, served.large, served.broken, served.asked = {}, {}, set(), []
    return served


@pytest.fixture(scope="module")
def call(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(served, tmp_path_factory.mktemp("home"))
    yield client
    client.pool.shutdown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = tiny_data.write_shards(folder / "data")
    tiny_model("llama").save_pretrained(folder / "reference")
    card = "---\nlicense: other\nlicense_name: mine\nlanguage: [en, de]\nbase_model: someone/else\n---\n# x\n"
    (folder / "reference/README.md").write_text(card)
    settings = values(
        data,
        name="a <b>*name*<br> | of mine",
        reference={"pretrained": str(folder / "reference")},
        grow={"max_rounds": 1},
    )
    run(parse_recipe(settings, Recipe), folder / "run")
    return folder / "run"


def same(one: Path, other: Path) -> bool:
    first, second = load_model(one).state_dict(), load_model(other).state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_is_pushed_and_read_back(finished: Path, hub: Hub, call: Client, tmp_path: Path) -> None:
    pushed = call("push", finished, "--repo", "small")
    assert pushed.code == 0, pushed.err
    assert f"{USER}/small" in pushed.out
    repo = hub.repos["models", f"{USER}/small"]
    assert repo.private
    assert repo.commits == 1
    sent = {path.name: path.read_bytes() for path in (finished / "final").iterdir()}
    assert {name: data for name, data in repo.files.items() if name != ".gitattributes"} == sent
    call.read_model(f"{USER}/small", tmp_path / "back")
    assert same(tmp_path / "back", finished / "final")

    (finished / "final/extra.txt").write_text("later")
    repo.files["old.safetensors"] = b"of an earlier push"
    again = call("push", finished, "--repo", f"{USER}/small")
    (finished / "final/extra.txt").unlink()
    assert again.code == 0, again.err
    assert set(repo.files) == {*sent, "extra.txt", ".gitattributes"}
    public = call("push", finished, "--repo", "small", "--public")
    assert public.code == 2
    assert "exists and is private: leave out --public" in public.err


def test_a_pushed_model_is_cut_and_analyzed_by_its_id(hub: Hub, call: Client, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    files = {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    card = b"---\nlicense: mit\nlanguage: en\n---\n"
    hub.repos["models", "a-lab/large"] = Repo(files={**files, "README.md": card})
    cut = call("inherit", "a-lab/large", "--keep", "0,3", "-o", tmp_path / "small")
    assert cut.code == 0, cut.err
    assert same(tmp_path / "small", here(tmp_path / "large", [0, 3], tmp_path / "here"))
    front = ModelCard.load(tmp_path / "small/README.md").data
    assert (front.base_model, front.license, front.language) == ("a-lab/large", "mit", "en")
    data = tiny_data.write_shards(tmp_path / "data")
    options = ("--data", data, "--ignore-tokenizer", "-o", tmp_path / "analysis")
    call.offline(True)
    analyzed = call("analyze", "a-lab/large", *options)
    call.offline(False)
    assert analyzed.code == 0, analyzed.err
    assert (tmp_path / "analysis").exists()


def test_a_gguf_is_cut_by_the_name_of_its_file(hub: Hub, call: Client, tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    file = write_gguf(tmp_path / "large-F16.gguf", model, tokenizer)
    hub.repos["models", "a-lab/large-GGUF"] = Repo(files={file.name: file.read_bytes()})
    cut = call("inherit", "a-lab/large-GGUF/large-F16.gguf", "--keep", "0,3", "-o", tmp_path / "small")
    assert cut.code == 0, cut.err
    assert same(tmp_path / "small", here(file, [0, 3], tmp_path / "here"))
    assert ModelCard.load(tmp_path / "small/README.md").data.base_model == "a-lab/large-GGUF"
    missing = call("inherit", "a-lab/large-GGUF/other.gguf", "--keep", "0,3", "-o", tmp_path / "other")
    assert missing.code == 2 and "other.gguf" in missing.err and "Traceback" not in missing.err


def here(model: Path, layers: list[int], output: Path) -> Path:
    """The same cut of a folder."""
    from inheritune import inherit

    inherit(model, keep=layers, output=output)
    return output


def test_a_data_set_is_prepared_by_the_name_of_its_preset(hub: Hub, call: Client, tmp_path: Path) -> None:
    text = [f"document number {number} has a few words of its own" for number in range(200)]
    table = pa.table({"text": text, "url": [""] * len(text)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = (tmp_path / "rows.parquet").read_bytes()
    hub.repos["datasets", "Skylion007/openwebtext"] = Repo(files={"data/train-00000-of-00001.parquet": rows})
    options = ("--train-tokenizer", 300, "--validation", 0.1, "-o", tmp_path / "data")
    prepared = call("prepare", "openwebtext", *options)
    assert prepared.code == 0, prepared.err
    manifest = read_manifest(tmp_path / "data")
    assert sum(split.documents or 0 for split in manifest.splits.values()) == len(text)
    assert manifest.datasets == ["Skylion007/openwebtext"]


def test_an_upload_that_breaks_off_leaves_nothing_and_is_done_again(
    finished: Path, hub: Hub, call: Client
) -> None:
    hub.broken = {"PUT"}
    broken = call("push", finished, "--repo", "small")
    assert broken.code == 2
    assert f"{USER}/small was not pushed" in broken.err
    assert "Traceback" not in broken.err and len(broken.err.splitlines()) == 1
    assert set(hub.repos["models", f"{USER}/small"].files) == {".gitattributes"}
    hub.broken = set()
    assert call("push", finished, "--repo", "small").code == 0
    assert "model.safetensors" in hub.repos["models", f"{USER}/small"].files


def test_a_download_that_breaks_off_is_told_in_a_sentence(hub: Hub, call: Client, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "large")
    hub.repos["models", "b-lab/large"] = Repo(
        files={p.name: p.read_bytes() for p in (tmp_path / "large").iterdir()}
    )
    hub.broken = {"GET"}
    broken = call("inherit", "b-lab/large", "--layers", 2, "-o", tmp_path / "small")
    assert broken.code == 2
    assert "error: the download of b-lab/large broke off (" in broken.err and "Traceback" not in broken.err
    assert not (tmp_path / "small").exists()
    hub.broken = set()
    assert call("inherit", "b-lab/large", "--layers", 2, "-o", tmp_path / "small").code == 0


def test_what_the_hub_refuses(finished: Path, hub: Hub, call: Client) -> None:
    hub.repos["models", "a-lab/theirs"] = Repo(files={"README.md": b"# Theirs\n", "model.safetensors": b"x"})
    before = dict(hub.repos["models", "a-lab/theirs"].files)

    def refused(sentence: str, repo: str = "small", token: str | None = TOKEN) -> None:
        result = call("push", finished, "--repo", repo, token=token)
        assert result.code == 2
        assert sentence in result.err and len(result.err.splitlines()) == 1

    refused("there is no token for the hub: log in with `hf auth login`", token=None)
    refused("the hub does not know the token", token="hf_wrong")
    refused("the token may not write there", "other/small")
    refused("what is in it was not made by inheritune", "a-lab/theirs")
    call.offline(True)
    refused("cannot be pushed while HF_HUB_OFFLINE is set")
    call.offline(False)
    assert hub.repos["models", "a-lab/theirs"].files == before
    assert len(hub.repos) == 1


def test_a_dry_run_lists_the_files_and_asks_nothing(finished: Path, hub: Hub, call: Client) -> None:
    dry = call("push", finished, "--repo", "small", "--dry-run", token=None)
    assert dry.code == 0, dry.err
    size = (finished / "final/model.safetensors").stat().st_size
    pushed = push(finished, "small", dry_run=True)
    assert pushed.url is None and pushed.files["model.safetensors"] == size
    assert all(name in dry.out for name in pushed.files)
    assert hub.asked == []


def test_what_cannot_be_pushed(finished: Path, tmp_path: Path) -> None:
    def refused(model: Path, sentence: str, repo: str = "small") -> None:
        with pytest.raises(UserError, match=sentence):
            push(model, repo, dry_run=True)

    refused(finished, "'a b' is no name of a repository", "a b")
    refused(finished, "is no name of a repository", "a/b/c")
    refused(tmp_path / "nothing", "there is no folder")
    refused(tmp_path, "is not a model: the folder has no config.json")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", "has no model card")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    refused(tmp_path / "run", "is not finished: the command that started it resumes it")


def test_the_card_of_a_run_says_what_it_is_and_how_to_make_it_again(finished: Path) -> None:
    card = ModelCard.load(finished / "final/README.md")
    front = card.data
    assert (front.library_name, front.pipeline_tag, front.tags) == (
        "transformers",
        "text-generation",
        ["inheritune"],
    )
    assert (front.base_model, front.license, front.license_name) == ("someone/else", "other", "mine")
    assert front.language == ["en", "de"]
    assert [result.metric_type for result in front.eval_results] == ["loss"]
    assert front.model_name == "a <b>*name*<br> | of mine"
    assert r"# a &lt;b&gt;\*name\*&lt;br&gt; \| of mine" in card.text
    assert "Paper's rule on its own data:" in card.text
    assert str(finished.parent) not in card.content
    inside = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert inside["reference"]["pretrained"] == "reference"
    whole = yaml.safe_load((finished / "recipe.yaml").read_text())
    inside["data"]["path"], inside["reference"]["pretrained"] = (
        whole["data"]["path"],
        whole["reference"]["pretrained"],
    )
    assert parse_recipe(inside, Recipe) == parse_recipe(whole, Recipe)
