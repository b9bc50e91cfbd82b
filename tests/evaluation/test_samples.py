"""What the models write."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inheritune.evaluation.samples import PROMPTS, continuations, side_by_side
from tiny_models import tiny_model

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def word_tokenizer(shift: int = 0, **special: str) -> PreTrainedTokenizerFast:
    """Words w0 .. w89 with ids from 5 on, moved round by `shift`; all else is [UNK]."""
    vocabulary = {"[UNK]": 0, "<start>": 3, "<end>": 4, **{f"w{i}": 5 + (i + shift) % 90 for i in range(90)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


@pytest.mark.parametrize("device", DEVICES)
def test_a_text_depends_on_model_prompt_and_seed_alone(device: str) -> None:
    subjects = [tiny_model("gpt2").to(device), tiny_model("llama").to(device).train()]
    tokenizers = [word_tokenizer(), word_tokenizer(shift=7)]
    prompts = ["w1 w2 w3", "w4"]
    first = side_by_side(subjects, tokenizers, prompts, tokens=12)
    torch.manual_seed(123)
    torch.rand(10, device=device)
    state = torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state() if device == "cuda" else None
    assert side_by_side(subjects, tokenizers, prompts, tokens=12) == first
    assert torch.equal(torch.get_rng_state(), state), "the program's own random numbers go on as before"
    if gpu_state is not None:
        assert torch.equal(torch.cuda.get_rng_state(), gpu_state)
    assert [subject.training for subject in subjects] == [False, True]

    assert [sample.prompt for sample in first] == prompts
    for i, sample in enumerate(first):
        alone = [
            continuations(subject, tokenizer, [prompts[i]], 12)[0]
            for subject, tokenizer in zip(subjects, tokenizers, strict=True)
        ]
        assert sample.continuations == alone
    others = side_by_side(subjects, tokenizers, prompts, tokens=12, seed=1)
    for sample, other in zip(first, others, strict=True):
        assert all(a != b for a, b in zip(sample.continuations, other.continuations, strict=True))


def test_dropout_does_not_act() -> None:
    quiet, noisy = tiny_model("gpt2"), tiny_model("gpt2", resid_pdrop=0.5).train()
    texts = [continuations(model, word_tokenizer(), ["w1 w2"], 12) for model in (quiet, noisy)]
    assert texts[0] == texts[1]
    assert noisy.training


def test_habits_of_a_checkpoint_do_not_act() -> None:
    plain, with_habits = tiny_model("gpt2"), tiny_model("gpt2")
    with_habits.generation_config.top_p = 0.01
    with_habits.generation_config.repetition_penalty = 9.0
    with_habits.generation_config.num_beams = 3
    with_habits.generation_config.no_repeat_ngram_size = 1
    with_habits.generation_config.min_p = 0.9
    texts = [continuations(model, word_tokenizer(), ["w1 w2"], 12) for model in (plain, with_habits)]
    assert texts[0] == texts[1]
    assert with_habits.generation_config.num_beams == 3


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_long_prompts_are_cut_from_the_left(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type), word_tokenizer()
    words = [f"w{i * 7 % 90}" for i in range(80)]
    (long,) = continuations(model, tokenizer, [" ".join(words)], 14)
    (cut,) = continuations(model, tokenizer, [" ".join(words[-50:])], 14)
    assert long == cut, "64 - 14 tokens of the prompt are read"
    (shorter,) = continuations(model, tokenizer, [" ".join(words[-49:])], 14)
    assert long != shorter
    (much,) = continuations(model, tokenizer, [" ".join(words)], 1000)
    assert 14 < len(much.split()) <= 32, "at most half of the context of 64 is written"


def test_an_empty_prompt_starts_with_a_special_token() -> None:
    model = tiny_model("gpt2")
    begun = word_tokenizer(bos_token="<start>", eos_token="<end>")
    assert continuations(model, begun, [""], 8) == continuations(model, begun, ["<start>"], 8)
    ended = word_tokenizer(eos_token="<end>")
    assert continuations(model, ended, [""], 8) == continuations(model, ended, ["<end>"], 8)
    assert continuations(model, ended, [""], 8) != continuations(model, begun, [""], 8)
    with pytest.raises(ValueError, match="the tokenizer has no token that begins or ends a text"):
        continuations(model, word_tokenizer(), ["w1", ""], 8)


def test_the_prompts_that_come_with_the_program() -> None:
    samples = side_by_side([tiny_model("llama")], [word_tokenizer()], tokens=3)
    assert tuple(sample.prompt for sample in samples) == PROMPTS
    assert len(set(PROMPTS)) == 5
    assert all(prompt == prompt.strip() for prompt in PROMPTS)
