"""Attention analysis of a model, of two side by side, and of the models of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.analysis.lazy import (
    DEGENERATE,
    MOST,
    PRECISION,
    batch_size,
    judge_cut,
    layer_figures,
    measure_heads,
)
from inheritune.analysis.maps import Head, Maps, attention_maps, check_heads, telling_heads
from inheritune.analysis.probe import check_attention
from inheritune.analysis.result import FILE, AttentionAnalysis, load_analyses, save_analyses, short_name
from inheritune.analysis.sequences import Sequences, Text, open_text
from inheritune.config import Pretrained, Recipe, check_seed
from inheritune.data.shards import Split, open_split
from inheritune.models.architecture import context_length, layer_count, parameter_count
from inheritune.models.checkpoint_config import check_live
from inheritune.models.load import load_config, load_model, load_tokenizer, same_tokens
from inheritune.recipe_file import load_recipe
from inheritune.run_directory import RunDirectory
from inheritune.runtime.hardware import choose_device
from inheritune.runtime.progress import ProgressBar
from inheritune.training.checks import check_ids, check_tokens

if TYPE_CHECKING:
    from inheritune.data.documents import TextData

Model: TypeAlias = PreTrainedModel | Pretrained | str | Path


@dataclass(frozen=True)
class Analyzed:
    """An analysis, and the attention maps of a few heads on its first sequence."""

    analysis: AttentionAnalysis
    maps: Maps


def analyze(
    model: Model,
    data: TextData,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sequences: int | None = None,
    window: int | None = None,
    seed: int = 0,
    tau: float = 0.90,
    mass: float = 0.90,
    degenerate: float = DEGENERATE,
    batch: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    bos: str = "auto",
    ignore_tokenizer: bool = False,
) -> AttentionAnalysis:
    """Rank and mass of every attention head of a model: which layers are lazy, and where to cut.

    Args:
        model: a causal language model, its Hugging Face id, or the folder of its checkpoint. A model is analyzed
            where it is and as it is; it is left unchanged.
        data: folder of token shards (the validation split is read), or a text file or a `datasets.Dataset` with a
            column `text`, which the model's own tokenizer reads.
        tokenizer: of the model; by default the one that comes with its id or folder, also of a model in memory that
            was loaded from there.
        sequences: how many random windows of the text, fewer if it has fewer; by default until the mean rank of each
            layer is known to a tenth of it, or of the mean over all layers if that is more (half of its 95%
            interval), at least 8 and at most 100.
        window: tokens of each; by default 512, or as many as the model or the text allows.
        seed: of the choice of windows.
        tau: fraction of the squared singular values that k* of them hold.
        mass: fraction of the squared entries that m* columns hold.
        degenerate: a head is degenerate if its mean k* is at most this; a layer is lazy if all its heads are.
        batch: sequences at once; by default as many as have a layer's matrices in 256 MiB.
        device: where to load a model that is given by name; by default a GPU if there is one.
        dtype: of the weights of a model that is given by name; "auto" keeps the checkpoint's.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.
        bos: name of the token at the first position of every window; by default what the shards' manifest says, or
            what the model's tokenizer adds to a text file; "none" for none.
        ignore_tokenizer: accept shards of another tokenizer than the model's.

    Raises:
        UserError: something the user can fix, in one sentence.

    Source: paper, section 2 and figure 1 (tau and mass are the paper's; so are 100 sequences of 1024).
    """
    options = Options(
        sequences,
        window,
        seed,
        tau,
        mass,
        degenerate,
        batch,
        device,
        dtype,
        revision,
        trust_remote_code,
        bos,
        ignore_tokenizer,
        tokenizer,
    )
    return analyze_side_by_side([model], data, options)[0].analysis


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `analyze`."""

    sequences: int | None = None
    window: int | None = None
    seed: int = 0
    tau: float = 0.90
    mass: float = 0.90
    degenerate: float = DEGENERATE
    batch: int | None = None
    device: str | torch.device | None = None
    dtype: torch.dtype | str = torch.float32
    revision: str | None = None
    trust_remote_code: bool = False
    bos: str = "auto"
    ignore_tokenizer: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None

    def named(self, model: Pretrained | str | Path) -> Pretrained:
        """A model that is given by its name."""
        return Pretrained.of(model, self.revision, self.trust_remote_code)

    def check(self) -> None:
        """Refuse what no model could be analyzed with."""
        check_seed(self.seed)
        choose_device(self.device)
        for name, value in (("tau", self.tau), ("mass", self.mass)):
            if not 0 < value <= 1:
                raise UserError(f"{name} is {value}, but must be above 0 and at most 1")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch is {self.batch}, but at least one sequence must be read at once")


def analyze_side_by_side(
    models: Sequence[Model],
    data: TextData,
    options: Options,
    *,
    heads: Sequence[Head] | None = None,
    maps: bool = False,
) -> list[Analyzed]:
    """Analyze models one after the other on the same sequences.

    Args:
        models: as in `analyze`, which see for errors too.
        data: read by all of them.
        options: of the analysis.
        heads: whose attention maps to keep; those that a model does not have are left out.
        maps: keep maps also where no heads are named: of a few telling ones.

    Raises:
        UserError: also for models whose tokens differ, and for a head that no model has.
    """
    subjects, text, chosen = _prepare(models, data, options, heads)
    precision = PRECISION if options.sequences is None else None
    found: list[Analyzed] = []
    for subject in subjects:
        found.append(_analyze_one(subject, text, chosen, options, heads, maps, precision))
        chosen, precision = chosen.first(found[0].analysis.sequences), None
    return found


def check_analysis(
    models: Sequence[Model], data: TextData, options: Options, heads: Sequence[Head] | None = None
) -> None:
    """Refuse what `analyze_side_by_side` would refuse, before anything is computed."""
    _prepare(models, data, options, heads)


def _prepare(
    models: Sequence[Model], data: TextData, options: Options, heads: Sequence[Head] | None
) -> tuple[list[_Subject], Text, Sequences]:
    options.check()
    subjects = [_subject(model, options) for model in models]
    for subject in subjects:
        check_attention(subject.config)
    check_heads(heads or (), [subject.config for subject in subjects])
    text = open_text(data, subjects[0].tokenizer, options.bos)
    for subject in subjects:
        if isinstance(text.tokens, Split):
            ignore = options.ignore_tokenizer
            check_tokens(
                text.tokens, subject.config, subject.tokenizer, subject.name, ignore_tokenizer=ignore
            )
        else:
            check_ids(
                max(int(text.tokens.max()), text.bos or 0), subject.config, str(text.source), subject.name
            )
        if not options.ignore_tokenizer:
            _check_same_tokens(subjects[0], subject)
    contexts = [context for s in subjects if (context := context_length(s.config)) is not None]
    count = MOST if options.sequences is None else options.sequences
    chosen = text.choose(count, options.window, min(contexts, default=None), options.seed)
    return subjects, text, chosen


def analyze_run(
    directory: Path, *, sequences: int = 16, device: str | torch.device | None = None
) -> Mapping[str, AttentionAnalysis]:
    """Analyze the reference and the final model of a finished run, on windows of its own validation split.

    Writes `reference/analysis.json` and `final/analysis.json`, which the report shows. An analysis that is there
    already is kept, and the other is made on as many sequences.

    Raises:
        UserError: not the directory of a finished run, or a model without attention matrices.
    """
    folder = RunDirectory(directory)
    if not (directory / "recipe.yaml").exists() or not folder.finished:
        raise UserError(f"{directory} is not the directory of a finished run")
    recipe = load_recipe(directory / "recipe.yaml", Recipe)
    folder.check_data([open_split(recipe.data.path, "validation", recipe.data.bos).identity])
    places = {"reference": folder.reference, "final": folder.final}
    source = recipe.reference
    models = {
        "reference": source.trained or source.at(folder.reference / "model"),
        "final": source.at(folder.final),
    }
    found = {
        name: load_analyses(place / FILE)[0] for name, place in places.items() if (place / FILE).exists()
    }
    for name in [name for name in places if name not in found]:
        found[name] = analyze(
            models[name],
            recipe.data.path,
            sequences=max((other.sequences for other in found.values()), default=sequences),
            window=recipe.data.window,
            device=device,
            bos=recipe.data.bos,
        )
        save_analyses(places[name] / FILE, [found[name]])
    return {name: found[name] for name in places}


@dataclass(frozen=True)
class _Subject:
    """A model that is to be analyzed: what can be known of it before its weights are read."""

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    source: PreTrainedModel | Pretrained

    def load(self, options: Options) -> PreTrainedModel:
        if isinstance(self.source, PreTrainedModel):
            return self.source
        model = load_model(self.source, config=self.config, dtype=options.dtype)
        return model.to(choose_device(options.device))


def _subject(model: Model, options: Options) -> _Subject:
    tokenizer = options.tokenizer
    if isinstance(model, PreTrainedModel):
        check_live(model)
        name = model.name_or_path
        if tokenizer is None and name:
            tokenizer = load_tokenizer(options.named(name))
        return _Subject(name or model.config.model_type, model.config, tokenizer, model)
    source = options.named(model)
    return _Subject(str(source), load_config(source), tokenizer or load_tokenizer(source), source)


def _analyze_one(
    subject: _Subject,
    text: Text,
    chosen: Sequences,
    options: Options,
    heads: Sequence[Head] | None,
    maps: bool,
    precision: float | None,
) -> Analyzed:
    model = subject.load(options)
    size = options.batch or batch_size(model, chosen.window)
    with ProgressBar(f"attention of {short_name(subject.name)}", None, "layers") as bar:

        def tick(read: int, wanted: int) -> None:
            bar.update(bar.done + read, "", layer_count(model.config) * wanted)

        found = measure_heads(
            model,
            chosen.inputs_nt,
            tau=options.tau,
            mass=options.mass,
            batch=size,
            precision=precision,
            tick=tick,
        )
    chosen = chosen.first(found.ranks[0].shape[1])
    layers = layer_figures(found, options.degenerate)
    analysis = AttentionAnalysis(
        model=subject.name,
        model_type=model.config.model_type,
        parameters=parameter_count(model),
        dtype=str(model.dtype).removeprefix("torch."),
        data=str(text.source),
        window=chosen.window,
        windows=chosen.numbers,
        seed=options.seed,
        tau=options.tau,
        mass=options.mass,
        degenerate=options.degenerate,
        layers=layers,
        cut=judge_cut([layer.lazy for layer in layers], options.degenerate),
        ranks=[ranks_hn.tolist() for ranks_hn in found.ranks],
        masses=[masses_hn.tolist() for masses_hn in found.masses],
    )
    wanted = heads if heads is not None else telling_heads(analysis) if maps else ()
    return Analyzed(analysis, attention_maps(model, chosen.inputs_nt[:1], wanted))


def _check_same_tokens(first: _Subject, second: _Subject) -> None:
    """Both models read the same tokens, so that they can read the same sequences."""
    if first.tokenizer is not None and second.tokenizer is not None:
        same = same_tokens(first.tokenizer, second.tokenizer)
        what = "tokenizers"
    else:
        sizes = [subject.config.get_text_config().vocab_size for subject in (first, second)]
        same, what = sizes[0] == sizes[1], f"vocabularies, of {sizes[0]} and {sizes[1]} tokens"
    if not same:
        raise UserError(
            f"{first.name} and {second.name} cannot be put side by side: they have different {what}"
        )
