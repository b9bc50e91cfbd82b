"""The final model as others use it: its folder, its card, and the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from inheritune import UserError
from inheritune.card import README, RESULTS, TAG, benchmark_results, run_card
from inheritune.config import Recipe, TrainRecipe
from inheritune.evaluation.result import FILE, load_evaluation
from inheritune.recipe_file import load_any
from inheritune.run_directory import RunDirectory, Summary
from inheritune.runtime import files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from inheritune.data.loader import TrainingData

    Change = CommitOperationAdd | CommitOperationDelete

logger = logging.getLogger(__name__)

KEPT = ".gitattributes"
"""What the hub itself puts into a new repository."""


def publish_last_round(path: Path, recipe: Recipe, data: TrainingData, model: Path, summary: Summary) -> None:
    """Put the last round's model where users look for it, with its tokenizer and a model card."""
    from inheritune.models.load import save_tokenizer

    tokenizer = _final_tokenizer(recipe, data)
    with files.directory(path) as temporary:
        for file in model.iterdir():
            place = files.link_or_copy if file.suffix == ".safetensors" else copyfile
            place(file, temporary / file.name)
        save_tokenizer(tokenizer, temporary)
        write_card(temporary, recipe, summary)


def write_card(folder: Path, recipe: Recipe, summary: Summary, evaluated: Path | None = None) -> None:
    """Write the model card of the run's result, which is in this folder; `evaluated` is where its evaluation is."""
    from inheritune.models.load import load_config

    evaluation = None if evaluated is None else load_evaluation(evaluated / FILE)
    dtype = load_config(recipe.reference.at(folder)).dtype
    for name, text in (benchmark_results(evaluation) if evaluation else {}).items():
        (folder / RESULTS).mkdir(exist_ok=True)
        files.write_text(folder / RESULTS / name, text)
    files.write_text(folder / README, run_card(recipe, summary, dtype, evaluation))


@dataclass(frozen=True)
class Pushed:
    """A model on the hub, or what would be there: the repository's name, and the bytes of each file."""

    repo: str
    files: dict[str, int]
    url: str | None
    """None where nothing was sent."""


def push(model: str | Path, repo: str, *, public: bool = False, dry_run: bool = False) -> Pushed:
    """Upload a model to the Hugging Face hub, in one commit: there is all of it, or nothing.

    Args:
        model: directory of a finished run or training, or the folder of a model that was made here.
        repo: OWNER/NAME, or NAME for one of your own. One that is there is updated if it was made by this too.
        public: for everybody to see; by default private.
        dry_run: only say what would be sent; no network is used.

    Raises:
        UserError: a run that is not finished, no model, no name of a repository, a repository with something else,
            no token, or a hub that cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository, such as my-name/my-model: {error}") from error
    folder = _model_folder(files.named(model, "model"))
    sizes = _sizes(folder)
    if dry_run:
        return Pushed(repo, sizes, None)
    if get_token() is None:
        raise UserError("there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name=TAG)
    with _asking(repo):
        if "/" not in repo:
            repo = f"{api.whoami()['name']}/{repo}"
        try:
            there = api.model_info(repo)
        except RepositoryNotFoundError:
            there = None
    old = [one.rfilename for one in there.siblings or []] if there else []
    if there is not None:
        if TAG not in (there.tags or []) and set(old) - {KEPT}:
            raise UserError(
                f"{repo} exists, and what is in it was not made by inheritune: give another name, or delete it first"
            )
        if bool(there.private) == public:
            now, option = ("private", "leave out") if public else ("public", "give")
            raise UserError(f"{repo} exists and is {now}: {option} --public, or change it on its page first")
    sent = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sizes]
    gone = [CommitOperationDelete(path_in_repo=name) for name in sorted(set(old) - {KEPT, *sizes})]
    with _asking(repo):
        if there is None:
            api.create_repo(repo, private=not public)
        parent = None if there is None else there.sha
        changes: list[Change] = [*sent, *gone]
        done = api.create_commit(repo, changes, commit_message="Upload the model", parent_commit=parent)
    return Pushed(repo, sizes, str(done.repo_url))


def _model_folder(path: Path) -> Path:
    """The folder of what is to be pushed.

    Raises:
        UserError: there is no finished model with a card.
    """
    from inheritune.models.checkpoint_files import CONFIG, read_tensors
    from inheritune.models.load import load_config

    if not path.is_dir():
        raise UserError(f"there is no folder {path}: give the directory of a finished run, or of a model")
    folder = path
    if (path / "recipe.yaml").is_file():
        recipe = load_any(path / "recipe.yaml")
        whole = isinstance(recipe, Recipe) and RunDirectory(path).finished
        if not whole and not (isinstance(recipe, TrainRecipe) and (path / "model").is_dir()):
            raise UserError(f"the run in {path} is not finished: the command that started it resumes it")
        folder = path / ("final" if whole else "model")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a model: the folder has no {CONFIG}")
    load_config(folder)
    read_tensors(folder)
    if not (folder / README).is_file():
        raise UserError(f"{folder} has no model card: write {README} first")
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a model's folder, by their paths in it; of the hidden ones only results."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) and name.parts[0] != RESULTS
        if path.is_file() and not hidden:
            found[name.as_posix()] = path.stat().st_size
    return found


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Say in one sentence what the hub, or the way there, has against a push."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    from inheritune.models.layer_fields import lines_of

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(f"{repo} cannot be pushed while HF_HUB_OFFLINE is set") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
        status = None if response is None else response.status_code
        if status == 401:
            why = "the hub does not know the token: log in again with `hf auth login`"
        elif status == 403:
            why = "the token may not write there: give a repository of your own, or a token that may"
        elif status is None and not isinstance(error, RuntimeError):
            why = f"the hub cannot be reached ({lines_of(error)[0]})"
        else:
            cause = error.__cause__ or error
            why = f"the hub did not take it ({lines_of(cause)[0]})"
        raise UserError(
            f"{repo} was not pushed: {why}; nothing of the model is there, and the same command starts again"
        ) from error


def _final_tokenizer(recipe: Recipe, data: TrainingData) -> PreTrainedTokenizerBase | list[Path]:
    """The data's tokenizer with the reference's chat template; the reference's where the data has none."""
    from inheritune.models.load import read_tokenizer, same_tokens, tokenizer_in

    own, source = tokenizer_in(data.path), recipe.reference
    if source.trained is None or (own is not None and own.chat_template is not None):
        return own or []
    try:
        found = read_tokenizer(source.trained)
    except UserError as error:  # the run is done: its result is worth more than this
        logger.warning("%s", error)
        return own or []
    if own is None:
        return found
    if not isinstance(found, list) and same_tokens(own, found):
        own.chat_template = found.chat_template
    return own
