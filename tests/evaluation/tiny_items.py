"""Invented items for every task of `tasks.yaml`: as records of the hub's data sets, and as files of a folder."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune.data import tokenizer as tokenizers

Record = dict[str, Any]

NOUNS = [
    "lamp",
    "river",
    "Zürich",
    "café",
    "clerk",
    "“fox”",
    "stone",
    "漢字",
    "o'clock",
    "mill",
    "42",
    "ship",
]
VERBS = ["holds", "sold", "carried", "isn't", "built", "hid", "(almost)", "sees", "wants;", "broke"]
LINKS = ["the", "a", "his", "every", "and,", "under", "–", "behind", "from"]
NAMES = ["Ada", "Ben", "Émile", "Zoë", "Mr.", "Kim"]
LAST = ("lamp", "river", "stone", "ship", "café", "mill")
ANSWERS = ("yes", "no", "True", "False", "positive", "negative", "A", "B", "C", "D", *LAST)
"""They become tokens."""
SUBJECTS = ("anatomy", "astronomy", "virology")
"""Of MMLU, with as many items as other tasks; the other subjects have one each."""
OTHER_SUBJECTS = tuple(
    name
    for path in sorted((Path(lm_eval.tasks.__file__).parent / "mmlu/default").glob("mmlu_*.yaml"))
    if (name := path.stem.removeprefix("mmlu_")) not in SUBJECTS
)


@dataclass(frozen=True)
class Layout:
    """Where a task's items are, here and there."""

    hub: tuple[str, str | None]
    """Path and name of the data set, as they are given to `load_dataset`."""
    folder: str
    """Of our files."""
    make: Callable[[random.Random, int], Record]
    """The hub's record of the item of this number."""
    splits: tuple[str, ...] = ("train", "validation")
    local: Callable[[Record], Record] = dict
    """Our record of the hub's."""
    stem: str | None = None
    """Of our file, where it is not the split's name."""


def phrase(rng: random.Random, low: int, high: int) -> str:
    """Some invented words."""
    words = [rng.choice((NOUNS, VERBS, LINKS, NAMES)) for _ in range(rng.randint(low, high))]
    return " ".join(rng.choice(kind) for kind in words)


def sentence(rng: random.Random, low: int = 3, high: int = 12, end: str = ".") -> str:
    """Some invented words with a capital and a full stop."""
    text = phrase(rng, low, high)
    return text[0].upper() + text[1:] + end


def _arc(rng: random.Random, number: int) -> Record:
    count = (4, 3, 5, 4)[number % 4]
    labels = list("12345" if number % 3 == 2 else "ABCDE")[:count]
    choices = {"text": [phrase(rng, 1, 6) for _ in labels], "label": labels}
    question = sentence(rng, 4, 14, "?")
    return {"id": f"Q{number}", "question": question, "choices": choices, "answerKey": rng.choice(labels)}


def _boolq(rng: random.Random, number: int) -> Record:
    passage = " ".join(sentence(rng) for _ in range(1 + number % 3))
    return {"question": phrase(rng, 3, 8), "passage": passage, "idx": number, "label": number % 2}


def _gsm8k(rng: random.Random, number: int) -> Record:
    return {"question": sentence(rng, 5, 12, "?"), "answer": f"{sentence(rng)}\n#### {number * 7:,}"}


def _hellaswag(rng: random.Random, number: int) -> Record:
    steps = " [title] ".join(sentence(rng, 3, 6) for _ in range(1 + number % 3))
    endings = [phrase(rng, 2, 8) + rng.choice((".", "  [step] again.", "")) for _ in range(4)]
    return {
        "ind": number,
        "activity_label": phrase(rng, 1, 3),
        "ctx_a": f"[header] How to {steps}" if number % 2 else steps,
        "ctx_b": ("", "the CLERK then", "she")[number % 3],
        "endings": endings,
        "label": str(rng.randrange(4)),
    }


