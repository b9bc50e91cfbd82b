"""What a small model is measured by beside the reference's loss on the recipe's own data.

Other text (`parity.also`), on which parity must hold as well before growth ends, and the fair control
(`parity.control`), the reference trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from inheritune import UserError
from inheritune.config import Pretrained, Recipe
from inheritune.data.loader import TrainingData, window_count
from inheritune.data.shards import Split, check_same_data, open_split, verify
from inheritune.frugal import ends_of
from inheritune.models.load import load_config, load_model, load_tokenizer, tokenizer_in
from inheritune.run_directory import ControlFigures, Difference
from inheritune.running import Reference, Run, train_on
from inheritune.runtime.progress import ProgressBar
from inheritune.runtime.world import World
from inheritune.single_model import scratch_config
from inheritune.training.checks import check_tokens
from inheritune.training.loss import NextTokenLoss
from inheritune.training.parallel import built_on_rank_0, place
from inheritune.training.validation import WindowLosses, compare, validate


def open_texts(recipe: Recipe, data: TrainingData, world: World) -> dict[str, Split]:
    """The validation splits of the other text that parity must hold on, checked as the recipe's own data are.

    Raises:
        UserError: there is none in a folder, it is damaged, too short or of other tokens.
    """
    settings, own, folders = recipe.data, data.validation, recipe.parity.also
    for folder in folders.values():
        if settings.verify:
            world.on_first(verify, folder)
    texts = {name: open_split(folder, "validation", settings.bos) for name, folder in folders.items()}
    for name, split in texts.items():
        window_count(split, data.window)
        if split.bos != own.bos:
            raise UserError(
                f"parity.also.{name}: {split.directory} puts another token in front of a text than {own.directory}: "
                "prepare both with the same tokenizer, or set `data.bos`"
            )
    return texts


def check_texts(this: Run) -> None:
    """The reference reads the other text, and what was measured on that before was measured on the same.

    Raises:
        UserError: the tokens of one are not those of the reference, or it is another text than before.
    """
    source, data = this.recipe.reference, this.data
    if not this.texts:
        return
    trained, ignore = source.trained, data.ignore_tokenizer
    config = load_config(trained) if trained else scratch_config(source, data, data.window)
    own = (trained and load_tokenizer(trained)) or tokenizer_in(data.path)
    for name, split in this.texts.items():
        check_tokens(split, config, own, str(trained or data.path), ignore_tokenizer=ignore)
        if own is None:  # nanoGPT's data: only the text has a tokenizer to compare with
            theirs = tokenizer_in(split.directory)
            check_tokens(data.validation, config, theirs, str(split.directory), ignore_tokenizer=ignore)
        path = this.folder.reference / text_file(name)
        if path.exists():
            check_same_data(WindowLosses.load(path).data, split.identity, f"the losses in {path}")


def text_file(name: str) -> str:
    """Where a model's losses on a text are, beside those on the recipe's own data."""
    return f"validation-{name}.json"


def measure_texts(this: Run, source: Pretrained, directory: Path) -> dict[str, WindowLosses]:
    """Losses of a trained model on each of the other texts, measured unless they are in this directory."""
    paths = {name: directory / text_file(name) for name in this.texts}
    missing = this.world.on_first(lambda: [name for name, path in paths.items() if not path.exists()])
    if missing:
        measure_on(this, source, {paths[name]: this.texts[name] for name in missing})
    return {name: WindowLosses.load(path) for name, path in paths.items()}


def measure_on(this: Run, source: Pretrained, splits: Mapping[Path, Split]) -> None:
    """Measure a trained model on all windows of each split, and write the losses to the file it is given with."""
    model = built_on_rank_0(partial(load_model, source), this.world)
    placed = place(NextTokenLoss(model, this.world), this.recipe.training, this.hardware, this.data.window)
    for path, split in splits.items():
        with ProgressBar(f"losses of {source}", None, "windows") as bar:
            losses = validate(
                placed.loss,
                split,
                this.data.window,
                this.hardware,
                tell=lambda done, total: bar.update(done, total=total),
            )
        this.world.on_first(losses.save, path)


def control_figures(this: Run, reference: Reference) -> ControlFigures:
    """The fair control: train the reference on as the reported round was trained, and compare both.

    Same settings and data; its learning rate decays where the round's did, and it stops where that did. It does not
    decide growth, which is the paper's.
    """
    entry, directory, training = this.summary.reported, this.folder.control, this.recipe.training
    assert entry is not None, "growth has ended"
    ends = ends_of(entry.decisions, training) if this.recipe.search == "frugal" else ()
    if entry.steps < training.steps:  # where it stops it is validated, whatever `validation` says by now
        validation = training.validation.model_copy(update={"every": entry.steps})
        training = training.model_copy(update={"validation": validation})
    outcome = train_on(
        this, reference, directory, training, "control", lambda step, *_: step == entry.steps, ends
    )
    losses = WindowLosses.load(directory / "validation.json")
    small = WindowLosses.load(this.folder.path / entry.directory / "validation.json")
    return ControlFigures(
        to_reference=paired(losses, reference.losses, this.summary.margin),
        to_control=paired(small, losses, this.summary.margin),
        steps=outcome.steps,
        training_flops=outcome.flops,
        seconds=outcome.seconds,
    )


def paired(target: WindowLosses, other: WindowLosses, margin: float) -> Difference:
    """What is recorded of a comparison on one text."""
    found = compare(target, other, margin)
    return Difference(
        loss=target.mean, difference=found.difference, interval=found.interval, parity=found.parity
    )
