"""Inheritune: the whole of Algorithm 1 (arXiv 2404.08634, section 2).

reference <- a trained model of k layers
n <- k / 2
repeat
    small <- the first n blocks of the reference, its embeddings, final norm and head
    train small
    if small's validation loss <= the reference's (on all other text that was asked for too): done
    n <- n + 2
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from transformers import PreTrainedModel

from inheritune.analysis.kept import CHOICE, Kept
from inheritune.analysis.layers import choose_kept, grown_kept, kept_in, recorded
from inheritune.analysis.sequences import text_of
from inheritune.config import Grow, Pretrained, Recipe, Training, TrainRecipe
from inheritune.corrected_teacher import obtain_teacher
from inheritune.data.answers import RECORD, Answers, NoAnswersError, verify_answers
from inheritune.data.loader import open_data, open_together
from inheritune.data.shards import NoShardsError
from inheritune.evaluation.evaluate import DIRECTORY as EVALUATION
from inheritune.evaluation.evaluate import check_reference, check_settings, evaluate
from inheritune.evaluation.result import FILE as EVALUATION_FILE
from inheritune.evaluation.result import load_evaluation
from inheritune.evaluation.samples import write_samples
from inheritune.frugal import UntilDecided, decisions_in
from inheritune.initialization import append, select
from inheritune.learning_rate import with_learning_rate
from inheritune.models.architecture import layer_count, parameter_count
from inheritune.models.load import load_config, load_model
from inheritune.models.presets import from_config
from inheritune.models.size import flops_per_token, on_meta
from inheritune.publish import publish_last_round, write_card
from inheritune.run_directory import (
    Answer,
    ReferenceFigures,
    RoundFigures,
    RunDirectory,
    Summary,
    Verdict,
    Worth,
    answer,
)
from inheritune.running import Reference, Run, first_choice, train_small
from inheritune.runtime.hardware import Hardware, choose_hardware
from inheritune.runtime.repeatable import repeatable
from inheritune.runtime.world import check_same, joined
from inheritune.single_model import (
    check_inputs,
    check_source,
    environment,
    model_digests,
    scratch_config,
    wanted_windows,
)
from inheritune.start_depth import check_measurable, first_depth, start_depth, tell_how_far_off
from inheritune.training import metrics
from inheritune.training.callbacks import NONE, Callbacks
from inheritune.training.checks import check_room
from inheritune.training.final_model import Outcome, saved_dtype
from inheritune.training.loop import Measure, train
from inheritune.training.teacher import Drawing, ask
from inheritune.training.validation import WindowLosses, compare
from inheritune.yardsticks import (
    check_texts,
    control_figures,
    measure_on,
    measure_texts,
    open_texts,
    paired,
)


def run(recipe: Recipe, directory: Path, *, callbacks: Callbacks = NONE) -> Summary:
    """Algorithm 1: inherit, train, compare, grow, until the small model is as good as the reference.

    Called again on the same directory it resumes where it stopped; on a finished one it only returns the
    figures. Under torchrun every process calls it, and they work together.

    Args:
        recipe: what to do.
        directory: of the run; see `run_directory`.
        callbacks: are told of steps, validations and rounds.

    Raises:
        UserError: something the user can fix, in one sentence.
        Interrupted: a signal asked to stop; everything is saved.
        PeerLostError: another process ended; everything that was saved is good.
    """
    with joined(recipe.training) as world, repeatable(recipe.training), RunDirectory(directory) as folder:
        check_same(world, recipe)
        hardware = choose_hardware(recipe.training, world)
        if recipe.evaluation is not None:
            check_settings(recipe.evaluation)
        if world.on_first(_has_ended, recipe, folder):
            world.on_first(folder.hold)
            world.on_first(check_finished, recipe, folder)
            summary = folder.read_summary()
        else:
            world.on_first(check_inputs, recipe)
            data = open_together(recipe.data, world)
            texts = open_texts(recipe, data, world)
            world.on_first(lambda: folder.open(recipe, environment(recipe, hardware), data.identities))
            summary = Summary(
                name=recipe.name, margin=recipe.parity.margin, control_asked=recipe.parity.control
            )
            if recipe.evaluation is not None and recipe.evaluation.tasks:
                summary.tasks = "not known yet"
            algorithm_1(Run(recipe, folder, data, hardware, summary, texts, callbacks))
        if world.first:  # the others are done: what is left is no work for many
            evaluate_both(recipe, folder, hardware, summary)
            answer_tasks(recipe, folder, summary)
        return summary


def algorithm_1(this: Run) -> None:
    """The paper's section 2, from start to end; the figures go into the summary."""
    grow, summary = this.recipe.grow, this.summary
    reference = obtain_reference(this)
    this = with_learning_rate(this, reference)
    layers = first_depth(this, reference)
    previous: Path | None = None
    for number in count(1):
        this.record("round", number)
        figures = one_round(this, reference, number, layers, previous)
        summary.rounds.append(figures)
        this.record("round", number)
        tell_how_far_off(figures)
        this.world.on_first(this.callbacks.tell_round, figures)
        summary.verdict = verdict(figures, grow, reference.layers)
        if summary.verdict:
            break
        previous, layers = this.model_of(figures), layers + grow.layers

    if this.recipe.parity.control:
        this.record("control", number)
        summary.control = control_figures(this, reference)
    if this.world.first:
        finish(this, reference, this.model_of(figures))
        this.folder.record("finished", number, summary)