def _lambada(rng: random.Random, number: int) -> Record:
    return {"text": f"{sentence(rng)} {sentence(rng)}\n“{phrase(rng, 2, 5)} the {LAST[number % len(LAST)]}"}


def _logiqa(rng: random.Random, number: int) -> Record:
    return {
        "label": rng.choice(("a", "b", "c", "d")) + ("\n" if number % 4 == 1 else ""),
        "context": sentence(rng, 5, 15),
        "question": sentence(rng, 3, 8, "?"),
        "options": [phrase(rng, 2, 7) for _ in range(4)],
    }


def _mmlu(rng: random.Random, number: int) -> Record:
    question = (" " if number % 2 else "") + sentence(rng, 2, 5, "?\n" if number % 3 else "?")
    choices = [str(rng.randrange(100)), *(phrase(rng, 1, 2) for _ in range(3))]
    return {"question": question, "subject": "", "choices": choices, "answer": rng.randrange(4)}


def _pair(first: str, second: str, labels: int) -> Callable[[random.Random, int], Record]:
    def make(rng: random.Random, number: int) -> Record:
        end = ("", ".", "?", " . ")[number % 4]
        texts = {first: sentence(rng), second: sentence(rng, 2, 9, end)}
        return {**texts, "label": number % labels, "idx": number}

    return make


def _piqa(rng: random.Random, number: int) -> Record:
    goal = sentence(rng, 2, 8, ("", "?", ":")[number % 3])
    return {"goal": goal, "sol1": sentence(rng), "sol2": sentence(rng), "label": rng.randrange(2)}


def _sciq(rng: random.Random, number: int) -> Record:
    answers = {f"distractor{i}": phrase(rng, 1, 3) for i in (3, 1, 2)}
    support = ("", f" \n{sentence(rng)}", sentence(rng) + " ")[number % 3]
    return {
        "question": sentence(rng, 3, 9, "?"),
        **answers,
        "correct_answer": phrase(rng, 1, 3),
        "support": support,
    }


def _sst2(rng: random.Random, number: int) -> Record:
    return {"sentence": phrase(rng, 2, 12) + (" ", "", " !")[number % 3], "label": number % 2, "idx": number}


def _truthful(rng: random.Random, number: int) -> Record:
    targets = {}
    for kind, right in (("mc1_targets", 1), ("mc2_targets", 1 + number % 3)):
        count = right + rng.randint(1, 4)
        choices = [sentence(rng, 2, 6) for _ in range(count)]
        targets[kind] = {"choices": choices, "labels": [1] * right + [0] * (count - right)}
    return {"question": sentence(rng, 3, 9, "?"), **targets}


def _wikitext(rng: random.Random, number: int) -> Record:
    lines = [f" = {phrase(rng, 1, 3)} = \n"]
    for _ in range(2 + 3 * (number % 3)):
        lines.append(
            f" {phrase(rng, 4, 12)} , 19 @-@ 20 and 1 @,@ 000 or 2 @.@ 5 ( {phrase(rng, 1, 3)} ) . \n"
        )
        lines.append(f" = = {phrase(rng, 1, 2)} = = \n The ship 's ' {phrase(rng, 1, 3)} ' ; N : 3 ° \n")
    return {"page": "".join(lines)}


def _winogrande(rng: random.Random, number: int) -> Record:
    end = f" {phrase(rng, 2, 6)}." if number % 3 else "."
    options = rng.sample(NAMES, 2)
    return {
        "sentence": f"{sentence(rng)} {phrase(rng, 2, 6)} _{end}",
        "option1": options[0],
        "option2": options[1],
        "answer": str(1 + number % 2),
    }


def _wsc(rng: random.Random, number: int) -> Record:
    before = f"{NAMES[number % 4]} {phrase(rng, 3, 8)} , because".split()
    pronoun = ("he", "she", "it", "their")[number % 4]
    text = " ".join([*before, pronoun, f"{phrase(rng, 2, 6)} ."])
    return {
        "text": text,
        "span1_index": 0,
        "span1_text": before[0],
        "span2_index": len(before),
        "span2_text": pronoun,
        "label": number % 2,
        "idx": number,
    }


