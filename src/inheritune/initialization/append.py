"""Growth that keeps what was trained (Algorithm 1, step 3, read literally)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.initialization.assemble import mend, origin
from inheritune.initialization.select import select
from inheritune.models.architecture import block_pattern, layer_count, named
from inheritune.models.exactness import check_exact
from inheritune.models.layer_fields import lines_of


def append(
    trained: PreTrainedModel,
    reference: Pretrained | str | Path | PreTrainedModel,
    layers: int | Sequence[int],
    kept: Sequence[int] | None = None,
) -> PreTrainedModel:
    """The trained small model, deepened with more of the reference's layers, each at its place between its own.

    Everything the small model has (its blocks, embeddings, final norm and head) stays as it was trained.

    Args:
        trained: a model that was cut from `reference`.
        reference: as in `select`.
        layers: depth of the result, with the reference's next layers on top; or numbers of the reference's blocks.
        kept: which of them the trained model has; by default the first.

    Raises:
        UserError: the result would not be deeper, lacks layers of the small model, or has some that the reference
            does not have; the small model is not a part of the reference.
    """
    depth = layer_count(trained.config)
    chosen = list(range(layers)) if isinstance(layers, int) else list(layers)
    have = list(range(depth)) if kept is None else list(kept)
    if len(chosen) <= depth:
        raise UserError(f"cannot grow a model of {depth} layers to {len(chosen)}: it must become deeper")
    if len(have) != depth or not set(have) <= set(chosen):
        raise UserError(
            f"cannot grow a model of the {named(have)} to the {named(chosen)}: it must keep those it has"
        )
    grown = select(reference, chosen)
    places = [chosen.index(layer) for layer in have]
    pattern = block_pattern(trained)
    weights = {origin(name, pattern, places)[0]: value for name, value in trained.state_dict().items()}
    try:
        outcome = grown.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        raise UserError(_no_part_of(trained, reference, lines_of(error)[-1])) from error
    if outcome.unexpected_keys:
        raise UserError(_no_part_of(trained, reference, f"it has no {outcome.unexpected_keys[0]}"))
    sources = list(range(len(chosen)))
    for place, source in zip(places, range(depth), strict=True):
        sources[place] = source
    mend(grown, sources)
    grown = grown.to(trained.dtype).to(trained.device)
    # The reference's blocks were checked; between them stand those that were trained, and they compute as before.
    check_exact(trained, grown, places)
    return grown


def _no_part_of(
    trained: PreTrainedModel, reference: Pretrained | str | Path | PreTrainedModel, reason: str
) -> str:
    name = reference.config.model_type if isinstance(reference, PreTrainedModel) else reference
    kind = trained.config.model_type
    return f"cannot grow this {kind!r} model with layers of {name}: it was not cut from it ({reason})"