def obtain_reference(this: Run) -> Reference:
    """Train the reference, or find the trained one; measure its validation loss either way."""
    this.record("reference", 0)
    source = this.recipe.reference
    check_texts(this)
    trained, outcome = train_reference(this) if source.architecture is not None else measure_reference(this)
    config = load_config(trained)
    losses = WindowLosses.load(this.folder.reference / "validation.json")
    also = measure_texts(this, trained, this.folder.reference)
    shape = on_meta(config)
    flops = outcome.flops if outcome else None
    if source.training_tokens is not None:
        flops = flops_per_token(shape, this.data.window) * source.training_tokens
    this.summary.reference = ReferenceFigures(
        layers=layer_count(config),
        parameters=parameter_count(shape),
        loss=losses.mean,
        windows=len(losses.losses),
        training_flops=flops,
        steps=outcome.steps if outcome else None,
        bytes_per_token=losses.bytes_per_token,
        also={name: found.mean for name, found in also.items()},
    )
    this.record("preparation", 0)
    reference = Reference(trained, config, losses, also, flops, teacher=trained)
    reference = replace(reference, teacher=obtain_teacher(this, reference))
    return replace(reference, answers=obtain_answers(this, reference))


def obtain_answers(this: Run, reference: Reference) -> Answers | None:
    """Ask the reference once about all that rounds and probes will read, if the recipe wants that."""
    settings, training, directory = this.recipe.distillation, this.recipe.training, this.folder.answers
    if settings is None or settings.draws is None:
        return None
    if not this.world.on_first((directory / RECORD).exists):
        ask(
            reference.load_teacher,
            "the reference",
            this.data,
            wanted_windows(this.data, training),  # probes read the first of them
            Drawing(settings.draws, settings.temperature, training.seed),
            directory,
            training,
            this.hardware,
        )
    elif this.recipe.data.verify:
        this.world.on_first(verify_answers, directory)
    answers = Answers(directory)
    this.summary.answers_flops = answers.record.flops
    return answers


def train_reference(this: Run) -> tuple[Pretrained, Outcome]:
    """Train the reference from random weights."""
    source = this.recipe.reference
    training = source.training
    assert training is not None, "the recipe fills it in"
    config = scratch_config(source, this.data, this.data.window)
    check_room(config, this.hardware.device)
    check_reference(this.recipe, config)
    start_depth(this.recipe, layer_count(config))  # an error before anything is trained
    this.world.on_first(check_measurable, this.recipe, lambda: from_config(config, training.seed).eval())
    outcome = train(
        lambda: from_config(config, training.seed),
        this.data,
        training,
        this.folder.reference,
        hardware=this.hardware,
        run=this.folder.path,
        dtype=saved_dtype(training, None),
        callbacks=this.callbacks,
        title=f"reference, {layer_count(config)} layers",
    )
    return source.at(this.folder.reference / "model"), outcome


def measure_reference(this: Run) -> tuple[Pretrained, None]:
    """Measure a reference that is trained already."""
    source = this.recipe.reference
    trained = source.trained
    assert trained is not None
    path = this.folder.reference / "validation.json"
    if not this.world.on_first(path.exists):
        config = load_config(trained)
        check_source(source, config, this.data)
        check_reference(this.recipe, config)
        start_depth(this.recipe, layer_count(config))
        this.world.on_first(check_measurable, this.recipe, lambda: load_model(trained))
        settings = this.recipe.distillation
        if this.recipe.parity.control or (settings is not None and settings.corrected):
            check_room(config, this.hardware.device)
        measure_on(this, trained, {path: this.data.validation})
    return trained, None


