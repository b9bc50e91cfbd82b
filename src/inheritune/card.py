"""The model card, `README.md` beside the weights that `inherit` and `run` leave."""

from __future__ import annotations

from pathlib import Path


def card_name(model: str) -> str:
    """How a card names a model: by its id on the hub, or by the last part of its folder's path."""
    return Path(model).name if Path(model).exists() else model


def model_card(title: str, text: str, origin: str | None) -> str:
    """A card with the front matter of the hub; `origin` is the pretrained model that the weights come from."""
    base = f"base_model: {origin}\n" if origin is not None and not Path(origin).exists() else ""
    front = f"library_name: transformers\npipeline_tag: text-generation\n{base}tags: [inheritune]\n"
    return f"---\n{front}---\n# {title}\n\n{text.strip()}\n"