def _wsc273(rng: random.Random, number: int) -> Record:
    """Pronouns of all kinds: in the middle and at the beginning of a sentence, possessive ones too."""
    pronoun, begins = (("he", False), ("his", False), ("They", True), ("Her", True), ("it", False))[
        number % 5
    ]
    before = sentence(rng, 3, 8, ". " if begins else " because ")
    options = ["The clerk", "Ada"] if number % 2 else ["An old ship", "The ladder"]
    text = f"{before}{pronoun} {phrase(rng, 1, 3)}  {sentence(rng, 2, 5)}"
    return {
        "text": text,
        "pronoun": pronoun,
        "pronoun_loc": len(before),
        "quote": "",
        "quote_loc": 0,
        "options": options,
        "label": number % 2,
        "source": "invented",
    }


def _partial(hub: Record) -> Record:
    """Of the hub's record, with the options put into the sentence by rules that are written down here again."""
    before, after = hub["text"][: hub["pronoun_loc"]], hub["text"][hub["pronoun_loc"] + len(hub["pronoun"]) :]
    options = []
    for option in hub["options"]:
        ending = "'s" if hub["pronoun"].lower() in ("his", "her") else ""
        begins_sentence = before.endswith(". ")
        article = option.startswith(("The ", "An "))
        options.append(
            (option[0].lower() + option[1:] if article and not begins_sentence else option) + ending
        )
    return {
        "context_options": [before + option for option in options],
        "continuation": after.strip().replace("  ", " "),
        "gold": hub["label"],
    }


def _glue(name: str, make: Callable[[random.Random, int], Record], validation: str = "validation") -> Layout:
    return Layout(("nyu-mll/glue", name), f"glue/{name}", make, ("train", validation))


THREE = ("train", "validation", "test")
LAMBADA = Layout(("EleutherAI/lambada_openai", "default"), "lambada_openai", _lambada, ("test",))
LAYOUTS: dict[str, Layout] = {
    "arc_easy": Layout(("allenai/ai2_arc", "ARC-Easy"), "ai2_arc/ARC-Easy", _arc, THREE),
    "arc_challenge": Layout(("allenai/ai2_arc", "ARC-Challenge"), "ai2_arc/ARC-Challenge", _arc, THREE),
    "boolq": Layout(("aps/super_glue", "boolq"), "boolq", _boolq),
    "gsm8k": Layout(("openai/gsm8k", "main"), "gsm8k", _gsm8k, ("train", "test")),
    "hellaswag": Layout(("Rowan/hellaswag", None), "hellaswag", _hellaswag),
    "lambada_generate": LAMBADA,
    "lambada_openai": LAMBADA,
    "logiqa": Layout(("EleutherAI/logiqa", "logiqa"), "logiqa", _logiqa, THREE),
    "mnli": _glue("mnli", _pair("premise", "hypothesis", 3), "validation_matched"),
    "mrpc": _glue("mrpc", _pair("sentence1", "sentence2", 2)),
    "piqa": Layout(("baber/piqa", None), "piqa", _piqa),
    "qnli": _glue("qnli", _pair("question", "sentence", 2)),
    "rte": _glue("rte", _pair("sentence1", "sentence2", 2)),
    "sciq": Layout(("allenai/sciq", None), "sciq", _sciq, THREE),
    "sst2": _glue("sst2", _sst2),
    "truthfulqa_mc1": Layout(
        ("truthfulqa/truthful_qa", "multiple_choice"),
        "truthful_qa/multiple_choice",
        _truthful,
        ("validation",),
    ),
    "truthfulqa_mc2": Layout(
        ("truthfulqa/truthful_qa", "multiple_choice"),
        "truthful_qa/multiple_choice",
        _truthful,
        ("validation",),
    ),
    "wikitext": Layout(
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"), "wikitext2", _wikitext, THREE
    ),
    "winogrande": Layout(("allenai/winogrande", "winogrande_xl"), "winogrande", _winogrande),
    "wnli": _glue("wnli", _pair("sentence1", "sentence2", 2)),
    "wsc": Layout(("aps/super_glue", "wsc.fixed"), "super_glue/wsc.fixed", _wsc),
    "mmlu": Layout(("cais/mmlu", None), "mmlu", _mmlu, ("test", "dev")),
    "wsc273": Layout(
        ("lighteval/winograd_wsc", "wsc273"),
        "wsc273",
        _wsc273,
        ("test",),
        _partial,
        "test_partial_evaluation",
    ),
}