def one_round(
    this: Run, reference: Reference, number: int, layers: int, previous: Path | None
) -> RoundFigures:
    """Inherit or grow (the model of the round before is at `previous`), train, compare."""
    directory, parity = this.folder.round(number, layers), this.recipe.parity

    def holds(losses: WindowLosses, of_reference: WindowLosses) -> bool:
        return compare(losses, of_reference.thinned(len(losses.losses)), parity.margin).parity

    def as_good(losses: WindowLosses, measure: Measure) -> bool:
        return holds(losses, reference.losses) and all(
            holds(measure(split), reference.also[name]) for name, split in this.texts.items()
        )

    def at_parity(step: int, losses: WindowLosses, measure: Measure) -> bool:
        return parity.stop_at_parity and as_good(losses, measure)

    train_round = partial(
        train_small,
        this,
        reference,
        directory,
        this.recipe.training,
        lambda: initial_weights(this, reference, directory, layers, previous),
        f"round {number}, {layers} layers",
    )
    if this.recipe.search == "frugal":
        may_grow = not is_last(number, layers, this.recipe.grow, reference.layers)
        decided = UntilDecided(this, reference, directory, as_good, may_grow)
        outcome = train_round(decided, decided.ends)
    else:
        outcome = train_round(at_parity)
    also = measure_texts(this, this.recipe.reference.at(directory / "model"), directory)
    return figures_of(this, reference, number, directory, outcome, also)


def initial_weights(
    this: Run, reference: Reference, directory: Path, layers: int, previous: Path | None
) -> PreTrainedModel:
    """A round's first weights: cut from the reference, or grown from the final model of the round before.

    That one may be rounded (`training.dtype`), as the reference's own layers that are put between its are. Which of
    the reference's layers they are is recorded in the round's directory.
    """
    recipe, chosen = this.recipe, directory / CHOICE
    if previous is None or recipe.grow.mode == "reinherit":
        kept = recorded(chosen, lambda: first_choice(this, reference, layers))
        return select(reference.source, kept.layers)
    trained = load_model(recipe.reference.at(previous))
    before = kept_in(previous.parent, layer_count(trained.config), reference.layers)
    kept = recorded(chosen, lambda: next_choice(this, reference, before, layers, trained))
    return append(trained, reference.source, kept.layers, before.layers)


def next_choice(this: Run, reference: Reference, before: Kept, layers: int, trained: PreTrainedModel) -> Kept:
    """Which layers to grow to: by a fixed rule, or those whose return to the trained model lowers the loss most."""
    keep, seed = this.recipe.keep, this.recipe.training.seed
    if keep in ("first", "last", "ends"):
        return choose_kept(keep, layers, reference.layers, None, reference.load, seed)
    whole = append(trained, reference.source, range(reference.layers), before.layers)
    text = text_of(this.data.train)
    return grown_kept(before, layers, whole.to(this.hardware.device), text, seed)


def figures_of(
    this: Run,
    reference: Reference,
    number: int,
    directory: Path,
    outcome: Outcome,
    also: Mapping[str, WindowLosses],
) -> RoundFigures:
    """The result of the round in this directory, compared with the reference window by window."""
    losses, summary = WindowLosses.load(directory / "validation.json"), this.summary
    comparison = compare(losses, reference.losses, summary.margin)
    earlier = summary.first_flops + sum(round.training_flops for round in summary.rounds)
    total, decisions = outcome.flops + earlier, decisions_in(directory)
    figures = RoundFigures(
        round=number,
        layers=outcome.layers,
        parameters=outcome.parameters,
        loss=losses.mean,
        difference=comparison.difference,
        standard_error=comparison.standard_error,
        interval=comparison.interval,
        parity=comparison.parity,
        training_flops=outcome.flops,
        total_training_flops=total,
        cost_to_parity=total / reference.training_flops if reference.training_flops else None,
        steps=outcome.steps,
        seconds=outcome.seconds,
        directory=directory.name,
        kept=kept_in(directory, outcome.layers, reference.layers).layers,
        decisions=decisions,
        also={name: paired(found, reference.also[name], summary.margin) for name, found in also.items()},
    )
    if not figures.cooled:
        return figures
    worth = worth_of(directory, comparison.difference, this.recipe.training)
    return figures.model_copy(update={"predicted": summary.predicted.get(outcome.layers), "worth": worth})


def worth_of(directory: Path, difference: float, training: Training) -> Worth | None:
    """A difference in steps of the training in this directory, where its curve says it."""
    path = directory / metrics.FILE
    steps = metrics.steps_worth(metrics.read(path), difference) if path.exists() else None
    return None if steps is None else Worth(steps=steps, tokens=steps * training.tokens_per_step)


def verdict(figures: RoundFigures, grow: Grow, depth: int) -> Verdict | None:
    """After a round: parity, or the end of growth (at the reference's depth) without it, or None: grow on.

    Parity is that on the recipe's own data and on all other text (`parity.also`).
    """
    if figures.as_good:
        return "parity"
    return "no parity" if is_last(figures.round, figures.layers, grow, depth) else None


def is_last(number: int, layers: int, grow: Grow, depth: int) -> bool:
    """Whether no round follows this one, of so many layers, even without parity."""
    return number == grow.max_rounds or layers + grow.layers >= depth


def finish(this: Run, reference: Reference, small: Path) -> None:
    """Leave samples of both models, and the small one as the final checkpoint."""
    models = [reference.load(), load_model(this.recipe.reference.at(small))]
    for model in models:
        model.to(this.hardware.device)
    write_samples(this.folder.samples, this.recipe, this.data, models[0], models[1])
    publish_last_round(this.folder.final, this.recipe, this.data, small, this.summary)


def check_finished(recipe: Recipe | TrainRecipe, folder: RunDirectory) -> None:
    """What a finished run left was made by this recipe, and with its data as long as they are still there.

    Raises:
        UserError: by another recipe, or with other data.
    """
    folder.check_recipe(recipe)
    folder.check_models(model_digests(recipe))
    with suppress(NoShardsError, NoAnswersError):
        data = open_data(recipe.data.model_copy(update={"verify": False}))
        if isinstance(recipe, TrainRecipe) and recipe.distillation and recipe.distillation.answers:
            data = replace(data, answers=Answers(recipe.distillation.answers))
        folder.check_data(data.identities)


def complete(recipe: Recipe, directory: Path) -> bool:
    """Whether nothing is left to do: Algorithm 1 has ended, and what the recipe wants evaluated is."""
    return _has_ended(recipe, RunDirectory(directory)) and not _lacks_evaluation(recipe, directory)


def evaluate_both(recipe: Recipe, folder: RunDirectory, hardware: Hardware, summary: Summary) -> None:
    """Evaluate reference and final model as the recipe asks, unless that is done."""
    if recipe.evaluation is None or not _lacks_evaluation(recipe, folder.path):
        return
    if recipe.evaluation.tasks:  # what is said of them so far was of others
        summary.tasks = "not known yet"
        folder.record("finished", summary.rounds[-1].round, summary)
    evaluate([folder.path], recipe.evaluation, folder.path / EVALUATION, device=hardware.device)


def answer_tasks(recipe: Recipe, folder: RunDirectory, summary: Summary) -> None:
    """Write into summary and model card whether the tasks held, unless that is done."""
    if recipe.evaluation is None or not recipe.evaluation.tasks:
        return
    found = load_evaluation(folder.path / EVALUATION / EVALUATION_FILE)
    held, left = found.none_worse(), found.not_compared()
    tasks: Answer = "not known" if held is None else answer(held)
    if (tasks, left) != (summary.tasks, summary.tasks_not_compared):
        summary.tasks, summary.tasks_not_compared = tasks, left
        write_card(folder.final, recipe, summary, folder.path / EVALUATION)
        folder.record("finished", summary.rounds[-1].round, summary)  # last: it says that this is done


def _has_ended(recipe: Recipe, folder: RunDirectory) -> bool:
    """Whether Algorithm 1 has, and the fair control if that is asked for by now."""
    return folder.finished and not (recipe.parity.control and folder.read_summary().control is None)


def _lacks_evaluation(recipe: Recipe, directory: Path) -> bool:
    path = directory / EVALUATION / EVALUATION_FILE
    if recipe.evaluation is None:
        return False
    return not path.exists() or not recipe.evaluation.is_in(load_evaluation(path).settings)