def hub_records(name: str, split: str, count: int = 6) -> list[Record]:
    """A task's items as the hub has them; of MMLU, of all subjects."""
    layout = LAYOUTS[name]
    if name == "mmlu":
        return [record for subject in SUBJECTS + OTHER_SUBJECTS for record in _subject(subject, split, count)]
    rng = random.Random(f"{layout.folder}/{split}")
    return [layout.make(rng, number) for number in range(count)]


def local_records(name: str, split: str, count: int = 6) -> list[Record]:
    """The same items as we have them."""
    return [LAYOUTS[name].local(record) for record in hub_records(name, split, count)]


def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Stands where the harness calls `datasets.load_dataset`."""
    for task, layout in LAYOUTS.items():
        if task == "mmlu" and path == layout.hub[0] and name is not None:
            found = {split: _subject(name, split, 6) for split in layout.splits}
        elif (path, name) == layout.hub:
            found = {split: hub_records(task, split) for split in layout.splits}
        else:
            continue
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in found.items()}
        )
    raise AssertionError(f"the harness asks for a data set {path}, {name}")


def write_items(
    folder: Path, names: Iterable[str] = LAYOUTS, *, splits: Iterable[str] | None = None, count: int = 6
) -> Path:
    """Files of the tasks of these names, all splits or some; every other task's are compressed."""
    chosen = None if splits is None else set(splits)
    for number, name in enumerate(names):
        layout = LAYOUTS[name]
        for split in layout.splits:
            if chosen is None or split in chosen:
                path = folder / layout.folder / f"{layout.stem or split}.jsonl{'.xz' if number % 2 else ''}"
                write_lines(path, local_records(name, split, count))
    return folder


def write_lines(path: Path, records: Iterable[Record]) -> Path:
    """One record a line, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


def make_tokenizer(folder: Path, vocabulary: int = 600) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer that was trained on the items."""
    tokenizers.train(_texts(), vocabulary, folder)
    return AutoTokenizer.from_pretrained(folder)


def make_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: type[PreTrainedModel] = GPT2LMHeadModel,
    seed: int = 18,
    layers: int = 2,
    context: int = 512,
) -> PreTrainedModel:
    """A GPT-2 with weights large enough for opinions of its own, and that likes some of the answers."""
    import torch

    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=32,
        n_layer=layers,
        n_head=2,
        initializer_range=0.2,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = kind(config).eval()
    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
        for word in ANSWERS:
            (token,) = tokenizer.encode(f" {word}")
            model.lm_head.weight[token] += direction
        model.transformer.ln_f.bias += 6 * direction
    return model


def _subject(subject: str, split: str, count: int) -> list[Record]:
    rng = random.Random(f"mmlu/{subject}/{split}")
    number = 6 if split == "dev" else count if subject in SUBJECTS else 1
    return [{**_mmlu(rng, i), "subject": subject} for i in range(number)]


def _texts() -> Iterator[str]:
    for name, layout in LAYOUTS.items():
        for split in layout.splits:
            if name in ("mmlu", "gsm8k", "lambada_generate"):
                continue
            for record in local_records(name, split):
                yield json.dumps(record, ensure_ascii=False)
    yield from [f"Question: ?\nAnswer: {word}" for word in ANSWERS] * 100
